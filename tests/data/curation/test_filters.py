import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.data.curation import filters

PROSE = (
    "The committee met on a cold morning and talked at length about the bridge, which had been closed since the flood. "
    "Some wanted it mended before winter; others thought that a ferry would do, as it had done for their grandparents. "
    "Nobody mentioned money until the mayor, who had been drawing small boats in the margin of his notes, asked who "
    "would pay. After that the talk went quickly: they would ask the county, and if the county refused, they would "
    "ask again in spring. A clerk wrote everything down, folded the sheet twice, and put it under the lamp."
)
CHINESE = (
    "委员会在一个寒冷的早晨开会,讨论了自洪水以来一直关闭的桥梁。有人希望在冬天之前修好它;另一些人则认为渡船就够了,"
    "就像他们祖父母那一代那样。直到镇长问谁来付钱,才有人提到经费。之后谈话很快结束:他们会向县里申请,如果被拒绝,春天再试一次。"
)
HINDI = (
    "समिति एक ठंडी सुबह मिली और उस पुल के बारे में देर तक बात करती रही जो बाढ़ के बाद से बंद था। कुछ लोग चाहते थे कि सर्दी से पहले "
    "उसकी मरम्मत हो जाए, दूसरों ने सोचा कि नाव से काम चल जाएगा जैसे उनके दादा-दादी के समय में चलता था। पैसे की बात किसी ने नहीं "
    "की जब तक मेयर ने यह नहीं पूछा कि खर्च कौन उठाएगा। उसके बाद बात जल्दी निपट गई और सब घर चले गए।"
)
ALL = (*filters.gopher_filters(), filters.CompressedSize())


@pytest.mark.parametrize("text", [PROSE, CHINESE, HINDI])
@pytest.mark.parametrize("rule", ALL, ids=lambda rule: type(rule).__name__)
def test_prose_of_any_script_stays(rule, text):
    assert rule(text) is None


LINES = [f"line number {number} of a list" for number in range(10)]


@pytest.mark.parametrize(
    ("rule", "bad", "reason"),
    [
        (filters.Length(), "too short", "few words"),
        (filters.Length(1, 3), "a b c d", "many words"),
        (filters.Length(None, None, 10), "123456789", "few characters"),
        (filters.Length(None, None, None, 8), "123456789", "many characters"),
        (filters.MeanWordLength(), "a b c d e f", "few characters a word"),
        (filters.MeanWordLength(), "incomprehensibilities " * 3, "many characters a word"),
        (filters.SymbolsPerWord(), "#one #two three four", "symbols for words"),
        (filters.SymbolsPerWord(), "one... two… three four", "symbols for words"),
        (filters.EllipsisLines(), "read more...\nand on\nand more…", "lines ending in an ellipsis"),
        (filters.BulletLines(), "- one\n* two\n• three", "lines beginning with a bullet"),
        (filters.LetterShare(), "12.5 13.7 abc 99.1 | 17", "few letters"),
        (filters.LetterShare(), "１２ ３４ दो ५६ ७८ ९०", "few letters"),
        (filters.RepeatedLines(), "\n".join(LINES[:6] + LINES[:4]), "repeated lines"),
        (filters.RepeatedLines(), "\n".join([*"abcdefghij", PROSE, PROSE]), "repeated lines"),
        (filters.RepeatedParagraphs(), "one\n\ntwo\n \none\n\ntwo", "repeated paragraphs"),
        (filters.TopNgrams(), "buy now and buy now or buy now", "frequent n-gram"),
        (filters.RepeatedNgrams(), " ".join([PROSE[:200], PROSE[:200]]), "repeated n-grams"),
        (filters.CompressedSize(), "la " * 1000, "few bytes after compression"),
    ],
)
def test_each_rule_catches_what_it_is_for(rule, bad, reason):
    assert rule(bad) == reason


def test_shares_by_hand():
    # 10 lines, 3 of them repetitions: not above 30 %; of the characters 3 of 10.
    text = "\n".join("aaaabcdefg")
    assert filters.RepeatedLines(most_characters=1)(text) is None
    assert filters.RepeatedLines(most=0.29, most_characters=1)(text) == "repeated lines"
    assert filters.RepeatedLines(most=1, most_characters=0.3)(text) is None
    assert filters.RepeatedLines(most=1, most_characters=0.29)(text) == "repeated lines"
    # Of 21 characters, "a b" three times covers 6.
    text = "a b c a b d a b e ffffffffffff"
    assert filters.TopNgrams((2,), (6 / 21,))(text) is None
    assert filters.TopNgrams((2,), (6 / 21 - 1e-9,))(text) == "frequent n-gram"
    # The second "a b c d" covers 4 of 9 characters; its 3-grams overlap and count once.
    text = "a b c d x a b c d"
    assert filters.RepeatedNgrams((3,), (4 / 9,))(text) is None
    assert filters.RepeatedNgrams((3,), (4 / 9 - 1e-9,))(text) == "repeated n-grams"
    # Five different words repeat nothing.
    assert filters.TopNgrams()("one two three four five") is None


def test_token_length():
    rule = filters.TokenLength(2, 3)
    assert [rule(np.arange(n)) for n in (1, 2, 3, 4)] == ["few tokens", None, None, "many tokens"]


@given(st.text(max_size=300))
def test_no_text_breaks_a_rule(text):
    for rule in ALL:
        reason = rule(text)
        assert reason is None or (isinstance(reason, str) and reason)


@pytest.mark.parametrize("rule", [*ALL, filters.TokenLength()], ids=lambda rule: type(rule).__name__)
def test_rules_travel_and_describe_themselves(rule):
    assert pickle.loads(pickle.dumps(rule)) == rule
    described = rule.describe()
    assert described["filter"] == type(rule).__name__
    # Compared with what a manifest holds.
    assert json.loads(json.dumps(described)) == described
