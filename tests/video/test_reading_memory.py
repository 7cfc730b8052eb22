"""What reading a file takes from the C library, it gives back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READS = """
import gc, sys
from heap import in_use
from cacovid_hf.tiny import clips
from cacovid_hf.video.files import read_video
path = str(clips()[0].path)
def read(count):
    for _ in range(count):
        read_video(path, 8)
    gc.collect()
    return in_use()
before = read(5)
print(-1 if before is None else read(50) - before)
"""


@pytest.mark.slow
def test_no_packet_stays():
    """PyAV keeps the packet of a track that is closed while it is read: half a kilobyte and more for every file."""
    # Without the small blocks that a thread keeps for itself.
    more = {
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'benchmarks'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", READS], env={**os.environ, **more}, capture_output=True, text=True, check=True
    )
    growth = int(done.stdout)
    if growth == -1:
        pytest.skip("the C library does not tell what is in use")
    assert growth < 50 * 200
