"""The import contract of pyproject.toml: every room stands on those below it, and no import runs back up."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def broken_contracts(folder: Path) -> str:
    """What import-linter says of the sources in `folder`, if it finds a contract broken; empty if all are kept."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {"PYTHONPATH": str(folder / "src"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return done.stdout if done.returncode else ""


@pytest.fixture
def importlinter():
    pytest.importorskip("importlinter")


@pytest.mark.usefixtures("importlinter")
def test_no_import_runs_back_up():
    assert broken_contracts(ROOT) == ""


@pytest.mark.usefixtures("importlinter")
@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("utils/names.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..ratio import AutoBudget\n", "utils.names -> cacovid_hf.ratio"),
        ("ratio.py", "def f():\n    from .generation import mixin\n", "cacovid_hf.ratio -> cacovid_hf.generation"),
        ("attic.py", "", "attic"),
    ],
    ids=["typed", "in a function", "a room without a floor"],
)  # fmt: skip
def test_what_the_contract_forbids(tmp_path, file, line, said):
    package = tmp_path / "src" / "cacovid_hf"
    for source in (ROOT / "src").rglob("*.py"):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    with (package / file).open("a") as module:
        module.write(line)
    assert said in broken_contracts(tmp_path)
