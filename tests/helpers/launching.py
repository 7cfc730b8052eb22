"""Runs Python programs in two processes on the CPU, as `accelerate launch` starts them."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def launch(*arguments, timeout=600):
    """Run a script, or `-m` and a module, with its arguments in two processes; one that waits for the other would wait for half an hour."""
    # --multi_gpu is accelerate's word for several processes on one machine; use_cpu among the training's arguments makes them gloo's.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", *map(str, arguments)]
    paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
