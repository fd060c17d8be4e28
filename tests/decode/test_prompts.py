"""What a completion begins with. (Files of prompts: tests/commands/test_infer.py.)"""

import types

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.decode.prompts import encode_prompts

BYTES = load_vocabulary("bytes")


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, []),
        ({"begin": "eod"}, [BYTES.eod_id]),
        ({"begin": "bos"}, [BYTES.bos_id]),
        ({"mode": "[NLG]"}, [BYTES.mode_token_id("[NLG]")]),
        ({"begin": "bos", "mode": "[S2S]"}, [BYTES.bos_id, BYTES.mode_token_id("[S2S]")]),
    ],
)
def test_beginnings(options, start):
    empty, text = encode_prompts(["", "[eod]é"], BYTES, **options)
    assert text == start + BYTES.encode("[eod]é")
    # Texts begin after the end of a document.
    assert empty == (start or [BYTES.eod_id])


def test_a_vocabulary_without_a_token_to_begin_with():
    vocabulary = types.SimpleNamespace(
        spec="v", eod_id=None, bos_id=None, encode_batch=lambda texts: [[] for _ in texts]
    )
    with pytest.raises(UserError, match="vocabulary 'v' has no token eod or bos"):
        encode_prompts([""], vocabulary)
    vocabulary.bos_id = 3
    assert encode_prompts([""], vocabulary) == [[3]]
    with pytest.raises(UserError, match="no token eod to begin"):
        encode_prompts([""], vocabulary, begin="eod")
