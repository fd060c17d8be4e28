"""Mixtures whose rates follow from the sizes of their tasks: capped as in T5 and Flan, flattened as in mT5.

from tasks.mixtures import register_proportional_mixture

register_proportional_mixture("my_flan", ["nli", "summaries", "questions"], maximum=3000)
register_proportional_mixture("my_languages", ["wiki_en", "wiki_sw"], temperature=3.33)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import seqio


def register_proportional_mixture(
    name: str,
    tasks: Sequence[str],
    *,
    maximum: int | None = None,
    temperature: float = 1.0,
    counts: Mapping[str, int] | None = None,
) -> seqio.Mixture:
    """Registers a mixture in which a task of n examples has the rate min(n, maximum)^(1 / temperature).

    A maximum keeps large tasks from drowning small ones (T5, arXiv 1910.10683, section 3.5.2; Flan,
    arXiv 2109.01652, section 2.1, takes 3,000); a temperature above 1 raises small ones (mT5, arXiv 2010.11934,
    section 3.1, whose exponent 0.3 is the temperature 3.33). Rates are shares of examples, as always in SeqIO.

    Args:
      name: the mixture's name.
      tasks: names of registered tasks, all plain or all supervised.
      maximum: see above; None is no cap.
      temperature: see above; 1 changes nothing.
      counts: {task: examples}. Without it the rates are functions of the task, SeqIO's own
        `mixing_rate_num_examples`, which are computed where the examples have been counted.

    Raises:
      ValueError: a maximum or a temperature that is not positive, or counts of other tasks.
    """
    if not temperature > 0 or (maximum is not None and not maximum > 0):
        raise ValueError(f"mixture '{name}': maximum {maximum} and temperature {temperature} must be positive")
    if counts is None:
        rate = functools.partial(seqio.mixing_rate_num_examples, maximum=maximum, temperature=temperature)
        return seqio.MixtureRegistry.add(name, [(task, rate) for task in tasks])
    if different := sorted(set(tasks) ^ set(counts)):
        raise ValueError(f"mixture '{name}': tasks and counts do not name the same: {', '.join(different)}")
    rates = [(task, min(counts[task], maximum or counts[task]) ** (1 / temperature)) for task in tasks]
    return seqio.MixtureRegistry.add(name, rates)
