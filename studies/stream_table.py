"""The tables of the study of streams, for docs/how_to/streams.md: `python -m studies.stream_table`."""

import json
import math
import statistics
from dataclasses import dataclass
from functools import cache
from typing import Any

from studies.cells import RESULTS
from studies.stream_study import AGES

FOLDER = RESULTS / "stream_study"
NAMES = ("ours", "ours, divprune", "ours, standing", "streamingtom", "marc", "sliding window", "uniform")
PARTS = ("ours, 16 bits", "ours, no policy", "marc, policy", "window, policy", "everything, policy", "everything")
MEMORIES = (38_400, 76_800, 307_200)


@dataclass(frozen=True)
class Pooled:
    """One method with one memory, of all streams that were run.

    Attributes:
        streams: for each stream, age and whether it was right (1 or 0) of every question.
        memory_bytes: at most.
    """

    streams: tuple[tuple[tuple[int, int], ...], ...]
    memory_bytes: int

    def accuracy(self, lower: int = -1, upper: float = math.inf) -> tuple[float, float]:
        """Mean over the streams, and its standard error, of questions with an age in `(lower, upper]`: those about one stream are not independent."""
        asked = [[right for age, right in stream if lower < age <= upper] for stream in self.streams]
        means = [statistics.mean(rights) for rights in asked if rights]
        return statistics.mean(means), statistics.stdev(means) / len(means) ** 0.5

    def in_percent(self, *ages: float) -> str:
        """The same in words."""
        return "{:.1f} ± {:.1f}".format(*(100 * part for part in self.accuracy(*ages)))  # type: ignore[arg-type]


@cache
def cells() -> dict[str, dict[str, Any]]:
    """Every cell by its name."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json"))
    return {cell["cell"]: cell for cell in found}


def pooled(name: str, memory: int | str) -> Pooled | None:
    """The cell of a method and those of further streams (`/from N`); None: there is none."""
    whole = f"{name}/{memory}"
    found = [cell for key, cell in cells().items() if key == whole or key.startswith(f"{whole}/from ")]
    if not found:
        return None
    streams: list[tuple[tuple[int, int], ...]] = []
    for cell in sorted(found, key=lambda cell: cell.get("first_stream", 0)):
        each = len(cell["rows"]) // cell["num_streams"]
        rows = [(age, right) for age, right in cell["rows"]]
        streams += [tuple(rows[start : start + each]) for start in range(0, len(rows), each)]
    return Pooled(tuple(streams), max(cell["memory_bytes"] for cell in found))


def lines() -> list[str]:
    """Rows of the table, a missing cell as a dash."""
    times = cells()["times"]["times"]
    made = []
    for name in NAMES:
        found = [pooled(name, memory) for memory in MEMORIES]
        if any(found):
            parts = ["-" if one is None else one.in_percent() for one in found]
            cost, middle = times[name], found[1]
            streams = 0 if middle is None else len(middle.streams)
            made.append(
                f"| {name} | {' | '.join(parts)} | {streams} | {cost['feed_cpu_ms']:.0f} | {cost['ask_cpu_ms']:.0f} |"
            )
    return made


def lines_by_age() -> list[str]:
    """Accuracy by age with the middle memory."""
    made = []
    for name in NAMES:
        one = pooled(name, MEMORIES[1])
        if one is not None:
            ages = zip((-1, *AGES), AGES, strict=False)
            made.append(f"| {name} | {' | '.join(f'{100 * one.accuracy(*age)[0]:.0f}' for age in ages)} |")
    return made


def lines_of_parts() -> list[str]:
    """What each part is worth with the middle memory; all of a stream where nothing has to leave."""
    made = []
    for name in ("ours", *PARTS, "streamingtom", "streamingtom, alike"):
        one = pooled(name, "all" if name.startswith("everything") else MEMORIES[1])
        if one is not None:
            made.append(f"| {name} | {one.in_percent()} | {len(one.streams)} | {one.memory_bytes:,} |")
    return made


def lead() -> str:
    """Ours over the best rival with the middle memory, by streams that both have."""
    ours, *rivals = (pooled(name, MEMORIES[1]) for name in ("ours", *NAMES[3:]))
    assert ours is not None
    best = max((rival for rival in rivals if rival is not None), key=lambda rival: rival.accuracy()[0])
    means = [[statistics.mean(right for _, right in stream) for stream in one.streams] for one in (ours, best)]
    differences = [mine - theirs for mine, theirs in zip(*means, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{100 * statistics.mean(differences):.0f} ± {100 * error:.0f} points"


if __name__ == "__main__":
    print("\n".join([*lines(), "", *lines_by_age(), "", *lines_of_parts(), "", lead()]))
