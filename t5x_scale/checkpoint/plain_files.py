"""Whether a step consists of files that end: a pipe or a device in place of one would be waited for, for ever."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from t5x_scale.checkpoint.layout import DamagedError
from t5x_scale.core import files
from t5x_scale.core.errors import describe_unreadable

_KINDS: dict[str, Callable[[int], bool]] = {
    "a pipe": stat.S_ISFIFO,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a socket": stat.S_ISSOCK,
    "a link to a directory": stat.S_ISDIR,
}


def check_plain_files(step_path: files.Path) -> None:
    """Checks that all below a local step is a plain file, a link to one, or a directory; nothing is opened.

    Called before a storage library opens anything there: reading a pipe waits for a writer inside C++. Object stores
    have nothing but plain objects.

    Raises:
      DamagedError: naming the first that is something else, or a directory that cannot be listed.
    """
    if files.is_remote(step_path):
        return
    try:
        for entry in _walk(os.fspath(step_path)):
            name = os.path.relpath(entry.path, step_path)
            try:
                mode = entry.stat().st_mode
            except FileNotFoundError:
                raise DamagedError(f"its {name} is a link to nothing") from None
            if not stat.S_ISREG(mode):
                kind = next((kind for kind, is_kind in _KINDS.items() if is_kind(mode)), "something else")
                raise DamagedError(f"its {name} is {kind} and no plain file")
    except OSError as error:
        raise DamagedError(f"its files cannot be listed: {describe_unreadable(error)}") from error


def _walk(directory: str) -> Iterator[os.DirEntry[str]]:
    """What is neither a plain file nor a directory by itself; links are not followed, so that it ends."""
    directories = [directory]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    yield entry
