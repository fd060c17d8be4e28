"""Finding gin files, named on the command line or in an `include`, by one search.

In order: the working directory, `--gin_search_paths`, the checkout that holds the package, the installed data.
An absolute or `gs://` path is taken as it is.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from t5x_scale.config.nearest import hint
from t5x_scale.core.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# The repository's gin/ is installed under this name inside the package (see setup.py).
_INSTALLED = "gin_files"


class GinFile(NamedTuple):
    """A gin file that was found: how messages call it, what identifies it, and its content."""

    name: str
    identity: str
    text: str


def gin_roots(package: pathlib.Path = _PACKAGE) -> list[pathlib.Path]:
    """The directories that stand for the repository's `gin/`: the checkout's, then the installed one."""
    checkout = package.parent / "gin"
    # Beside an installed package lies gin-config's own package of that name; ours holds no Python.
    roots = [] if (checkout / "__init__.py").exists() else [checkout]
    return [path for path in (*roots, package / _INSTALLED) if path.is_dir()]


def find_gin_file(path: str, search_paths: Sequence[str] = (), wanted_by: str = "") -> GinFile:
    """Finds and reads a gin file.

    Args:
      path: absolute, `gs://…`, or relative to one of the places searched. `gin/runs/a.gin` and `runs/a.gin` both
        name the file `runs/a.gin` that comes with the package.
      search_paths: directories to search after the working directory.
      wanted_by: where the name stands, for the message (`"runs/a.gin:3"`).

    Raises:
      UserError: there is no such file; the message names the nearest one.
    """
    if "://" in path:
        return _read_remote(path)
    for candidate in _candidates(path, search_paths):
        if candidate.is_file():
            return _read_local(candidate)
    where = f"{wanted_by}: " if wanted_by else ""
    searched = ", ".join(_display(place) for place in _places(search_paths))
    raise UserError(f"{where}no gin file {path!r}{hint(path, _known_files(path, search_paths))}; searched {searched}")


def _places(search_paths: Iterable[str]) -> list[pathlib.Path]:
    """The directories that a relative name is looked up in; each once, first come first."""
    places = [pathlib.Path.cwd(), *(pathlib.Path(path).expanduser().absolute() for path in search_paths if path)]
    for root in gin_roots():
        places += [root.parent, root] if root.name == "gin" else [root]
    return list(dict.fromkeys(places))


def _candidates(path: str, search_paths: Iterable[str]) -> list[pathlib.Path]:
    given = pathlib.Path(path).expanduser()
    if given.is_absolute():
        return [given]
    candidates = [place / given for place in _places(search_paths)]
    if given.parts[:1] == ("gin",):
        # The installed copy has no directory called gin.
        candidates += [root / pathlib.Path(*given.parts[1:]) for root in gin_roots() if root.name != "gin"]
    return candidates


def _known_files(path: str, search_paths: Iterable[str]) -> set[str]:
    """Names that could have been meant: everything in gin/, and what lies beside the missing file."""
    given = pathlib.Path(path).expanduser()
    known = {f"gin/{file.relative_to(root)}" for root in gin_roots() for file in root.rglob("*.gin")}
    for candidate in _candidates(path, search_paths):
        if candidate.parent.is_dir():
            known |= {str(given.parent / file.name) for file in candidate.parent.glob("*.gin")}
    return known


def _display(path: pathlib.Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _read_local(path: pathlib.Path) -> GinFile:
    name = _display(path)
    try:
        return GinFile(name, str(path.resolve()), path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not a text file: byte {error.start} is not UTF-8") from error


def _read_remote(path: str) -> GinFile:
    # Imported here: most command lines name local files and `--help` must stay quick.
    from t5x_scale.core import files

    try:
        return GinFile(path, path, files.to_path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"no gin file {path!r}") from error
