"""Two pictures of a run: accuracy against the ratio, and against what compression and prefill took."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.extras import pip_install
from ..utils.figures import ALL_TOKENS, draw_lines, set_ratio_axis
from ..utils.files import replaced
from .report import compares, compressed, group_by, with_all_tokens


def save_plots(cells: Sequence[dict[str, Any]], folder: Path, stem: str) -> list[Path]:
    """Write `<stem>_accuracy_ratio.png` and `<stem>_accuracy_latency.png`, one panel a model and benchmark; returns the files.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"Plots need matplotlib: {pip_install('eval')}") from None
    panels = group_by(
        [cell for cell in cells if cell["score"]["value"] is not None],
        lambda cell: (cell["dataset"]["name"], cell["model"]["name"]),
    )
    written = []
    for name, draw in (("accuracy_ratio", _by_ratio), ("accuracy_latency", _by_latency)):
        figure = Figure(figsize=(7.5 * max(1, len(panels)), 5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        for number, (title, chosen) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), number + 1)
            axes.set_title(", ".join(title), fontsize=10)
            axes.set_ylabel(f"{chosen[0]['score']['metric']}, %")
            axes.grid(alpha=0.25)
            draw(axes, chosen)
            axes.legend(fontsize=8, frameon=False)
        target = folder / f"{stem}_{name}.png"
        with replaced(target) as temporary:
            figure.savefig(temporary, format="png")
        written.append(target)
    return written


def _by_ratio(axes: Any, cells: Sequence[dict[str, Any]]) -> None:
    """Ratio on a logarithmic axis, of the methods whose ratios mean the same; bars are standard errors, the dashed line is all tokens."""
    _lines(axes, [cell for cell in cells if compares(cell)], lambda cell: 100 * cell["retention_ratio"])
    reference = with_all_tokens(cells)
    level = None if reference is None else reference["score"]["value"]
    set_ratio_axis(axes, [cell["retention_ratio"] for cell in compressed(cells)], level)


def _by_latency(axes: Any, cells: Sequence[dict[str, Any]]) -> None:
    """Median time of compression and prefill; the cross is all tokens."""
    _lines(axes, cells, lambda cell: cell["median_ms"]["compression_and_prefill"])
    axes.set_xscale("log")
    axes.set_xlabel("compression and prefill, ms a sample")
    reference = with_all_tokens(cells)
    if reference is not None:
        axes.plot(
            reference["median_ms"]["prefill"], 100 * reference["score"]["value"], "kx", markersize=8, label=ALL_TOKENS
        )


def _lines(axes: Any, cells: Sequence[dict[str, Any]], x) -> None:
    by_method = group_by(compressed(cells), lambda cell: cell["method"]["label"])
    lines = {
        label: [(x(cell), cell["score"]["value"], cell["score"]["standard_error"]) for cell in chosen]
        for label, chosen in by_method.items()
    }
    draw_lines(axes, lines, thick="cacovid")
