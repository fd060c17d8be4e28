"""Who may import whom, and that everything but the SeqIO source works without TensorFlow."""

import ast
import pathlib
import subprocess
import sys

import t5x_scale

PACKAGE = pathlib.Path(t5x_scale.__file__).parent
ROOT = PACKAGE.parent


def run(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_import_contracts():
    """The contracts of `.importlinter`: floors, strangers, and the rooms of third-party packages."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = run(code, "--config", str(ROOT / ".importlinter"), "--no-cache", "--no-logo")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_pallas_stays_in_the_kernels():
    """Submodules of jax, which the contracts cannot tell from jax."""
    for file in PACKAGE.rglob("*.py"):
        if file.is_relative_to(PACKAGE / "layers" / "ops"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            assert not any("pallas" in name or name.startswith("tokamax") for name in names), f"{file}:{node.lineno}"


WITHOUT = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "seqio", "tensorflow_datasets", "t5"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import t5x_scale
names = [module.name for module in pkgutil.walk_packages(t5x_scale.__path__, "t5x_scale.")]
names = [name for name in names if not name.endswith(("__main__", "t5x_scale.gin_files", "data.seqio_source"))]
# Apache Beam has an environment of its own (`make beam`).
names = [name for name in names if ".building.beam" not in name]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_imports_without_tensorflow():
    result = run(WITHOUT)
    assert result.returncode == 0, result.stderr
    # Every file of the package but the folder that needs it, the entry point, and the __init__ of the package itself.
    files = [file for file in PACKAGE.rglob("*.py") if file.name != "__main__.py" and "seqio_source" not in file.parts]
    files = [file for file in files if not (file.parent.name == "building" and file.name.startswith("beam"))]
    assert int(result.stdout) == len(files) - 1


def test_nothing_imports_tensorflow_by_itself():
    """Where it is installed, neither the step nor a command pays for it."""
    code = (
        "import sys, t5x_scale.commands.train, t5x_scale.program, t5x_scale.data.pipeline;"
        "print(sorted({'tensorflow', 'seqio', 'torch', 'transformers'} & set(sys.modules)))"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
