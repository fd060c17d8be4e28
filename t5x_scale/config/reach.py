"""Which bindings a command can reach: a walk from its root along references and macros, with their scopes.

The walk follows gin's own rules. A call in scope `a/b` receives the bindings of ``, `a` and `a/b`. `@s/f()` runs
in scope `s`, whatever the caller's; `@f()` runs in the caller's scope; `%M` runs in scope `M`. A reference
without `()` is called later, outside any scope, so a scoped binding does not follow it: `@s/f` makes it do so.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from t5x_scale.config.configuration import (
    Binding,
    Configurable,
    Configuration,
    Key,
    Reference,
    Scope,
    is_macro,
    is_required,
    references,
)
from t5x_scale.config.signature import short_name
from t5x_scale.core.errors import UserError


class Call(NamedTuple):
    """A function or class, called in a scope."""

    selector: str
    scope: Scope


@dataclasses.dataclass
class Reached:
    """What a walk found.

    Attributes:
      calls: everything called, in the order of the walk; the value says whether gin calls it (`@f()`, and the root)
        or our own code does (`@f`).
      configurables: by selector.
      keys: every binding that applies to one of the calls.
      undefined: macros that nothing defines -> the binding that uses them.
      required: bindings left at `%gin.REQUIRED`.
    """

    calls: dict[Call, bool] = dataclasses.field(default_factory=dict)
    configurables: dict[str, Configurable] = dataclasses.field(default_factory=dict)
    keys: set[Key] = dataclasses.field(default_factory=set)
    undefined: dict[str, Binding] = dataclasses.field(default_factory=dict)
    required: list[Binding] = dataclasses.field(default_factory=list)


def reach(configuration: Configuration, root: Configurable) -> Reached:
    """What the values in force lead to from `root`.

    Raises:
      UserError: something is made from itself (`A = %B`, `B = %A`).
    """
    walk = _Walk(configuration)
    walk.visit(root, (), evaluated=True, user=None, chain=())
    return walk.found


@dataclasses.dataclass
class EverReached:
    """What was reachable at some time, and until when: `deadlines` and `until` are segments (see `Binding`).

    A binding that was made before the deadline of its key led somewhere when it was made. Something later put
    another value (another optimiser, say) in the way: that is how files are overridden, and no mistake.
    """

    deadlines: dict[Key, float] = dataclasses.field(default_factory=dict)
    until: dict[Call, float] = dataclasses.field(default_factory=dict)
    configurables: dict[str, Configurable] = dataclasses.field(default_factory=dict)
    calls: dict[Call, bool] = dataclasses.field(default_factory=dict)

    def includes(self, binding: Binding) -> bool:
        """Whether a command reaches `binding`, or did when it was made."""
        return binding.segment < self.deadlines.get(binding.key, -math.inf)


def reach_ever(configuration: Configuration, roots: list[Configurable]) -> EverReached:
    """What any value, in force or overridden since, leads to from any of the roots."""
    found = EverReached()
    queue = [(root, (), True, math.inf) for root in roots]
    while queue:
        configurable, scope, evaluated, deadline = queue.pop()
        call = Call(configurable.selector, scope)
        if found.until.get(call, -math.inf) >= deadline:
            continue
        found.until[call] = deadline
        found.calls[call] = evaluated or found.calls.get(call, False)
        found.configurables[configurable.selector] = configurable
        for binding, overridden in _with_deadlines(configuration, call):
            found.deadlines[binding.key] = max(deadline, found.deadlines.get(binding.key, -math.inf))
            if binding.segment >= deadline:
                continue
            for reference in references(binding.value):
                target = _scope_of_call(reference, binding, scope)
                queue.append((reference.configurable, target, reference.evaluate, min(deadline, overridden)))
    return found


def _with_deadlines(configuration: Configuration, call: Call) -> list[tuple[Binding, float]]:
    """Every value a call could have received, with the segment in which another took its place."""
    histories = list(configuration.applying(call.selector, call.scope))
    values = []
    for depth, history in enumerate(histories):
        inner = [
            other[0].segment for other in histories[depth + 1 :] if other[0].key.argument == history[0].key.argument
        ]
        ends = [*(following.segment for following in history[1:]), min(inner, default=math.inf)]
        values += zip(history, ends, strict=True)
    return values


class _Walk:
    def __init__(self, configuration: Configuration):
        self._configuration = configuration
        self.found = Reached()

    def visit(
        self, configurable: Configurable, scope: Scope, evaluated: bool, user: Binding | None, chain: tuple[Call, ...]
    ) -> None:
        """Marks a call and follows what it receives. `chain` is what gin is in the middle of evaluating."""
        call = Call(configurable.selector, scope)
        if call in chain:
            names = [_call_name(self.found.configurables[c.selector], c.scope) for c in chain[chain.index(call) :]]
            raise UserError(f"{' -> '.join([*names, names[0]])}: this is made from itself")
        seen = call in self.found.calls
        self.found.calls[call] = evaluated or self.found.calls.get(call, False)
        if seen:
            return
        self.found.configurables[configurable.selector] = configurable
        self.found.keys.update(h[-1].key for h in self._configuration.applying(configurable.selector, scope))
        given = self._configuration.merged(configurable.selector, scope)
        if is_macro(configurable) and not given and user is not None:
            self.found.undefined.setdefault("/".join(scope), user)
        for binding in given.values():
            self._follow_value(binding, scope, (*chain, call) if evaluated else (call,))

    def _follow_value(self, binding: Binding, scope: Scope, chain: tuple[Call, ...]) -> None:
        if is_required(binding.value):
            self.found.required.append(binding)
            return
        for reference in references(binding.value):
            target = _scope_of_call(reference, binding, scope)
            self.visit(reference.configurable, target, reference.evaluate, binding, chain if reference.evaluate else ())


def _scope_of_call(reference: Reference, binding: Binding, scope: Scope) -> Scope:
    if reference.scopes:
        return tuple(reference.scopes)
    # gin.singleton calls its constructor itself, while its own scope is still the current one.
    if reference.evaluate or binding.key.selector == "gin.singleton":
        return scope
    return ()


def _call_name(configurable: Configurable, scope: Scope) -> str:
    path = "/".join(scope)
    if is_macro(configurable):
        return f"%{path}"
    return f"@{path}/{short_name(configurable.wrapped)}" if path else f"@{short_name(configurable.wrapped)}"
