"""The page of all tables of the laboratory, out of its cells: python -m studies.laboratory.page

It writes docs/background/laboratory_tables.md. A cell that is not there leaves a gap.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT
from cacovid_hf.utils.files import replaced
from studies.cells import Cells
from studies.laboratory.hard_clips import HARD_KINDS
from studies.laboratory.hard_laboratory import HardLaboratory, questions_of
from studies.laboratory.headroom import BUDGETS
from studies.laboratory.laboratory import RIVALS, SEEDS, STRENGTHS
from studies.laboratory.mechanism import GROUPS, HARM
from studies.laboratory.policies import RECIPES
from studies.laboratory.scores import ALONE, HARMLESS, NEXT_CHOICES
from studies.laboratory.table import BEST, FOLDER, answers, core_hours, difference, lines, pooled, seeds_of, told

KIND_SIZES = (1, 5, 14, 28)  # tokens
PAGE = ROOT / "docs" / "background" / "laboratory_tables.md"
HEADING = """# Tables of the laboratory

Made by `python -m studies.laboratory.page`. [The laboratory](laboratory.md) says what the choices are and what follows. Figures are % of right answers, and errors are over clips.

- **seeds**: of the readers that the row is pooled over.
- **1 to 72**: tokens kept of 288. 3, 14, 28, 43 and 72 are 1, 5, 10, 15 and 25 %, and 5 is 2 %.
- **best**: with the one number of tokens that is best on other questions. **auto**: with a margin below the highest score that is best there, so that each question has its own number. **above_zero**: tokens with a score above zero.
- **behind, 5**: how many points more "imitation, then contributions" answers with 5 tokens. It is paired by clip, on the clips that both answered. So it may differ from the difference of two rows with other seeds.
"""


def page(folder: Path) -> str:
    """Return the whole page as Markdown; `folder` is that of the cells."""
    there = Cells("laboratory", folder)
    parts = [
        HEADING,
        *_readers(there),
        *_fillers(there),
        *_headroom_by_kind(there),
        *_choices(folder),
        *_own_sizes(there),
        *_kinds(there),
        *_ahead(folder),
        *_layers(there),
        *_exchanged(there),
        *_cost(there),
    ]
    return "\n".join(parts)


def _of_seeds(there: Cells, name: str) -> list[dict[str, Any]]:
    """Return the cells of a name such as `headroom/{}/80`, where the seed comes in; those that are there."""
    names = [name.format(seed) for seed in SEEDS]
    return [there.read(one) for one in names if there.is_there(one)]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown, and an empty one."""
    assert all(len(row) == len(head) for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def _readers(there: Cells) -> Iterator[str]:
    """What each reader answers with all tokens, and how far attention stays behind harmless fillers."""
    rows = []
    for prefix, questions in (("", "easy"), ("hard-", "hard")):
        for strength in STRENGTHS:
            for cell in _of_seeds(there, f"{prefix}headroom/{{}}/{strength}"):
                filled = {one["tokens"]: one for one in cell["fillers"] if one["choice"] == HARMLESS}
                gains = {one["tokens"]: one for one in cell["headroom"]}
                shares = [cell["all"], *(of[count] for of in (filled, gains) for count in BUDGETS)]
                rows.append([questions, f"{strength} %", _seed(cell), *(told(pooled([one])) for one in shares)])
    yield "## Readers\n"
    yield f"Headroom is what {HARMLESS} beside the evidence answer more than attention's next choices. The strength is what all tokens answer at least of 240 validation questions of the easy kinds. Readers of the hard kinds are readers of that strength, trained further.\n"
    columns = [f"{what}, {count}" for what in (f"evidence, {HARMLESS}", "headroom") for count in BUDGETS]
    yield from _table(["questions", "strength", "seed", "all tokens", *columns], rows)


def _fillers(there: Cells) -> Iterator[str]:
    """What known evidence answers alone, and with each kind of filler."""
    rows, fillers = [], (NEXT_CHOICES, "other objects", HARMLESS, "anything")
    for prefix, questions in (("", "easy"), ("hard-", "hard")):
        for strength in STRENGTHS:
            if cells := _of_seeds(there, f"{prefix}headroom/{{}}/{strength}"):
                found = [{(one["choice"], one["tokens"]): one for one in cell["fillers"]} for cell in cells]
                alone = [one for cell in cells for one in cell["fillers"] if one["choice"] == ALONE]
                of_fillers = ([one.get((name, size)) for one in found] for name in fillers for size in BUDGETS)
                values = (told(pooled(one)) if one and all(one) else "" for one in (alone, *of_fillers))
                rows.append([questions, f"{strength} %", ", ".join(map(_seed, cells)), *values])
    if rows:
        yield "## Known evidence with each kind of filler\n"
        columns = [f"{name}, {size}" for name in fillers for size in BUDGETS]
        yield from _table(["questions", "strength", "seeds", "alone", *columns], rows)


def _headroom_by_kind(there: Cells) -> Iterator[str]:
    rows = []
    for cell in _of_seeds(there, "hard-headroom/{}/80"):
        for gain in sorted(cell["headroom"], key=lambda one: one["tokens"]):
            if kinds := gain.get("by_kind"):
                rows.append(
                    [_seed(cell), f"{gain['tokens']:g}", *(told(pooled([kinds[kind]]), "+") for kind in HARD_KINDS)]
                )
    if rows:
        yield "## Headroom of the hard kinds\n"
        yield from _table(["seed", "kept", *HARD_KINDS], rows)


def _own_sizes(there: Cells) -> Iterator[str]:
    """How many tokens policies keep that choose the number for each question."""
    rows = []
    for recipe in RECIPES:
        if cells := _of_seeds(there, f"policy/{{}}/80/{recipe}"):
            means = (
                [cell[name]["tokens"] for cell in cells if name in cell] for name in ("best", "auto", "above_zero")
            )
            shown = (f"{sum(one) / len(one):.1f}" if one else "" for one in means)
            rows.append([recipe, ", ".join(map(_seed, cells)), *shown])
    if rows:
        yield "## Tokens of best, auto and above_zero\n"
        yield "Of 288, as a mean over questions and readers of strength 80.\n"
        yield from _table(["choice", "seeds", "best", "auto", "above_zero"], rows)


def _choices(folder: Path) -> Iterator[str]:
    for prefix, title in (("", "Readers"), ("hard-", "Hard kinds of questions, readers")):
        for strength in STRENGTHS:
            if found := answers(folder, strength, prefix):
                yield f"## {title} of strength {strength}\n"
                yield from lines(found)
                yield ""


def _kinds(there: Cells) -> Iterator[str]:
    """Attention and every policy by kind of the hard questions: right answers, and what is needed and kept."""
    attention = _of_seeds(there, "hard-attention/{}/80/last")
    found = {
        f"attention, last, {part}": [cell[part] for cell in attention] for part in ("mean of layers", "best layer")
    }
    found |= {recipe: _of_seeds(there, f"hard-policy/{{}}/80/{recipe}") for recipe in RECIPES}
    right, kept = [], []
    for name, cells in found.items():
        for size in KIND_SIZES:
            if of_size := [one for cell in cells for one in cell["results"] if one["tokens"] == size]:
                head = [name, str(len(of_size)), str(size)]
                shares = ([one["by_kind"][kind] for one in of_size] for kind in HARD_KINDS)
                needed = [one["evidence_kept_by_kind"] for one in of_size]
                right.append([*head, *(told(pooled(one)) for one in shares)])
                kept.append([*head, *(_percent([one[kind] for one in needed if kind in one]) for kind in HARD_KINDS)])
    if right:
        head = ["choice", "readers", "kept", *HARD_KINDS]
        yield "## Hard kinds of questions, one by one\n"
        yield from _table(head, right)
        yield "## Hard kinds of questions: how much of what they need is kept, %\n"
        yield from _table(head, kept)


def _ahead(folder: Path) -> Iterator[str]:
    """How much better contributions answer each hard kind than others do, on the clips that both answered."""
    of_kinds = [answers(folder, 80, HardLaboratory.prefix, questions_of(kind)) for kind in HARD_KINDS]
    rows = []
    for rival in of_kinds[0].keys() - {BEST} if BEST in of_kinds[0] else ():
        for size in map(str, KIND_SIZES):
            pairs = [(found[BEST].get(size, {}), found[rival].get(size, {})) for found in of_kinds]
            if both := pairs[0][0].keys() & pairs[0][1].keys():
                gains = (told(difference(one, other), "+") for one, other in pairs)
                rows.append([rival, seeds_of(both), size, *gains])
    if rows:
        yield f"## Hard kinds of questions: how much more '{BEST}' answers\n"
        yield "In points, paired by clip.\n"
        yield from _table(["than", "seeds", "kept", *HARD_KINDS], sorted(rows, key=lambda row: (row[0], int(row[2]))))


def _layers(there: Cells) -> Iterator[str]:
    found = _of_seeds(there, "layers/{}/80")
    if found:
        yield "## The last token's attention, layer by layer, 5 tokens\n"
        yield f"{len(found)} readers of strength 80.\n"
        rows = []
        for layer, of_readers in enumerate(zip(*(cell["results"] for cell in found), strict=True)):
            kept = 100 * sum(one["evidence_kept"] for one in of_readers) / len(of_readers)
            rows.append([str(layer), told(pooled(list(of_readers))), f"{kept:.1f}"])
        yield from _table(["layer, from 0", "% right", "evidence kept, %"], rows)


def _exchanged(there: Cells) -> Iterator[str]:
    """What the tokens do that one choice keeps and another drops."""
    for strength in STRENGTHS:
        for rival in RIVALS:
            found = _of_seeds(there, f"mechanism/{{}}/{strength}/{rival}")
            for one, other in ((rival, BEST), (BEST, rival)):
                rows = [
                    [
                        line["tokens"],
                        _seed(cell),
                        f"{line['count']:,}",
                        told(pooled([line["taken_away"]]), "+"),
                        f"{100 * line['harm_when_there']:.1f}",
                        told(pooled([line["added"]]), "+"),
                        f"{100 * line['harm_when_added']:.1f}",
                    ]
                    for cell in found
                    for line in cell[f"kept by {one}, dropped by {other}"]
                ]
                if rows:
                    yield f"## Kept by '{one}' and not by '{other}', readers of strength {strength}\n"
                    yield f"How the right answer's probability changes, in points, when a token is taken away from the one choice or added to the other. Both have 5 tokens. A token harms that costs more than {100 * HARM:.0f} points. Errors are over tokens, which are not independent within a question.\n"
                    harms = ["harm there, %", "added", "harm when added, %"]
                    yield from _table(["tokens", "seed", "count", "taken away", *harms], sorted(rows, key=_group))


def _group(row: list[str]) -> int:
    return ("all", *GROUPS).index(row[0])


def _cost(there: Cells) -> Iterator[str]:
    """Seconds and rollouts of each policy, and hours of everything."""
    measured = _of_seeds(there, "contributions/{}/80")
    rows = []
    for recipe, settings in RECIPES.items():
        if found := _of_seeds(there, f"policy/{{}}/80/{recipe}"):
            measures_itself = settings.by_policy or settings.in_a_row
            rollouts, measuring = [cell["rollouts"] for cell in found], ""
            if settings.contribution_steps and measured:
                rollouts = [one + measured[0]["rollouts"] for one in rollouts]
                measuring = "within" if measures_itself else _range([cell["processor_seconds"] for cell in measured])
            seconds = _range([cell["processor_seconds"] for cell in found])
            rows.append([recipe, seconds, measuring, _range(rollouts) if any(rollouts) else ""])
    yield "## What policies take\n"
    yield "Seconds of one core, readers of strength 80, behind the teacher's attention, which is read once for all. Contributions are measured once for all recipes that do not measure themselves.\n"
    yield from _table(["policy", "seconds", "measuring", "rollouts"], rows)
    count, hours = core_hours(there.folder)
    yield f"The whole laboratory: {count} cells, {hours:.1f} core hours. Where a cell knows no more, they are those of the clock. What a reader took includes the weaker ones that it began as.\n"


def _seed(cell: dict[str, Any]) -> str:
    return cell["cell"].split("/")[1]


def _percent(shares: list[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.0f}" if shares else ""


def _range(values: list[float]) -> str:
    low, high = (f"{value:,.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def main(arguments: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the cells")
    parser.add_argument("--out", type=Path, default=PAGE, help="the file that is written")
    options = parser.parse_args(arguments)
    with replaced(options.out) as temporary:
        temporary.write_text(page(options.folder), encoding="utf-8")


if __name__ == "__main__":
    main()
