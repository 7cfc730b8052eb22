"""What a retention ratio may be, and how many tokens it means.

A call asks for a number, for `"auto"` (as many tokens as score above a threshold, question by question; ours), or for one of these per video. `resolve`
checks it once; below it, ratios are a tuple with one entry per video. Which tokens stay is the compression method's affair.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .utils.values import shown

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
        """Return the number of tokens to keep of a video with scores `(T, P)`; one number is read back from their device."""
        number = token_scores.numel()
        above = int((token_scores > self.threshold).sum())
        return min(max(above, token_budget(number, self.floor)), token_budget(number, self.cap))


Ratio = float | str | AutoBudget
"""What a call may ask for: a fraction, `"auto"`, or a budget with settings of its own."""


class RatioDefaults(Protocol):
    """What a config says where a call does not.

    Attributes:
        retention_ratio: a `Ratio`, or None: keep all.
        auto_floor: of `"auto"`, see `AutoBudget`.
        auto_cap: likewise.
        auto_threshold: likewise.
    """

    retention_ratio: Any
    auto_floor: float
    auto_cap: float
    auto_threshold: float


def resolve(asked: Any, default: RatioDefaults, num_videos: int) -> tuple[float | AutoBudget, ...]:
    """One checked ratio per video: numbers in (0, 1], or budgets that the scores decide.

    Args:
        asked: by a call: one `Ratio`, or one per video in a list, tuple, array or tensor; None: the default.
        default: the config's.
        num_videos: of the prompt.

    Raises:
        ValueError: something else, a number out of range, or not one per video.
    """
    if asked is None:
        asked = 1.0 if default.retention_ratio is None else default.retention_ratio
    each = one_per_video(asked)
    if each is None:
        return (_resolved(asked, default, "retention_ratio"),) * num_videos
    if len(each) != num_videos:
        raise ValueError(
            f"retention_ratio has {len(each)} values and the prompt {num_videos} video(s): give one number, or one per video."
        )
    return tuple(_resolved(ratio, default, f"retention_ratio[{i}]") for i, ratio in enumerate(each))


def _resolved(ratio: Any, default: RatioDefaults, name: str) -> float | AutoBudget:
    if isinstance(ratio, AutoBudget):
        return ratio
    if isinstance(ratio, str) and ratio == AUTO:
        return AutoBudget(default.auto_floor, default.auto_cap, default.auto_threshold)
    return check_retention_ratio(ratio, name)


def one_per_video(asked: Any) -> list[Any] | None:
    """Return the ratios of a call that asks for one per video; None if it asks for the same everywhere."""
    if isinstance(asked, (list, tuple)):
        return list(asked)
    return asked.tolist() if isinstance(asked, (Tensor, np.ndarray)) and asked.ndim > 0 else None


def check_asked(asked: Any) -> None:
    """Raise the `ValueError` that `resolve` would, except for the number of values, which a prompt decides."""
    each = one_per_video(asked)
    for i, ratio in enumerate([asked] if each is None else each):
        if not isinstance(ratio, AutoBudget) and ratio != AUTO:
            check_retention_ratio(ratio, "retention_ratio" if each is None else f"retention_ratio[{i}]")


def checked_default(ratio: Any) -> float | str | None:
    """Return what a config may say of all calls: a number in (0, 1], `"auto"`, or None; a `ValueError` otherwise."""
    return ratio if ratio is None or ratio == AUTO else check_retention_ratio(ratio)


def numbers(ratios: Sequence[float | AutoBudget], refusal: str) -> tuple[float, ...]:
    """Return the ratios of a call where scores may decide none; a `ValueError` with these words if they are to."""
    found = tuple(ratio for ratio in ratios if not isinstance(ratio, AutoBudget))
    if len(found) < len(ratios):
        raise ValueError(refusal)
    return found


def keeps_all(ratios: Sequence[float | AutoBudget]) -> bool:
    """Whether nothing of any video is to be dropped; there is at least one."""
    return len(ratios) > 0 and all(ratio == 1.0 for ratio in ratios)


def parse_ratio(words: str, name: str) -> float | AutoBudget | str:
    """Return what a command line asks for: a number, `auto`, or `auto:FLOOR:CAP`.

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


def calibrated_threshold(
    scores: Sequence[Tensor], mean_ratio: float, *, floor: float = 0.01, cap: float = 0.25
) -> float:
    """Return the threshold at which the videos of a calibration set keep `mean_ratio` of their tokens on average.

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


# Absorbs float accidents such as 0.3 * 10 == 3.0000000000000004 or 0.07 * 100 == 7.000000000000001 (and their like below).
_EPSILON = 1e-9


def check_retention_ratio(retention_ratio: float, name: str = "retention_ratio") -> float:
    """Return `retention_ratio` as a float, or raise a `ValueError` that says what is wrong with it."""
    remedy = "give the fraction of video tokens to keep, a number in (0, 1], such as 0.25 (1.0 keeps all)"
    if isinstance(retention_ratio, (bool, str)):
        raise ValueError(f"{name}={shown(retention_ratio)} is not a number: {remedy}.")
    try:
        value = float(retention_ratio)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}={shown(retention_ratio)} is not a number: {remedy}.") from None
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name}={value} is outside (0, 1]: {remedy}.")
    return value


def token_budget(num_tokens: int, retention_ratio: float) -> int:
    """Return the number of tokens kept of `num_tokens` (at least 1): `max(1, floor(retention_ratio * num_tokens))`, never one less
    because of the float product. The ratio is in (0, 1], as `resolve` gives it.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}: a video needs at least one token.")
    return max(1, floor_of(retention_ratio * num_tokens))


def floor_of(number: float) -> int:
    """Whole part of a product of floats, such as 3 of `0.3 * 10`, whatever its rounding error."""
    return math.floor(number + _EPSILON)
