"""The table of the study of streams, for docs/how_to/streams.md: `python -m studies.stream_table`."""

import json
import statistics
from typing import Any

from studies.cells import RESULTS

FOLDER = RESULTS / "stream_study"
NAMES = ("ours", "ours, divprune", "ours, standing", "streamingtom", "marc", "sliding window", "uniform")
MEMORIES = (38_400, 76_800, 307_200)


def cells() -> dict[str, dict[str, Any]]:
    """Every cell by its name."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json"))
    return {cell["cell"]: cell for cell in found}


def accuracy(cell: dict[str, Any]) -> tuple[float, float]:
    """Mean over the streams, and its standard error: questions about one stream are not independent."""
    each = len(cell["rows"]) // cell["num_streams"]
    right = [row[1] for row in cell["rows"]]
    means = [sum(right[start : start + each]) / each for start in range(0, len(right), each)]
    return statistics.mean(means), statistics.stdev(means) / len(means) ** 0.5


def lines() -> list[str]:
    """Rows of the table, a missing cell as a dash."""
    found = cells()
    times = found["times"]["times"]
    made = []
    for name in NAMES:
        parts = []
        for memory in MEMORIES:
            cell = found.get(f"{name}/{memory}")
            parts.append("-" if cell is None else "{:.1f} ± {:.1f}".format(*(100 * part for part in accuracy(cell))))
        if set(parts) != {"-"}:
            cost = times[name]
            made.append(f"| {name} | {' | '.join(parts)} | {cost['feed_cpu_ms']:.0f} | {cost['ask_cpu_ms']:.0f} |")
    return made


def lines_by_age() -> list[str]:
    """Accuracy by age with the middle memory."""
    found = cells()
    made = []
    for name in NAMES:
        cell = found.get(f"{name}/{MEMORIES[1]}")
        if cell is not None:
            made.append(
                f"| {name} | {' | '.join('{:.0f}'.format(100 * part['accuracy']) for part in cell['by_age'].values())} |"
            )
    return made


if __name__ == "__main__":
    print("\n".join([*lines(), "", *lines_by_age()]))
