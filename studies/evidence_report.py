"""Table and plots of the evidence: `python -m studies.evidence_report` reads studies/results/evidence and writes docs/background/evidence_*.

A row is the mean over its policies (seeds of a policy, draws of a random method). Its standard error has two independent parts, added in
squares: over the questions (of the mean over policies, question by question) and, where there are several policies, over them. Differences
are paired question by question.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT
from cacovid_hf.utils.files import replaced
from studies.cells import RESULTS

OURS = "ours"


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Every cell by its name."""
    cells = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
    return {cell["cell"]: cell for cell in cells}


def rows(cells: dict[str, dict[str, Any]], kind: str) -> dict[str, dict[str, np.ndarray]]:
    """Right answers by method and ratio, `(policies, questions)`; `kind` is table, mp4 or close."""
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for name, cell in cells.items():
        first, _, method = name.partition("/")
        if first != kind:
            continue
        head, _, tail = method.rpartition("/")
        method = head if tail.isdigit() else method
        for ratio, entry in cell["ratios"].items():
            found[method][ratio].append([int(bit) for bit in entry["right"]])
    return {method: {ratio: np.array(bits) for ratio, bits in by.items()} for method, by in found.items()}


def mean_and_error(right: np.ndarray) -> tuple[float, float]:
    """Mean in percent and its standard error, of `(policies, questions)`."""
    policies, questions = right.shape
    error = right.mean(0).std(ddof=1) ** 2 / questions
    if policies > 1:
        error += right.mean(1).std(ddof=1) ** 2 / policies
    return 100 * right.mean(), 100 * math.sqrt(error)


def difference(ours: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Ours minus another's in points, paired by question, and its standard error."""
    paired = ours.mean(0) - other.mean(0)
    error = paired.std(ddof=1) ** 2 / len(paired)
    for right in (ours, other):
        if len(right) > 1:
            error += right.mean(1).std(ddof=1) ** 2 / len(right)
    return 100 * paired.mean(), 100 * math.sqrt(error)


def table(by_method: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Markdown lines, the best at the smallest ratio last."""
    ratios = sorted(next(iter(by_method.values())), key=float, reverse=True)
    lines = [
        "| tokens kept | policies | " + " | ".join(f"{100 * float(r):g} %" for r in ratios) + " |",
        "|---" * (len(ratios) + 2) + "|",
    ]
    for method, by_ratio in sorted(by_method.items(), key=lambda item: item[1][ratios[-1]].mean()):
        cells = ["{:.1f} ± {:.1f}".format(*mean_and_error(by_ratio[ratio])) for ratio in ratios]
        lines.append(f"| {method} | {len(by_ratio[ratios[0]])} | " + " | ".join(cells) + " |")
    return lines


def differences(by_method: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Markdown lines: by how much our policy is better, in points and standard errors."""
    ratios = sorted(by_method[OURS], key=float, reverse=True)
    lines = [
        "| ours minus | " + " | ".join(f"{100 * float(r):g} %" for r in ratios) + " |",
        "|---" * (len(ratios) + 1) + "|",
    ]
    for method, by_ratio in sorted(by_method.items(), key=lambda item: item[1][ratios[-1]].mean()):
        if method in (OURS, "all tokens"):
            continue
        cells = []
        for ratio in ratios:
            points, error = difference(by_method[OURS][ratio], by_ratio[ratio])
            cells.append(f"{points:+.1f} ± {error:.1f}" + ("" if abs(points) > 2 * error else " (within two)"))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def shares(by_method: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Markdown lines: accuracy of our policies as a share of the accuracy with all tokens."""
    full = by_method["all tokens"]
    return [
        f"- {method}: "
        + ", ".join(
            f"{100 * by_method[method][r].mean() / full[r].mean():.1f} % at {100 * float(r):g} %"
            for r in sorted(full, key=float, reverse=True)
        )
        for method in (
            OURS,
            "contributions",
            "light",
            "taught first",
            "imitation",
            "light imitation",
            "published",
            "published, our selection",
        )
        if method in by_method
    ]


def ablations(cells: dict[str, dict[str, Any]]) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Markdown lines of the ablations' last points, and their curves by name."""
    curves: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, cell in cells.items():
        kind, _, rest = name.partition("/")
        if kind == "ablation":
            curves[rest.rpartition("/")[0]].append(cell)

    def last(runs: list[dict[str, Any]], key: str) -> list[float]:
        return [100 * run["curve"][-1][key] for run in runs]

    def logged(run: dict[str, Any], key: str) -> float:
        return [float(entry[key]) for entry in run["log"] if key in entry][-1]

    lines = [
        "| change | seeds | at 10 % | at 2 % | score spread at the end | rollouts a step and sample |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in sorted(curves.items(), key=lambda item: -np.mean(last(item[1], "accuracy_0.02"))):
        tenth, fiftieth = last(runs, "accuracy_0.1"), last(runs, "accuracy_0.02")
        spread = np.mean([logged(run, "score_spread") for run in runs])
        settings = runs[0]["changed_settings"]
        rollouts = settings.get("num_token_rollouts", 12) + settings.get("num_frame_rollouts", 0)
        rollouts = 0 if "teacher" in settings and "teacher_steps" not in settings else rollouts
        lines.append(f"| {name} | {len(runs)} | {_both(tenth)} | {_both(fiftieth)} | {spread:.2f} | {rollouts} |")
    return lines, curves


def _both(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def plots(by_method: dict[str, dict[str, np.ndarray]], cells: dict[str, dict[str, Any]], curves, out: Path) -> None:
    """Accuracy against ratio; learning curves of the recipes and of the ablations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.2), constrained_layout=True)
    named = {
        "ours": ("C3", "o-"),
        "contributions": ("C6", "*-"),
        "light": ("C1", "s-"),
        "taught first": ("C5", "p-"),
        "published": ("C0", "^-"),
        "divprune": ("C2", "v--"),
        "uniform": ("0.5", "x--"),
        "random": ("0.7", "+--"),
        "known evidence": ("k", ":"),
    }
    attention = [method for method in by_method if method.startswith("attention")]
    if attention:
        best = max(attention, key=lambda method: by_method[method]["0.02"].mean())
        named[best] = ("C4", "d--")
    for method, (color, style) in named.items():
        if method not in by_method:
            continue
        ratios = sorted(by_method[method], key=float)
        values = [mean_and_error(by_method[method][ratio]) for ratio in ratios]
        label = f"{method} (best layer, chosen afterwards)" if method.startswith("attention") else method
        axes.errorbar(
            [100 * float(r) for r in ratios], *zip(*values, strict=True), fmt=style, color=color, label=label, capsize=2
        )
    axes.set_xscale("log")
    ticks = [2, 5, 10, 15, 25]
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("video tokens kept")
    axes.set_ylabel("right answers, %")
    axes.set_title("Tiny model, fresh questions about fresh clips")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out / "evidence_accuracy.png", dpi=110)
    pyplot.close(figure)

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    for folder, color in zip(
        ("ours", "contributions", "light", "taught first", "imitation", "published"),
        ("C3", "C6", "C1", "C5", "C8", "C0"),
        strict=True,
    ):
        for name, cell in cells.items():
            if name.startswith(f"train/{folder}/"):
                points = cell["curve"]
                label = folder if name.endswith("/0") else None
                left.plot(
                    [p["step"] for p in points], [100 * p["accuracy_0.02"] for p in points], color=color, label=label
                )
    left.set_title("Recipes, one line a seed")
    for name, runs in curves.items():
        steps = [point["step"] for point in runs[0]["curve"]]
        values = np.mean([[100 * p["accuracy_0.02"] for p in run["curve"]] for run in runs], axis=0)
        right.plot(
            steps, values, label=name, linewidth=2.5 if name == OURS else 1, color="C3" if name == OURS else None
        )
    right.set_title("Ablations, mean of the seeds")
    for axes in (left, right):
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("right answers at 2 % of the tokens, %")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.legend(fontsize=6, ncols=2)
    figure.savefig(out / "evidence_curves.png", dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "evidence")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "background")
    options = parser.parse_args()
    cells = load(options.results)
    if not cells:
        raise SystemExit(f"{options.results} has no cells: run python -m studies.evidence first.")
    parts: list[str] = []
    by_kind = {kind: rows(cells, kind) for kind in ("table", "mp4", "close")}
    for kind, title in (
        ("table", "Frames as rendered"),
        ("mp4", "Through H.264 and PyAV"),
        ("close", "4,000 further questions, for those that are close"),
    ):
        if by_kind[kind]:
            parts += [f"### {title}", "", *table(by_kind[kind]), ""]
    if OURS in by_kind["close"]:
        parts += ["### Ours against them on those, paired by question", "", *differences(by_kind["close"]), ""]
    if OURS in by_kind["table"]:
        parts += ["### Ours against each, paired by question", "", *differences(by_kind["table"]), ""]
        if "all tokens" in by_kind["table"]:
            parts += ["### Share of the accuracy with all tokens", "", *shares(by_kind["table"]), ""]
    lines, curves = ablations(cells)
    if curves:
        parts += ["### Ablations", "", *lines, ""]
    heading = "# Tables of the evidence\n\nMade by `studies/evidence_report.py`.\n\n"
    with replaced(options.out / "evidence_tables.md") as temporary:
        temporary.write_text(heading + "\n".join(parts), encoding="utf-8")
    if by_kind["table"]:
        plots(by_kind["table"], cells, curves, options.out)


if __name__ == "__main__":
    main()
