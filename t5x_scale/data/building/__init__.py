"""Building a token store of any size: units of the source, parts made of them by all cores or a cluster, assembly.

    records --make_units--> units --process--> parts (files) --assemble--> store

`interface` says what a source, a filter and a search for duplicates are; `units`, `work`, `parts` and `assembly`
know no process but their own, so that a cluster can run them; `pool` and `build` run them on this machine.
"""
