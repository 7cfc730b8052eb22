"""Scores that a prior over frames has, and the share of a budget that every frame gets by them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..backbones.layer_kinds import ATTENDING
from ..policies.settings import Selection
from ..prompt import Prompt
from .attention import Attention
from .base import CompressibleModel, Scores
from .cacovid import CaCoVid
from .tools.counts import apportion
from .tools.selection import spend

PRIORS = (CaCoVid.name, Attention.name)


@dataclass(frozen=True)
class PriorScores(Scores):
    """Scores of one video, and how they are spent on its frames.

    Attributes:
        selection: of the policy; None: shares in proportion to the frames' scores.
    """

    selection: Selection | None = None


def check_prior(name: object, setting: str) -> None:
    """Raise a `ValueError` that lists the choices, if a prior is none of them."""
    if name not in PRIORS:
        raise ValueError(f"{setting}={name!r} is unknown: choose one of {', '.join(map(repr, PRIORS))}.")


def prior_scores(name: str, prompt: Prompt, model: CompressibleModel) -> list[Scores | None]:
    """Return what a prior says of every video of the prompt."""
    selection = Selection.of(model.config) if name == CaCoVid.name else None
    prior = CaCoVid() if selection else attention_prior(model.backbone.get_decoder().config)
    found = prior.score(prompt, model)
    return [None if scores is None else PriorScores(scores.token, scores.frame, selection) for scores in found]


def attention_prior(config: Any) -> Attention:
    """Attention in its default layer or, where that one does not attend (linear attention), in the first behind it that does.

    Args:
        config: of the language model.
    """
    kinds = enumerate(config.to_dict().get("layer_types") or ())
    attending = [layer for layer, kind in kinds if layer >= Attention.layer and kind in ATTENDING]
    return Attention(attending[0]) if attending else Attention()


def frame_counts(scores: Scores, retention_ratio: float, budget: int) -> Tensor:
    """How many tokens of every frame: int64 `(T,)` in [0, P], summing to `budget`.

    Args:
        scores: of a prior.
        retention_ratio: in (0, 1), what the policy's selection takes.
        budget: in [1, T * P).
    """
    selection = scores.selection if isinstance(scores, PriorScores) else None
    if selection is None:
        return apportion(scores.frame, budget, scores.token.shape[1])
    return spend(scores.token, scores.frame, retention_ratio, budget, selection).sum(1)


def frame_values(scores: Scores, retention_ratio: float, budget: int) -> Tensor:
    """Return what a frame is worth, larger = more: `(T,)`, its count by the policy's selection, or its score where there is none.

    Arguments as of `frame_counts`.
    """
    if isinstance(scores, PriorScores) and scores.selection is not None:
        return frame_counts(scores, retention_ratio, budget)
    return scores.frame
