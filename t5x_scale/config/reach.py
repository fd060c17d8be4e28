"""Which bindings a command can reach: a walk from its root along references and macros, with their scopes.

The walk follows gin's own rules. A call in scope `a/b` receives the bindings of ``, `a` and `a/b`. `@s/f()` runs
in scope `s`, whatever the caller's; `@f()` runs in the caller's scope; `%M` runs in scope `M`. A reference
without `()` is called later, outside any scope, so a scoped binding does not follow it: `@s/f` makes it do so.
"""

from __future__ import annotations

import dataclasses
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
    walk = _Walk(configuration, overridden=False)
    walk.visit(root, (), evaluated=True, user=None, chain=())
    return walk.found


def reach_ever(configuration: Configuration, roots: list[Configurable]) -> Reached:
    """What any value, in force or overridden since, leads to from any of the roots."""
    walk = _Walk(configuration, overridden=True)
    for root in roots:
        walk.visit(root, (), evaluated=True, user=None, chain=())
    return walk.found


class _Walk:
    def __init__(self, configuration: Configuration, overridden: bool):
        self._configuration = configuration
        self._overridden = overridden
        self.found = Reached()

    def visit(
        self, configurable: Configurable, scope: Scope, evaluated: bool, user: Binding | None, chain: tuple[Call, ...]
    ) -> None:
        """Marks a call and follows what it receives. `chain` is what gin is in the middle of evaluating."""
        call = Call(configurable.selector, scope)
        if call in chain and not self._overridden:
            names = [_call_name(self.found.configurables[c.selector], c.scope) for c in chain[chain.index(call) :]]
            raise UserError(f"{' -> '.join([*names, names[0]])}: this is made from itself")
        seen = call in self.found.calls
        self.found.calls[call] = evaluated or self.found.calls.get(call, False)
        if seen:
            return
        self.found.configurables[configurable.selector] = configurable
        histories = list(self._configuration.applying(configurable.selector, scope))
        self.found.keys.update(history[-1].key for history in histories)
        if is_macro(configurable) and not histories and user is not None:
            self.found.undefined.setdefault("/".join(scope), user)
        for binding in self._given(histories):
            self._follow_value(binding, scope, (*chain, call) if evaluated else (call,))

    def _given(self, histories: list[list[Binding]]) -> list[Binding]:
        if self._overridden:
            return [binding for history in histories for binding in history]
        return list({history[-1].key.argument: history[-1] for history in histories}.values())

    def _follow_value(self, binding: Binding, scope: Scope, chain: tuple[Call, ...]) -> None:
        if is_required(binding.value):
            self.found.required.append(binding)
            return
        for reference in references(binding.value):
            self.visit(
                reference.configurable,
                _scope_of_call(reference, binding, scope),
                reference.evaluate,
                binding,
                chain if reference.evaluate else (),
            )


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
