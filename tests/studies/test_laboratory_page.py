"""The tables that are made of the laboratory's cells, and the pages that show them."""

import json

import pytest

from benchmarks.record import ROOT
from studies.laboratory.hard_clips import HARD_KINDS
from studies.laboratory.page import PAGE, main, page, pooled
from studies.laboratory.table import BEST, FOLDER, answers, core_hours, difference, lines, mean_and_error

EXPLAINED = ROOT / "docs" / "background" / "laboratory.md"
SHARE = {"mean": 0.5, "standard_error": 0.03}


@pytest.fixture
def write(tmp_path):
    """Writes a cell of that folder."""

    def cell(name, took=None, **content):
        file = tmp_path / (name.replace("/", "__").replace(" ", "_").replace(",", "") + ".json")
        file.write_text(json.dumps({"cell": name, "seconds": 1800, **(took or {}), **content}))

    return cell


def answered(choice, **right):
    return {"results": [{"choice": choice}], "right": right}


def test_seeds_are_pooled_and_differences_paired_by_clip(tmp_path, write):
    write("policy/0/80/best", **answered(BEST, **{"5": ["11", "10"], "14": ["11", "11"]}))
    write("policy/1/80/best", **answered(BEST, **{"5": ["11", "11"], "14": ["11", "11"]}))
    write("policy/0/80/other", **answered("other", **{"5": ["10", "10"], "14": ["00", "00"]}))
    better = {"5": ["11", "11"], "14": ["11", "11"]}
    write("policy/0/90/other", took={"processor_seconds": 3600}, **answered("other", **better))
    write("larger/0/80/other", took={"core_seconds": 900}, **answered("other", **{"72": ["10", "11"]}))
    found = answers(tmp_path, 80)
    assert mean_and_error([*found[BEST]["5"].values()]) == pytest.approx((87.5, 12.5))
    assert difference(found[BEST]["5"], found["other"]["5"]) == pytest.approx((25.0, 25.0))
    first, second = [*lines(found)][2:]
    assert first.startswith(f"| {BEST} | 0, 1 |  |  | 87.5 ± 12.5 | 100.0 ± 0.0 |")
    assert "| 75.0 ± 25.0 |" in second
    assert second.endswith("| +25.0 ± 25.0 | +100.0 ± 0.0 |")
    assert core_hours(tmp_path) == (5, 3 * 0.5 + 1 + 0.25)


def test_the_committed_cells_make_the_table():
    found = answers(FOLDER, 80)
    assert {(seed, clip) for seed in (0, 1, 2) for clip in range(48)} == set(found[BEST]["5"])
    gain, error = difference(found[BEST]["5"], found["imitation of the last token"]["5"])
    assert gain > 2 * error > 0


def test_errors_of_independent_figures_are_pooled():
    assert pooled([{"mean": 0.5, "standard_error": 0.03}, {"mean": 0.6, "standard_error": 0.04}]) == pytest.approx(
        (55, 2.5)
    )


def test_a_page_has_a_table_of_each_sort(tmp_path, write):
    filled = [{"choice": "cells without objects", "tokens": count, **SHARE} for count in (5, 14)]
    rival = [{"choice": "attention's next choices", "tokens": count, "mean": 0.9, **SHARE} for count in (5, 14)]
    gains = [{"tokens": 5, "mean": 0.1, "standard_error": 0.02}, {"tokens": 14, "mean": 0.2, "standard_error": 0.01}]
    write("hard-headroom/1/80", all=SHARE, fillers=rival + filled, headroom=gains)
    of_kinds = {kind: {"mean": number / 10, "standard_error": 0.01} for number, kind in enumerate(HARD_KINDS)}
    results = [{"choice": BEST, "tokens": count, "by_kind": of_kinds} for count in (5.0, 14.0)]
    write(f"hard-policy/2/80/{BEST}", results=results, right={"5": ["10"], "14": ["11"]})
    for seed in (0, 2):
        seen = [{"choice": f"last, layer {layer}", "evidence_kept": layer / 2, **SHARE} for layer in (0, 1)]
        write(f"layers/{seed}/80", results=seen, right=[])
        took = {"processor_seconds": 100.0 + 1000 * seed}
        write(f"policy/{seed}/80/rollouts", rollouts=4000, **answered("rollouts", **{"5": ["10"]}), **took)
        write(f"contributions/{seed}/80", rollouts=38400, **took)
    line = {"tokens": "sink", "count": 1200, "harm_when_there": 0.4, "harm_when_added": 0.5}
    line |= {"taken_away": {"mean": 0.2, "standard_error": 0.03}, "added": {"mean": -0.1, "standard_error": 0.02}}
    one, other = f"kept by attention, dropped by {BEST}", f"kept by {BEST}, dropped by attention"
    write("mechanism/0/90/attention", **{one: [line], other: [line]})
    main(["--folder", str(tmp_path), "--out", str(tmp_path / "page.md")])
    shown = (tmp_path / "page.md").read_text()
    assert "| hard | 80 % | 1 | 50.0 ± 3.0 | 50.0 ± 3.0 | 50.0 ± 3.0 | 10.0 ± 2.0 | 20.0 ± 1.0 |" in shown
    assert f"| {BEST} | 1 | 0.0 ± 1.0 | 10.0 ± 1.0 | 20.0 ± 1.0 | 30.0 ± 1.0 | 40.0 ± 1.0 | 50.0 ± 1.0 |" in shown
    assert "Readers of 80 %, 2 of them." in shown
    assert "| 1 | 50.0 ± 2.1 | 50.0 |" in shown
    assert "| rollouts | 100 to 2,100 | 4,000 |" in shown
    assert "38,400 rollouts, measured once in 100 to 2,100 s." in shown
    assert "## Kept by attention, dropped by imitation, then contributions: readers of 90 %" in shown
    assert "| sink | 0 | 1,200 | +20.0 ± 3.0 | 40.0 | -10.0 ± 2.0 | 50.0 |" in shown
    assert "9 cells" in shown


def test_the_committed_page_is_that_of_the_committed_cells():
    assert PAGE.read_text(encoding="utf-8") == page(FOLDER), "run python -m studies.laboratory.page"


def test_the_tables_that_are_explained_are_those_of_the_page():
    """Every row of a table that begins with a choice, a policy or tokens, by the names of its columns."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    about = ("Readers of 80 %", "Hard kinds of questions, one by one", "Kept by attention")
    all_rows = [row for name in about for row in rows(next(one for one in sections if one.startswith(name)))]
    compared = 0
    for row in rows(EXPLAINED.read_text(encoding="utf-8")):
        if "± " in "".join(row.values()) and {"choice", "policy", "tokens"} & row.keys():
            row = {column: cell.removesuffix(" \\*").strip("*") for column, cell in row.items()}
            assert any(row.items() <= other.items() for other in all_rows), row
            compared += 1
    assert compared > 30


def rows(text):
    """The rows of all tables of a text, as dictionaries by column."""
    found, head = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = cells
        elif not set(line) <= set("|- "):
            found.append(dict(zip(head, cells, strict=True)))
    return found
