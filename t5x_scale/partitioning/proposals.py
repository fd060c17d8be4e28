"""What to write instead of a size that does not divide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping


def nearest_mesh(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """The sizes closest to `sizes`, in ratios, that multiply to `num_devices`; -1 takes what the others leave.

    Axes of size 1 stay so, unless all are 1. Of equally close ones, those with the larger first axes.
    """
    wanted = {name: size for name, size in sizes.items() if size > 1}
    free = [name for name, size in sizes.items() if size == -1] or ([] if wanted else list(sizes)[:1])
    names = [*wanted, *free]

    def distance(split: tuple[int, ...]) -> float:
        return sum(abs(math.log(split[i] / wanted[name])) for i, name in enumerate(wanted))

    def order(split: tuple[int, ...]) -> tuple[float, ...]:
        return (round(distance(split), 9), *(-size for size in split))

    best = min(_splits(num_devices, len(names)), key=order)
    return {**dict.fromkeys(sizes, 1), **dict(zip(names, best, strict=True))}


def nearest_parts(size: int, parts: int, num_devices: int) -> list[int]:
    """The numbers of parts next below and above `parts` that divide both `size` and `num_devices`."""
    fitting = divisors(math.gcd(size, num_devices))
    below, above = [n for n in fitting if n < parts], [n for n in fitting if n > parts]
    return below[-1:] + above[:1]


def nearest_multiples(size: int, parts: int) -> list[int]:
    """The positive multiples of `parts` next below and above `size`."""
    below = size // parts * parts
    return [n for n in (below, below + parts) if n]


def divisors(number: int) -> list[int]:
    """All divisors of `number`, ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def _splits(number: int, factors: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `number` as a product of as many `factors`, in order."""
    if factors == 1:
        yield (number,)
        return
    for head in divisors(number):
        yield from ((head, *rest) for rest in _splits(number // head, factors - 1))
