"""What the tokens do that one choice keeps and another drops: the change of the right answer's probability when each is added or taken away."""

from typing import Any

import torch
from torch import Tensor

from studies.laboratory.headroom import paired
from studies.laboratory.questions import KINDS, Asked
from studies.laboratory.scores import highest, right_of_sets

HARM = 0.05  # of probability: a token that costs more than this harms
ABOUT_DIGITS = tuple(KINDS.index(kind) for kind in ("digit", "scene_of_digit"))
GROUPS = ("evidence", "near match", "other object", "sink", "other cell")


def groups(asked: Asked, attention: Tensor, count: int = 5) -> Tensor:
    """What every token is to every question: int64 `(C, Q, N)`, numbers in `GROUPS`.

    A near match is an object of the class that the question is about, and not its evidence. A sink is a token without an object that is among the
    `count` highest of the attention's mean over a clip's questions.

    Args:
        asked: clips and questions.
        attention: `(C, Q, N)`.
        count: of sinks in a clip, at most.
    """
    about_digits = torch.isin(asked.kinds, torch.tensor(ABOUT_DIGITS))[..., None]
    is_object, is_digit = asked.objects[:, None], asked.digits[:, None]
    near = torch.where(about_digits, is_digit, is_object & ~is_digit)
    liked = attention.mean(1, keepdim=True)
    sink = torch.zeros_like(liked).bool().scatter(2, highest(liked, count), True)
    found = torch.full(asked.evidence.shape, GROUPS.index("other cell"))
    for name, where in (
        ("sink", sink),
        ("other object", is_object),
        ("near match", near),
        ("evidence", asked.evidence),
    ):
        found[where.expand_as(found)] = GROUPS.index(name)
    return found


def exchanged(
    model: Any, asked: Asked, kept_by: Tensor, dropped_by: Tensor, group: Tensor, count: int
) -> list[dict[str, Any]]:
    """What the tokens do that are among the `count` highest of one choice and not of another.

    Args:
        model: the video model.
        asked: clips and questions.
        kept_by: scores `(C, Q, N)` of the choice that keeps them.
        dropped_by: scores of the other.
        group: see `groups`.
        count: tokens of each choice.

    Returns:
        For all and for each of `GROUPS`: how many there are; `taken_away`, mean change of the right answer's probability when a token leaves the
        choice that keeps it (above zero: it had harmed), `added`, when it joins the other's tokens; the share that harms, by each measure. Errors are
        over tokens, which are not independent within a question.
    """
    ours, theirs = (_sets(scores, count) for scores in (kept_by, dropped_by))
    places = (ours & ~theirs).nonzero()
    numbers = places[:, 0] * asked.answers.shape[1] + places[:, 1]
    some = asked.alone(numbers)
    token = torch.zeros(len(places), asked.evidence.shape[2]).bool().scatter(1, places[:, 2:], True)

    def probability(keep: Tensor) -> Tensor:
        return right_of_sets(model, some, keep[:, None])[1][:, 0]

    mine, other = ours.flatten(0, 1)[numbers], theirs.flatten(0, 1)[numbers]
    taken = probability(mine & ~token) - probability(mine)
    added = probability(other | token) - probability(other)
    kinds = group[tuple(places.T)]
    lines = []
    for name, where in [("all", kinds >= 0), *((name, kinds == number) for number, name in enumerate(GROUPS))]:
        if where.any():
            lines.append(
                {
                    "tokens": name,
                    "count": int(where.sum()),
                    "taken_away": paired(taken[where]),
                    "harm_when_there": round((taken[where] > HARM).float().mean().item(), 4),
                    "help_when_there": round((taken[where] < -HARM).float().mean().item(), 4),
                    "added": paired(added[where]),
                    "harm_when_added": round((added[where] < -HARM).float().mean().item(), 4),
                }
            )
    return lines


def _sets(scores: Tensor, count: int) -> Tensor:
    return torch.zeros_like(scores).bool().scatter(2, highest(scores, count), True)
