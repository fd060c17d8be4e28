"""What a compiler says when a program does not fit a device, as numbers."""

from __future__ import annotations

import re

from t5x_scale.core.errors import UserError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE = r"([\d.]+)([KMGTP]?)"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm", re.IGNORECASE)
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", re.IGNORECASE)


class OutOfMemory(UserError):
    """A program needs more memory than a device has.

    Attributes:
      reason: without the name of the program.
      needed: bytes a device that it asks for, or None where the compiler does not say.
      available: bytes a device that there are, likewise.
      only_temporaries: whether `needed` leaves out what the program is given: state and batch.
    """

    def __init__(
        self,
        what: str,
        reason: str,
        needed: float | None = None,
        available: float | None = None,
        only_temporaries: bool = False,
    ):
        super().__init__(f"{what} {reason}")
        self.reason, self.needed, self.available = reason, needed, available
        self.only_temporaries = only_temporaries


def to_out_of_memory(error: Exception, what: str) -> OutOfMemory | None:
    """An error of the compiler as an `OutOfMemory`; None where it is about something else.

    Args:
      error: as raised.
      what: does not fit, for the message.
    """
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    for pattern, only_temporaries in ((_USED, False), (_TEMPORARIES, True)):
        if match := pattern.search(text):
            needed, available = _bytes(*match.groups()[:2]), _bytes(*match.groups()[2:])
            kind = " of temporaries alone" if only_temporaries else ""
            reason = f"does not fit: it needs {_gib(needed)}{kind}, and a device has {_gib(available)}"
            return OutOfMemory(what, reason, needed, available, only_temporaries)
    return OutOfMemory(what, f"does not fit a device: {text[:300]}")


def _bytes(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit.upper()]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
