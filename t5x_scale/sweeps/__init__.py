"""Sweeps: a grid of runs trained one after another, their figures as rows, and laws fitted to these.

grid.py    a file that says what varies -> runs, each with its gin files and settings
pool.py    trains them in a few processes (worker.py), and goes on where it was stopped
rows.py    a run -> its quantities by the names of the laws
tables.py  runs, sweeps and tables of one's own -> rows, and what a law is fitted to
fits.py    laws -> constants with intervals, an error on rows kept away, the JSON that `plan --laws` reads
plots.py   what was observed and what the law says
"""
