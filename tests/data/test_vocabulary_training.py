import pathlib
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.data.vocabulary_training import NUM_RESERVED, split_into_chunks, train_vocabulary


def make_texts():
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(2, 7))) for _ in range(400)]
    word = lambda: rng.choice(words)  # noqa: E731
    return [f"def {word()}({word()}):\n    return {word()} * {i}\n\n\tcaf\u00e9 {word()}.\n" for i in range(1000)]


TEXTS = make_texts()


def load(model, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model)
    return load_vocabulary(str(path))


def test_is_deterministic_and_follows_the_rules(tmp_path):
    model = train_vocabulary(iter(TEXTS), 768)
    assert train_vocabulary(iter(TEXTS), 768) == model
    vocabulary = load(model, tmp_path)
    assert vocabulary.size == 768
    assert vocabulary.num_sentinels == 256
    assert vocabulary.sentinel_id(0) == 7
    assert vocabulary.encode("\0") == [263]
    assert vocabulary.piece(518) == "<0xFF>"
    pieces = [vocabulary.piece(i) for i in range(NUM_RESERVED, vocabulary.size)]
    assert not [piece for piece in pieces if any(c.isdigit() for c in piece) and len(piece) > 1]
    assert "\n" in pieces
    text = "  a\n\n\tb 42 \u4e2d\r\n "
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_reads_no_more_than_asked():
    def texts():
        yield from TEXTS
        raise AssertionError("read on")

    assert train_vocabulary(texts(), 588, max_characters=sum(map(len, TEXTS[:900])))


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 608, "no text"),
        (["\t\0"], 608, "no text"),
        (["too little"], 4000, "cannot train a vocabulary of 4000: Vocabulary size too high"),
        (TEXTS, NUM_RESERVED, "too small"),
    ],
)
def test_refuses(texts, size, message):
    with pytest.raises(UserError, match=message) as caught:
        train_vocabulary(iter(texts), size)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="ab \n\t\0\u2581", max_size=40).map(lambda text: text * 200))
def test_chunks_are_the_text_without_the_trainers_marks(text):
    chunks = list(split_into_chunks(text))
    assert "".join(chunks) == "".join(c for c in text if c not in "\t\0\u2581")
    assert all(0 < len(chunk) <= 2000 for chunk in chunks)


def run_tool(*arguments):
    tool = pathlib.Path(__file__).parents[2] / "tools" / "train_vocabulary.py"
    return subprocess.run([sys.executable, tool, *arguments], capture_output=True, text=True)


def test_tool_trains_from_files(tmp_path):
    for part in range(2):
        (tmp_path / f"part{part}.txt").write_text("".join(TEXTS[part::2]))
    result = run_tool("--size=640", f"--files={tmp_path}/part*.txt", f"--output={tmp_path}/new")
    assert result.returncode == 0, result.stderr
    assert load_vocabulary(str(tmp_path / "new")).size == 640


def test_tool_says_what_is_missing(tmp_path):
    result = run_tool("--size=640", f"--files={tmp_path}/absent*.txt", f"--output={tmp_path}/new")
    assert result.returncode == 1
    assert result.stderr == f"error: no file matches {tmp_path}/absent*.txt\n"
    assert not (tmp_path / "new" / "tokenizer.model").exists()
