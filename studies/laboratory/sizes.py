"""How many tokens a choice should keep, told by other questions than those that are reported: one number for all, or question by question."""

from typing import Any

import torch
from torch import Tensor

from studies.laboratory.headroom import line, row
from studies.laboratory.questions import Asked
from studies.laboratory.scores import highest, right_from, right_of_sets

BUDGETS = (1, 2, 3, 5, 14, 28)
MOST = 28  # tokens, where each question has a number of its own
STEPS = 12  # thresholds that are tried


def by_size(
    model: Any, asked: Asked, scores: Tensor, validation: Asked, validation_scores: Tensor, name: str
) -> dict[str, Any]:
    """How a choice answers at every budget, at the one that is best on other questions, and with a number of tokens for each question.

    Args:
        model: the video model.
        asked: questions that are reported.
        scores: theirs, `(C, Q, N)`: larger = keep.
        validation: questions that sizes are chosen by.
        validation_scores: theirs.
        name: of the choice, in the table.

    Returns:
        `results`, a row a budget; `best`, the row of the budget that wins on `validation`; `auto`, that of the margin below the highest score
        that wins there, among `STEPS` margins; `right`, the answers as digits, clip by clip, for paired comparisons.
    """
    lines, right, elsewhere = [], {}, []
    for count in BUDGETS:
        line, answers = row(model, asked, name, highest(scores, count))
        lines.append(line)
        right[str(count)] = digits(answers)
        elsewhere.append(right_from(model, validation, highest(validation_scores, count))[0].float().mean().item())
    best = max(range(len(BUDGETS)), key=elsewhere.__getitem__)
    margins = margins_of(validation_scores)
    reached = [
        right_of_sets(model, validation, within(validation_scores, margin))[0].float().mean().item()
        for margin in margins
    ]
    margin = margins[max(range(len(margins)), key=reached.__getitem__)]
    auto, answers = set_row(model, asked, name, within(scores, margin))
    right["best"], right["auto"] = right[str(BUDGETS[best])], digits(answers)
    return {"results": lines, "best": lines[best], "auto": auto | {"margin": margin}, "right": right}


def set_row(model: Any, asked: Asked, name: str, keep: Tensor) -> tuple[dict[str, Any], Tensor]:
    """A line of a table, and which questions `(C, Q)` were answered right, from sets of any size, bool `(C, Q, N)`."""
    right, probability = right_of_sets(model, asked, keep)
    return line(asked, name, keep, right, probability), right


def within(scores: Tensor, margin: float) -> Tensor:
    """The tokens that score at most `margin` below the highest of their question, `MOST` of them: bool, as `scores`."""
    order = scores.sort(dim=-1, descending=True, stable=True)
    near = order.values >= order.values[..., :1] - margin
    near[..., MOST:] = False
    return torch.zeros_like(near).scatter(-1, order.indices, near)


def margins_of(scores: Tensor) -> list[float]:
    """Margins that would keep from one token of every question to `MOST`, and no others alike."""
    behind = scores.amax(-1, keepdim=True) - scores.topk(MOST, dim=-1).values
    return torch.linspace(0, 0.9, STEPS).apply_(lambda share: behind.quantile(share).item()).tolist()


def digits(right: Tensor) -> list[str]:
    """Answers of `(C, Q)` questions, a string of 0 and 1 a clip."""
    return ["".join(map(str, clip)) for clip in right.long().tolist()]
