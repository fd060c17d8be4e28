"""The command line from outside: help, versions, exit codes, what is importable."""

import errno
import pathlib
import resource
import subprocess
import sys

import pytest
from gcsfs.retry import HttpError

from t5x_scale import __version__
from t5x_scale import main as main_module
from t5x_scale.commands import COMMANDS, FLAGS, SUMMARIES
from t5x_scale.core.errors import UserError
from t5x_scale.main import main


def _run(*words, **given):
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **given)


def test_every_command_has_a_summary_and_flags_belong_to_commands():
    assert set(SUMMARIES) == set(COMMANDS)
    assert set(FLAGS) <= set(COMMANDS)


def _seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_is_quick_and_starts_nothing(words):
    code = (
        "import sys; from t5x_scale.main import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'jax', 'tensorflow', 'flax', 'numpy', 'gin'} & set(sys.modules)"
    )
    before = _seconds_of_children()
    result = _run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    # Two tenths of a second of a processor, however busy the machine is.
    assert _seconds_of_children() - before < 2.0
    assert result.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"t5x_scale {__version__}\n"


def test_overview(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_help_of_a_command_lists_its_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["infer", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--gin_file", "--gin.NAME", "--gin_search_paths", "--module_import", "--dry_run", "--prompt"):
        assert flag in out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian"], ["no command 'trian'", "'train'"]),
        (["xyzzy"], ["there are", "train"]),
        (["--gin_file=a"], ["the command comes first"]),
        (["train", "--gin_fle=a"], ["no flag '--gin_fle'", "'--gin_file'"]),
        (["train", "--dryrun"], ["'--dry_run'"]),
        (["train", "--prompt=a"], ["no flag '--prompt'"]),
        (["train", "--BATCH=8"], ["--gin.BATCH=value"]),
        (["train", "a.gin"], ["flags only, not 'a.gin'"]),
        (["train", "--gin_file"], ["--gin_file"]),
    ],
)
def test_wrong_words(capsys, words, parts):
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("t5x_scale: error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_no_words(capsys):
    assert main([]) == 1
    assert "usage" in capsys.readouterr().out


_SCRIPT = """
import sys
sys.path[0] = {script!r}  # As a console script has it.
from t5x_scale.main import main
sys.exit(main(["go", *sys.argv[1:]], {{"go": "sample_here:go"}}, {{}}, {{}}))
"""


def _go(tmp_path: pathlib.Path, body: str):
    (tmp_path / "sample_here.py").write_text(
        f"from t5x_scale.core.errors import UserError\ndef go(x: int = 1):\n    {body}\n"
    )
    return _run(sys.executable, "-c", _SCRIPT.format(script=str(tmp_path / "elsewhere")), cwd=tmp_path)


@pytest.mark.parametrize(
    ("body", "code"),
    [("return None", 0), ("return 0", 0), ("return 75", 75), ("sys = __import__('sys'); sys.exit(3)", 3)],
)
def test_exit_codes_and_the_working_directory_is_importable(tmp_path, body, code):
    result = _go(tmp_path, body)
    assert (result.returncode, result.stderr) == (code, "")


def test_user_error(tmp_path):
    result = _go(tmp_path, "raise UserError('first\\nsecond')")
    assert (result.returncode, result.stderr) == (1, "t5x_scale: error: first second\n")


def test_unexpected_error_keeps_its_traceback(tmp_path):
    result = _go(tmp_path, "return 1 // 0")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr


AWAY = OSError(errno.ESTALE, "Stale file handle", "/nfs/run/a")
TOLD = {
    "storage that is away": (AWAY, 75, "/nfs/run/a: Stale file handle; the storage does not answer: the same command"),
    "a bucket that is away": (HttpError({"code": 503, "message": "later"}), 75, "later, 503; the storage does not"),
    "what is told of it": (UserError("cannot read a: Stale"), 75, "cannot read a: Stale; the storage does not answer"),
    "a file that may not be read": (
        PermissionError(13, "Permission denied", "/x/a"),
        1,
        "cannot read or write /x/a: ",
    ),
    "a bucket that refuses": (HttpError({"code": 403, "message": "no"}), 1, "the storage refuses: no, 403"),
    "another machine": (UserError("cannot join"), 1, "cannot join"),
}
TOLD["what is told of it"][0].__cause__ = AWAY
TOLD["another machine"][0].__cause__ = ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize("case", TOLD)
def test_storage_is_told_in_a_line_whoever_meets_it(monkeypatch, capsys, case):
    error, code, line = TOLD[case]
    assert _end_with(monkeypatch, error) == code
    said = capsys.readouterr().err
    assert said.startswith(f"t5x_scale: error: {line}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "/x"), OSError("no file"), TimeoutError()])
def test_what_may_be_a_mistake_of_ours_keeps_its_traceback(monkeypatch, error):
    with pytest.raises(type(error)):
        _end_with(monkeypatch, error)


def _end_with(monkeypatch, error):
    def fail(*unused):
        raise error

    monkeypatch.setattr(main_module, "_main", fail)
    return main(["train"])


def test_python_m():
    result = _run(sys.executable, "-m", "t5x_scale", "trian")
    assert (result.returncode, result.stderr) == (1, "t5x_scale: error: no command 'trian' (did you mean 'train'?)\n")


def test_report_takes_its_run_without_a_flag(tmp_path, capsys):
    assert main(["report", str(tmp_path / "no_such_run")]) == 1
    assert "no_such_run" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert main(["report"]) == 1
    assert capsys.readouterr().err.endswith("say which run: t5x_scale report MODEL_DIR\n")
    assert main(["train", "somewhere"]) == 1
    assert "takes flags only" in capsys.readouterr().err
