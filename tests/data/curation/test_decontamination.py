import json
import pickle

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data.curation.decontamination import PALM_RULE, Decontamination, OverlapRule

QUESTION = "A train leaves Ghent at nine and travels eighty kilometres an hour; how far has it come by noon?"
OTHER = "Which of these rivers, counted from the north, is the third to reach the sea in the province of Zeeland?"
FILLER = "Something else entirely stands here and has nothing to do with any question that was ever asked. "


def make(rule=None, **texts):
    return Decontamination.from_texts(texts or {"trains": [QUESTION], "rivers": [OTHER, "Yes."]}, rule)


def test_thirteen_words_in_common_are_an_overlap():
    rule = make()
    words = QUESTION.split()
    assert rule(FILLER * 20) is None
    assert rule(FILLER + QUESTION + FILLER) == "overlap with trains"
    assert rule(FILLER + OTHER) == "overlap with rivers"
    assert rule(FILLER + " ".join(words[3:16]) + " " + FILLER) == "overlap with trains"
    assert rule(FILLER + " ".join(words[3:15]) + " " + FILLER) is None
    assert rule("") is None


def test_case_punctuation_and_line_breaks_do_not_hide_it():
    hidden = "\n".join(QUESTION.upper().replace(";", " -- ").split())
    assert make()(FILLER + hidden) == "overlap with trains"


def test_palm_asks_for_a_share_of_a_text():
    rule = make(PALM_RULE)
    words = QUESTION.split()  # 19 words: 12 n-grams of 8, of which 9 are needed.
    assert len(words) == 19
    assert rule(" ".join(words[:16])) == "overlap with trains"
    assert rule(" ".join(words[:15])) is None
    # Eight n-grams, however often, are eight.
    assert rule(" ".join(words[:15] * 3)) is None


def test_two_texts_may_share_an_ngram():
    rule = make(OverlapRule(8, share=1.0), first=[QUESTION], second=[QUESTION + " And by one?"])
    assert rule(QUESTION) == "overlap with first"
    alone = make(OverlapRule(8, share=1.0), second=[QUESTION + " And by one?"])
    assert alone(QUESTION) is None
    assert alone(QUESTION + " and by one") == "overlap with second"


def test_short_texts_match_whole_or_are_counted():
    rule = make(quiz=["one two three four five six seven eight nine", "one two three"])
    assert rule("zero one two three four five six seven eight nine ten") == "overlap with quiz"
    assert rule("one two three four five six seven eight") is None
    assert rule("one two three") is None
    described = rule.describe()
    assert described["texts"] == {"quiz": 1}
    assert described["texts_too_short"] == {"quiz": 1}


def test_scripts_without_spaces():
    text = "委员会在一个寒冷的早晨开会讨论了桥梁"
    assert make(han=[text])("他说" + text[2:16] + "了") == "overlap with han"


def test_an_index_of_short_texts_alone_matches_nothing():
    assert make(quiz=["Yes.", "No."])(FILLER) is None


def test_a_task_without_texts_is_an_error():
    with pytest.raises(UserError, match="'empty' has no texts"):
        make(trains=[QUESTION], empty=[])
    with pytest.raises(UserError, match="least_words"):
        OverlapRule(ngram=5)


def test_it_travels_and_describes_itself():
    rule = make()
    copy = pickle.loads(pickle.dumps(rule))
    assert copy(QUESTION) == "overlap with trains"
    assert copy.describe() == rule.describe() == json.loads(json.dumps(rule.describe()))
    assert make(trains=[OTHER], rivers=[QUESTION]).describe()["index"] != rule.describe()["index"]
    assert all(np.all(np.diff(grams.astype(object)) >= 0) for grams in rule.grams)
