"""Sweeps: what is measured, resumed, and refused."""

import json
import os
import shutil
import signal
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from helpers.sweeps import BASE, METHODS, answers, settings

from cacovid_cli.main import main
from cacovid_hf import tiny
from cacovid_hf.auto import load_model, load_processor
from cacovid_hf.compressors import COMPRESSORS, CaCoVid, Uniform
from cacovid_hf.evaluation import sweep
from cacovid_hf.evaluation.methods import expand_methods, make_method
from cacovid_hf.evaluation.run import run_evaluation
from cacovid_hf.evaluation.run_files import read_run
from cacovid_hf.evaluation.sweep import evaluate, fingerprint
from cacovid_hf.tiny.accuracy import answer_accuracy
from cacovid_hf.utils.figures import ALL_TOKENS


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


def test_accuracy_does_not_depend_on_the_batch(whole, tmp_path):
    run = evaluate(settings(batch_size=1), tmp_path / "run.json")
    expected = {place: cell[1] for place, cell in answers(whole[1], whole[0] / "run").items()}
    assert {place: cell[1] for place, cell in answers(run, tmp_path / "run").items()} == expected


def test_a_second_run_on_the_same_file_is_refused(copy):
    from cacovid_hf.evaluation.run_files import only_writer

    with only_writer(copy), pytest.raises(ValueError, match="Another evaluation is writing"):
        evaluate(BASE, copy)
    evaluate(BASE, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("nothing",)}, "compressor='nothing' is unknown"),
        (
            {"methods": ("cacovid:share=1",)},
            "'share=1' is not a setting of cacovid: give cacovid:SETTING=VALUE with one of contribution_share",
        ),
        ({"methods": ("cacovid:scope=nowhere",)}, "Method 'cacovid:scope=nowhere': "),
        ({"methods": ("random:seed=abc",)}, "'random:seed=abc': seed='abc' is text. Give a number, without quotes"),
        ({"methods": ("random:seed=1.5",)}, "seed=1.5 is not of type int. Give a whole number"),
        ({"methods": ("vcast:temperature=hot",)}, "temperature='hot' is text. Give a number"),
        ({"methods": ("vcast:temperature=0",)}, "temperature=0 is out of range: give a number above 0"),
        ({"methods": ("vidcom2:temperature=NaN",)}, "temperature=nan is out of range"),
        ({"methods": ("vidcom2:channel_share=2",)}, r"channel_share=2 is out of range: give a number in \[0, 1\]"),
        ({"methods": ("prunevid:num_neighbours=0",)}, "num_neighbours=0 is out of range: give a whole number from 1"),
        ({"methods": ("evs:exact_count=no",)}, "exact_count='no' is text. Give true or false, without quotes"),
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
    assert make_method("marc:clips=2:clips_by=attention", model).clips == 2
    assert make_method("infomerge:tau=3", model).tau == 3


@dataclass(frozen=True)
class Mine(Uniform):
    """A user's method, whose settings have types that none of ours has."""

    mode: Literal["abc", "def"] = "abc"
    layers: tuple[int, ...] = (1,)
    name = "mine"


@dataclass(frozen=True)
class Unresolved(Uniform):
    """Another one, whose types are there for type checkers alone."""

    number: "Nowhere" = 1  # noqa: F821
    name = "unresolved"


def test_settings_of_methods_of_users(monkeypatch):
    for kind in (Mine, Unresolved):
        monkeypatch.setitem(COMPRESSORS, kind.name, kind)
    model = load_model(tiny.model_path())
    mode = "".join(["d", "ef"])  # no literal of this file, as on a command line
    assert make_method(f"mine:mode={mode}:layers=[1,2]", model) == Mine("def", [1, 2])
    with pytest.raises(ValueError, match=r"mode='ghi' is not of type"):
        make_method("mine:mode=ghi", model)
    assert make_method("unresolved:number=2", model).number == 2


def test_refused_methods_are_no_evaluation(tmp_path):
    chosen = settings(methods=("fastv",), ratios=(0.1,), limit=2)
    lines = run_evaluation(chosen, tmp_path / "run.json")
    assert next(lines).startswith("refused: ")
    with pytest.raises(ValueError, match="because every method was refused"):
        list(lines)


def test_the_weights_of_a_large_tensor_have_a_hash():
    """Of so many elements, the last one's place is not a number of single precision."""
    elements = 2**24 + 4
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(elements, dtype=torch.int8), requires_grad=False)
    before = fingerprint(module)
    module.weight[-1] = 1
    assert fingerprint(module) != before


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_sample_without_memory_fails_alone(tmp_path, monkeypatch, batch_size):
    """Whatever its place, also where a batch was the first to be too large. The other method goes on."""
    plain, calls = Uniform.select, []

    def select(self, prompt, span, scores, budget):
        calls.append(len(prompt.input_ids))
        if len(calls) in ((2,) if batch_size == 1 else (1, 2)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return plain(self, prompt, span, scores, budget)

    monkeypatch.setattr(Uniform, "select", select)
    run = evaluate(
        settings(methods=("uniform", "divprune"), ratios=(0.25,), limit=3, batch_size=batch_size), tmp_path / "run.json"
    )
    found = {cell["method"]["label"]: cell for cell in run["cells"]}
    assert sorted(found) == ["divprune", "uniform"]
    lines = [json.loads(line) for line in (tmp_path / "run" / found["uniform"]["log"]).read_text().splitlines()]
    failed = [line["index"] for line in lines if "error" in line]
    assert failed == [1 if batch_size == 1 else 0]
    assert "out of memory" in lines[failed[0]]["error"]
    assert not any("error" in line for line in (tmp_path / "run" / found["divprune"]["log"]).read_text().splitlines())
