import sys

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data.task_modules import import_task_modules


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package `shelf` with modules that work and modules that do not."""
    directory = tmp_path / "shelf"
    directory.mkdir()
    (directory / "__init__.py").write_text("")
    (directory / "novels.py").write_text("LOADED = True\n")
    (directory / "broken.py").write_text("x = 1\ny = undefined_name\n")
    (directory / "needy.py").write_text("import surely_not_installed\n")
    (directory / "torn.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "shelf"]:
        del sys.modules[name]


def test_imports_in_order(package):
    import_task_modules(["shelf", "shelf.novels"])
    assert sys.modules["shelf.novels"].LOADED


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("shelf.novel", r"no task module 'shelf.novel' \(did you mean 'novels'\?\)"),
        ("shelv.novels", r"no task module 'shelv.novels' \(did you mean .*'shelf'"),
        ("taskz.stdlib", r"no task module 'taskz.stdlib' \(did you mean 'tasks'"),
        ("shelf.broken", r"'shelf.broken' fails .* NameError: name 'undefined_name' .*broken.py:2\)"),
        ("shelf.needy", r"'shelf.needy' fails .* No module named 'surely_not_installed' .*needy.py:1\)"),
        ("shelf.torn", r"'shelf.torn' fails .* SyntaxError"),
    ],
)
def test_one_line_that_says_where(package, module, message):
    with pytest.raises(UserError, match=message) as caught:
        import_task_modules([module])
    assert "\n" not in str(caught.value)
