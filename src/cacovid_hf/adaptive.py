"""A budget that the scores decide: `retention_ratio="auto"` keeps as many tokens as score above a threshold, question by question (ours).

Only how many is decided here; which ones is the compression method's affair, as at any ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .selection import check_retention_ratio, token_budget

AUTO = "auto"


@dataclass(frozen=True)
class AutoBudget:
    """How many tokens of a video to keep: as many as score above `threshold`, within bounds.

    Args:
        floor: smallest fraction of the tokens, in (0, 1].
        cap: largest fraction, in (0, 1], not under `floor`.
        threshold: on the token scores (keep minus drop logit): at 0, what the policy thinks more likely worth keeping than not;
            larger = fewer tokens.

    Raises:
        ValueError: a setting out of range.
    """

    floor: float = 0.01
    cap: float = 0.25
    threshold: float = 0.0

    def __post_init__(self):
        check_retention_ratio(self.floor, "auto floor")
        check_retention_ratio(self.cap, "auto cap")
        if self.floor > self.cap:
            raise ValueError(f"auto floor={self.floor} is above auto cap={self.cap}: give a floor that is not.")
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not number or self.threshold != self.threshold:
            raise ValueError(f"auto threshold={self.threshold!r} is not a number: give a score, such as 0.0.")

    def count(self, token_scores: Tensor) -> int:
        """Number of tokens to keep of a video with scores `(T, P)`; one number is read back from their device."""
        number = token_scores.numel()
        above = int((token_scores > self.threshold).sum())
        return min(max(above, token_budget(number, self.floor)), token_budget(number, self.cap))


Ratio = float | str | AutoBudget
"""What a call may ask for: a fraction, `"auto"`, or a budget with settings of its own."""


def check_ratio(ratio: Any, name: str = "retention_ratio") -> float | AutoBudget:
    """What stands for one ratio, checked: a number in (0, 1], or an `AutoBudget`.

    Raises:
        ValueError: neither; `"auto"` must have been replaced by a budget by now, see `with_auto`.
    """
    return ratio if isinstance(ratio, AutoBudget) else check_retention_ratio(ratio, name)


def parse_ratio(words: str, name: str) -> float | AutoBudget | str:
    """What a command line asks for: a number, `auto`, or `auto:FLOOR:CAP`.

    Raises:
        ValueError: none of these; `name` is what the option is called.
    """
    kind, *bounds = words.split(":")
    numbers = [_number(word) for word in (bounds if kind == AUTO else [words])]
    if kind != AUTO:
        return check_retention_ratio(words if numbers[0] is None else numbers[0], name)  # type: ignore[arg-type]
    if not bounds:
        return AUTO
    if len(bounds) != 2 or None in numbers:
        raise ValueError(
            f"{name}={words!r} is neither a number nor auto:FLOOR:CAP: give two fractions, such as auto:0.01:0.25."
        )
    return AutoBudget(*numbers)  # type: ignore[arg-type]


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def with_auto(ratios: Any, budget: AutoBudget) -> Any:
    """Put `budget` in the place of every `"auto"`, alone or in a list."""
    if isinstance(ratios, str) and ratios == AUTO:
        return budget
    if isinstance(ratios, (list, tuple)):
        return [with_auto(ratio, budget) for ratio in ratios]
    return ratios


def calibrated_threshold(
    scores: Sequence[Tensor], mean_ratio: float, *, floor: float = 0.01, cap: float = 0.25
) -> float:
    """The threshold at which the videos of a calibration set keep `mean_ratio` of their tokens on average.

    Args:
        scores: token scores of many questions, one tensor of any shape each.
        mean_ratio: mean fraction kept, in [floor, cap].
        floor: of the budget to be calibrated.
        cap: of the budget to be calibrated.

    Returns:
        The smallest of the scores in the set, taken as thresholds, at which the mean is not above `mean_ratio`.

    Raises:
        ValueError: no scores, or a mean outside the bounds.
    """
    if not scores:
        raise ValueError("There are no scores to calibrate by: give those of a hundred questions or more.")
    if not AutoBudget(floor, cap).floor <= mean_ratio <= cap:
        raise ValueError(f"mean_ratio={mean_ratio} is outside [{floor}, {cap}]: no threshold gives such a mean.")

    def mean(threshold: float) -> float:
        budget = AutoBudget(floor, cap, threshold)
        return sum(budget.count(some) / some.numel() for some in scores) / len(scores)

    candidates = torch.cat([some.flatten() for some in scores]).unique().tolist()  # ascending
    low, high = 0, len(candidates) - 1  # at the largest score nothing is above: the floor everywhere
    while low < high:
        middle = (low + high) // 2
        if mean(candidates[middle]) <= mean_ratio + 1e-12:
            high = middle
        else:
            low = middle + 1
    return candidates[low]
