"""Sweeps: what is measured, resumed, shared among processes; tables, plots and published figures."""

import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import benchmark_copies as copies
from helpers.fresh import run_fresh
from helpers.models import stock_model
from helpers.processors import tiny_processor
from PIL import Image

from cacovid_cli.main import main
from cacovid_hf import tiny
from cacovid_hf.auto import load_model, load_processor
from cacovid_hf.compressors import CaCoVid, Uniform
from cacovid_hf.evaluation import sweep
from cacovid_hf.evaluation.datasets import load_benchmark
from cacovid_hf.evaluation.logs import CellLog, check_row
from cacovid_hf.evaluation.methods import expand_methods, make_method
from cacovid_hf.evaluation.paper_figures import check_comparable, published_tables, satisfies
from cacovid_hf.evaluation.report import markdown, paired_difference
from cacovid_hf.evaluation.run_files import read_run, write_run
from cacovid_hf.evaluation.sweep import Settings, evaluate
from cacovid_hf.tiny.accuracy import answer_accuracy
from cacovid_hf.utils.figures import ALL_TOKENS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "evaluation"
METHODS, RATIOS = ("cacovid", "uniform"), (1.0, 0.25, 0.02)
BASE = Settings(methods=METHODS, ratios=RATIOS, limit=18, batch_size=6, seed=5)
COMMAND = [
    "evaluate",
    "--method",
    "cacovid,uniform",
    "--ratio",
    "1.0,0.25,0.02",
    "--limit",
    "18",
    "--batch-size",
    "6",
    "--seed",
    "5",
]


def settings(**changes) -> Settings:
    return Settings(**{**vars(BASE), **changes})


def answers(run, folder):
    """Whatever must not depend on the machine or on what was run before: figures and responses of every cell."""
    return {
        (c["dataset"]["name"], c["method"]["label"], c["retention_ratio"]): (
            c["score"],
            c["outcomes"],
            c["kept_tokens"],
            [json.loads(line)["response"] for line in (folder / c["log"]).read_text().splitlines()],
        )
        for c in run["cells"]
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end, in one process: its folder and its JSON."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, evaluate(BASE, folder / "run.json")


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of that run to change."""
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy" / "run.json"


def test_a_run_has_every_cell_and_says_what_it_measured(whole):
    folder, run = whole
    assert run == read_run(folder / "run.json")
    places = [(c["method"]["label"], c["retention_ratio"]) for c in run["cells"]]
    assert places == [(ALL_TOKENS, 1.0), *((m, r) for m in METHODS for r in (0.25, 0.02))]
    model, processor = load_model(tiny.model_path()), load_processor(tiny.model_path())
    for cell in run["cells"]:
        method = None if cell["method"]["label"] == ALL_TOKENS else cell["method"]["label"]
        expected = answer_accuracy(
            model,
            processor,
            num_questions=18,
            seed=5,
            retention_ratio=cell["retention_ratio"],
            compressor=method,
            batch_size=6,
        )
        assert cell["score"]["value"] == pytest.approx(expected.accuracy)
        assert cell["score"]["standard_error"] == pytest.approx(expected.standard_error)
        assert {k: v["value"] for k, v in cell["score"]["parts"]["kind"].items()} == pytest.approx(expected.by_kind)
        assert cell["kept_tokens"] == {1.0: 288, 0.25: 72, 0.02: 5}[cell["retention_ratio"]]
        assert cell["video_tokens"] == 288
        assert cell["median_ms"]["prefill"] > 0
        assert (cell["median_ms"]["compression"] > 0) == (cell["retention_ratio"] < 1)
        assert cell["dataset"]["settings"] == {"num_questions": 18, "seed": 5, "through_mp4": False}
        assert {"python", "torch", "transformers"} <= set(cell["environment"]["versions"])
        assert cell["environment"]["hardware"]["cpu"]
        assert cell["peak_memory_bytes"] is None or 50e6 < cell["peak_memory_bytes"] < 20e9
        lines = [json.loads(line) for line in (folder / "run" / cell["log"]).read_text().splitlines()]
        assert [line["index"] for line in lines] == list(range(18))
        assert [line["correct"] for line in lines] == [c == "1" for c in cell["outcomes"]]
    assert not list(folder.glob(".*"))
    assert not list((folder / "run").glob("*.part*"))


def test_a_finished_cell_is_not_run_again(copy, monkeypatch):
    before = copy.read_bytes()
    monkeypatch.setattr(sweep._Worker, "run", lambda *_: pytest.fail("ran a cell that is finished"))
    evaluate(BASE, copy)
    assert read_run(copy)["cells"] == json.loads(before)["cells"]


def test_new_cells_join_a_run(copy, whole):
    run = evaluate(settings(methods=("random",), ratios=(0.02,)), copy)
    added = [c for c in run["cells"] if c["method"]["label"] == "random"]
    assert len(added) == 1
    assert len(run["cells"]) == len(whole[1]["cells"]) + 1
    assert run["config"]["methods"] == [*METHODS, "random"]


@pytest.mark.parametrize("change", [{"limit": 12}, {"seed": 6}, {"batch_size": 1}, {"max_new_tokens": 3}])
def test_other_settings_do_not_join_a_run(copy, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=rf"was measured with {name}=.*, and {name}={value} is asked for"):
        evaluate(settings(**change), copy)


def test_a_cell_of_other_weights_is_run_again_and_replaced(whole, tmp_path):
    """Only the cells of the policy, when the policy alone has changed."""
    model = load_model(tiny.model_path())
    for weight in model.policy.parameters():
        weight.data.mul_(-1)
    model.save_pretrained(tmp_path / "other", include_backbone=True)
    load_processor(tiny.model_path()).save_pretrained(tmp_path / "other")
    first = evaluate(settings(models=(str(tmp_path / "other"),)), tmp_path / "run.json")
    shutil.copytree(tiny.model_path(), tmp_path / "other", dirs_exist_ok=True)
    second = evaluate(settings(models=(str(tmp_path / "other"),)), tmp_path / "run.json")
    dates = {True: set(), False: set()}
    for old, new in zip(first["cells"], second["cells"], strict=True):
        dates[new["method"]["label"] == "cacovid"].add(old == new)
    assert dates == {True: {False}, False: {True}}
    assert answers(second, tmp_path / "run") == answers(whole[1], whole[0] / "run")


def test_stopped_on_the_command_line_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep._Worker, "run", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    # Whoever runs the tests in the background may have them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", "--output", str(tmp_path / "run.json"), "--method", "uniform", "--limit", "4"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert "cacovid: stopped. The same command goes on behind the last answers." in capsys.readouterr().err


def test_stopped_in_the_middle_it_goes_on(whole, tmp_path, monkeypatch):
    """An exception stands for whatever ends a process between two batches; half a line for one that ended in a batch."""
    worker_run, batches = sweep._Worker.run, []

    def stop_at_the_third(self, batch, cells):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(batch)
        worker_run(self, batch, cells)

    with monkeypatch.context() as patch:
        patch.setattr(sweep._Worker, "run", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            evaluate(BASE, tmp_path / "run.json")
    assert not (tmp_path / "run.json").exists()
    logs = sorted((tmp_path / "run").glob("*.part0.jsonl"))
    assert len(logs) == 5
    assert all(len(log.read_text().splitlines()) == 12 for log in logs)
    logs[0].write_bytes(logs[0].read_bytes()[:-40])
    again = []

    def counted(self, batch, cells):
        again.append((batch.start, len(cells)))
        worker_run(self, batch, cells)

    monkeypatch.setattr(sweep._Worker, "run", counted)
    run = evaluate(BASE, tmp_path / "run.json")
    assert again == [(6, 1), (12, 5)]
    assert answers(run, tmp_path / "run") == answers(whole[1], whole[0] / "run")


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


def test_accuracy_does_not_depend_on_the_batch(whole, tmp_path):
    run = evaluate(settings(batch_size=1), tmp_path / "run.json")
    expected = {place: cell[1] for place, cell in answers(whole[1], whole[0] / "run").items()}
    assert {place: cell[1] for place, cell in answers(run, tmp_path / "run").items()} == expected


def test_a_second_run_on_the_same_file_is_refused(copy):
    from cacovid_hf.evaluation.run_files import only_writer

    with only_writer(copy), pytest.raises(ValueError, match="Another evaluation is writing"):
        evaluate(BASE, copy)
    evaluate(BASE, copy)


# ---------------------------------------------------------------- public benchmarks, damaged videos, both families


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A random stock model of each family, in a folder."""
    folder = tmp_path_factory.mktemp("stock")
    for family in ("llava_onevision", "qwen2_5_vl"):
        stock_model(family).save_pretrained(folder / family)
        tiny_processor(family).save_pretrained(folder / family)
    return folder


SETS = {
    "videomme": copies.videomme,
    "mlvu_dev": copies.mlvu_dev,
    "mlvu_test": copies.mlvu_test,
    "longvideobench": copies.longvideobench,
    "mvbench": copies.mvbench,
    "egoschema": copies.egoschema,
    "ssv2": copies.ssv2,
}


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_public_benchmarks(stock, tmp_path, family):
    """All of them in one run, each with a video that cannot be read, which is counted and reported."""
    pytest.importorskip("pyarrow")
    datasets = tuple(f"{name}={write(tmp_path / name)}" for name, write in SETS.items())
    chosen = Settings(
        methods=("uniform",),
        ratios=(1.0, 0.5),
        models=(str(stock / family),),
        datasets=datasets,
        num_frames=2,
        max_new_tokens=2,
        batch_size=2,
    )
    run = evaluate(chosen, tmp_path / "run.json")
    assert len(run["cells"]) == 2 * len(SETS)
    for cell in run["cells"]:
        samples = cell["dataset"]["samples"]
        assert cell["broken"]["count"] == 1
        assert cell["outcomes"].count("x") == 1
        assert cell["answered"] == samples - 1
        assert cell["score"]["count"] == samples - 1
        rows = [json.loads(line) for line in (tmp_path / "run" / cell["log"]).read_text().splitlines()]
        assert sum("error" in row for row in rows) == 1
        benchmark = load_benchmark(next(d for d in datasets if d.startswith(cell["dataset"]["name"] + "=")))
        for row in rows:
            if "error" not in row:
                assert row["extracted"] == benchmark.extract(row["response"], benchmark[row["index"]])
                assert row["correct"] == (row["extracted"] == row["answer"])
    text = markdown(run["cells"])
    assert text.count("could not be read or answered and count nowhere") == len(SETS)
    assert "cut.mp4 is not a readable video" in text


def test_withheld_answers_make_a_submission(stock, tmp_path):
    copies.longvideobench(tmp_path / "lvb")
    chosen = Settings(
        methods=("uniform",),
        ratios=(1.0,),
        models=(str(stock / "llava_onevision"),),
        datasets=(f"longvideobench_test={tmp_path / 'lvb'}",),
        num_frames=2,
        max_new_tokens=2,
    )
    run = evaluate(chosen, tmp_path / "run.json")
    (cell,) = run["cells"]
    assert cell["score"]["value"] is None
    assert set(cell["submission"]) == {"x_0", "y_0"}
    assert cell["outcomes"] == "??x"
    assert "withheld" in markdown(run["cells"])


def test_a_question_whose_answer_is_not_an_option_counts_nowhere(stock, tmp_path):
    table = copies.mlvu_dev(tmp_path / "mlvu") / "json" / "1_plotQA.json"
    rows = json.loads(table.read_text())
    table.write_text(json.dumps([{**rows[0], "answer": "a kat"}, *rows[1:]]))
    chosen = Settings(
        methods=("uniform",),
        ratios=(1.0,),
        models=(str(stock / "llava_onevision"),),
        datasets=(f"mlvu_dev={tmp_path / 'mlvu'}",),
        num_frames=2,
        max_new_tokens=2,
    )
    (cell,) = evaluate(chosen, tmp_path / "run.json")["cells"]
    assert cell["outcomes"][0] == cell["outcomes"][3] == "x"  # the other one has no video
    assert cell["answered"] == cell["score"]["count"] == 2
    assert cell["broken"]["first"][0] == (
        f"1_plotQA-0: row 1 of {table}: the answer 'a kat' is not an option (A. a dog; B. a cat; C. a cow; D. a hen): "
        "give an option's letter or its text."
    )
    table.write_text(json.dumps([{**rows[0], "answer": "A cat"}, *rows[1:]]))
    (cell,) = evaluate(chosen, tmp_path / "run.json")["cells"]
    assert cell["answered"] == 3


def test_a_method_that_refuses_a_backbone_stops_nobody(whole, tmp_path, monkeypatch):
    def refuse(self, *_):
        raise ValueError("uniform does not serve this backbone")

    with monkeypatch.context() as patch:
        patch.setattr(Uniform, "select", refuse)
        run = evaluate(BASE, tmp_path / "run.json")
    assert {c["method"]["label"] for c in run["cells"]} == {ALL_TOKENS, "cacovid"}
    assert set(run["refused"]) == {"tiny/tiny/uniform/0.25", "tiny/tiny/uniform/0.02"}
    assert "does not serve this backbone" in run["refused"]["tiny/tiny/uniform/0.25"]
    run = evaluate(BASE, tmp_path / "run.json")  # once it can, it does
    assert not run["refused"]
    assert answers(run, tmp_path / "run") == answers(whole[1], whole[0] / "run")


@pytest.mark.parametrize("batch_size", [1, 6])
def test_one_sample_that_fails_ends_neither_run_nor_cell(batch_size, tmp_path, monkeypatch):
    """Three that cannot be read, prepared or answered: counted, and the same command asks them alone again."""
    chosen = settings(methods=("uniform",), ratios=(0.25,), limit=12, batch_size=batch_size)
    read, prepare, respond = sweep.read_clip, sweep.prepare, sweep.respond
    asked = []

    def read_clip(processor, video, num_frames):
        place = len(asked)
        asked.append(place)
        if place == 1:
            raise OSError("Stale file handle")
        clip = read(processor, video, num_frames)
        clip.metadata.place = place
        return clip

    def prepare_all(model, processor, conversations):
        places = [c[0]["content"][0]["video"].metadata.place for c in conversations]
        if 3 in places:
            raise ValueError("absolute aspect ratio must be smaller than 200, got 210.0")
        inputs = prepare(model, processor, conversations)
        inputs.places = places
        return inputs

    def encode(model, inputs):
        encoded, milliseconds = encoding(model, inputs)
        return Encoded(encoded, places=inputs.places), milliseconds

    class Encoded(dict):
        def __init__(self, values, places):
            super().__init__(values)
            self.places = places

    def respond_all(model, processor, inputs, *rest):
        if 8 in inputs.places:
            raise ValueError("The scores hold NaN")
        return respond(model, processor, dict(inputs), *rest)

    encoding = sweep.with_encoded_videos
    with monkeypatch.context() as patch:
        for name, function in (
            ("read_clip", read_clip),
            ("prepare", prepare_all),
            ("respond", respond_all),
            ("with_encoded_videos", encode),
        ):
            patch.setattr(sweep, name, function)
        (cell,) = evaluate(chosen, tmp_path / "run.json")["cells"]
    assert [place for place, outcome in enumerate(cell["outcomes"]) if outcome == "x"] == [1, 3, 8]
    assert (cell["answered"], cell["broken"]["count"]) == (9, 3)
    assert [text.split(": ")[1][:8] for text in cell["broken"]["first"]] == ["Stale fi", "absolute", "The scor"]
    assert "3 of 12 samples could not be read or answered" in markdown([cell])

    ran, worker_run = [], sweep._Worker.run
    monkeypatch.setattr(
        sweep._Worker, "run", lambda self, batch, cells: (ran.extend(batch), worker_run(self, batch, cells))
    )
    run = evaluate(chosen, tmp_path / "run.json")
    assert ran == [1, 3, 8]
    again = evaluate(chosen, tmp_path / "whole.json")
    assert answers(run, tmp_path / "run") == answers(again, tmp_path / "whole")
    ran.clear()
    evaluate(chosen, tmp_path / "run.json")
    assert ran == []


def test_an_answer_counts_before_an_error(tmp_path):
    log = CellLog(tmp_path, "cell")
    log.append([{"index": 0, "error": "no"}, {"index": 1, "correct": True}], part=1)
    log.append([{"index": 0, "correct": True}], part=0)
    assert log.read() == {0: {"index": 0, "correct": True}, 1: {"index": 1, "correct": True}}


# ---------------------------------------------------------------- what is committed


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_committed_run(path):
    """It says where it comes from, and has every cell that it names."""
    run = read_run(path)
    assert len(run["commit"]) >= 40
    assert run["dirty"] is not True
    assert "all" not in run["config"]["methods"]  # which a later version would take for more
    methods = set(expand_methods(run["config"]["methods"]))
    places = {(c["method"]["label"], c["retention_ratio"]) for c in run["cells"]}
    refused = {tuple(place.split("/")[2:]) for place in run.get("refused", {})}
    for ratio in run["config"]["ratios"]:
        for method in methods if ratio < 1 else {ALL_TOKENS}:
            assert (method, ratio) in places or (method, str(ratio)) in refused
    for cell in run["cells"]:
        assert cell["score"]["count"] == cell["dataset"]["samples"] == len(cell["outcomes"])
        assert {"python", "torch", "transformers"} <= set(cell["environment"]["versions"])
        assert cell["environment"]["hardware"]["cpu"]
        assert cell["environment"]["dirty"] is not True
        assert cell["environment"]["date"].endswith("+00:00")
    assert "± " in markdown(run["cells"])


# ---------------------------------------------------------------- settings, logs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("nothing",)}, "compressor='nothing' is unknown"),
        (
            {"methods": ("cacovid:share=1",)},
            "'share=1' is not a setting of cacovid: give cacovid:SETTING=VALUE with one of contribution_share",
        ),
        ({"methods": ("cacovid:scope=nowhere",)}, "Method 'cacovid:scope=nowhere': "),
        ({"methods": ()}, "methods is empty"),
        ({"ratios": (1.5,)}, r"retention_ratio=1\.5 is outside"),
        ({"datasets": ("tiny", "tiny")}, "a benchmark is named twice"),
        ({"datasets": ("other",)}, "Benchmark 'other' is unknown"),
        ({"models": ("./gone",)}, "./gone cannot be loaded"),
        ({"limit": 0}, "limit=0 leaves no question"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dtype": "float3"}, "dtype='float3' is not a dtype of torch"),
    ],
)
def test_bad_settings(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(settings(**change), tmp_path / "run.json")
    assert not list(tmp_path.iterdir())


def test_methods_with_settings():
    model = load_model(tiny.model_path())
    method = make_method("cacovid:contribution_share=0.5:scope=video", model)
    assert method == CaCoVid(0.5, model.config.frame_cap, "video")
    assert make_method("cacovid", model) == model.resolve_compressor(None)
    assert {"cacovid", "uniform", "random"} <= set(expand_methods(["all"]))


@pytest.mark.parametrize(
    "text", ["no json", "[]", "[" * 20_000, '{"benchmark": "prefill"}', '{"benchmark": "evaluation", "format": 99}', '{"benchmark": "evaluation", "format": 1}',
     '{"benchmark": "evaluation", "format": 1, "config": {"methods": [], "ratios": [], "models": [], "datasets": []}, "cells": [{}]}'],
    ids=lambda text: text[:50],
)  # fmt: skip
def test_what_is_no_run(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json (cannot be read|is not a run|has format 99|is damaged \()"):
        evaluate(BASE, tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text() == text


def test_a_log_survives_half_a_line(tmp_path):
    log = CellLog(tmp_path, "cell")
    log.append([{"index": 0}, {"index": 1}], part=0)
    log.append([{"index": 2}], part=1)
    path = tmp_path / "cell.part0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"index": 3, "res')
    assert sorted(log.read()) == [0, 1, 2]
    log.append([{"index": 4}], part=0)
    assert sorted(log.read()) == [0, 1, 2, 4]
    log.merge()
    assert [json.loads(line)["index"] for line in log.path.read_text().splitlines()] == [0, 1, 2, 4]
    assert log.parts() == []


def damages(line: bytes) -> list[bytes]:
    """A line of a log in every form that is not a row of it."""
    row = json.loads(line)
    changes = [
        {"index": "0"}, {"index": True}, {"index": -1}, {"index": 18}, {"index": None}, {"id": 3}, {"groups": None}, {"groups": {"kind": 1}},
        {"correct": not row["correct"]}, {"correct": None}, {"answer": 1}, {"extracted": None}, {"kept": "1"}, {"kept": float("nan")}, {"total": 1.5},
        {"times_ms": {}}, {"times_ms": {**row["times_ms"], "decode": float("inf")}}, {"peak_memory_bytes": "x"}, {"error": 3}, {"refused": None},
    ]  # fmt: skip
    lines = [json.dumps({**row, **change}).encode() for change in changes]
    lines += [
        json.dumps({key: value for key, value in row.items() if key != name}).encode()
        for name in row
        if name != "response"
    ]
    return [
        *lines,
        line[:-30],
        line[5:],
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"\x00" * 40,
        b"[" * 20_000,
        b'{"index": ' + b"9" * 6_000 + b"}",
    ]


def test_damaged_lines_are_asked_again(whole, tmp_path, caplog):
    """Each damage in place of its own line of the first cell's log."""
    shutil.copytree(whole[0], tmp_path / "copy")
    output = tmp_path / "copy" / "run.json"
    (log,) = (tmp_path / "copy" / "run").glob("*cacovid_0.25_*.jsonl")
    check = functools.partial(check_row, num_samples=18, stages=sweep.STAGES)
    lines = log.read_bytes().splitlines()
    for damage in damages(lines[4]):
        log.write_bytes(b"\n".join([*lines[:4], damage, *lines[5:], b""]))
        caplog.clear()
        cell = CellLog(log.parent, log.stem, check)
        assert sorted(cell.read()) == [n for n in range(18) if n != 4], damage
        assert sorted(cell.read()) == [n for n in range(18) if n != 4]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"{log}, line 5 is damaged (" in caplog.text
        assert "it is dropped, and its question is asked again." in caplog.text
        assert len(caplog.text) < 600
    output.unlink()  # the cells are made again from their logs, and the one with a damaged line is asked for that batch
    again = evaluate(BASE, output)
    assert answers(again, output.with_suffix("")) == answers(whole[1], whole[0] / "run")
    assert "damaged" not in "".join(path.read_text() for path in log.parent.iterdir())


def fuzz_log(whole, folder, count):
    """Damages one place of a log `count` times; rows that are lost, in all."""
    (log,) = (whole[0] / "run").glob("*cacovid_0.25_*.jsonl")
    content, draw, lost = log.read_bytes(), random.Random(0), 0
    check = functools.partial(check_row, num_samples=18, stages=sweep.STAGES)
    rows = CellLog(log.parent, log.stem, check).read()
    for _ in range(count):
        place = draw.randrange(len(content))
        junk = draw.choice([b"", bytes([draw.randrange(256)]), b"\n", b"[" * 5000, b"NaN", b"9" * 6000, b"\x00" * 9])
        (folder / "cell.jsonl").write_bytes(content[:place] + junk + content[place + draw.randrange(30) :])
        found = CellLog(folder, "cell", check).read()
        assert found.keys() <= rows.keys()
        assert sum(found[index].keys() != rows[index].keys() for index in found) <= 1
        assert len(rows) - len(found) <= 2
        lost += len(rows) - len(found)
    return lost


def test_fuzzed_logs_lose_the_damaged_line_alone(whole, tmp_path):
    assert fuzz_log(whole, tmp_path, 100) > 30


@pytest.mark.slow
def test_many_fuzzed_logs_lose_the_damaged_line_alone(whole, tmp_path):
    lost = fuzz_log(whole, tmp_path, 2000)
    print(f"{lost} rows lost")
    assert lost > 600


# ---------------------------------------------------------------- tables, plots, published figures


def test_report_tables(whole):
    text = markdown(whole[1]["cells"])
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    header = next(row for row in rows if row[0].strip() == "method" and "ratio counted" in row[1])
    assert [column.strip() for column in header[2:]] == ["25 %", "2 %"]
    for cell in whole[1]["cells"][1:]:
        row = next(row for row in rows if row[0].strip() == cell["method"]["label"] and "before the LLM" in row[1])
        shown = row[2 if cell["retention_ratio"] == 0.25 else 3].strip(" *")
        assert shown == f"{100 * cell['score']['value']:.1f} ± {100 * cell['score']['standard_error']:.1f}"
    stock = whole[1]["cells"][0]["median_ms"]["prefill"]
    fast = next(c for c in whole[1]["cells"] if (c["method"]["label"], c["retention_ratio"]) == ("uniform", 0.25))
    assert f"{stock / fast['median_ms']['compression_and_prefill']:.2f}x" in text


def test_paired_difference():
    assert paired_difference("1101", "1001") == (pytest.approx(0.25), pytest.approx((3 / 16 / 4) ** 0.5))
    assert paired_difference("11x0", "0110") == (pytest.approx(1 / 3), pytest.approx((2 / 9 / 3) ** 0.5))
    assert paired_difference("xx", "11") == (0.0, 0.0)


def test_paired_difference_of_questions_on_one_video():
    """Three questions a video that go together are one observation."""
    a, b = "110101" * 20, "010110" * 20
    difference, error = paired_difference(a, b)
    videos = " ".join(str(i // 3) for i in range(360))
    tripled = paired_difference("".join(x * 3 for x in a), "".join(x * 3 for x in b), videos)
    assert tripled == (pytest.approx(difference), pytest.approx(error))


def test_paired_difference_of_a_mean_over_parts():
    a, b = "1" * 60 + "0" * 40 + "1" * 10, "1" * 61 + "0" * 39 + "0" * 10
    parts = " ".join("0" * 100 + "1" * 10)
    assert paired_difference(a, b)[0] == pytest.approx(9 / 110)
    difference, error = paired_difference(a, b, None, parts)
    assert difference == pytest.approx((-0.01 + 1.0) / 2)
    assert error == pytest.approx((0.01 * 0.99 / 100) ** 0.5 / 2)
    assert paired_difference(a + "1", b + "0", None, f"{parts} -") == (difference, error)


def test_bold_is_of_the_metric_that_is_shown(whole):
    """A mean over tasks, by videos; without them, as in runs of former versions, over samples."""

    def cell(label, outcomes, value, **more):
        entry = {**whole[1]["cells"][1], "method": {"label": label}, "outcomes": outcomes, **more}
        return {**entry, "score": {**entry["score"], "value": value}}

    def bold(**more):
        cells = cell("a", "1" * 60 + "0" * 40 + "1" * 10, 0.8, **more), cell("b", "1" * 75 + "0" * 35, 0.375, **more)
        return re.findall(r"\| (\w+) \| before the LLM \| \*\*", markdown(cells))

    assert bold() == ["a", "b"]
    assert bold(parts=" ".join("0" * 100 + "1" * 10)) == ["a"]


def test_cells_tell_videos_and_parts():
    class Macro(type(load_benchmark("tiny", 3))):
        macro_group = "task"

    rows = [
        {"id": str(i), "video_id": f"v{i // 2}", "groups": {"task": task} if task else {}, "error": "no"}
        for i, task in enumerate(["x", "y", None, "x"])
    ]
    found = sweep.summary(rows, Macro(3))
    assert (found["videos"], found["parts"]) == ("0 0 1 1", "0 1 - 0")
    alone = sweep.summary([{**row, "video_id": ""} for row in rows], load_benchmark("tiny", 3))
    assert not {"videos", "parts"} & set(alone)


def test_bold_is_the_best_and_what_does_not_differ_from_it(whole):
    def cell(label, outcomes):
        value = outcomes.count("1") / len(outcomes)
        entry = {**whole[1]["cells"][1], "method": {"label": label}, "outcomes": outcomes}
        return {**entry, "score": {**entry["score"], "value": value}}

    text = markdown(
        [cell("best", "1" * 90 + "0" * 10), cell("close", "1" * 89 + "0" * 11), cell("far", "1" * 60 + "0" * 40)]
    )
    bold = {name: bool(re.search(rf"\| {name} \| before the LLM \| \*\*", text)) for name in ("best", "close", "far")}
    assert bold == {"best": True, "close": True, "far": False}
    other = {**cell("other", "1" * 100), "ratio_definition": "behind the cut inside the LLM"}
    text = markdown([cell("best", "1" * 90 + "0" * 10), other])
    assert "| best | before the LLM | **90.0" in text
    assert "| other | behind the cut inside the LLM | 100.0" in text


def as_if(cells, **changes):
    """Cells as they would be on the paper's benchmarks."""
    names = published_tables()["cacovid_ov7b"].benchmark_set
    return [{**cell, **changes, "dataset": {**cell["dataset"], "name": name}} for name in names for cell in cells]


def test_beside_published_figures(whole, tmp_path, capsys):
    write_run(tmp_path / "run.json", {**whole[1], "cells": as_if(whole[1]["cells"])})
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "run.json"), "--published", "cacovid_ov7b", "--plots", str(tmp_path / "plots")])
    out = capsys.readouterr().out
    cells = {(c["method"]["label"], c["retention_ratio"]): c["score"]["value"] for c in whole[1]["cells"]}
    ours = f"{100 * cells['cacovid', 0.25] / cells[ALL_TOKENS, 1.0]:.1f}"
    assert re.search(rf"\| cacovid \| this run, tiny \| {re.escape(ours)} \|", out)
    assert "| CaCoVID | published | 98.9 | 98.1 | 97.5 | 96.1 |" in out
    assert "arXiv 2602.01649" in out
    for name in ("ratio", "latency"):
        with Image.open(tmp_path / "plots" / f"run_accuracy_{name}.png") as image:
            assert image.format == "PNG"
            assert image.width > 700


def test_other_benchmark_sets_are_not_mixed(whole, tmp_path):
    cells = as_if(whole[1]["cells"])
    with pytest.raises(
        ValueError, match=r"means over different benchmark sets do not compare. Evaluate egoschema, mvbench too"
    ):
        markdown(cells, published_tables()["flashvid_ov7b"])
    with pytest.raises(ValueError, match=r"The run has tiny, and the figures of 'cacovid_ov7b'"):
        markdown(whole[1]["cells"], published_tables()["cacovid_ov7b"])


def test_figures_of_unknown_benchmarks_compare_with_nothing(whole):
    with pytest.raises(ValueError, match=r"'score' are of unknown benchmarks"):
        markdown(whole[1]["cells"], published_tables()["score"])


def test_other_ratio_definitions_are_not_mixed(whole):
    cells = as_if(whole[1]["cells"], ratio_definition="averaged over the LLM's layers")
    assert "published" in markdown(cells, published_tables()["cacovid_ov7b"])
    table = published_tables()["holitom_ov7b"]
    with pytest.raises(
        ValueError, match=r"'cacovid' is counted averaged over the LLM's layers, that of 'holitom_ov7b' before the LLM"
    ):
        check_comparable(table, set(table.benchmark_set), {"cacovid": "averaged over the LLM's layers"})
    with pytest.raises(ValueError, match="of the KV cache while decoding"):
        check_comparable(published_tables()["dycoke_ov7b"], {"videomme"}, {"uniform": "before the LLM"})


def test_which_ratios_compare():
    before, layers, cache = "before the LLM", "averaged over the LLM's layers", "of the KV cache while decoding"
    compare = {(a, b) for a in (before, layers, cache) for b in (before, layers, cache) if satisfies(a, b)}
    assert compare == {(before, before), (layers, layers), (cache, cache), (before, layers)}


def test_percentages_need_all_tokens(whole):
    cells = [cell for cell in as_if(whole[1]["cells"]) if cell["retention_ratio"] < 1]
    with pytest.raises(ValueError, match=r"has no cell of all tokens \(ratio 1\.0\)"):
        markdown(cells, published_tables()["cacovid_ov7b"])


def test_published_figures_are_complete():
    tables = published_tables()
    for table in tables.values():
        assert table.source
        assert table.backbone
        assert table.benchmark_set or table.name == "score"  # by its abstract alone
        assert table.ratio_definition in (
            "before the LLM",
            "averaged over the LLM's layers",
            "of the KV cache while decoding",
        )
        assert all(0 < f.ratio < 1 and 50 < f.value < 110 for f in table.figures)
        for score in table.scores:
            assert set(table.benchmark_set) <= set(score)
    # Percentages and absolute scores of one table are of one uncompressed model, to their rounding.
    for name, full in (("simplecluster_ov7b", 58.4), ("infomerge_ov7b", 59.97)):
        table = tables[name]
        percent = {figure.ratio: figure.value for figure in table.figures if figure.method == table.scores[0]["method"]}
        for score in table.scores:
            mean = sum(score[benchmark] for benchmark in table.benchmark_set) / len(table.benchmark_set)
            assert 100 * mean / full == pytest.approx(percent[score["ratio"]], abs=0.15)
    # Percentages of the paper follow from its absolute scores, to its rounding.
    tables_of_scores = {name: table for name, table in tables.items() if name.startswith(("marc", "streamingtom"))}
    for table in tables_of_scores.values():
        full, kept = (sum(score[name] for name in table.benchmark_set) for score in table.scores)
        assert 100 * kept / full == pytest.approx(table.figures[0].value, abs=0.05)
    for name in ("cacovid_ov7b", "cacovid_qwen3b"):
        scores = {(s["method"], s["ratio"]): s["mean"] for s in tables[name].scores}
        for figure in tables[name].figures:
            if figure.method == "CaCoVID":
                assert 100 * scores["CaCoVID", figure.ratio] / scores["all tokens", 1.0] == pytest.approx(
                    figure.value, abs=0.15
                )


def test_the_same_cell_twice_is_refused(whole, tmp_path, capsys):
    for name in ("a.json", "b.json"):
        write_run(tmp_path / name, whole[1])
    with pytest.raises(SystemExit) as exit:
        main(["report", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert exit.value.code == 2
    assert "is in" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(
            [
                *COMMAND[:1],
                "--method",
                "uniform",
                "--ratio",
                "1.0,0.1",
                "--limit",
                "6",
                "--output",
                str(tmp_path / "run.json"),
            ]
        )
    out, err = capsys.readouterr()
    assert not exit.value.code
    assert err.splitlines()[:2] == ["Loading tiny ...", "tiny, batches of 2 cells: 6 to go ..."]
    assert "| uniform | before the LLM |" in out
    assert "no plots" not in out
    files = {"run.json", "run.md", "run_accuracy_ratio.png", "run_accuracy_latency.png", "run"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert (tmp_path / "run.md").read_text() in out


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["--method", "uniform", "--ratio", "0.1", "--limit", "2", "--output"]
    with pytest.raises(SystemExit) as exit:
        main([*COMMAND[:1], *words, str(tmp_path / "run.json")])
    assert not exit.value.code
    out = capsys.readouterr().out
    assert out.count("no plots were drawn, which need matplotlib: pip install") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "run.md", "run"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--output", "run.txt"], "Give a name that ends in .json"),
        (["evaluate", "--output", "run.json", "--ratio", "2"], "--ratio=2.0 is outside (0, 1]"),
        (["evaluate", "--output", "run.json", "--dataset", "mvbench"], "mvbench is read from a local copy"),
        (["evaluate"], "--output"),
        (["report", "gone.json"], "gone.json cannot be read"),
        (["report", "gone.json", "--published", "x"], "No published table is named 'x': choose one of cacovid_ov7b"),
    ],
)
def test_wrong_commands(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    err = capsys.readouterr().err
    assert exit.value.code == 2
    assert message in err
    assert err.startswith("cacovid: error: ")
    assert not list(tmp_path.iterdir())
