"""Shares the toy models of surgery's tests and the small tokenizers."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "surgery"), str(TESTS / "fakes")]
