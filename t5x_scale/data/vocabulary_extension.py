"""Tokenizers that grow: control tokens behind the last id, in every file that a tokenizer is written in.

No encoding changes: text never turns into the new tokens, and every id keeps its piece. A directory may hold the same
tokenizer twice, as `tokenizer.model` (SentencePiece) and `tokenizer.json` (Hugging Face); both get the same ids. Where
one of them has ids that the other lacks, as after a token was added to one alone, the other is filled up first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from t5x_scale.core.errors import UserError
from t5x_scale.data.tokenizer_tables import AddedToken, JsonTokenizer, SentencePieceModel, SideFiles
from t5x_scale.data.vocabulary import CONFIG_FILE, JSON_FILE, MODEL_FILE, vocabulary_from_files
from t5x_scale.data.vocabulary_codecs import SPACE


def extend_tokenizer(files: Mapping[str, bytes], names: Sequence[str]) -> tuple[dict[str, bytes], dict[str, int]]:
    """Adds control tokens to a tokenizer.

    Args:
      files: of the tokenizer, by name: `tokenizer.model`, `tokenizer.json` or both, and what stands beside them.
      names: of the tokens, in the order of their ids. One that is there already keeps its id.

    Returns:
      All files, of which those that did not change are the same bytes, and the id of each name. New ids follow the
      highest id of any file without a gap, so a name whose id is below the old size was there before.

    Raises:
      UserError: there is no tokenizer, its files contradict each other, or a name is a piece of text already.
    """
    _check_names(names)
    if MODEL_FILE not in files and JSON_FILE not in files:
        raise UserError(f"no tokenizer to extend: neither {MODEL_FILE} nor {JSON_FILE} is there")
    model = SentencePieceModel(files[MODEL_FILE]) if MODEL_FILE in files else None
    table = JsonTokenizer(files[JSON_FILE]) if JSON_FILE in files else None
    beside = SideFiles(files)
    parts = [part for part in (model, table) if part is not None]
    _check_agreement(model, table)
    added = beside.tokens() | (table.added if table else {})
    size = max([part.size for part in parts] + [index + 1 for index in added])
    for part in parts:
        for token in _missing_tokens(part.size, size, added, parts):
            part.append(token)
    _check_agreement(model, table)
    ids: dict[str, int] = {}
    for name in names:
        found = _find_control(name, model, table)
        ids[name] = index = size if found is None else found
        size = max(size, index + 1)
        for part in parts:
            part.add(AddedToken(index, name))
        beside.add(AddedToken(index, name))
    result = dict(files) | beside.content()
    result |= {MODEL_FILE: model.content()} if model else {}
    result |= {JSON_FILE: table.content()} if table else {}
    _check_result(result, ids, size)
    return result, ids


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not name or any(character.isspace() or character == SPACE for character in name):
            raise UserError(f"{name!r} is no name for a control token: it is empty or holds white space")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"the control token '{twice}' is asked for twice")


def _check_agreement(model: SentencePieceModel | None, table: JsonTokenizer | None) -> None:
    if model is None or table is None:
        return
    for index in range(min(model.size, table.size)):
        one, other = model.piece(index), table.piece(index)
        if one != other and (other is None or one.replace(SPACE, " ") != other):
            raise UserError(
                f"id {index} is {one!r} in {MODEL_FILE} and {other!r} in {JSON_FILE}: they are two tokenizers; "
                "leave out the one that the model was not trained with"
            )


def _find_control(name: str, model: SentencePieceModel | None, table: JsonTokenizer | None) -> int | None:
    found = model.find_control(name) if model else None
    return found if table is None else table.find_control(name, trusted=found is not None)


def _missing_tokens(
    start: int, stop: int, added: Mapping[int, AddedToken], parts: Sequence[SentencePieceModel | JsonTokenizer]
) -> Iterator[AddedToken]:
    """What stands at the ids that one file lacks, as the others have it."""
    for index in range(start, stop):
        known = [part.token(index) for part in parts if index < part.size]
        yield added.get(index) or next(
            (token for token in known if token), AddedToken(index, f"<unused_{index}>", False)
        )


def _check_result(files: Mapping[str, bytes], ids: Mapping[str, int], size: int) -> None:
    for name in (MODEL_FILE, JSON_FILE):
        if name not in files:
            continue
        others = {CONFIG_FILE: files[CONFIG_FILE]} if CONFIG_FILE in files else {}
        vocabulary = vocabulary_from_files({name: files[name], **others}, f"the extended {name}")
        wrong = [token for token, index in ids.items() if vocabulary.control_id(token) != index]
        if wrong or vocabulary.size != size:
            token = wrong[0] if wrong else vocabulary.piece(vocabulary.size - 1)
            raise UserError(
                f"{name} cannot be extended: it has {vocabulary.size} ids where {size} are wanted, and '{token}' is "
                f"{vocabulary.control_id(token)}, not {ids.get(token)}; its ids have gaps"
            )
