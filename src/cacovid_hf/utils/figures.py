"""Tables and plots of accuracies, as the report of an evaluation and a model card show them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The row of the reference at ratio 1.0, which is not a method.
ALL_TOKENS = "all tokens"
_STYLES = ("-", "--", ":", "-.")


def markdown_table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; every row has as many cells as there are heads."""
    first, *others = ("| " + " | ".join(map(str, line)) + " |" for line in (heads, *rows))
    return "\n".join([first, "|---" * len(heads) + "|", *others])


def percent(value: float, standard_error: float) -> str:
    """Return a fraction with its standard error, both in percent with one decimal."""
    return f"{100 * value:.1f} ± {100 * standard_error:.1f}"


def draw_lines(axes: Any, lines: Mapping[str, Sequence[tuple[float, float, float]]], thick: str | None = None) -> None:
    """One line per method, with standard errors as bars.

    Args:
        axes: of matplotlib.
        lines: by the name of the method, points `(x, accuracy, standard error)` with fractions, in any order.
        thick: the method that stands out.
    """
    for number, (label, points) in enumerate(lines.items()):
        places, accuracies, errors = zip(*sorted(points), strict=True)
        axes.errorbar(
            places,
            [100 * accuracy for accuracy in accuracies],
            yerr=[100 * error for error in errors],
            marker="o",
            markersize=4,
            linestyle=_STYLES[number // 10 % len(_STYLES)],
            linewidth=2.5 if label == thick else 1.2,
            color=f"C{number % 10}",
            capsize=2,
            label=label,
        )


def set_ratio_axis(axes: Any, ratios: Iterable[float], all_tokens: float | None) -> None:
    """Draw a logarithmic axis of retention ratios in percent, with the accuracy of all tokens as a dashed line if it is known."""
    ratios = sorted(set(ratios))
    axes.set_xscale("log")
    axes.set_xticks([100 * ratio for ratio in ratios], [f"{100 * ratio:g}" for ratio in ratios])
    axes.minorticks_off()
    axes.set_xlabel("video tokens kept, %")
    if all_tokens is not None:
        axes.axhline(100 * all_tokens, color="black", linestyle="--", linewidth=1, label=ALL_TOKENS)
