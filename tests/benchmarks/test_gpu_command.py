"""The two commands for a GPU machine, tried on the CPU: what they run, what they write while they run, and how they stop."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ["--no-tests", "--device", "cpu", "--archs", "tiny-llava-onevision", "--frames", "2", "--repeats", "1"]


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def in_this_process(command, seconds):
    """Run a script of benchmarks/ as its own process would, without starting one."""
    script, *arguments = command[1:]
    threads = torch.get_num_threads()
    try:
        path = importlib.import_module(Path(script).stem).main(arguments, report=lambda line: None)
    finally:
        torch.set_num_threads(threads)
    return 0, str(path)


@pytest.fixture(autouse=True)
def peaks_of_no_machine(monkeypatch, benchmarks_on_path):
    """What a machine can do is measured in `test_benchmarks.py`."""
    from roofline import Peaks

    monkeypatch.setattr("prefill.measured_peaks", lambda device, dtype: Peaks(1e12, 1e11))


def summary(folder, part):
    (path,) = folder.glob(f"gpu_{part}_*.json")
    return json.loads(path.read_text())


def test_first_command(tmp_path, capsys):
    """Stock, full and light policy at both ratios, first token with vision, in bfloat16; the summary has the medians of the run's own file."""
    from gpu import main
    from table import main as print_tables

    assert main(["first", *TINY, "--output", str(tmp_path)], run=in_this_process) == 0
    record = summary(tmp_path, "first")
    (run,) = record["runs"]
    assert run["name"] == "tiny-llava-onevision, 2 frames"
    assert run["outcome"] == "done"
    assert record["not_measured"] == []
    (name,) = run["results"]
    result = json.loads((tmp_path / name).read_text())
    assert result["config"]["dtype"] == "bfloat16"
    assert record["versions"] == result["versions"]
    assert list(run["figures"]) == [
        "stock",
        "cacovid 0.25",
        "cacovid 0.1",
        "cacovid, light 0.25",
        "cacovid, light 0.1",
    ]
    for variant in result["variants"]:
        figures = run["figures"][variant["name"]]
        assert figures["prefill"] == round(variant["times_ms"]["prefill"]["median"], 3)
        assert figures["time_to_first_token"] > 0
    told = capsys.readouterr().out
    assert "tiny-llava-onevision, 2 frames: done" in told
    assert "not measured: nothing" in told
    print_tables([str(path) for path in tmp_path.glob("gpu_*.json")])
    assert "| tiny-llava-onevision, 2 frames | done |" in capsys.readouterr().out


def test_second_command(tmp_path):
    """Every run but the compiled one, which is slow; no figure is in two files."""
    from gpu import main

    def all_but_compiled(command, seconds):
        return (0, "") if "--compile" in command else in_this_process(command, seconds)

    sizes = ["--archs", "tiny-llava-onevision", "tiny-qwen2.5-vl", "--frames", "2", "4", "6", "--batches", "2"]
    arguments = ["second", *TINY, *sizes, "--output", str(tmp_path)]
    assert main(arguments, run=all_but_compiled) == 0
    record = summary(tmp_path, "second")
    assert [run["name"].removeprefix("tiny-") for run in record["runs"]] == [
        "llava-onevision, 4 frames",
        "llava-onevision, batches",
        "llava-onevision, optimisations",
        "qwen2.5-vl, 2 frames",
        "llava-onevision, 2 frames, static cache",
        "llava-onevision, 6 frames",
        "llava-onevision, 2 frames, compiled",
    ]
    assert [len(run["results"]) for run in record["runs"]] == [1] * 6 + [0]
    assert record["not_measured"] == []


@pytest.mark.parametrize("part", ["first", "second"])
def test_what_does_not_fit_is_named(tmp_path, capsys, part):
    """Nothing is started when less is left than a start takes."""
    from gpu import LEAST_SECONDS, main

    arguments = [part, "--budget-seconds", str(LEAST_SECONDS - 1), "--output", str(tmp_path)]
    assert main(arguments, run=lambda command, seconds: pytest.fail("started")) == 0
    record = summary(tmp_path, part)
    assert record["runs"] == []
    names = {"first": ["llava-onevision-7b, 32 frames", "qwen2.5-vl-7b, 32 frames", "tests"]}
    assert record["not_measured"][:3] == names.get(
        part, ["llava-onevision-7b, 128 frames", "llava-onevision-7b, batches", "llava-onevision-0.5b, optimisations"]
    )
    assert f"not measured: {record['not_measured'][0]}" in capsys.readouterr().out


def test_the_summary_is_written_after_every_run(tmp_path):
    """Of a command that dies, what was measured is there, and what was not is named."""
    from gpu import main

    calls = []

    def dies_in_the_second(command, seconds):
        calls.append((command, seconds))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1, "some error"

    with pytest.raises(KeyboardInterrupt):
        main(["first", "--output", str(tmp_path)], run=dies_in_the_second)
    record = summary(tmp_path, "first")
    assert [(run["name"], run["outcome"], run["last_line"]) for run in record["runs"]] == [
        ("llava-onevision-7b, 32 frames", "failed with status 1", "some error")
    ]
    assert record["not_measured"] == ["qwen2.5-vl-7b, 32 frames", "tests"]
    command, seconds = calls[0]
    assert seconds == pytest.approx(360, abs=5)
    assert float(command[command.index("--budget-seconds") + 1]) == pytest.approx(seconds - 10, abs=1)


def test_the_tests_marked_gpu_are_run(tmp_path):
    from gpu import main

    commands = []
    arguments = ["first", "--output", str(tmp_path)]
    main(arguments, run=lambda command, seconds: (commands.append(command), (0, "3 passed"))[1])
    *_, tests = commands
    assert tests[1:5] == ["-m", "pytest", "-m", "gpu"]
    marked = {Path(file).name for file in tests[6:]}
    assert {"test_gpu.py", "test_no_waiting.py", "test_selection.py"} <= marked
    assert summary(tmp_path, "first")["runs"][-1]["last_line"] == "3 passed"


def test_a_process_is_stopped_in_time(capfd):
    from gpu import run_process

    program = "import time; print('started', flush=True); time.sleep(60)"
    start = time.monotonic()
    assert run_process([sys.executable, "-c", program], 1.0) == (None, "started")
    assert time.monotonic() - start < 10
    assert run_process([sys.executable, "-c", "raise SystemExit(3)"], 20.0) == (3, "")
    assert run_process([sys.executable, "-c", "print('one'); print('two')"], 20.0) == (0, "two")
    assert capfd.readouterr().out == "started\none\ntwo\n"


def test_a_benchmark_that_runs_out_of_time_keeps_what_it_measured(tmp_path):
    """After the first of five repeats the budget is spent: the figures of that repeat are written, and why there are no more."""
    from prefill import main

    arguments = ["--arch", "tiny-llava-onevision", "--frames", "2", "--repeats", "5", "--budget-seconds", "0"]
    arguments += ["--dtype", "float32", "--device", "cpu", "--threads", "1", "--ratios", "0.25"]
    record = json.loads(main([*arguments, "--output", str(tmp_path)], report=lambda line: None).read_text())
    assert record["stopped"] == "after 1 repeats: the budget of 0 s was spent"
    assert [len(variant["times_ms"]["prefill"]["samples"]) for variant in record["variants"]] == [1, 1]
    assert "media" not in record


def test_a_growing_result_is_never_half_written(tmp_path):
    from record import GrowingResult

    record = {"date": "2026-01-02T03:04:05+00:00", "value": 1}
    result = GrowingResult(tmp_path, "name", record)
    path = result.save()
    record["value"] = 2
    assert result.save() == path
    assert json.loads(path.read_text())["value"] == 2
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError):
        GrowingResult(tmp_path, "name", record).save()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["first", "second"])
def test_in_processes_of_their_own(tmp_path, capfd, part):
    from gpu import main

    tiny = ["--no-tests", "--device", "cpu", "--archs", "tiny-llava-onevision", "tiny-qwen2.5-vl"]
    sizes = ["--frames", "2", "4", "6", "--batches", "2", "--repeats", "1"]
    main([part, *tiny, *sizes, "--budget-seconds", "600", "--output", str(tmp_path)])  # compiling may fail here
    out = capfd.readouterr().out
    names = {
        "first": ["llava-onevision, 2 frames", "qwen2.5-vl, 2 frames"],
        "second": ["4 frames", "batches", "optimisations", "qwen2.5-vl, 2 frames", "static cache", "6 frames"],
    }
    for name in names[part]:
        assert any(f"{name}: done" in line for line in out.splitlines()), (name, out)
