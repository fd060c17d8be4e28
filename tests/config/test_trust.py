"""What gin files of strangers cannot do: every one of these would run code that its author chose."""

import pytest
from test_strict import check_error

CALL = "import sample_commands\n{imports}\nsample_commands.train.model = @{call}()\n"

REFUSED = {
    "the standard library": ("import os", "os.system", "not 'os'"),
    "a module of it by another name": ("import subprocess as config", "config.Popen", "not 'subprocess'"),
    "an installed package": ("import numpy", "numpy.load", "not 'numpy', which is installed"),
    "a module that ours imports": ("from t5x_scale.core import files", "files.os.system", "not 'os'"),
    "a class that ours imports": ("from t5x_scale.core import files", "files.epath.Path", "not 'etils"),
    "a function that writes": ("from t5x_scale.core import files", "files.write_text", "@files.write_text is no part"),
    "a class that is no value": ("from t5x_scale.core import last_words", "last_words.LastWords", "is no part"),
    "a command": ("from t5x_scale.commands import export", "export.export", "@export.export is no part"),
    "gin itself": ("import gin", "gin.config.parse_value", "not 'gin'"),
    "builtins": ("import builtins", "builtins.exec", "not 'builtins'"),
}


@pytest.mark.parametrize(("imports", "call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(cli, imports, call, message):
    result = cli("train", files={"a.gin": CALL.format(imports=imports, call=call)}, base=False)
    check_error(result, "a.gin:", message)
    assert not result.calls


@pytest.mark.parametrize("module", ["os", "numpy.distutils", "antigravity"])
def test_modules_with_tasks_are_imports(cli, module):
    text = f'TASK_MODULES = ("builtin_tasks", "{module}")\n'
    result = cli("train", files={"a.gin": text})
    check_error(result, "TASK_MODULES (", "a.gin:1", f"'{module}'", f"add --module_import={module}")


def test_ones_own_modules_and_what_one_trusts(cli, tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text("def make_model():\n    return 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "import my_parts\nsample_commands.train.model = @my_parts.make_model()\n"
    result = cli("train", files={"a.gin": "import sample_commands\n" + text})
    assert result.calls[0][1]["model"] == "mine"
    text = "import sample_parts\nimport datetime\nsample_parts.Data.task = @datetime.date()\n"
    # Trusted, it gets as far as what a task may be.
    result = cli("train", "--module_import=datetime", files={"b.gin": text})
    check_error(result, "sample_parts.Data.task (b.gin:3)", "expected str, got a datetime.date")
    check_error(cli("train", files={"b.gin": text}), "b.gin:2", "--module_import=datetime")
