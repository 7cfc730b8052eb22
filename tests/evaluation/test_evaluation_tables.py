"""Tables and plots of runs, those that are committed, and published figures."""

import re
import sys
from pathlib import Path

import pytest
from helpers.sweeps import COMMAND
from PIL import Image

from cacovid_cli.main import main
from cacovid_hf.evaluation import sweep
from cacovid_hf.evaluation.datasets import load_benchmark
from cacovid_hf.evaluation.methods import expand_methods
from cacovid_hf.evaluation.paper_figures import check_comparable, published_tables, satisfies
from cacovid_hf.evaluation.report import markdown, paired_difference
from cacovid_hf.evaluation.run_files import read_run, write_run
from cacovid_hf.utils.figures import ALL_TOKENS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "evaluation"


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
