"""Sweeps: a grid of runs trained one after another, their figures as rows, and laws fitted to these.

grid.py      a file that says what varies, and its points
jobs.py      a point -> a run: gin files of the planner, settings, whether it is done
pool.py      trains runs in a few processes (worker.py), shows how far they are (progress.py), goes on when stopped
run.py       a sweep from its file to its rows
rows.py      a run -> its quantities by the names of the laws
tables.py    runs, sweeps and tables of one's own -> rows, and what of them a law is fitted to
fits.py      a law -> constants with intervals, an error on rows kept away, the record that `plan --laws` reads
plots.py     what was observed, and what the law says
findings.py  which shapes came out
"""
