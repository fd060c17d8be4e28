"""What kind of code a file is: its language by its extension, as in PaLM, and whether its licence is copyleft."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

EXTENSIONS = {
    "assembly": ("asm", "s"),
    "c": ("c", "h"),
    "c++": ("cc", "cpp", "cxx", "hh", "hpp", "hxx"),
    "c#": ("cs",),
    "css": ("css",),
    "dart": ("dart",),
    "go": ("go",),
    "haskell": ("hs",),
    "html": ("htm", "html"),
    "java": ("java",),
    "javascript": ("cjs", "js", "jsx", "mjs"),
    "julia": ("jl",),
    "kotlin": ("kt", "kts"),
    "lisp": ("el", "lisp"),
    "lua": ("lua",),
    "markdown": ("markdown", "md"),
    "objective-c": ("m", "mm"),
    "perl": ("pl", "pm"),
    "php": ("php",),
    "python": ("py",),
    "r": ("r",),
    "ruby": ("rb",),
    "rust": ("rs",),
    "scala": ("scala",),
    "shell": ("bash", "sh"),
    "sql": ("sql",),
    "swift": ("swift",),
    "typescript": ("ts", "tsx"),
    "xml": ("xml",),
}
# How the names of licences begin that ask for the same licence in return, weakly or strongly.
COPYLEFT = (
    "agpl", "cc-by-nc-sa", "cc-by-sa", "cddl", "cecill", "cpal", "cpl", "epl", "eupl", "gfdl", "gnu", "gpl", "lgpl",
    "mpl", "ms-rl", "odbl", "osl", "qpl", "rpl", "sleepycat", "sspl",
)  # fmt: skip


def extensions_of(languages: Sequence[str] | None) -> tuple[str, ...]:
    """The extensions of some languages, or of all, sorted, without their dots."""
    chosen = list(EXTENSIONS) if languages is None else languages
    if unknown := [language for language in chosen if language not in EXTENSIONS]:
        raise ValueError(f"no language '{unknown[0]}'; known are {', '.join(EXTENSIONS)}")
    return tuple(sorted(extension for language in chosen for extension in EXTENSIONS[language]))


def is_copyleft(licence: str) -> bool:
    """Whether any licence in a name or an expression, such as `MIT OR GPL-2.0`, is copyleft."""
    words = re.split(r"[^a-z0-9.+-]+", licence.lower())
    return "general public license" in licence.lower() or any(word.startswith(COPYLEFT) for word in words)


def extension_of(path: str) -> str:
    """`Src/Main.CPP` -> `cpp`."""
    return os.path.splitext(path)[1].removeprefix(".").lower()
