"""Synthetic people, as in bioS (Allen-Zhu & Li 2024, arXiv 2404.05405), in so few bytes that a small model learns them.

    bakisu:lutemari     three syllables of 64 are the name, four of 64 the values, and the document ends

A person is 15 bytes and the end of the document: 16 tokens, so that rows of 128 hold whole people.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

SYLLABLES = tuple(consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiu")
NAME_SYLLABLES, ATTRIBUTES = 3, 4
NAMES = len(SYLLABLES) ** NAME_SYLLABLES
VALUE_BITS = ATTRIBUTES * math.log2(len(SYLLABLES))
# With the token that ends a document.
TOKENS_A_PERSON = 2 * (NAME_SYLLABLES + ATTRIBUTES) + 2


def iterate_people(count: int, seed: int = 0) -> Iterator[str]:
    """The texts of `count` different people; fewer are the first of more."""
    generator = random.Random(seed)
    names: set[str] = set()
    while len(names) < count:
        name = _draw(generator, NAME_SYLLABLES)
        values = _draw(generator, ATTRIBUTES)
        if name not in names:
            names.add(name)
            yield f"{name}:{values}"


def _draw(generator: random.Random, number: int) -> str:
    return "".join(generator.choice(SYLLABLES) for _ in range(number))
