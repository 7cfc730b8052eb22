"""The oldest supported versions are those of the package's bounds, and the quick suite passes on them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "oldest-versions.txt"


def test_the_oldest_versions_are_the_bounds():
    """Every pin is of the release that a lower bound names."""
    quoted = re.findall(r'"([a-z_-]+(?:\[\w+\])?>=[^"]+)"', (ROOT / "pyproject.toml").read_text())
    least = {
        requirement.name: part.version
        for requirement in map(Requirement, quoted)
        for part in requirement.specifier
        if part.operator == ">="
    }
    pins = dict(line.split("==") for line in PINS.read_text().splitlines() if "==" in line)
    assert "transformers" in pins
    assert "torch" in pins
    for name, version in pins.items():
        assert SpecifierSet(f"=={least[name]}.*").contains(version), name


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest versions have no wheels for this Python")
def test_quick_suite_on_the_oldest_versions(tmp_path):
    """Needs a package index or a filled cache of pip, about 6 GB of disk, and minutes."""
    script = [ROOT / "scripts" / "try_oldest.sh", tmp_path / "environment"]
    finished = subprocess.run(script, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert finished.returncode == 0, f"{finished.stdout[-8000:]}\n{finished.stderr[-4000:]}"
    assert " passed" in finished.stdout.splitlines()[-1]
