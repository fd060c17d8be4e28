"""Reading gin files and flags into a `Configuration`, statement by statement, each with its origin."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Sequence
from typing import Any

from gin import config as gin_config
from gin import config_parser

from t5x_scale.config.configuration import Binding, Configurable, Configuration, Key, binding_name, is_builtin
from t5x_scale.config.resolve import FileContext, FlagContext, check_parameter, parsing
from t5x_scale.config.search import GinFile, find_gin_file
from t5x_scale.config.trust import check_reference
from t5x_scale.core.errors import UserError

_NAME = re.compile(r"([A-Za-z_]\w*/)*[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# All flags of a command line are one source: they are given together, in no order that means anything.
_FLAGS = "flags"
_WORDS = {"true": "True", "false": "False", "none": "None", "null": "None"}


class FileReader:
    """Reads files and what they include. A file named by two includes is read once, at the first of them."""

    def __init__(self, configuration: Configuration, search_paths: Sequence[str] = ()):
        self._configuration = configuration
        self._search_paths = search_paths
        self._read: set[str] = set()
        self._reading: list[str] = []

    def read(self, file: GinFile) -> None:
        """Reads a file, even if it was read before: the later file wins.

        Raises:
          UserError: in one line, with file and line, whatever is wrong with the file.
        """
        self._parse(file)

    def _include(self, path: str, where: str) -> None:
        file = find_gin_file(path, self._search_paths, wanted_by=where)
        if file.identity in self._reading:
            raise UserError(f"{where}: {path!r} includes itself")
        # Reading it again would silently undo what was bound since.
        if file.identity not in self._read:
            self._parse(file)

    def _parse(self, file: GinFile) -> None:
        self._read.add(file.identity)
        self._reading.append(file.identity)
        context = FileContext(self._configuration)
        with parsing(context):
            lines: dict[Key, int] = {}
            parser = None
            try:
                parser = config_parser.ConfigParser(io.StringIO(file.text), _Delegate())
                while (statement := parser.parse_statement()) is not None:
                    self._handle(statement, context, file, lines)
            except (SyntaxError, tokenize.TokenError, StopIteration) as error:
                raise _Located(f"{file.name}:{_syntax_error(error)}") from None
            except _Located:
                raise
            except UserError as error:
                line = f":{parser.current_token.start[0]}" if parser else ""
                raise _Located(f"{file.name}{line}: {_own_words(error)}") from None
        self._reading.pop()

    def _handle(self, statement: Any, context: FileContext, file: GinFile, lines: dict[Key, int]) -> None:
        line = statement.location.line_num
        where = f"{file.name}:{line}"
        try:
            if isinstance(statement, config_parser.ImportStatement):
                context.process_import(statement)
            elif isinstance(statement, config_parser.IncludeStatement):
                self._include(statement.filename, where)
            elif isinstance(statement, config_parser.BindingStatement):
                scope, selector, argument, value, _ = statement
                binding = make_binding(context, scope, selector, argument, value, where, file.identity)
                if binding.key in lines:
                    name = binding_name(binding)
                    raise UserError(f"{name} is bound twice in one file, first in line {lines[binding.key]}")
                lines[binding.key] = line
                self._configuration.add(binding)
        except _Located:
            raise
        except UserError as error:
            text = _own_words(error)
            raise _Located(text if text.startswith(f"{where}: ") else f"{where}: {text}") from None


def read_flag(configuration: Configuration, name: str, text: str, flag: str = "") -> None:
    """Adds what `--gin.NAME=text` says.

    Args:
      configuration: what the files said; flags may use every name imported there.
      name: a macro, or `scope/module.function.parameter` with as much of the module as is needed.
      text: a gin value.
      flag: how to call it in messages, when it is not `--gin.NAME`.

    Raises:
      UserError: in one line; where a string lacks its quotes it says how to write them.
    """
    flag = flag or f"--gin.{name}"
    _check_name(name, flag)
    context = FlagContext(configuration)
    with parsing(context):
        try:
            value = _parse_value(text, flag)
            scope, selector, argument = config_parser.parse_binding_key(name)
            configuration.add(make_binding(context, scope, selector, argument, value, flag, _FLAGS))
        except _Located:
            raise
        except UserError as error:
            raise UserError(f"{flag}: {_own_words(error)}") from None


def add_value(configuration: Configuration, name: str, value: Any, flag: str) -> None:
    """Adds a binding whose value is already a Python value (a string, or a tuple of strings)."""
    context = FlagContext(configuration)
    with parsing(context):
        scope, selector, argument = config_parser.parse_binding_key(name)
        try:
            configuration.add(make_binding(context, scope, selector, argument, value, flag, _FLAGS))
        except UserError as error:
            raise UserError(f"{flag}: {_own_words(error)}") from None


def make_binding(
    context: gin_config.ParseContext, scope: str, selector: str, argument: str, value: Any, origin: str, source: str
) -> Binding:
    """A checked binding; without `argument`, `selector` is a macro."""
    configurable: Configurable
    if not argument:
        scope, selector, argument = f"{scope}/{selector}" if scope else selector, "gin.macro", "value"
    configurable = context.get_configurable(selector)
    check_parameter(configurable, argument)
    return Binding(Key(scope, configurable.selector, argument), configurable, value, origin, source)


def _check_name(name: str, flag: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(f"{flag}: {name!r} is not a name; write MACRO or scope/module.function.parameter")


class _Located(UserError):
    """A message that already says file and line."""


class _Delegate(gin_config.ParserDelegate):
    """gin's, without its skipping of unknown names, and without calls of whatever there is."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> gin_config.ConfigurableReference:
        reference = gin_config.ConfigurableReference(scoped_selector, evaluate)
        if not is_builtin(reference.configurable):
            check_reference(reference.configurable.wrapped)
        return reference


def _parse_value(text: str, flag: str) -> Any:
    try:
        parser = config_parser.ConfigParser(text.strip(), _Delegate())
        value = parser.parse_value()
    except (SyntaxError, tokenize.TokenError, StopIteration):
        raise _Located(_not_a_value(text, flag)) from None
    if parser.current_token.type not in (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER):
        raise _Located(_not_a_value(text, flag))
    return value


def _not_a_value(text: str, flag: str) -> str:
    if not text.strip():
        return f"{flag}: the value is missing"
    if text.strip().lower() in _WORDS:
        return f"{flag}={text}: write {flag}={_WORDS[text.strip().lower()]}"
    return f"{flag}={text}: not a gin value; a string needs quotes that the shell leaves alone: {quoted(flag, text)}"


def quoted(flag: str, text: str) -> str:
    """How to give a string on the command line: the shell eats plain quotes."""
    return f'{flag}=\\"{text}\\"'


def _syntax_error(error: Exception) -> str:
    """ "12: what is wrong", in one line."""
    if isinstance(error, SyntaxError):
        line, text = error.lineno or 0, (error.text or "").strip()
        message = str(error.msg).split("\n")[0].strip().rstrip(".")
        if "Failed to parse" in str(error.msg) or message == "Unable to parse value":
            message = "not a gin value (a string needs quotes)"
        return f"{line}: {message}: {text}" if text else f"{line}: {message}"
    if isinstance(error, tokenize.TokenError):
        message, (line, _) = error.args
        return f"{line}: {message}"
    return " the file ends in the middle of a statement"


def _own_words(error: Exception) -> str:
    """The message without the places that gin appends to it on further lines."""
    return str(error).split("\n")[0]
