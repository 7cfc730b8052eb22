"""What a request held goes with it, and what threads free serves others."""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from helpers.serving import CLIP, asking, free_port, post, running, tiny_model

from cacovid_cli.serve.errors import Refused

ROOT = Path(__file__).resolve().parents[3]
BAD = {
    "body": b"{",
    "field": {"n": 5, **asking(CLIP.path)},
    "address": asking("/nowhere/clip.mp4"),
    "content": asking("data:video/mp4;base64,bm8gdmlkZW8="),
    "answer": {"messages": [{"role": "user", "content": "what color"}], "min_tokens": 9, "max_tokens": 8},
    "method": {**asking(CLIP.path), "retention_ratio": [0.5, 0.5]},
}


@pytest.fixture(scope="module")
def address():
    with running(media_folders=(str(CLIP.path.parent),)) as found:
        yield found


def _alive(kind):
    return sum(type(one) is kind for one in gc.get_objects())


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_gone_when_it_is_told(address, name, stream):
    """An error holds its frames, and they the request, which may have many megabytes. None of it waits for a collection of cycles."""
    body = BAD[name] if isinstance(BAD[name], bytes) else {**BAD[name], "stream": stream}
    gc.collect()
    gc.disable()
    try:
        for _ in range(6):
            assert post(address, body)[0] == 400
        ends = time.monotonic() + 5
        # The last one may still stand on the stack of a thread that waits.
        while (held := _alive(Refused)) > 1 and time.monotonic() < ends:
            time.sleep(0.05)
        assert held <= 1
    finally:
        gc.enable()


def test_garbage_is_looked_for_while_it_is_little(monkeypatch):
    """Python puts a full collection off until a quarter more objects are there than at the last one, which saw those of all libraries."""
    import uvicorn

    from cacovid_cli.serve.limits import Limits
    from cacovid_cli.serve.server import serve

    seen = []

    def run(server):
        before, usual = gc.get_stats()[2]["collections"], gc.get_threshold()
        gc.set_threshold(100, 10, 10)  # so that a full collection is due after 12,000 objects
        kept = [[number] for number in range(20_000)]
        gc.set_threshold(*usual)
        seen.append((gc.get_stats()[2]["collections"] - before, gc.get_freeze_count() > 4 * len(kept)))

    monkeypatch.setattr(uvicorn.Server, "run", run)
    gc.unfreeze()  # what the suite froze at its beginning
    try:
        serve("tiny", *tiny_model(), Limits(), "127.0.0.1", free_port())
    finally:
        gc.unfreeze()
    (collections, is_little) = seen[0]
    assert is_little
    assert collections > 0


HEAPS = """
import ctypes, threading
from cacovid_cli.serve.heap import share_one_heap
{call}
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)
def take():
    together.wait()
    library.malloc(5000)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
library.malloc_info(0, ctypes.c_void_p.in_dll(library, "stdout"))
library.fflush(None)
"""


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="no glibc"
)
def test_threads_share_one_heap():
    """Unless the operator has said otherwise."""

    def heaps(call, **more):
        environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
        environment |= {"PYTHONPATH": str(ROOT / "src"), **more}
        done = subprocess.run(
            [sys.executable, "-c", HEAPS.format(call=call)], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.count("<heap nr=")

    assert heaps("share_one_heap()") == 1
    assert heaps("") > 1
    assert heaps("share_one_heap()", MALLOC_ARENA_MAX="3") == 3
