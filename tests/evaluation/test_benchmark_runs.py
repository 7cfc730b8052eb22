"""Runs on public benchmarks, damaged videos and samples that fail, by both first families."""

import json

import pytest
from helpers import benchmark_copies as copies
from helpers.models import stock_model
from helpers.processors import tiny_processor
from helpers.sweeps import BASE, answers, settings

from cacovid_hf.compressors import Uniform
from cacovid_hf.evaluation import sweep
from cacovid_hf.evaluation.datasets import load_benchmark
from cacovid_hf.evaluation.logs import CellLog
from cacovid_hf.evaluation.report import markdown
from cacovid_hf.evaluation.run import run_evaluation
from cacovid_hf.evaluation.run_files import read_run
from cacovid_hf.evaluation.sweep import Settings, evaluate
from cacovid_hf.utils.figures import ALL_TOKENS


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
    assert cell["outcomes"] == "??x"
    answers = cell["submission"]
    assert set(answers) == {"x_0", "y_0", "z_0"}, "servers count the questions"
    assert answers["z_0"] == ""
    assert "withheld" in markdown(run["cells"])


def test_videos_of_which_none_can_be_read_are_no_withheld_answers(stock, tmp_path):
    root = copies.mlvu_dev(tmp_path / "mlvu")
    for video in root.rglob("*.mp4"):
        video.write_bytes(b"no video")
    chosen = Settings(
        methods=("uniform",),
        ratios=(1.0, 0.5),
        models=(str(stock / "llava_onevision"),),
        datasets=(f"mlvu_dev={root}",),
    )
    lines = run_evaluation(chosen, tmp_path / "run.json")
    text = next(lines)
    with pytest.raises(ValueError, match=r"No question was answered: see .*run\.md for the reasons"):
        list(lines)
    assert {cell["outcomes"] for cell in read_run(tmp_path / "run.json")["cells"]} == {"xxxx"}
    assert "none answered" in text
    assert "withheld" not in text


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
