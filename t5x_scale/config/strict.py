"""The checks that gin leaves out. Each raises a `UserError` that names the binding and the nearest right name.

- a binding or macro that no command can reach, now or before something overrode what led to it;
- for the chosen command: a macro that nothing defines, a value still REQUIRED, a parameter left out;
- a value of the wrong type, wherever it is bound.
"""

from __future__ import annotations

from collections.abc import Iterable

from t5x_scale.config.configuration import (
    Binding,
    Configurable,
    Configuration,
    Key,
    binding_name,
    described,
    is_builtin,
    is_macro,
    key_name,
    references,
)
from t5x_scale.config.nearest import hint, nearest
from t5x_scale.config.parse import quoted
from t5x_scale.config.reach import Call, EverReached, Reached, reach, reach_ever
from t5x_scale.config.signature import MISSING, PROVIDED, Parameter, parameters, short_name
from t5x_scale.config.types import mismatch
from t5x_scale.config.values import expand, macro_binding
from t5x_scale.core.errors import UserError

# What run files leave to other files: a macro -> one of the files that define it.
_LEFT_TO_FILES = {"MODEL": "gin/models/palm/8b.gin", "OPTIMIZER": "gin/optim/palm_adafactor.gin"}


def check(configuration: Configuration, command: str, roots: dict[str, Configurable]) -> dict[str, Reached]:
    """Runs all checks.

    Args:
      configuration: everything parsed.
      command: the chosen command.
      roots: command -> its function, for every command whose function anything could have bound.

    Returns:
      For each command what it reaches, with the values in force.

    Raises:
      UserError: in one line, the first kind of mistake found.
    """
    reached = {name: reach(configuration, root) for name, root in roots.items()}
    ever = reach_ever(configuration, list(roots.values()))
    strangers = [binding for binding in configuration.in_force() if not ever.includes(binding)]
    _check_defined(configuration, reached[command], strangers)
    if strangers and not any(binding.key.selector == roots[command].selector for binding in configuration.in_force()):
        raise UserError(
            f"none of the gin files says what {command} is to do, so that nothing uses {described(strangers[0])}: "
            "add a run file, one of gin/runs/"
        )
    _check_reached(configuration, ever, strangers)
    for binding in configuration.in_force():
        _check_type(configuration, binding)
    _check_required(command, reached[command])
    _check_complete(configuration, command, reached[command])
    return reached


def _check_defined(configuration: Configuration, reached: Reached, strangers: list[Binding]) -> None:
    for macro, user in reached.undefined.items():
        unused = {binding.key.scope: binding for binding in strangers if is_macro(binding.configurable)}
        near = nearest(macro, unused, limit=1)
        if near:
            better = f": {described(unused[near[0]])} is used by nothing; was {macro!r} meant?"
        elif macro in _LEFT_TO_FILES:
            example = _LEFT_TO_FILES[macro]
            better = f": add a file of {'/'.join(example.split('/')[:2])}/, such as --gin_file={example}"
        else:
            better = hint(macro, [b.key.scope for b in configuration.in_force() if is_macro(b.configurable)])
        raise UserError(f"%{macro}, used by {described(user)}, is not defined{better}")


def _check_reached(configuration: Configuration, ever: EverReached, strangers: list[Binding]) -> None:
    if not strangers:
        return
    # What hangs on an unreachable macro is unreachable too: the macro is the mistake to name.
    first = next((binding for binding in strangers if is_macro(binding.configurable)), strangers[0])
    others = f"; so are {len(strangers) - 1} other bindings" if len(strangers) > 1 else ""
    reason = _displaced(configuration, first) or f"{_near_names(ever, first)}{_reason(ever, first)}"
    raise UserError(f"{described(first)} is used by no command{reason}{others}")


def _displaced(configuration: Configuration, macro: Binding) -> str:
    """That a later value took the place of the macro, and what to bind instead; "" if nothing ever used it."""
    for *earlier, last in configuration.bindings.values() if is_macro(macro.configurable) else ():
        if not any(macro.key.scope in _macros(binding) for binding in earlier):
            continue
        # A file that sets a parameter aside often has one of the same name in its stead.
        others = (b for b in configuration.in_force() if b.source == last.source and b.key != last.key)
        instead = next((b for b in others if b.key.argument == last.key.argument), last)
        name = binding_name(last)
        return f": {name} took it until {last.origin} set that; bind {binding_name(instead)} instead"
    return ""


def _macros(binding: Binding) -> set[str]:
    """The names of the macros in a value."""
    return {"/".join(reference.scopes) for reference in references(binding.value) if is_macro(reference.configurable)}


def _near_names(ever: EverReached, binding: Binding) -> str:
    """The right names near a wrong one: the same parameter in another scope first."""
    if is_macro(binding.configurable):
        macros = {call.scope for call in ever.calls if call.selector == "gin.macro"}
        return hint(binding.key.scope, ["/".join(scope) for scope in macros])
    scopes = {call.scope for call in ever.calls if call.selector == binding.key.selector}
    if scopes:
        names = [
            key_name(Key("/".join(scope[:end]), *binding.key[1:]), binding.configurable)
            for scope in scopes
            for end in range(len(scope), -1, -1)
        ]
        return hint(key_name(binding.key, binding.configurable), names)
    known = [short_name(c.wrapped) for c in ever.configurables.values() if not is_builtin(c)]
    return hint(short_name(binding.configurable.wrapped), known)


def _reason(ever: EverReached, binding: Binding) -> str:
    if is_macro(binding.configurable):
        return f": nothing uses %{binding.key.scope}"
    name = short_name(binding.configurable.wrapped)
    calls = {call: called for call, called in ever.calls.items() if call.selector == binding.key.selector}
    if not calls:
        owner = _default_of(ever, binding.configurable)
        default = f"; it is only the Python default of {owner}: bind {owner} = @{name}" if owner else ""
        return f": nothing refers to @{name}{default}"
    if not any(calls.values()):
        return f": @{name} without () is called outside any scope; write @{binding.key.scope}/{name} where it is used"
    scopes = sorted("/".join(call.scope) or "no scope" for call in calls)
    return f": @{name} is called in {', '.join(scopes)}"


def _default_of(ever: EverReached, configurable: Configurable) -> str | None:
    """The parameter that uses `configurable` by default: gin does not see that one."""
    for user in ever.configurables.values():
        for parameter in parameters(user.wrapped).values():
            if parameter.default is configurable.wrapped:
                return f"{short_name(user.wrapped)}.{parameter.name}"
    return None


def _check_type(configuration: Configuration, binding: Binding) -> None:
    if is_builtin(binding.configurable):
        return
    parameter = parameters(binding.configurable.wrapped)[binding.key.argument]
    problem = mismatch(expand(configuration, binding.value), parameter)
    if problem is None:
        return
    culprit, via = binding, ""
    while (macro := _macro_of(configuration, culprit)) is not None:
        culprit, via = macro, f", from {described(macro)}"
    raise UserError(f"{described(binding)}{via}: {problem}{_quoting_hint(culprit, parameter, problem)}")


def _macro_of(configuration: Configuration, binding: Binding) -> Binding | None:
    reference = binding.value
    is_reference = getattr(reference, "configurable", None) is not None and is_macro(reference.configurable)
    return macro_binding(configuration, reference) if is_reference else None


def _quoting_hint(culprit: Binding, parameter: Parameter, problem: str) -> str:
    """A path of digits, or a word that is also a number, reaches gin unquoted."""
    if isinstance(culprit.value, str) or mismatch("", parameter) is not None or " itself: " in problem:
        return ""
    if culprit.origin.startswith("--"):
        return f"; a string needs quotes: {quoted(culprit.origin, str(culprit.value))}"
    return "; a string needs quotes"


def _check_required(command: str, reached: Reached) -> None:
    names = list(dict.fromkeys(key_name(b.key, b.configurable) for b in reached.required))
    if names:
        flags = " ".join(f"--gin.{name}=…" for name in names)
        verb = "is" if len(names) == 1 else "are"
        raise UserError(f"{' and '.join(names)} {verb} required by t5x_scale {command}: {flags}")


def _check_complete(configuration: Configuration, command: str, reached: Reached) -> None:
    """Everything that gin itself will call must have its parameters: nobody else supplies them."""
    for call, evaluated in reached.calls.items():
        configurable = reached.configurables[call.selector]
        if not evaluated or is_builtin(configurable):
            continue
        names = [
            _missing_name(configuration, call, argument, configurable)
            for argument in _missing(configuration, call, configurable)
        ]
        if names:
            flags = " ".join(f"--gin.{name}=…" for name in names)
            raise UserError(
                f"t5x_scale {command} needs {' and '.join(names)}: bind it in a gin file (--gin_file=…) or with {flags}"
            )


def _missing_name(configuration: Configuration, call: Call, argument: str, configurable: Configurable) -> str:
    # The scope matters where some other scope has the parameter and this one does not.
    elsewhere = any(key.selector == call.selector and key.argument == argument for key in configuration.bindings)
    return key_name(Key("/".join(call.scope) if elsewhere else "", call.selector, argument), configurable)


def _missing(configuration: Configuration, call: Call, configurable: Configurable) -> list[str]:
    given: Iterable[str] = configuration.merged(call.selector, call.scope)
    wanted = parameters(configurable.wrapped).values()
    return [p.name for p in wanted if p.default is MISSING and p.name not in given and p.name not in PROVIDED]
