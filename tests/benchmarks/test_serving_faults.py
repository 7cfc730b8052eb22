"""The benchmark of good and bad requests at once, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_good_and_bad_requests_at_once(tmp_path):
    """Every good answer right, every bad one refused, memory flat from the second round on, alive at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    options = ["--requests", "100", "--rounds", "3", "--clients", "16", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.serving_faults", *options]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["alive_at_the_end"]
    for one in record["rounds"]:
        assert one["wrong"] == []
        counts = one["requests"]
        assert counts["good_as_expected"] == counts["good"] > 50
        assert counts["bad_as_expected"] == counts["bad"] > 20
        assert one["health_seconds"]["max"] < 1
    _, second, third = record["rounds"]
    assert third["memory_mb"] - second["memory_mb"] < 30
    if second["in_use"] is not None:
        assert third["in_use"] - second["in_use"] < 8 << 20
    assert third["descriptors"] - second["descriptors"] <= 2
