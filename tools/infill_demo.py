"""`make infill-demo`: what UL2R is for. A causal model learns to use what stands behind a hole.

A small PaLM of bytes, pretrained for it (gin/runs/infill_demo/base.gin), is taken on at equal steps by plain
continuation and by UL2R with its spans in place, and asked what `make continue-demo` asks (tools/continue_demo.py): the
causal loss, and held-out spans given both sides or the left one only.
Leaves runs/infill_demo/ with the runs, table.txt and results.json. Every line it prints with $ is the command line's.
"""

from __future__ import annotations

import pathlib

from continue_demo import Comparison, main

ROOT = pathlib.Path("runs/infill_demo")
INFILL_DEMO = Comparison(
    files="gin/runs/infill_demo",
    root=ROOT,
    base=ROOT / "base",
    base_file="gin/runs/infill_demo/base.gin",
    base_title="the model of bytes, before",
    arms={"plain": "(a) plain continuation", "ul2r": "(b) UL2R, spans in place"},
    infilling=("ul2r",),
    in_place=("ul2r",),
)


if __name__ == "__main__":
    main(INFILL_DEMO)
