"""CaCoVID: contribution scores of the learned policy, and a budget spent by them (arXiv 2602.01649)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..policies.settings import check_made_for, check_selection_settings
from ..prompt import Prompt, VideoSpan
from .base import CompressibleModel, Compressor, Scores
from .tools.selection import select_tokens


@dataclass(frozen=True)
class CaCoVid(Compressor):
    """Keep what the policy says contributes to the answer; settings as in `select_tokens`.

    The defaults are ours, the best of those compared on the embedded model (`studies/budget_study.py`); the published selection, a budget a frame
    and half of it spread evenly, is `CaCoVid(0.5, scope="frame")`. Neither merging dropped tokens into kept ones nor a max-min term gained there.
    """

    contribution_share: float = 1.0
    frame_cap: float = 1.5
    scope: str = "tokens"

    name = "cacovid"

    def __post_init__(self):
        check_selection_settings(self.contribution_share, self.frame_cap, self.scope)

    @torch.no_grad()
    def score(self, prompt: Prompt, model: CompressibleModel) -> list[Scores | None]:
        """The policy's scores; without gradients, which a hard selection could not use."""
        check_made_for(model.config, model.policy)
        outputs = model.policy(prompt.inputs_embeds, prompt.position_ids, prompt.layout)
        return [Scores(output.token_scores, output.frame_scores) for output in outputs]

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float) -> Tensor:
        """`select_tokens` on the policy's scores."""
        if scores is None:
            raise ValueError("CaCoVID selects by the policy's scores, and there are none: call `score` first.")
        return select_tokens(
            scores.token,
            scores.frame,
            retention_ratio,
            contribution_share=self.contribution_share,
            frame_cap=self.frame_cap,
            scope=self.scope,
            check_finite=False,  # `Check` does, without waiting
        )
