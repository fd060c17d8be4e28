"""SECURITY.md, as far as the source can show it: nothing that is read can become code, and no archive is opened."""

import ast
import pathlib

import t5x_scale

ROOT = pathlib.Path(t5x_scale.__file__).parents[1]
SOURCES = [file for room in ("t5x_scale", "tasks", "tools") for file in sorted((ROOT / room).rglob("*.py"))]

# Formats that hold code, or make objects of whatever class they name, and archives, whose members name places.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "torch"}
MODULES |= {"tarfile", "zipfile", "pandas", "h5py", "jsonpickle", "xml", "code", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
METHODS = {"os.system", "os.popen", "shutil.unpack_archive", "np.genfromtxt", "np.lib.format.read_array"}

# (file, what): why it is no reader of what others wrote.
ALLOWED = {
    ("t5x_scale/config/signature.py", "eval"): "annotations of functions that were imported already",
    ("t5x_scale/data/building/beam.py", "pickle"): "a build's own job, read back only under the digest it was given",
    ("t5x_scale/data/building/parts.py", "zipfile"): "the name of an error",
}


def uses(tree):
    """(what, line) of everything in a file that SECURITY.md rules out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((name.split(".")[0], node.lineno) for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if called in CALLS or called in METHODS:
                yield called, node.lineno
            if called in ("np.load", "numpy.load") and not is_false(given.get("allow_pickle")):
                yield called, node.lineno
            if "shell" in given and not is_false(given["shell"]):
                yield "shell", node.lineno
            if called.endswith("import_module") and not isinstance(node.args[0], ast.Constant):
                yield "import_module", node.lineno


def is_false(node):
    return isinstance(node, ast.Constant) and node.value is False


# Modules that a person names: commands, and the tasks given by --module_import or TASK_MODULES.
IMPORTS = {"t5x_scale/main.py", "t5x_scale/data/task_modules.py"}


def test_no_input_is_code():
    found, seen = [], set()
    for file in SOURCES:
        name = str(file.relative_to(ROOT))
        for what, line in uses(ast.parse(file.read_text(encoding="utf-8"))):
            if (name, what) in ALLOWED or (what == "import_module" and name in IMPORTS):
                seen.add((name, what))
            else:
                found.append(f"{name}:{line} uses {what}")
    assert not found, "\n".join(found)
    # What is no longer there is no longer allowed.
    assert ALLOWED.keys() <= seen


def test_what_would_be_found():
    """The search finds what it is for."""
    for text, what in {
        "import pickle": "pickle",
        "from yaml import load": "yaml",
        "np.load(f)": "np.load",
        "np.load(f, allow_pickle=True)": "np.load",
        "eval(text)": "eval",
        "subprocess.run(words, shell=True)": "shell",
        "importlib.import_module(name)": "import_module",
        "shutil.unpack_archive(f)": "shutil.unpack_archive",
    }.items():
        assert [found for found, _ in uses(ast.parse(text))] == [what], text
    assert not list(
        uses(ast.parse("np.load(f, allow_pickle=False); re.compile(x); importlib.import_module('zstandard')"))
    )


def test_security_is_documented():
    text = (ROOT / "SECURITY.md").read_text()
    assert "gin" in text
    for name in {name for name, what in ALLOWED if what in ("eval", "pickle")}:
        assert name in text, name
