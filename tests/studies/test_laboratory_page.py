"""The tables that are made of the laboratory's cells, and the pages that show them."""

import json
from collections import Counter

import pytest

from benchmarks.record import ROOT
from studies.laboratory.hard_clips import HARD_KINDS
from studies.laboratory.laboratory import STRENGTHS
from studies.laboratory.page import PAGE, main, page
from studies.laboratory.scores import ALONE, HARMLESS, NEXT_CHOICES
from studies.laboratory.table import BEST, FOLDER, answers, core_hours, difference, lines, mean_and_error, pooled, told

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


def test_noise_of_sums_decides_no_digit_and_no_sign():
    same = {(0, clip): share for clip, share in enumerate((0.1, 0.3, 0.2))}
    other = {(0, clip): share for clip, share in enumerate((0.2, 0.1, 0.3))}
    assert told(difference(same, other), "+").startswith("+0.0 ±")
    assert told((96.25 + 1e-12, 0.05 - 1e-13)) == told((96.25 - 1e-12, 0.05 + 1e-13)) == "96.2 ± 0.1"


def test_errors_of_independent_figures_are_pooled():
    one, other = {"mean": 0.5, "standard_error": 0.03}, {"mean": 0.6, "standard_error": 0.04}
    assert pooled([one, other]) == pytest.approx((55, 2.5))


def test_a_page_has_a_table_of_each_sort(tmp_path, write):
    filled = [
        {"choice": HARMLESS, "tokens": count, "mean": count / 100, "standard_error": 0.03} for count in (14, 2, 5)
    ]
    rival = [{"choice": NEXT_CHOICES, "tokens": count, "mean": 0.9, "standard_error": 0.03} for count in (5, 14)]
    gains = [{"tokens": 14, "mean": 0.2, "standard_error": 0.01}, {"tokens": 5, "mean": 0.1, "standard_error": 0.02}]
    gains[0]["by_kind"] = {kind: {"mean": 0.3, "standard_error": 0.04} for kind in HARD_KINDS}
    rival.append({"choice": ALONE, "tokens": 1.25, "mean": 0.8, "standard_error": 0.01})
    write("hard-headroom/1/80", all=SHARE, fillers=rival + filled, headroom=gains)
    for seed in (0, 2):
        of_kinds = {
            kind: {"mean": (number + seed) / 10, "standard_error": 0.01} for number, kind in enumerate(HARD_KINDS)
        }
        kept = {"evidence_kept_by_kind": {"order": (seed + 1) / 4}}
        results = [{"choice": BEST, "tokens": count, "by_kind": of_kinds, **kept} for count in (5.0, 14.0)]
        write(f"hard-policy/{seed}/80/{BEST}", results=results, right={"5": ["10" * 6] * 2, "14": ["11" * 6] * 2})
        seen = [{"choice": f"last, layer {layer}", "evidence_kept": (layer + seed) / 4, **SHARE} for layer in (0, 1)]
        write(f"layers/{seed}/80", results=seen, right=[])
        took = {"processor_seconds": 100.0 + 1000 * seed}
        write(
            f"policy/{seed}/80/rollouts",
            rollouts=2000 * seed,
            **answered("rollouts", **{"5": ["10"], "14": ["10"]}),
            **took,
        )
        sizes = {"best": {"tokens": 5.0}, "auto": {"tokens": 4.0 + 2 * seed}}
        write(f"policy/{seed}/80/{BEST}", rollouts=0, **answered(BEST, **{"5": ["10"], "14": ["10"]}), **took, **sizes)
        write(f"contributions/{seed}/80", rollouts=38400 + seed, processor_seconds=50)
    own = "imitation, then contributions by its own choice"
    write(f"policy/0/80/{own}", rollouts=0, **answered(own, **{"5": ["10"], "14": ["10"]}), processor_seconds=7)
    parts = {
        part: {
            "results": [{"choice": f"last, {part}", "tokens": 5, "by_kind": of_kinds, **kept}],
            "right": {size: ["00" * 5 + "11", "11" * 6] for size in ("1", "5", "14")},
        }
        for part in ("mean of layers", "best layer")
    }
    write("hard-attention/2/80/last", **parts)
    line = {"tokens": "sink", "count": 1200, "harm_when_there": 0.4, "harm_when_added": 0.5}
    line |= {"taken_away": {"mean": 0.2, "standard_error": 0.03}, "added": {"mean": -0.1, "standard_error": 0.02}}
    one, other = f"kept by attention, dropped by {BEST}", f"kept by {BEST}, dropped by attention"
    write("mechanism/0/90/attention", **{one: [line, line | {"tokens": "all"}], other: [line | {"count": 3}]})
    main(["--folder", str(tmp_path), "--out", str(tmp_path / "page.md")])
    shown = (tmp_path / "page.md").read_text()
    assert "| hard | 80 % | 1 | 50.0 ± 3.0 | 5.0 ± 3.0 | 14.0 ± 3.0 | 10.0 ± 2.0 | 20.0 ± 1.0 |" in shown
    assert f"| {BEST} | 2 | 5 | 10.0 ± 0.7 | 20.0 ± 0.7 | 30.0 ± 0.7 | 40.0 ± 0.7 | 50.0 ± 0.7 | 60.0 ± 0.7 |" in shown
    assert "| attention, last, best layer | 1 | 5 | 20.0 ± 1.0 | 30" in shown
    assert f"| {BEST} | 2 | 5 |  |  |  | 50 |  |  |" in shown
    # 50 % of each kind, against 0 and 100 % of a clip each, but of the last kind 100 % of both
    ahead = " | ".join(["+0.0 ± 50.0"] * 5 + ["-50.0 ± 0.0"])
    assert f"| attention, last, best layer | 2 | 5 | {ahead} |" in shown
    assert "| attention, last, best layer | 2 | 1 |" not in shown
    assert "| hard | 80 % | 1 | 80.0 ± 1.0 | 90.0 ± 3.0 | 90.0 ± 3.0 |  |  | 5.0 ± 3.0 | 14.0 ± 3.0 |  |  |" in shown
    assert f"| 1 | 14 | {' | '.join(['+30.0 ± 4.0'] * 6)} |" in shown
    assert f"| {BEST} | 0, 2 | 5.0 | 6.0 |  |" in shown
    assert "2 readers of strength 80." in shown
    assert "| 1 | 50.0 ± 2.1 | 50.0 |" in shown
    kept = shown.split("## Kept by 'attention'")[1].split("##")[0]
    assert f"'{BEST}', readers of strength 90" in kept
    assert [row["tokens"] for row in rows(kept)] == ["all", "sink"]
    assert "| sink | 0 | 1,200 | +20.0 ± 3.0 | 40.0 | -10.0 ± 2.0 | 50.0 |" in kept
    assert "| sink | 0 | 3 |" in shown.split(f"## Kept by '{BEST}'")[1]
    assert "| rollouts | 100 to 2,100 |  | 0 to 4,000 |" in shown
    assert f"| {BEST} | 100 to 2,100 | 50 | 38,400 |" in shown
    assert f"| {own} | 7 | within | 38,400 |" in shown
    assert "14 cells" in shown


def test_alike_choices_stand_by_name(tmp_path, write):
    write("method/0/80/b", **answered("b", **{"5": ["10"]}))
    write("policy/0/80/a", **answered("a", **{"5": ["10"]}))
    assert [line.split(" | ")[0] for line in lines(answers(tmp_path, 80))][2:] == ["| a", "| b"]


def test_a_policy_without_its_contributions_leaves_a_gap(tmp_path, write):
    write(f"policy/0/80/{BEST}", rollouts=0, processor_seconds=9, **answered(BEST, **{"5": ["10"], "14": ["11"]}))
    assert f"| {BEST} | 9 |  |  |" in page(tmp_path)


def test_a_folder_without_cells_makes_a_page_without_rows(tmp_path):
    assert not [row for row in rows(page(tmp_path)) if "".join(row.values())]


def test_the_committed_page_is_that_of_the_committed_cells():
    assert PAGE.read_text(encoding="utf-8") == page(FOLDER), "run python -m studies.laboratory.page"


def test_the_tables_that_are_explained_are_those_of_the_page():
    """Every row of a table of choices, policies or tokens, by the names of its columns."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    about = (
        "Readers of strength 80",
        "Hard kinds of questions, readers of strength 80",
        "Hard kinds of questions, one by one",
        "Kept by 'attention' and not",
        "What policies take",
    )
    all_rows = [row for name in about for row in rows(next(one for one in sections if one.startswith(name)))]
    compared = Counter()
    for section in EXPLAINED.read_text(encoding="utf-8").split("\n## "):
        for row in rows(section):
            if {"choice", "policy", "tokens"} & row.keys():
                row = {column: cell.removesuffix(" \\*").strip("*") for column, cell in row.items()}
                assert any(row.items() <= other.items() for other in all_rows), row
                compared[section.splitlines()[0]] += 1
    assert compared == {
        "What wins": 7,
        "What misleads": 6,
        "Hard kinds of questions": 14,
        "All choices": 13,
        "Methods that need no training": 18,
        "What it takes": 7,
    }


@pytest.mark.parametrize("strength", STRENGTHS)
def test_what_better_readers_leave_is_that_of_the_cells(strength):
    table = EXPLAINED.read_text(encoding="utf-8").split("## Better readers")[1].split("\n## ")[0]
    (row,) = (row for row in rows(table) if row["readers"] == f"{strength} %")
    cells = [json.loads((FOLDER / f"headroom__{seed}__{strength}.json").read_text()) for seed in (0, 1, 2)]
    means = {"evidence, cells without objects": [], "headroom": []}
    for count in (5, 14):
        (filled,) = zip(
            *(
                [one for one in cell["fillers"] if (one["choice"], one["tokens"]) == (HARMLESS, count)]
                for cell in cells
            ),
            strict=True,
        )
        (gains,) = zip(*([one for one in cell["headroom"] if one["tokens"] == count] for cell in cells), strict=True)
        means["evidence, cells without objects"].append(told(pooled(filled)).split()[0])
        means["headroom"].append(told(pooled(gains)))
    assert {name: row[name].split(", ") for name in means} == means
    assert row["all tokens"] == told(pooled([cell["all"] for cell in cells]))
    found = answers(FOLDER, strength)
    if strength == 97:
        attention = [
            [one for one in cell["attention"] if one["choice"] == "last token, mean of layers"] for cell in cells
        ]
        by_size = [
            pooled([one for rows_of in attention for one in rows_of if one["tokens"] == size]) for size in (5, 14)
        ]
        assert row["attention, mean of layers"].split(", ") == [told(one).split()[0] for one in by_size]
        assert row["imitation"] == row["contributions"] == row["contributions ahead of imitation"] == ""
        assert found == {}
    else:
        names = {"attention, mean of layers": "attention, last, mean of layers", "contributions": BEST}
        for column, name in (names | {"imitation": "imitation of the last token"}).items():
            shown = [told(mean_and_error([*found[name][size].values()])).split()[0] for size in ("5", "14")]
            assert row[column].split(", ") == shown
        ahead = [difference(found[BEST][size], found["imitation of the last token"][size]) for size in ("5", "14")]
        assert row["contributions ahead of imitation"].split(", ") == [told(one) for one in ahead]


def test_the_layers_that_are_explained_are_those_of_the_cells():
    table = EXPLAINED.read_text(encoding="utf-8").split("## Which layer")[1].split("\n## ")[0]
    right, kept = rows(table)
    layers = [json.loads((FOLDER / f"layers__{seed}__80.json").read_text())["results"] for seed in (0, 1, 2)]
    means = [
        json.loads((FOLDER / f"attention__{seed}__80__last.json").read_text())["mean of layers"]["results"]
        for seed in (0, 1, 2)
    ]
    columns = [column for column in right if column != "layer, from 0"]
    assert len(columns) == 11
    for column in columns:
        found = (
            [one[int(column)] for one in layers]
            if column.isdigit()
            else [row for one in means for row in one if row["tokens"] == 5]
        )
        assert right[column] == told(pooled(found)).split()[0]
        assert kept[column] == f"{100 * sum(one['evidence_kept'] for one in found) / 3:.1f}"


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
