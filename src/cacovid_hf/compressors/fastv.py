"""FastV: after a few layers of the language model, drop the video tokens that its last token attends to least."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from ..prompt import CompressedPrompt, VideoSpan
from ..ratio import AutoBudget, token_budget
from .base import CompressibleModel, Compressor, LayerRecord
from .tools.inside import Cut, CutRule, check_cuttable, cut_inside, plain_ratios
from .tools.tokens import top_tokens

RATIO_MEANINGS = ("layers", "kept")


@dataclass(frozen=True)
class FastV(Compressor):
    """Drop, before layer `layer`, the tokens with the least attention from the prompt's last token in the layer before it, mean over the heads.

    Source: FastV (arXiv 2403.06764), `K = layer`; works inside the language model, in `generate` and `forward`. Departures: every kernel (the row of
    attention is computed beside it), batches, several videos (each ranked on its own), exact counts (published: rounded), ties to the lower index.

    Args:
        layer: the first layer that sees fewer tokens, from 1 (published: 2, or 3 in its demo).
        ratio_of: what a retention ratio means: `"layers"`, the mean over all layers, so that it compares with methods that act before the
            language model; the part kept behind the cut is then `(D * ratio - layer) / (D - layer)` for `D` layers, and ratios that the
            first layers alone exceed are refused; or `"kept"`, the part kept behind the cut (published: `1 - R`).
    """

    layer: int = 2
    ratio_of: str = "layers"

    name = "fastv"
    inside_llm = True
    count_rule = "from layer `layer` on max(1, floor(q * N)) of each video, q by `ratio_of`; all before it"

    def __post_init__(self):
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 1:
            raise ValueError(
                f"layer={self.layer!r} is not a layer to drop tokens before: give a whole number from 1 (published: 2)."
            )
        if self.ratio_of not in RATIO_MEANINGS:
            raise ValueError(
                f"ratio_of={self.ratio_of!r} is unknown: choose one of {', '.join(map(repr, RATIO_MEANINGS))}."
            )

    def kept_ratio(self, retention_ratio: float, num_layers: int) -> float:
        """Return the part of the tokens that is kept behind the cut.

        Raises:
            ValueError: the language model has no such layer, or the ratio cannot be reached.
        """
        if self.layer >= num_layers:
            raise ValueError(
                f"layer={self.layer} is behind the last of the language model's {num_layers} layers (counted from 0): choose a smaller one."
            )
        if self.ratio_of == "kept" or retention_ratio == 1.0:
            return retention_ratio
        kept = (num_layers * retention_ratio - self.layer) / (num_layers - self.layer)
        if kept <= 0.0:
            raise ValueError(
                f"retention_ratio={retention_ratio} cannot be met as a mean over {num_layers} layers, of which the first {self.layer} keep all tokens: "
                f"give more than {self.layer / num_layers:.3f}, a smaller `layer`, or ratio_of='kept' (by name fastv:ratio_of=kept)."
            )
        return min(kept, 1.0)

    def check(self, model: CompressibleModel, retention_ratios: Sequence[float | AutoBudget]) -> None:
        """Numbers that the layers behind the cut can make up for."""
        check_cuttable(self.name, model.family, model.backbone.config)
        for ratio in plain_ratios(self.name, retention_ratios):
            self.kept_ratio(ratio, len(model.backbone.get_decoder().layers))

    def budget(self, span: VideoSpan, retention_ratio: float) -> int:
        """All: what enters the language model."""
        return span.num_tokens

    def inside(
        self, model: CompressibleModel, prompt: CompressedPrompt, retention_ratios: Sequence[float | AutoBudget]
    ) -> AbstractContextManager[LayerRecord]:
        """Return the cut before layer `layer`."""
        num_layers = len(model.backbone.get_decoder().layers)
        budgets = [
            token_budget(video.span.num_tokens, self.kept_ratio(ratio, num_layers))
            for video, ratio in zip(prompt.videos, plain_ratios(self.name, retention_ratios), strict=True)
        ]
        return cut_inside(model, prompt, _BeforeLayer(self.layer, budgets))


class _BeforeLayer(CutRule):
    point = "input"

    def __init__(self, layer: int, budgets: list[int]):
        self.layer, self.budgets = layer, budgets

    def reads_attention(self, layer: int) -> bool:
        return layer == self.layer - 1

    def cut(self, layer: int, video: int, states: Tensor, tokens: Tensor, attention: Tensor | None) -> Cut | None:
        if layer != self.layer or attention is None:
            return None
        budget = self.budgets[video]
        return Cut(top_tokens(attention, budget), budget)
