"""The evidence of training: its cells, its report, and the training behind it in small."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cacovid_hf.ratio import token_budget
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.questions import answered_right, embed_questions

ROOT = Path(__file__).resolve().parents[2]
CELLS = sorted((ROOT / "benchmarks" / "results").glob("evidence*/*.json"))


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import evidence
    import evidence_report

    yield evidence, evidence_report
    for name in ("evidence", "evidence_report"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def laboratory_model():
    from transformers import AutoProcessor

    from cacovid_hf import CaCoVidForConditionalGeneration

    model = CaCoVidForConditionalGeneration.from_pretrained(model_path()).eval()
    return model, AutoProcessor.from_pretrained(model_path())


@pytest.mark.parametrize("path", CELLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_cells_say_where_they_come_from(path):
    cell = json.loads(path.read_text(encoding="utf-8"))
    assert cell["benchmark"] == "evidence"
    assert cell["commit"]
    assert cell["dirty"] is False
    assert cell["versions"]["torch"]
    assert "/" not in cell["command"].split("--only")[0].replace("benchmarks/evidence.py", "")
    for entry in cell.get("ratios", {}).values():
        assert len(entry["right"]) == cell["questions"]
        assert entry["accuracy"] == pytest.approx(entry["right"].count("1") / cell["questions"])


def test_known_evidence_keeps_the_evidence_within_the_budget(evidence, laboratory_model):
    script, _ = evidence
    model, processor = laboratory_model
    (batch,) = embed_questions(model, processor, 6, seed=7)
    for ratio in (0.02, 0.1):
        kept = model.compress_prompt(
            batch.prompt, retention_ratio=ratio, compressor=script.KnownEvidence(batch.evidence)
        )
        for row, video in enumerate(kept.videos):
            budget, known = token_budget(288, ratio), int(batch.evidence[row].sum())
            assert video.keep.sum() == budget
            assert (video.keep.flatten() & batch.evidence[row]).sum() == min(budget, known)


def test_questions_embedded_once_are_answered_as_by_generate(laboratory_model):
    from cacovid_hf.tiny.accuracy import answer_accuracy

    model, processor = laboratory_model
    right = answered_right(model, embed_questions(model, processor, 24, seed=11), 0.02)
    whole = answer_accuracy(model, processor, num_questions=24, seed=11, retention_ratio=0.02)
    assert right.sum() == whole.correct


def test_errors_and_differences_by_hand(evidence):
    _, report = evidence
    right = np.array([[1, 1, 0, 1], [1, 0, 0, 1]])
    mean, error = report.mean_and_error(right)
    assert mean == 62.5
    by_question, by_policy = np.var([1, 0.5, 0, 1], ddof=1) / 4, np.var([0.75, 0.5], ddof=1) / 2
    assert error == pytest.approx(100 * (by_question + by_policy) ** 0.5)
    points, error = report.difference(right[:1], right[1:])
    assert points == 25
    assert error == pytest.approx(100 * (np.var([0, 1, 0, 0], ddof=1) / 4) ** 0.5)


def test_cells_wait_for_their_policy_and_for_other_processes(evidence, tmp_path, monkeypatch):
    from filelock import FileLock

    script, _ = evidence
    assert script.trained_by("table/published, our selection/1") == "train/published/1"
    assert script.trained_by("close/light/2") == "train/light/2"
    assert [script.trained_by(name) for name in ("train/ours/0", "table/uniform", "ablation/ours/0")] == [None] * 3

    ran = []
    names = ["table/ours/0", "table/evs", "train/ours/0"]
    targets = {name: tmp_path / f"{name.replace('/', '__')}.json" for name in names}
    elsewhere = FileLock(tmp_path / f".{targets['table/evs'].stem}.lock")
    elsewhere.acquire()

    def finish_elsewhere(seconds):
        assert ran == ["train/ours/0", "table/ours/0"], "what another process is at is left alone"
        targets["table/evs"].write_text("{}")
        elsewhere.release()

    monkeypatch.setattr(script.time, "sleep", finish_elsewhere)
    script.run_cells({name: lambda name=name: ran.append(name) or {} for name in names}, targets, tmp_path)
    assert ran == ["train/ours/0", "table/ours/0"]
    assert {json.loads(targets[name].read_text())["cell"] for name in ran} == set(ran)


def test_a_cell_is_run_once_and_reported(evidence, tmp_path, monkeypatch, capsys):
    script, report = evidence
    monkeypatch.setitem(script.STEPS, "ours", 2)
    monkeypatch.setattr(script, "BATCH", 4)
    monkeypatch.setattr(script, "CURVE_EVERY", 1)
    monkeypatch.setattr(script, "VALIDATION_QUESTIONS", 6)
    common = [
        "evidence.py",
        "--results",
        str(tmp_path / "cells"),
        "--work",
        str(tmp_path / "work"),
        "--questions",
        "12",
    ]
    wanted = [
        "--only",
        "train/ours/0",
        "--only",
        "table/ours/0",
        "--only",
        "table/all tokens",
        "--only",
        "table/uniform",
    ]
    monkeypatch.setattr(sys, "argv", [*common, *wanted])
    threads = torch.get_num_threads()
    try:
        script.main()
        assert capsys.readouterr().out.count("done in") == 4
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
        script.main()
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.count("there") == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before
    curve = json.loads((tmp_path / "cells" / "train__ours__0.json").read_text())["curve"]
    assert [point["step"] for point in curve] == [0, 1, 2]

    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        sys, "argv", ["evidence_report.py", "--results", str(tmp_path / "cells"), "--out", str(tmp_path)]
    )
    report.main()
    tables = (tmp_path / "evidence_tables.md").read_text(encoding="utf-8")
    assert "| uniform | 1 |" in tables
    assert (tmp_path / "evidence_accuracy.png").stat().st_size > 1000
