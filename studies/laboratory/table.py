"""How the choices of the laboratory answer, pooled and compared, out of its cells.

A row is one choice, pooled over the seeds of the reader that have it. Errors are over clips; differences are paired by clip.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies.cells import RESULTS

FOLDER = RESULTS / "laboratory"
SIZES = ("1", "3", "5", "14", "28", "43", "72", "best", "auto", "above_zero")
BEST = "imitation, then contributions"
Clips = dict[tuple[int, int], float]  # share of right answers, by seed and clip


def answers(
    folder: Path, strength: int, prefix: str = "", questions: slice = slice(None)
) -> dict[str, dict[str, Clips]]:
    """Return how each choice answered at each size: attention, its best layer, and every policy.

    Args:
        folder: of the cells.
        strength: of the reader.
        prefix: of the cells' names.
        questions: which of each clip's count.
    """
    found: dict[str, dict[str, Clips]] = {}
    for path in sorted(folder.glob(f"{prefix}*__*__{strength}__*.json")):
        kind, seed = path.stem.split("__")[:2]
        for name, right in _choices(kind.removeprefix(prefix), json.loads(path.read_text())):
            for size, clips in right.items():
                shares = {(int(seed), number): _share(clip[questions]) for number, clip in enumerate(clips)}
                found.setdefault(name, {}).setdefault(size, {}).update(shares)
    return found


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error, in percent."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return 100 * mean, 100 * (spread / len(values)) ** 0.5


def pooled(shares: list[dict[str, Any]]) -> tuple[float, float]:
    """Return mean and standard error, in percent, of figures that are independent and of as many questions each."""
    error = sum(one["standard_error"] ** 2 for one in shares) ** 0.5 / len(shares)
    return 100 * sum(one["mean"] for one in shares) / len(shares), 100 * error


def difference(one: Clips, other: Clips) -> tuple[float, float]:
    """How much better one choice is than another on the clips that both answered, in points."""
    return mean_and_error([one[clip] - other[clip] for clip in one.keys() & other.keys()])


def lines(found: dict[str, dict[str, Clips]]) -> Iterator[str]:
    """The table as Markdown, the best choice first."""
    yield "| choice | seeds | " + " | ".join(SIZES) + " | behind, 5 | behind, 14 |"
    yield "|---" * (len(SIZES) + 4) + "|"
    measured = {name: right for name, right in found.items() if "5" in right}
    for name, right in sorted(measured.items(), key=_place):
        cells = [told(mean_and_error([*right[size].values()])) if size in right else "" for size in SIZES]
        is_behind = BEST in found and name != BEST
        cells += [told(difference(found[BEST][size], right[size]), "+") if is_behind else "" for size in ("5", "14")]
        yield f"| {name} | {seeds_of(right['5'])} | " + " | ".join(cells) + " |"


def seeds_of(clips: Clips | set[tuple[int, int]]) -> str:
    """The seeds of the readers that answered, such as `0, 1`."""
    return ", ".join(map(str, sorted({seed for seed, _ in clips})))


def core_hours(folder: Path) -> tuple[int, float]:
    """Return how many cells there are and what they took: hours of one core, or of the clock where a cell says nothing else, which is more.

    A cell that was stopped and gone on with knows its last run alone. There the processor's time of all runs counts, which of a reader is that of
    the weaker ones too.
    """
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    took = [max(cell.get("core_seconds", cell["seconds"]), cell.get("processor_seconds", 0)) for cell in cells]
    return len(cells), sum(took) / 3600


def _place(item: tuple[str, dict[str, Clips]]) -> tuple[float, str]:
    """The better first; alike ones by name."""
    name, right = item
    return -round(mean_and_error([*right["5"].values()])[0], 6), name


def _choices(kind: str, cell: dict[str, Any]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    if kind in ("policy", "method"):
        yield cell["results"][0]["choice"], cell["right"]
    elif kind == "attention":
        query = cell["mean of layers"]["results"][0]["choice"].split(",")[0]
        for part in ("mean of layers", "best layer"):
            yield f"attention, {query}, {part}", cell[part]["right"]
    elif kind == "larger":
        name = cell["results"][0]["choice"]
        yield "attention, last, mean of layers" if name == "attention" else name, cell["right"]


def _share(digits: str) -> float:
    return digits.count("1") / len(digits)


def rounded(value: tuple[float, float]) -> list[float]:
    """Mean and error with one digit; noise of the sums decides no digit and no sign."""
    return [round(round(one, 6), 1) + 0.0 for one in value]


def told(value: tuple[float, float], sign: str = "") -> str:
    """Mean and error of `mean_and_error` or `difference` as text, such as `96.7 ± 0.5`."""
    mean, error = rounded(value)
    return f"{mean:{sign}.1f} ± {error:.1f}"
