"""CaCoVID: contribution scores of the learned policy, and a budget spent by them (arXiv 2602.01649)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..policies.settings import Selection, check_made_for
from ..prompt import Prompt, VideoSpan
from .base import CompressibleModel, Compressor, Scores
from .tools.selection import spend


@dataclass(frozen=True)
class CaCoVid(Selection, Compressor):
    """Keep what the policy says contributes to the answer; settings as in `select_tokens`.

    The defaults are ours, the best of those compared on the embedded model (`studies/budget_study.py`). The published selection, a budget per frame and
    half of it spread evenly, is `CaCoVid(0.5, scope="frame")`. Neither merging dropped tokens into kept ones nor a max-min term gained there.
    """

    name = "cacovid"
    uses_policy = True

    @torch.no_grad()
    def score(self, prompt: Prompt, model: CompressibleModel) -> list[Scores | None]:
        """Return the policy's scores; without gradients, which a hard selection could not use."""
        check_made_for(model.config, model.policy)
        outputs = model.policy(prompt.inputs_embeds, prompt.position_ids, prompt.layout)
        return [Scores(output.token_scores, output.frame_scores) for output in outputs]

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Tensor:
        """`select_tokens` on the policy's scores, which a `Check` finds to be finite without waiting."""
        if scores is None or budget is None:
            raise ValueError("CaCoVID selects by the policy's scores, and there are none: call `score` first.")
        return spend(scores.token, scores.frame, retention_ratio, budget, self)
