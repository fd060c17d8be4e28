"""What `precompile` is made of: an assumed run, memory, advice and the search for the fastest step that fits."""
