"""Sweeps that processes share, and that are killed."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers.fresh import run_fresh
from helpers.sweeps import COMMAND, answers

from cacovid_hf.evaluation.run_files import read_run


def launch(output, *arguments, processes=1, wait=True):
    command = [sys.executable, "-m", "cacovid_hf", *arguments, "--output", str(output)]
    if processes > 1:
        launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
        launcher += [
            "--mixed_precision",
            "no",
            "--num_machines",
            "1",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
        ]
        command = [sys.executable, *launcher, "-m", "cacovid_hf", *arguments, "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if wait:
        printed = process.communicate(timeout=500)[0]
        assert process.returncode == 0, printed
        return printed
    return process


def check_processes(whole, tmp_path, processes, run_all=launch):
    printed = run_all(tmp_path / "run.json", *COMMAND, processes=processes)
    run = read_run(tmp_path / "run.json")
    assert answers(run, tmp_path / "run") == answers(whole[1], whole[0] / "run")
    assert not list((tmp_path / "run").glob("*.part*"))
    assert printed.count("| method | ratio counted |") == 1


def fork_all(output, *arguments, processes):
    """The command in processes that meet as those of torchrun do; nothing is imported twice."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    program = f"""
import os, sys
from cacovid_cli.main import main
children = []
for rank in map(str, range({processes})):
    child = os.fork()
    if not child:
        os.environ.update({meeting!r}, WORLD_SIZE="{processes}", RANK=rank, LOCAL_RANK=rank)
        main({[*arguments, "--output", str(output)]!r})
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""
    return run_fresh(program, output.parent, with_transformers=True).stdout


def test_two_processes(whole, tmp_path):
    """Three batches for two. Started by accelerate, that is one of the slow tests below."""
    check_processes(whole, tmp_path, 2, fork_all)


@pytest.mark.slow
def test_three_processes(whole, tmp_path):
    check_processes(whole, tmp_path, 3)


@pytest.mark.slow
def test_killed_and_finished_by_another_number_of_processes(whole, tmp_path):
    process = launch(tmp_path / "run.json", *COMMAND, wait=False)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("*.part0.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run.json").exists()
    assert list((tmp_path / "run").glob("*.part0.jsonl"))
    check_processes(whole, tmp_path, 2)
