"""Figures of evaluation runs, read from their JSON files: the only way by which a figure gets into a card."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.figures import ALL_TOKENS, draw_lines, markdown_table, percent, set_ratio_axis

POLICY_METHOD = "cacovid"


@dataclass(frozen=True)
class Result:
    """One measured figure.

    Attributes:
        dataset: its name.
        method: what chose the tokens.
        retention_ratio: fraction of the video tokens kept.
        accuracy: in [0, 1].
        standard_error: of it.
        questions: how many were asked.
        kept_tokens: mean number of video tokens kept; None if the run does not say.
        file: name of the JSON.
    """

    dataset: str
    method: str
    retention_ratio: float
    accuracy: float
    standard_error: float
    questions: int | None
    kept_tokens: float | None
    file: str


@dataclass(frozen=True)
class Runs:
    """The results of several runs, and where they were measured."""

    results: tuple[Result, ...]
    hardware: tuple[str, ...]


def read_runs(paths: Iterable[str | os.PathLike]) -> Runs:
    """Read the JSONs of `cacovid evaluate`.

    Raises:
        ValueError: a file is no such JSON, or was measured with an untrained policy.
    """
    results: list[Result] = []
    hardware: list[str] = []
    for path in map(Path, paths):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            found, environments = _cells(run, path.name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not an evaluation that a card can quote ({type(error).__name__}: {error}): give a JSON that `cacovid evaluate` wrote."
            ) from error
        results += found
        hardware += [_hardware(environment) for environment in environments]
    return Runs(tuple(results), tuple(dict.fromkeys(hardware)))


def _cells(run: dict[str, Any], file: str) -> tuple[list[Result], list[dict[str, Any]]]:
    if run["benchmark"] != "evaluation":
        raise ValueError(f"it is a benchmark of {run['benchmark']}")
    cells = [cell for cell in run["cells"] if cell["score"]["value"] is not None]
    if any(cell["model"]["policy_trained"] is False for cell in cells):
        raise ValueError("it was measured with an untrained policy")
    results = [
        Result(
            cell["dataset"]["name"],
            ALL_TOKENS if cell["retention_ratio"] == 1 else cell["method"]["label"],
            float(cell["retention_ratio"]),
            float(cell["score"]["value"]),
            float(cell["score"]["standard_error"]),
            cell["answered"],
            cell.get("kept_tokens"),
            file,
        )
        for cell in cells
    ]
    return results, [cell["environment"] for cell in cells]


def _hardware(environment: dict[str, Any]) -> str:
    hardware, versions = environment["hardware"], environment["versions"]
    device = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} thread(s)"
    return f"{device}; torch {versions['torch']}, transformers {versions['transformers']}"


def table(results: Sequence[Result]) -> str:
    """Methods by ratio, one Markdown table per dataset."""
    parts = []
    for dataset, chosen in _by(results, "dataset").items():
        ratios = sorted({result.retention_ratio for result in chosen}, reverse=True)
        asked = sorted({result.questions for result in chosen if result.questions})
        rows = []
        for method, measured in _by(chosen, "method").items():
            cells = {result.retention_ratio: _figure(result) for result in measured}
            rows.append([method, *(cells.get(ratio, "") for ratio in ratios)])
        parts.append(markdown_table([dataset, *(f"{100 * ratio:g} %" for ratio in ratios)], rows))
        questions = " or ".join(map(str, asked))
        parts.append(f"Accuracy in percent ± standard error by the share of video tokens kept; {questions} questions.")
    return "\n\n".join(parts)


def _figure(result: Result) -> str:
    kept = f" ({result.kept_tokens:.0f} tokens)" if result.kept_tokens is not None else ""
    return percent(result.accuracy, result.standard_error) + kept


def _by(results: Sequence[Result], attribute: str) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(vars(result)[attribute], []).append(result)
    return groups


def plot(results: Sequence[Result], path: Path) -> None:
    """Accuracy by share of the tokens kept, one panel per dataset (needs matplotlib)."""
    from matplotlib.figure import Figure

    datasets = _by(results, "dataset")
    figure = Figure(figsize=(6 * len(datasets), 4), layout="constrained")
    for axes, (dataset, chosen) in zip(
        figure.subplots(1, len(datasets), squeeze=False)[0], datasets.items(), strict=True
    ):
        methods = _by(chosen, "method")
        reference = methods.pop(ALL_TOKENS, None)
        lines = {
            method: [(100 * r.retention_ratio, r.accuracy, r.standard_error) for r in measured]
            for method, measured in methods.items()
        }
        draw_lines(axes, lines, thick=POLICY_METHOD)
        ratios = [result.retention_ratio for result in chosen if result.method != ALL_TOKENS]
        set_ratio_axis(axes, ratios, reference[0].accuracy if reference else None)
        axes.set(ylabel="accuracy, %", title=dataset)
        axes.legend()
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
