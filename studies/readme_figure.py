"""The README's figure: `python -m studies.readme_figure` reads studies/results/evidence and writes docs/images/results.svg.

The points are written into the file too, as its description, so that a test can compare them with the results.
"""

import argparse
import json
from pathlib import Path

from benchmarks.record import ROOT
from studies.cells import RESULTS
from studies.evidence_report import load, mean_and_error, rows

TARGET = ROOT / "docs" / "images" / "results.svg"
# Method, what it is called in the figure, color, line, and how far its name is moved up, in points of the axis.
LINES = (
    ("contributions", "learned contributions", "#c0392b", "o-", -1.0),
    ("attention, layer 2, last", "attention of the last layer", "#7d3c98", "d--", -6.0),
    ("published", "published recipe", "#2471a3", "^-", 2.0),
    ("divprune", "DivPrune", "#1e8449", "v--", -2.5),
    ("uniform", "every k-th token", "#707b7c", "x--", 0.0),
)
FULL = "all tokens"


def points(results: Path) -> dict[str, dict[str, list[float]]]:
    """Return mean and standard error in percent, by method and share of tokens kept."""
    measured = rows(load(results), "table")
    methods = (FULL, *(line[0] for line in LINES))
    return {
        method: {
            ratio: [round(value, 1) for value in mean_and_error(right)]
            for ratio, right in sorted(measured[method].items(), key=lambda item: float(item[0]))
        }
        for method in methods
    }


def draw(found: dict[str, dict[str, list[float]]], target: Path) -> None:
    """Draw the figure as SVG, each line named at its left end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = {"svg.hashsalt": "results", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(7.6, 3.6), constrained_layout=True)
        (full, _), *_ = found[FULL].values()
        axes.hlines(full, 2, 26, color="0.3", linestyle=":", linewidth=1)
        axes.text(27, full, "all tokens", va="center", color="0.3")
        for method, name, color, style, lift in LINES:
            shares = [100 * float(ratio) for ratio in found[method]]
            values = [value for value, _ in found[method].values()]
            axes.plot(shares, values, style, color=color, markersize=5)
            axes.text(1.85, values[0] + lift, name, color=color, ha="right", va="center")
        axes.set_xscale("log")
        axes.set_xlim(0.62, 42)
        axes.set_xticks([2, 5, 10, 15, 25], ["2 %", "5 %", "10 %", "15 %", "25 %"])
        axes.minorticks_off()
        axes.set_ylim(20, 104)
        axes.set_xlabel("video tokens kept")
        axes.set_ylabel("right answers, %")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(target, metadata={"Date": None, "Description": json.dumps(found)}, facecolor="white")
        pyplot.close(figure)


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "evidence")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    draw(points(options.results), options.out)


if __name__ == "__main__":
    main()
