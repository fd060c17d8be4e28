"""The command line: `t5x_scale <command> [flags]`.

Nothing heavy is imported before the command is known: `--help` must not start JAX.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from t5x_scale import __version__
from t5x_scale.commands import COMMANDS, FLAGS, SUMMARIES, Flag
from t5x_scale.core import distributed
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.core.preemption import EXIT_RESUMABLE
from t5x_scale.core.storage_errors import explain_last

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_PIPE = 128 + 13  # What a shell reports of a process ended by SIGPIPE.
_GIN_PREFIX = "--gin."


def main(
    argv: Sequence[str] | None = None,
    commands: dict[str, str] = COMMANDS,
    flags: dict[str, dict[str, Flag]] = FLAGS,
    summaries: dict[str, str] = SUMMARIES,
) -> int:
    """Runs one command.

    Args:
      argv: the words after the program's name; those of this process by default.
      commands: command -> "module:function".
      flags: command -> its own flags.
      summaries: command -> one line for `--help`.

    Returns:
      The exit code: 0 done, 75 stopped and resumable (told to, another process of the run is gone, or the storage does
      not answer), 1 when the user has something to mend, or a file cannot be read or written (one line on stderr says
      what). Any other exception passes through with its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words, commands, flags, summaries)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`t5x_scale infer … | head`). What is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return distributed.leave_run(EXIT_PIPE)
    except (Exception, KeyboardInterrupt) as error:
        told = explain_last(error)
        if told is not None:
            told.__cause__ = error if told is not error else error.__cause__
            return _leave(told, _one_line(told))
        if not distributed.is_joined():
            raise
        return _leave(error)


def _leave(error: BaseException, line: str = "") -> int:
    """Says what went wrong, and ends with the exit code for it: at once, where others may wait for this process."""
    is_lost = distributed.has_lost_others(error)
    if is_lost and distributed.LOST not in line:
        line = f"{line}: {distributed.LOST}" if line else distributed.LOST
    if line:
        print(f"t5x_scale: error: {line}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    is_resumable = is_lost or isinstance(error, UnavailableError)
    return distributed.leave_run(EXIT_RESUMABLE if is_resumable else EXIT_ERROR, waiting=not is_lost)


def console_entry() -> NoReturn:
    """What the console script calls."""
    sys.exit(main())


def _main(
    words: list[str], commands: dict[str, str], flags: dict[str, dict[str, Flag]], summaries: dict[str, str]
) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(_overview(commands, summaries))
        return EXIT_DONE if words else EXIT_ERROR
    if words[0] == "--version":
        print(f"t5x_scale {__version__}")
        return EXIT_DONE
    command = words[0]
    if command not in commands:
        raise UserError(_unknown_command(command, commands))
    own_flags = flags.get(command, {})
    options, gin_words = _parse_flags(words[1:], command, own_flags, summaries)
    return _run(command, commands, options, _settings(options, gin_words, own_flags), words)


def _run(command: str, commands: dict[str, str], options: argparse.Namespace, settings: list, words: list[str]) -> int:
    # `python -m` does this by itself; a console script has its own directory there.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from t5x_scale.config.dry_run import resolved_text, unused_text
    from t5x_scale.config.load import load, make_arguments
    from t5x_scale.config.record import operative_config_text

    loaded = load(
        command,
        commands,
        files=options.gin_file,
        settings=settings,
        search_paths=[path for paths in options.gin_search_paths for path in paths.split(",")],
        task_modules=options.module_import,
    )
    provided = {
        "config_text": operative_config_text(loaded.configuration, loaded.reached.values()),
        "command_line": shlex.join(["t5x_scale", *words]),
    }
    if not options.dry_run:
        return _exit_code(loaded.root.wrapped(**make_arguments(loaded, **provided)))
    texts = [
        resolved_text(loaded.configuration, command, loaded.reached[command]),
        unused_text(loaded.configuration, command, loaded.reached),
    ]
    hook = getattr(importlib.import_module(commands[command].split(":")[0]), "dry_run", None)
    if hook is not None:
        texts.append(hook(**make_arguments(loaded, hook, **provided)))
    print("\n\n".join(text for text in texts if text))
    return EXIT_DONE


def _exit_code(result: Any) -> int:
    if result is None:
        return EXIT_DONE
    if not isinstance(result, int):
        raise TypeError(f"a command returns an exit code or None, not {result!r}")
    return int(result)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _make_parser(command: str, own_flags: dict[str, Flag], summaries: dict[str, str]) -> _Parser:
    parser = _Parser(
        prog=f"t5x_scale {command}",
        description=summaries.get(command, ""),
        usage=f"t5x_scale {command} [--gin_file=PATH …] [--gin.NAME=value …] [flags]",
        allow_abbrev=False,
    )
    parser.add_argument("--gin_file", action="append", default=[], metavar="PATH", help="a gin file; later ones win")
    # Taken out before argparse sees them, since their names are open; listed for --help.
    parser.add_argument(
        "--gin.NAME",
        metavar="VALUE",
        help="set a macro (--gin.BATCH_SIZE=8) or a parameter (--gin.scope/module.function.parameter=8), over the "
        'files; strings as \\"text\\"',
    )
    parser.add_argument(
        "--gin_search_paths", action="append", default=[], metavar="A,B", help="further directories for gin files"
    )
    parser.add_argument(
        "--module_import", action="append", default=[], metavar="MODULE", help="a module with SeqIO tasks of your own"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the resolved configuration and stop")
    for name, flag in own_flags.items():
        alone = {} if flag.alone is None else {"nargs": "?", "const": flag.alone}
        about = f"{flag.help} ({flag.binding})"
        parser.add_argument(name, action="append", metavar="VALUE", dest=name, help=about, **alone)
        if flag.positional:
            parser.add_argument(f"alone{name}", nargs="?", metavar=name.lstrip("-").upper(), help=flag.help)
    return parser


def _parse_flags(
    words: list[str], command: str, own_flags: dict[str, Flag], summaries: dict[str, str]
) -> tuple[argparse.Namespace, list[str]]:
    parser = _make_parser(command, own_flags, summaries)
    gin_words = [word for word in words if word.startswith(_GIN_PREFIX)]
    options, unknown = parser.parse_known_args([word for word in words if word not in gin_words])
    if unknown:
        raise UserError(_unknown_flag(unknown[0], command, parser))
    return options, gin_words


def _settings(options: argparse.Namespace, gin_words: list[str], own_flags: dict[str, Flag]) -> list:
    from t5x_scale.config.load import Setting

    settings = []
    for word in gin_words:
        name, equals, value = word.removeprefix(_GIN_PREFIX).partition("=")
        if not name or not equals:
            raise UserError(f"{word}: write --gin.NAME=value")
        settings.append(Setting(name, value, f"{_GIN_PREFIX}{name}"))
    for name, flag in own_flags.items():
        values = getattr(options, name) or []
        if flag.positional and (alone := getattr(options, f"alone{name}")) is not None:
            values = [*values, alone]
        if not values:
            continue
        if flag.binding.startswith("$"):
            os.environ[flag.binding.removeprefix("$")] = values[-1]
            continue
        if flag.repeated and flag.literal:
            value: Any = f"({', '.join(values)},)"
        else:
            value = tuple(values) if flag.repeated else values[-1]
        settings.append(Setting(flag.binding, value, name, flag.literal))
    return settings


def _overview(commands: dict[str, str], summaries: dict[str, str]) -> str:
    width = max(map(len, commands), default=0)
    lines = [f"  {name:<{width}}  {summaries.get(name, '')}".rstrip() for name in commands]
    return "\n".join(
        [
            "usage: t5x_scale <command> [--gin_file=PATH …] [--gin.NAME=value …] [flags]",
            "",
            "commands:",
            *lines,
            "",
            "t5x_scale <command> --help lists the flags of a command; --version prints the version.",
        ]
    )


def _unknown_command(word: str, commands: dict[str, str]) -> str:
    from t5x_scale.config.nearest import hint

    if word.startswith("-"):
        return f"{word}: the command comes first: t5x_scale <command> [flags]"
    return f"no command {word!r}{hint(word, commands) or ' (there are ' + ', '.join(commands) + ')'}"


def _unknown_flag(word: str, command: str, parser: argparse.ArgumentParser) -> str:
    from t5x_scale.config.nearest import hint

    name = word.partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    if not word.startswith("-"):
        return f"t5x_scale {command} takes flags only, not {word!r}"
    near = hint(name, [option for option in known if option != f"{_GIN_PREFIX}NAME"])
    binding = f" (a gin binding is --gin.{name.lstrip('-')}=value)"
    return f"t5x_scale {command} has no flag {name!r}{near or binding}"


def _one_line(error: UserError) -> str:
    """The message without the lines that gin adds to an exception on its way."""
    return " ".join(str(error).split("\n  In call to configurable")[0].split("\n"))


if __name__ == "__main__":
    console_entry()
