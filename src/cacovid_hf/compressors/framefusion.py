"""FrameFusion: merge tokens that repeat the frame before, layer by layer, then drop those that get little attention."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..prompt import CompressedPrompt, Prompt, VideoSelection, VideoSpan
from ..ratio import AutoBudget
from .base import CompressibleModel, Compressor, LayerRecord, Merged, Scores
from .tools.inside import Cut, CutRule, check_cuttable, cut_inside, plain_ratios
from .tools.tokens import top_tokens

_NO_PREDECESSOR = -2.0


@dataclass(frozen=True)
class Unlikeness(Scores):
    """Scores, and the number of layers of the language model that the ratio is a mean over."""

    num_layers: int


class Merge(NamedTuple):
    """What one merging step does to a video's `n` tokens.

    Attributes:
        keep: bool `(n,)`.
        num_kept: how many are kept.
        finished: what comes next: nothing (`"all"`), the step by attention (`"merging"`), or more merging (`None`).
    """

    keep: Tensor
    num_kept: int
    finished: str | None


@dataclass(frozen=True)
class FrameFusion(Compressor):
    """Merge a token into the one at the same place of an earlier frame where the two are alike, before the first layer and between the attention and the
    MLP of the layers; once little is left to merge, drop, by the attention of the prompt's last token, what is over the budget.

    Source: FrameFusion (ICCV 2025, arXiv 2501.01986), published constants as defaults; the retention ratio is its `cost`, the **mean over the layers** of
    the fraction of the tokens that a layer's attention sees. Departures: each video is a problem of its own (published: one video, one row); the
    budget counts the language model's own layers (published: always 28); where alike tokens alone can no longer meet the mean, the most alike are merged
    at once, below the threshold if need be (published: an error some layers later); ties to the lower index; a merged token has the DeepStack features
    of its own place (ours).

    Args:
        similarity: cosine from which a token is merged (published: 0.6).
        least_merged: a merging step that removes a smaller fraction is the last (published: 0.1).
    """

    similarity: float = 0.6
    least_merged: float = 0.1

    name = "framefusion"
    inside_llm = True
    exact_count = False
    count_rule = "by content in each layer, so that the mean over the layers is the ratio"

    def __post_init__(self):
        for name, value in (("similarity", self.similarity), ("least_merged", self.least_merged)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1.0 <= value <= 1.0:
                raise ValueError(f"{name}={value!r} is outside [-1, 1]: give a number such as the published default.")

    def check(self, model: CompressibleModel, retention_ratios: Sequence[float | AutoBudget]) -> None:
        """Numbers alone."""
        check_cuttable(self.name, model.family, model.backbone.config)
        plain_ratios(self.name, retention_ratios)

    def score(self, prompt: Prompt, model: CompressibleModel) -> list[Scores | None]:
        """How unlike each token is to the one at its place in the frame before: minus their cosine, in [-1, 1], and 2 in the first frame."""
        decoder: Any = model.backbone.get_decoder()
        scores: list[Scores | None] = []
        for span in prompt.layout.videos:
            features = prompt.video_features(span)
            tokens = torch.arange(span.num_tokens, device=features.device)
            unlike = -chain_similarity(features.flatten(0, 1), tokens, span.tokens_per_frame).view(features.shape[:2])
            scores.append(Unlikeness(unlike, unlike.mean(dim=1), len(decoder.layers)))
        return scores

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Merged:
        """Return the step before the first layer."""
        if not isinstance(scores, Unlikeness):
            raise ValueError("FrameFusion merges by its scores, and there are none: call `score` first.")
        features = prompt.video_features(span).flatten(0, 1)
        tokens = torch.arange(span.num_tokens, device=features.device)
        step = self.merge_step(-scores.token.flatten(), [], retention_ratio, scores.num_layers)
        merged = merged_states(features, tokens, span.tokens_per_frame, step.keep)
        shape = (span.num_frames, span.tokens_per_frame)
        return Merged(step.keep.view(shape), merged.view(*shape, -1))

    def inside(
        self, model: CompressibleModel, prompt: CompressedPrompt, retention_ratios: Sequence[float | AutoBudget]
    ) -> AbstractContextManager[LayerRecord]:
        """Return the steps behind the attention of each layer."""
        num_layers = len(model.backbone.get_decoder().layers)
        progress = [
            _Progress(self, video, ratio, num_layers)
            for video, ratio in zip(prompt.videos, plain_ratios(self.name, retention_ratios), strict=True)
        ]
        return cut_inside(model, prompt, _BeforeMlp(progress))

    def merge_step(self, similarity: Tensor, removed: list[float], retention_ratio: float, num_layers: int) -> Merge:
        """Which of a video's `n` tokens to merge now.

        Args:
            similarity: float32 `(n,)`, see `chain_similarity`.
            removed: the fractions that the steps before removed, each of what was left then.
            retention_ratio: mean over the layers.
            num_layers: of the language model.
        """
        size = len(similarity)
        most = fraction_to_remove(removed, retention_ratio, num_layers)

        def can_drop_later(count: int) -> bool:
            """Whether the mean can still be met, with a token left at the end, if `count` tokens go now."""
            if len(removed) + 1 == num_layers:
                return False
            later = fraction_to_remove([*removed, count / size], retention_ratio, num_layers)
            return (size - count) * (1 - later) >= 1 - 1e-9

        alike, chained = similarity >= self.similarity, similarity > _NO_PREDECESSOR
        num_alike, num_chained = int(alike.sum()), int(chained.sum())
        if num_alike / size < most and can_drop_later(num_alike):
            return Merge(~alike, size - num_alike, "merging" if num_alike / size < self.least_merged else None)
        count = int(most * size + 1e-9)
        if count > num_chained and can_drop_later(num_chained):
            return Merge(~chained, size - num_chained, "merging")
        count = min(size - 1, count)
        return Merge(~top_tokens(similarity, count), size - count, "all")


def fraction_to_remove(removed: list[float], retention_ratio: float, num_layers: int) -> float:
    """Which fraction of what is left must go now, so that the mean over the layers becomes the ratio if nothing goes later; in [0, 1].

    Args:
        removed: the fractions that the steps before removed, each of what was left then; one step a layer.
        retention_ratio: mean over the layers of the fraction of the tokens that they see.
        num_layers: of the language model.
    """
    left, seen = 1.0, 0.0
    for fraction in removed:
        left *= 1.0 - fraction
        seen += left
    remaining = num_layers * retention_ratio - seen
    return min(1.0, max(0.0, 1.0 - remaining / ((num_layers - len(removed)) * left)))


def chain_similarity(states: Tensor, tokens: Tensor, tokens_per_frame: int) -> Tensor:
    """Cosine of each token with the last one before it in time at the same place of the frame.

    Args:
        states: `(n, D)`.
        tokens: int64 `(n,)`, ascending: which tokens of the video they are, in raster order.
        tokens_per_frame: `P`.

    Returns:
        float32 `(n,)`; -2 where there is none before it.
    """
    order, first = _chains(tokens, tokens_per_frame)
    chained = F.normalize(states[order].float(), dim=-1)
    cosine = (chained * chained.roll(1, dims=0)).sum(dim=-1).masked_fill(first, _NO_PREDECESSOR)
    return torch.empty_like(cosine).index_copy_(0, order, cosine)


def merged_states(states: Tensor, tokens: Tensor, tokens_per_frame: int, keep: Tensor) -> Tensor:
    """Return the mean of every kept token and those that follow it at its place, up to the next one kept.

    Args:
        states: `(n, D)`.
        tokens: int64 `(n,)`, ascending, as in `chain_similarity`.
        tokens_per_frame: `P`.
        keep: bool `(n,)`; tokens in front of the first one kept of their place are in no mean.

    Returns:
        `(n, D)`, the mean at kept tokens, the given states at the others.
    """
    order, first = _chains(tokens, tokens_per_frame)
    run = (keep[order] | first).long().cumsum(0) - 1  # (n,): which run of the chains
    sums = torch.zeros(states.shape, dtype=torch.float32, device=states.device).index_add_(
        0, run, states[order].float()
    )
    sizes = torch.zeros(len(states), device=states.device).index_add_(0, run, torch.ones_like(run, dtype=torch.float32))
    means = torch.empty_like(states).index_copy_(0, order, (sums / sizes.clamp(min=1)[:, None])[run].to(states.dtype))
    return torch.where(keep[:, None], means, states)


def _chains(tokens: Tensor, tokens_per_frame: int) -> tuple[Tensor, Tensor]:
    """Tokens in the order of (place, time), and which of them, in that order, are the first of their place."""
    place = tokens % tokens_per_frame
    order = torch.sort(place, stable=True).indices
    place = place[order]
    first = torch.ones_like(place, dtype=torch.bool)
    first[1:] = place[1:] != place[:-1]
    return order, first


class _Progress:
    """How far one video has come in one call."""

    def __init__(self, method: FrameFusion, video: VideoSelection, retention_ratio: float, num_layers: int):
        self.method, self.ratio, self.num_layers = method, retention_ratio, num_layers
        self.tokens_per_frame = video.span.tokens_per_frame
        if video.token_scores is None:
            raise ValueError("FrameFusion goes on from its scores, and there are none: call `compress` first.")
        # The same step on the same similarities as in `select`, where nothing of it could be kept.
        step = method.merge_step(-video.token_scores.flatten(), [], retention_ratio, num_layers)
        self.finished = step.finished
        self.removed = [1 - step.num_kept / video.span.num_tokens]

    def cut(self, states: Tensor, tokens: Tensor, attention: Tensor | None) -> Cut | None:
        size = len(tokens)
        if self.finished == "all":
            return None
        if self.finished == "merging":
            if attention is None:
                raise RuntimeError("The last token's attention was not recorded in this layer.")
            most = fraction_to_remove(self.removed, self.ratio, self.num_layers)
            count = max(1, round(round(size * (1 - most), 9)))  # halves by their own value, not by rounding errors
            self.finished = "all"
            return Cut(top_tokens(attention, count), count)
        similarity = chain_similarity(states, tokens, self.tokens_per_frame)
        step = self.method.merge_step(similarity, self.removed, self.ratio, self.num_layers)
        self.removed.append(1 - step.num_kept / size)
        self.finished = step.finished
        if step.num_kept == size:
            return None
        return Cut(step.keep, step.num_kept, merged_states(states, tokens, self.tokens_per_frame, step.keep))


class _BeforeMlp(CutRule):
    point = "mlp"

    def __init__(self, progress: list[_Progress]):
        self.progress = progress

    def reads_attention(self, layer: int) -> bool:
        return any(video.finished == "merging" for video in self.progress)

    def cut(self, layer: int, video: int, states: Tensor, tokens: Tensor, attention: Tensor | None) -> Cut | None:
        return self.progress[video].cut(states, tokens, attention)
