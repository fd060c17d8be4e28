"""What people see of completions while they are made, and what is kept of them."""

import io
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.decode.generation import Piece
from t5x_scale.decode.transcript import Transcript

BYTES = load_vocabulary("bytes")


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _transcript(texts, out):
    return Transcript(texts, [BYTES.encode(text) for text in texts], BYTES, out)


def test_one_completion_is_live():
    out = io.StringIO()
    transcript = _transcript(["def "], out)
    seen = []
    for text, finish in (("f", None), ("(x", None), (")", "end_of_text")):
        transcript.add(Piece(0, BYTES.encode(text), -1.0, finish))
        seen.append(out.getvalue())
    assert seen == ["def f", "def f(x", "def f(x)\n"]
    (record,) = map(json.loads, transcript.to_jsonl().splitlines())
    assert record == {
        "prompt": "def ",
        "completion": "f(x)",
        "tokens": BYTES.encode("f(x)"),
        "finish_reason": "end_of_text",
        "log_probability": -3.0,
    }


@settings(max_examples=50, deadline=None)
@given(st.permutations([0, 0, 0, 1, 1, 1, 2, 2, 2]))
def test_the_order_is_that_of_the_prompts_whoever_is_first(rows):
    out = io.StringIO()
    transcript = _transcript(["a", "b", "c"], out)
    tokens = [BYTES.encode(text) for text in ("你", "éx", "\U0001f600")]
    turns = [0, 0, 0]
    for row in rows:
        new = tokens[row][turns[row] : turns[row] + 1] if turns[row] < 2 else tokens[row][2:]
        turns[row] += 1
        transcript.add(Piece(row, new, 0.0, "max_new_tokens" if turns[row] == 3 else None))
    assert out.getvalue() == ("--- 1 of 3 ---\na你\n\n--- 2 of 3 ---\nbéx\n\n--- 3 of 3 ---\nc\U0001f600\n")
    assert transcript.num_tokens == 10


def test_half_a_character_at_the_end_is_said_so():
    out = io.StringIO()
    transcript = _transcript(["a"], out)
    transcript.add(Piece(0, BYTES.encode("你")[:2], 0.0, "max_new_tokens"))
    assert out.getvalue() == "a\ufffd\n"
    assert transcript.records()[0]["completion"] == "\ufffd"


def test_a_terminal_is_not_steered():
    out, terminal = io.StringIO(), _Terminal()
    for target in (out, terminal):
        _transcript(["a"], target).add(Piece(0, BYTES.encode("\x1b[2J\tb\n\x7f"), 0.0, "end_of_text"))
    assert out.getvalue() == "a\x1b[2J\tb\n\x7f\n"
    assert terminal.getvalue() == "a\u241b[2J\tb\n\u2421\n"


def test_an_output_of_another_encoding():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", newline="")
    _transcript(["a"], out).add(Piece(0, BYTES.encode("é"), 0.0, "end_of_text"))
    assert raw.getvalue() == b"a?\n"
