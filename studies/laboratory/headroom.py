"""Whether a laboratory can show contribution at all, asked before any policy is trained.

Headroom is the accuracy from a token of the evidence with cells without objects, less that with attention's next choices. Where it is zero,
tokens that attention likes harm nobody, and a ranking by relevance is as good as one by contribution.
"""

from typing import Any

from torch import Tensor

from studies.laboratory.packing import answered_right, everything
from studies.laboratory.questions import KINDS, Asked
from studies.laboratory.scores import Attended, fillers, highest, right_from

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
    found["by_kind"] = {kind: share(right[asked.kinds == number]) for number, kind in enumerate(KINDS)}
    means = {"question, mean of layers": attention.question, "last token, mean of layers": attention.last}
    for name, rows in means.items():
        for count in (1, 2, 3, *BUDGETS):
            found["attention"].append(row(model, asked, name, highest(rows.float().mean(2), count))[0])
    found["evidence_among_the_first_five"] = {
        name: [seen(asked, highest(rows[:, :, layer].float(), 5)) for layer in range(rows.shape[2])]
        for name, rows in (("question", attention.question), ("last", attention.last))
    }
    choices = fillers(asked, attention.last.float().mean(2), SEED)
    found["fillers"].append(row(model, asked, "evidence alone", highest(choices["anything"], 1))[0])
    for count in BUDGETS:
        results = {name: row(model, asked, name, highest(scores, count)) for name, scores in choices.items()}
        found["fillers"] += [line for line, _ in results.values()]
        gain = results["cells without objects"][1].float() - results["attention's next choices"][1].float()
        found["headroom"].append({"tokens": count, **paired(gain)})
    return found


def row(model: Any, asked: Asked, name: str, kept: Tensor) -> tuple[dict[str, Any], Tensor]:
    """A line of a table, and which questions `(C, Q)` were answered right, from `kept` `(C, Q, K)`."""
    right, probability = right_from(model, asked, kept)
    line = {"choice": name, "tokens": kept.shape[-1], **share(right), "evidence_kept": seen(asked, kept)}
    return line | {"probability": round(probability.mean().item(), 4)}, right


def seen(asked: Asked, kept: Tensor) -> float:
    """Share of the questions of which some evidence is among the `kept` `(C, Q, K)`."""
    return round(asked.evidence.gather(2, kept).any(2).float().mean().item(), 4)


def share(right: Tensor) -> dict[str, float]:
    """Accuracy and its standard error; of questions `(C, Q)`, over clips, whose questions are not independent."""
    return paired(right.float())


def paired(values: Tensor) -> dict[str, float]:
    """Mean and standard error of values or differences: by clip where there are rows."""
    by_clip = values.mean(1) if values.ndim == 2 else values
    error = by_clip.std().item() / len(by_clip) ** 0.5 if len(by_clip) > 1 else float("nan")
    return {"mean": round(by_clip.mean().item(), 4), "standard_error": round(error, 4)}
