"""The README's figure: `python -m studies.readme_figure` draws the evidence of the tiny model and that of the laboratory, as docs/images/results.svg.

The points are written into the file too, as its description, so that a test can compare them with the results.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT
from studies.cells import RESULTS
from studies.evidence_report import load, mean_and_error, rows
from studies.laboratory import table

TARGET = ROOT / "docs" / "images" / "results.svg"
FULL = "all tokens"
STRENGTH = 80  # of the laboratory's readers
# Tokens of 288, and the share that they are called.
SHARES = {"5": "0.02", "14": "0.05", "28": "0.1", "43": "0.15", "72": "0.25"}
Points = dict[str, dict[str, list[float]]]  # mean and standard error in percent, by choice and share of the tokens
RED, PURPLE, ORANGE, GREEN, GREY, BLUE = "#c0392b", "#7d3c98", "#b9770e", "#1e8449", "#707b7c", "#2471a3"
# Of each panel its title, and the choices: what each is called in the figure, color, line, and how far its name is moved up, in points of the axis.
PANELS: dict[str, tuple[str, dict[str, tuple[str, str, str, float]]]] = {
    "tiny": (
        "Tiny model, 3 layers, hardly misled",
        {
            "contributions": ("learned contributions", RED, "o-", -1.0),
            "attention, layer 2, last": ("attention, best layer", PURPLE, "d--", -6.0),
            "published": ("published recipe", BLUE, "^-", 2.0),
            "divprune": ("DivPrune", GREEN, "v--", -2.5),
            "uniform": ("every k-th token", GREY, "x--", 0.0),
        },
    ),
    "laboratory": (
        "SmolLM2-135M, 30 layers, often misled",
        {
            table.BEST: ("learned contributions", RED, "o-", 1.5),
            "imitation of the last token": ("imitation of attention", ORANGE, "s-", 1.0),
            "attention, last, mean of layers": ("attention itself", PURPLE, "d--", -4.0),
            "divprune": ("DivPrune", GREEN, "v--", 0.0),
            "uniform": ("every k-th token", GREY, "x--", -1.0),
        },
    ),
}


def points(results: Path) -> dict[str, Points]:
    """Return the points of every panel; `results` is the folder of the studies' results."""
    measured = rows(load(results / "evidence"), "table")
    tiny = {
        choice: {
            ratio: table.rounded(mean_and_error(right))
            for ratio, right in sorted(measured[choice].items(), key=lambda item: float(item[0]))
        }
        for choice in (FULL, *PANELS["tiny"][1])
    }
    folder = results / "laboratory"
    answered = table.answers(folder, STRENGTH)
    readers = [json.loads(path.read_text())["all"] for path in sorted(folder.glob(f"headroom__*__{STRENGTH}.json"))]
    whole = table.rounded(table.pooled(readers))
    laboratory = {FULL: dict.fromkeys(SHARES.values(), whole)}
    for choice in PANELS["laboratory"][1]:
        laboratory[choice] = {
            share: table.rounded(table.mean_and_error([*answered[choice][size].values()]))
            for size, share in SHARES.items()
            if size in answered[choice]
        }
    return {"tiny": tiny, "laboratory": laboratory}


def draw(found: dict[str, Points], target: Path) -> None:
    """Draw the figure as SVG, a panel beside the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = {"svg.hashsalt": "results", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure, panels = pyplot.subplots(1, 2, figsize=(11.6, 3.8), sharey=True, constrained_layout=True)
        for axes, (name, (title, choices)) in zip(panels, PANELS.items(), strict=True):
            _draw_panel(axes, found[name], choices)
            axes.set_title(title, fontsize=10)
        panels[0].set_ylim(10, 104)
        panels[0].set_ylabel("right answers, %")
        figure.savefig(target, metadata={"Date": None, "Description": json.dumps(found)}, facecolor="white")
        pyplot.close(figure)


def _draw_panel(axes: Any, found: Points, choices: dict[str, tuple[str, str, str, float]]) -> None:
    """Draw the lines of a panel, each named at its left end."""
    (full, _), *_ = found[FULL].values()
    axes.hlines(full, 2, 26, color="0.3", linestyle=":", linewidth=1)
    axes.text(27, full, FULL, va="center", color="0.3")
    for choice, (name, color, style, lift) in choices.items():
        shares = [100 * float(ratio) for ratio in found[choice]]
        values = [value for value, _ in found[choice].values()]
        axes.plot(shares, values, style, color=color, markersize=5)
        axes.text(0.92 * shares[0], values[0] + lift, name, color=color, ha="right", va="center")
    axes.set_xscale("log")
    axes.set_xlim(0.42, 46)
    axes.set_xticks([2, 5, 10, 15, 25], ["2 %", "5 %", "10 %", "15 %", "25 %"])
    axes.minorticks_off()
    axes.set_xlabel("video tokens kept")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    draw(points(options.results), options.out)


if __name__ == "__main__":
    main()
