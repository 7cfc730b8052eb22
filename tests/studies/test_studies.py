"""The studies run in small, and every committed result says where it comes from."""

import json
import sys

import pytest
import torch
from filelock import FileLock
from helpers.provenance import check_provenance
from transformers import AutoProcessor

from benchmarks.table import main as print_tables
from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import CaCoVid
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.accuracy import answer_accuracy
from studies import adaptive_study, budget_study, cells, rollouts, sampler_study, search_study
from studies.cells import RESULTS, Cells, chosen
from studies.table import TABLES, budget_table


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_cell_is_run_once(tmp_path):
    study = Cells("sums", tmp_path / "cells", tmp_path / "work", commit="abc")
    ran = []
    jobs = {name: lambda name=name: ran.append(name) or {"value": len(name)} for name in ("a, b/0", "c/1")}
    study.run(chosen(jobs, ["a*"]))
    study.run(chosen(jobs, []))
    assert ran == ["a, b/0", "c/1"]
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["a_b__0.json", "c__1.json"]
    cell = study.read("a, b/0")
    assert (cell["benchmark"], cell["cell"], cell["value"], cell["commit"]) == ("sums", "a, b/0", 6, "abc")


def test_a_cell_that_fails_leaves_nothing(tmp_path):
    study = Cells("sums", tmp_path / "cells", tmp_path / "work")
    with pytest.raises(ZeroDivisionError):
        study.run({"a": lambda: {"value": 1 / 0}})
    assert not study.is_there("a")


def test_cells_wait_for_others_and_for_other_processes(tmp_path, monkeypatch):
    study = Cells("sums", tmp_path / "cells", tmp_path / "work")
    study.folder.mkdir()
    study.work.mkdir()
    ran = []
    elsewhere = FileLock(study.work / ".sums__elsewhere.lock")
    elsewhere.acquire()

    def finish_elsewhere(seconds):
        assert ran == ["first", "second"], "what another process is at is left alone"
        study.path("elsewhere").write_text("{}")
        elsewhere.release()

    monkeypatch.setattr(cells.time, "sleep", finish_elsewhere)
    jobs = {name: lambda name=name: ran.append(name) or {} for name in ("second", "elsewhere", "first")}
    study.run(jobs, waits_for={"second": "first"}.get)
    assert ran == ["first", "second"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_committed_result(path, capsys):
    record = json.loads(path.read_text())
    check_provenance(record)
    assert path.name.startswith(record["benchmark"] + "_")
    assert record["dirty"] is not True
    print_tables([str(path)], TABLES)
    assert path.name in capsys.readouterr().out


@pytest.mark.slow
def test_budget_study_goes_on_where_it_was_stopped(tmp_path, threads, monkeypatch):
    monkeypatch.setattr(budget_study, "BATCH", 3)
    kept = ("tokens", "frame budgets", "tokens, merged", "tokens 0.5, max-min 0.5", "tokens, unlike kept ones 1")
    monkeypatch.setattr(budget_study, "RULES", {name: budget_study.RULES[name] for name in kept})
    arguments = ["--num-questions", "6", "--ratios", "0.05", "--commit", "abc", "--work", str(tmp_path / "work")]
    whole = json.loads(budget_study.main([*arguments, "--attention", "--output", str(tmp_path / "whole")]).read_text())
    answered, answer_batch = [], budget_study.answer_batch

    def interrupted(model, processor, batch, *rest):
        answered.append(len(batch))
        if len(answered) == 2:
            raise KeyboardInterrupt
        return answer_batch(model, processor, batch, *rest)

    monkeypatch.setattr(budget_study, "answer_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        budget_study.main([*arguments, "--output", str(tmp_path / "parts")])
    record = json.loads(budget_study.main([*arguments, "--output", str(tmp_path / "parts")]).read_text())
    assert answered == [3, 3, 3]
    check_provenance(record)
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".json"]
    assert record["results"] == whole["results"][: len(kept)]
    # The shortcut of one embedding for all rules answers what `generate` answers.
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    processor = AutoProcessor.from_pretrained(model_path())
    for scope, row in (("tokens", 0), ("frame", 1)):
        options = dict(num_questions=6, seed=11, retention_ratio=0.05, compressor=CaCoVid(1.0, scope=scope))
        assert answer_accuracy(model, processor, **options).accuracy == record["results"][row]["accuracy"]
    assert sum(line.startswith("| ") for line in budget_table(whole)) == 1 + len(kept) + 6


@pytest.mark.slow
def test_rollouts(tmp_path, threads):
    """Every way gives the same rewards, or it raises."""
    options = ["--iterations", "2", "--token-rollouts", "3", "--frame-rollouts", "1", "--repeats", "1"]
    record = json.loads(rollouts.main([*options, "--output", str(tmp_path)]).read_text())
    check_provenance(record)
    assert [row["way"] for row in record["results"]] == list(rollouts.WAYS)
    assert all(row["samples_per_hour"] > 0 for row in record["results"])


@pytest.mark.slow
def test_budgets_that_the_scores_decide(tmp_path, threads, monkeypatch):
    """A fixed, a calibrated and a priced cell, their summary and plot."""
    small = dict(QUESTIONS=8, CALIBRATION=4, STEPS=2, BATCH=2, ROLLOUTS=3, MEANS=(0.02,), PRICES=(1.0,), SEEDS=(0,))
    for name, value in small.items():
        monkeypatch.setattr(adaptive_study, name, value)
    arguments = ["adaptive_study", "--only", "fixed_0.02", "--only", "calibrated_*", "--only", "priced_*"]
    monkeypatch.setattr(
        sys, "argv", [*arguments, "--output", str(tmp_path / "cells"), "--work", str(tmp_path / "work")]
    )
    adaptive_study.main()
    summary = json.loads((tmp_path / "cells" / "summary.json").read_text())
    assert sorted(summary["cells"]) == ["calibrated_0.02", "fixed_0.02", "priced_1.0_0"]
    assert summary["cells"]["fixed_0.02"]["mean_tokens"] == 5
    assert (tmp_path / "cells" / "plot.png").stat().st_size > 1000


@pytest.mark.slow
def test_samplers_compared(tmp_path, threads, monkeypatch):
    small = dict(QUESTIONS=4, STEPS=2, BATCH=2, ROLLOUTS=3, EVERY=1, SEEDS=(0,))
    for name, value in small.items():
        monkeypatch.setattr(sampler_study, name, value)
    arguments = ["sampler_study", "--only", "video_multinomial_0", "--only", "draws_untrained"]
    monkeypatch.setattr(
        sys, "argv", [*arguments, "--output", str(tmp_path / "cells"), "--work", str(tmp_path / "work")]
    )
    sampler_study.main()
    (arm,) = json.loads((tmp_path / "cells" / "summary.json").read_text())["arms"]
    assert (arm["arm"], arm["seeds"], len(arm["final_accuracy"])) == ("multinomial", [0], 1)
    draws = json.loads((tmp_path / "cells" / "draws_untrained.json").read_text())["draws"]
    assert [row["arm"] for row in draws] == 2 * list(sampler_study.ARMS)


@pytest.mark.slow
def test_the_best_subset_bounds_every_sampler(tmp_path, threads, monkeypatch):
    monkeypatch.setattr(search_study, "WIDTH", 4)
    monkeypatch.setattr(search_study, "DRAWS", (1, 3))
    monkeypatch.setattr(sys, "argv", ["search_study", "--num-questions", "2", "--output", str(tmp_path)])
    record = json.loads(search_study.main().read_text())
    check_provenance(record)
    best = max(row["mean"] for row in record["results"] if row["method"] == "beam search")
    assert len(record["results"]) == 3 + 2 * 4 * 2
    assert 0 < best <= 1
