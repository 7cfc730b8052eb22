"""Programs in interpreters that have imported torch and torchvision, and nothing of this package.

Importing is most of such a test's time. One process per pytest worker imports once and forks for every program. A second one has also imported
transformers with its Auto classes and both families, for programs that do not depend on when that happens.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

_SERVER = """
import contextlib, json, os, sys, traceback
import torch, torchvision
if "--transformers" in sys.argv:
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoVideoProcessor, Trainer
    from transformers import LlavaOnevisionForConditionalGeneration, Qwen2_5_VLForConditionalGeneration
    from transformers import LlavaOnevisionProcessor, Qwen2_5_VLProcessor
else:
    assert "transformers" not in sys.modules
assert "cacovid_hf" not in sys.modules
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            file = os.open(os.devnull if number == 0 else order[name], os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        torch.set_num_threads(1)
        status = 0
        try:
            exec(compile(order["program"], "<program>", "exec"), {"__name__": "__main__"})
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _server(*options: str) -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server


def run_fresh(
    program: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    check: bool = True,
    with_transformers: bool = False,
) -> subprocess.CompletedProcess:
    """Run `program` and return its exit status and output.

    Args:
        cwd: folder to run in.
        environment: variables that replace or join those of this process.
        with_transformers: whether that is imported already, with the environment of this process.
        check: whether a program that fails fails the test, with the end of its stderr.
    """
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    log = cwd / ".fresh"
    log.mkdir(exist_ok=True)
    order = {
        "program": program,
        "cwd": str(cwd),
        "environment": {**os.environ, **(environment or {})},
        "stdout": str(log / "stdout"),
        "stderr": str(log / "stderr"),
    }
    server = _server(*["--transformers"] * with_transformers)
    print(json.dumps(order), file=server.stdin, flush=True)
    status = int(server.stdout.readline())
    done = subprocess.CompletedProcess([], status, (log / "stdout").read_text(), (log / "stderr").read_text())
    assert not (check and status), done.stderr[-4000:]
    return done
