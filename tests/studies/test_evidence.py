"""The evidence of training: its cells, its report, and the training behind it in small."""

import json
import re
import sys

import numpy as np
import pytest
import torch

from cacovid_hf.ratio import token_budget
from cacovid_hf.tiny import model_path
from studies import evidence, evidence_report
from studies.cells import RESULTS
from studies.questions import answered_right, embed_questions

CELLS = sorted(RESULTS.glob("evidence*/*.json"))


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
    assert re.match(r"python (benchmarks/evidence\.py|-m studies\.evidence) [^/]*(--only|$)", cell["command"])
    for entry in cell.get("ratios", {}).values():
        assert len(entry["right"]) == cell["questions"]
        assert entry["accuracy"] == pytest.approx(entry["right"].count("1") / cell["questions"])


def test_known_evidence_keeps_the_evidence_within_the_budget(laboratory_model):
    model, processor = laboratory_model
    (batch,) = embed_questions(model, processor, 6, seed=7)
    for ratio in (0.02, 0.1):
        kept = model.compress_prompt(
            batch.prompt, retention_ratio=ratio, compressor=evidence.KnownEvidence(batch.evidence)
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


def test_errors_and_differences_by_hand():
    right = np.array([[1, 1, 0, 1], [1, 0, 0, 1]])
    mean, error = evidence_report.mean_and_error(right)
    assert mean == 62.5
    by_question, by_policy = np.var([1, 0.5, 0, 1], ddof=1) / 4, np.var([0.75, 0.5], ddof=1) / 2
    assert error == pytest.approx(100 * (by_question + by_policy) ** 0.5)
    points, error = evidence_report.difference(right[:1], right[1:])
    assert points == 25
    assert error == pytest.approx(100 * (np.var([0, 1, 0, 0], ddof=1) / 4) ** 0.5)


def test_a_cell_waits_for_its_policy():
    assert evidence.trained_by("table/published, our selection/1") == "train/published/1"
    assert evidence.trained_by("close/light/2") == "train/light/2"
    assert [evidence.trained_by(name) for name in ("train/ours/0", "table/uniform", "ablation/ours/0")] == [None] * 3


@pytest.mark.slow
def test_a_cell_is_run_once_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(evidence.STEPS, "ours", 2)
    monkeypatch.setattr(evidence, "BATCH", 4)
    monkeypatch.setattr(evidence, "CURVE_EVERY", 1)
    monkeypatch.setattr(evidence, "VALIDATION_QUESTIONS", 6)
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
        evidence.main()
        assert capsys.readouterr().out.count("done in") == 4
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
        evidence.main()
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.count("there") == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before
    curve = json.loads((tmp_path / "cells" / "train__ours__0.json").read_text())["curve"]
    assert [point["step"] for point in curve] == [0, 1, 2]

    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        sys, "argv", ["evidence_evidence_report.py", "--results", str(tmp_path / "cells"), "--out", str(tmp_path)]
    )
    evidence_report.main()
    tables = (tmp_path / "evidence_tables.md").read_text(encoding="utf-8")
    assert "| uniform | 1 |" in tables
    assert (tmp_path / "evidence_accuracy.png").stat().st_size > 1000
