"""The demonstration of docs/how_to/share.md: train, push, pull in a fresh process with an empty cache, the same tokens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_round_trip():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "hub_round_trip.py"), "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["a fresh process with an empty cache: 30 answers, 60 tokens", "the same tokens"]
    documented = (ROOT / "docs" / "how_to" / "share.md").read_text()
    assert all(line in documented for line in lines if line.startswith(("owner/", "a fresh", "the same")))
