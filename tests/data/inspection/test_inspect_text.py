import numpy as np
import pytest

from t5x_scale.data.inspection.text import ranges, shorten, visible
from t5x_scale.data.vocabulary import load_vocabulary


@pytest.mark.parametrize("name", ["bytes", "stdlib_8k"])
def test_controls_show_and_text_is_one_line(name):
    vocabulary = load_vocabulary(name)
    ids = [
        vocabulary.mode_token_id("[S2S]"),
        *vocabulary.encode("a\n\tbé\x00"),
        vocabulary.sentinel_id(0),
        vocabulary.eod_id,
        *[vocabulary.sentinel_id(3)] * 7,
    ]
    assert visible(np.array(ids), vocabulary) == "[S2S]a\\n\\tbé\\x00<extra_id_0>[eod]<extra_id_3>×7"


def test_the_middle_of_a_long_text_is_left_out():
    assert shorten("abcdefghi", 9) == "abcdefghi"
    assert shorten("abcdefghij", 9) == "abcdef […1 characters…] hij"


def test_ranges():
    assert ranges(np.array([0, 1, 2, 5, 7, 8])) == "0-2, 5, 7-8"
    assert ranges(np.arange(0, 20, 2), limit=3) == "0, 2, 4 and 7 more ranges"
    assert ranges(np.array([], int)) == "none"
