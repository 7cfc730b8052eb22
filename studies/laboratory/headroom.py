"""Whether a laboratory can show contribution at all, asked before any policy is trained.

Headroom is the accuracy from a token of the evidence with cells without objects, less that with attention's next choices. Where it is zero,
tokens that attention likes harm nobody, and a ranking by relevance is as good as one by contribution.
"""

import math
from typing import Any

import torch
from torch import Tensor

from studies.laboratory.packing import answered_right, everything
from studies.laboratory.questions import ALL_KINDS, Asked
from studies.laboratory.scores import (
    ALONE,
    HARMLESS,
    NEXT_CHOICES,
    Attended,
    fillers,
    highest,
    right_from,
    right_of_sets,
)

BUDGETS = (5, 14)  # 2 and 5 % of 288 tokens
SEED = 3


def headroom(model: Any, asked: Asked, attention: Attended) -> dict[str, Any]:
    """Accuracies of a reader, and how far attention stays behind harmless fillers.

    Args:
        model: the video model.
        asked: clips and questions.
        attention: of these questions.

    Returns:
        `all`, `by_kind` with all tokens; `attention` and `fillers`, a row a choice and budget; `headroom`, paired, at each budget.
    """
    right = answered_right(model, asked, everything(len(asked)))
    found: dict[str, Any] = {"all": share(right), "attention": [], "fillers": [], "headroom": []}
    found["by_kind"] = by_kind(asked, right)
    means = {"question, mean of layers": attention.question, "last token, mean of layers": attention.last}
    for name, rows in means.items():
        for count in (1, 2, 3, *BUDGETS):
            found["attention"].append(row(model, asked, name, highest(rows.float().mean(2), count))[0])
    found["evidence_among_the_first_five"] = {
        name: [seen(asked, highest(rows[:, :, layer].float(), 5)) for layer in range(rows.shape[2])]
        for name, rows in (("question", attention.question), ("last", attention.last))
    }
    choices = fillers(asked, attention.last.float().mean(2), SEED)
    alone = choices["anything"] > 100
    found["fillers"].append(line(asked, ALONE, alone, *right_of_sets(model, asked, alone)))
    for count in BUDGETS:
        results = {name: row(model, asked, name, highest(scores, count)) for name, scores in choices.items()}
        found["fillers"] += [one for one, _ in results.values()]
        gain = results[HARMLESS][1].float() - results[NEXT_CHOICES][1].float()
        found["headroom"].append({"tokens": count, **paired(gain), "by_kind": by_kind(asked, gain)})
    return found


def row(model: Any, asked: Asked, name: str, kept: Tensor) -> tuple[dict[str, Any], Tensor]:
    """A line of a table, and which questions `(C, Q)` were answered right, from `kept` `(C, Q, K)`."""
    right, probability = right_from(model, asked, kept)
    keep = torch.zeros_like(asked.evidence).scatter(2, kept, True)
    return line(asked, name, keep, right, probability), right


def line(asked: Asked, name: str, keep: Tensor, right: Tensor, probability: Tensor) -> dict[str, Any]:
    """A line of a table, of sets of any size.

    Args:
        asked: the questions.
        name: of the choice.
        keep: bool `(C, Q, N)`.
        right: bool `(C, Q)`.
        probability: `(C, Q)`, of the right answer.

    Returns:
        Accuracy, and what it is of each kind; `evidence_kept`, the mean share of a question's groups of evidence that have a token in `keep`, where
        something is needed.
    """
    found = asked.found(keep)
    return {
        "choice": name,
        "tokens": round(keep.sum(2).float().mean().item(), 2),
        **share(right),
        "evidence_kept": round(found.nanmean().item(), 4),
        "probability": round(probability.mean().item(), 4),
        "by_kind": by_kind(asked, right),
        "evidence_kept_by_kind": {
            kind: one["mean"] for kind, one in by_kind(asked, found).items() if not math.isnan(one["mean"])
        },
    }


def by_kind(asked: Asked, values: Tensor) -> dict[str, dict[str, float]]:
    """Mean of `(C, Q)` values over the questions of each kind, of which every clip has as many, and its error over clips."""
    of_kind = {ALL_KINDS[number]: values[asked.kinds == number] for number in asked.kinds.unique().tolist()}
    return {kind: paired(some.float().view(len(asked), -1)) for kind, some in of_kind.items()}


def seen(asked: Asked, kept: Tensor) -> float:
    """Mean share of a question's groups of evidence that have a token among the `kept` `(C, Q, K)`."""
    return round(asked.found(torch.zeros_like(asked.evidence).scatter(2, kept, True)).nanmean().item(), 4)


def share(right: Tensor) -> dict[str, float]:
    """Accuracy and its standard error; of questions `(C, Q)`, over clips, whose questions are not independent."""
    return paired(right.float())


def paired(values: Tensor) -> dict[str, float]:
    """Mean and standard error of values or differences: by clip where there are rows."""
    by_clip = values.mean(1) if values.ndim == 2 else values
    error = by_clip.std().item() / len(by_clip) ** 0.5 if len(by_clip) > 1 else float("nan")
    return {"mean": round(by_clip.mean().item(), 4), "standard_error": round(error, 4)}
