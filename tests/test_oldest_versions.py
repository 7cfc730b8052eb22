"""The whole quick suite on the oldest supported versions, from the package as a user would install it."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "oldest-versions.txt"


def run(*command, **environment) -> str:
    """Run in the repository without this interpreter's own paths; the output, which a failure shows."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    finished = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert finished.returncode == 0, f"{command}\n{finished.stdout[-8000:]}\n{finished.stderr[-4000:]}"
    return finished.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest versions have no wheels for this Python")
def test_quick_suite_on_the_oldest_versions(tmp_path):
    """Needs a package index or a filled cache of pip, about 6 GB of disk, and minutes."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", PINS, f"{ROOT}[test]")
    pins = dict(line.split("==") for line in PINS.read_text().splitlines() if "==" in line)
    versions = f"from importlib.metadata import version; print(*(version(name).split('+')[0] for name in {list(pins)}))"
    assert run(python, "-c", versions).split() == list(pins.values())
    assert "site-packages" in run(python, "-c", "import cacovid_hf; print(cacovid_hf.__file__)")
    output = run(python, "-m", "pytest", "-n", "2", "--no-header", "-p", "no:cacheprovider")
    assert " passed" in output
