"""What a compression method is: one dataclass that says, for each video of an embedded prompt, which tokens stay and what stands for them.

The base class owns the rest: the integer budget of every video is computed once, the keep masks are checked against it (`Check`), and the prompt
is gathered elsewhere (`cacovid_hf.prompt`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..backbones.family import Family
from ..prompt import CompressedPrompt, LayerRecord, Prompt, VideoSelection, VideoSpan
from ..ratio import AutoBudget, numbers, token_budget
from ..utils.tensors import full_precision, to_device_async
from .tools.tokens import highest_tokens

_NO_SCORES = "compressor {!r} has no scores to decide a budget by, so retention_ratio='auto' does not work with it: give a number."


class CompressibleModel(Protocol):
    """What a method may ask of the model whose prompts it compresses.

    Attributes:
        backbone: a stock model of a supported family.
        config: the settings of the selection, see `PolicySettings`.
    """

    backbone: Any
    config: Any

    @property
    def policy(self) -> nn.Module:
        """A `Policy`, made for the backbone."""
        ...

    @property
    def family(self) -> Family:
        """How prompts of the backbone are laid out."""
        ...


@dataclass(frozen=True)
class Scores:
    """Scores of one video: token `(T, P)` and frame `(T,)`, float32, larger = keep."""

    token: Tensor
    frame: Tensor


class Merged(NamedTuple):
    """What a merging method returns: the tokens that stay, and the embeddings that stand in their places.

    Attributes:
        keep: bool `(T, P)`.
        features: `(T, P, D)`; read at the kept tokens alone.
    """

    keep: Tensor
    features: Tensor


@dataclass(frozen=True)
class Compression:
    """What a method made of an embedded prompt.

    Attributes:
        prompt: the prompt, with merged embeddings at the kept tokens if the method merges.
        videos: one selection a video.
        budgets: how many tokens each keeps.
    """

    prompt: Prompt
    videos: tuple[VideoSelection, ...]
    budgets: list[int]


class Compressor(ABC):
    """A method that keeps a subset of a video's tokens, or merges them into fewer.

    A subclass is a dataclass of its settings with a `name`; it implements `select` for one video and, if it looks at whole prompts or at the
    model first, `score`. It holds no state between calls. Where a video's budget is all of its tokens, `select` is not called.
    A method that ranks all tokens of a video at once is a `ScoreCompressor`.

    Attributes:
        name: what `compressor=` takes.
        inside_llm: whether tokens are dropped between the layers of the language model too, see `inside`.
        uses_policy: whether the trained policy has a say in what stays.
        reads_tower: whether `prompt.tower_attention(span)` is read: attention of the vision tower, recorded while the prompt is embedded.
        exact_count: whether the budget is exact; False for a published rule, whose count only the method knows.
        count_rule: how many tokens are kept, in words.
    """

    name: ClassVar[str]
    inside_llm: ClassVar[bool] = False
    uses_policy: bool = False
    reads_tower: bool = False
    exact_count: bool = True
    count_rule: str = "max(1, floor(retention_ratio * N)) of each video, before the language model"

    def score(self, prompt: Prompt, model: CompressibleModel) -> list[Scores | None]:
        """Return the scores of every video of the prompt, in order; None for methods without scores.

        `model` holds the backbone and its policy: `model.backbone`, `model.policy`, `model.config`.
        """
        return [None] * len(prompt.layout.videos)

    @property
    def is_blind(self) -> bool:
        """Whether it chooses alike for every question: without scores and before the language model, unless a method says otherwise."""
        return type(self).score is Compressor.score and not self.inside_llm

    def budget(self, span: VideoSpan, retention_ratio: float) -> int | None:
        """Return how many tokens of a video `select` must keep; None: as many as it does (a published rule that depends on the content)."""
        return token_budget(span.num_tokens, retention_ratio) if self.exact_count else None

    def check(self, model: CompressibleModel, retention_ratios: Sequence[float | AutoBudget]) -> None:
        """Refuse ratios that the method cannot serve, before anything is computed.

        Raises:
            ValueError: scores are to decide a budget, and the method has none, or a reason of the method's own.
        """
        if type(self).score is Compressor.score:
            numbers(retention_ratios, _NO_SCORES.format(self.name))

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor | Merged:
        """Choose the tokens of one video.

        Args:
            prompt: the embedded prompts; `prompt.video_features(span)` are the video's tokens.
            span: its place and grid.
            scores: what `score` said of it.
            budget: how many to keep, in [1, N); None where the method's own `budget` gives None.

        Returns:
            bool `(T, P)` with exactly `budget` true, or `Merged` with such a mask.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither `select` nor `select_at`.")

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Tensor | Merged:
        """Choose as `select` does, for a method whose rule needs the ratio itself, which then implements this instead.

        Args:
            prompt: as in `select`.
            span: as in `select`.
            scores: as in `select`.
            retention_ratio: in (0, 1]; where scores decided the budget, its part of the tokens.
            budget: as in `select`.
        """
        return self.select(prompt, span, scores, budget)  # type: ignore[arg-type]

    def inside(
        self, model: CompressibleModel, prompt: CompressedPrompt, retention_ratios: Sequence[float | AutoBudget]
    ) -> AbstractContextManager[LayerRecord | None]:
        """Change the language model while it runs; by default nothing.

        Args:
            model: the wrapped model.
            prompt: what enters its language model.
            retention_ratios: one per video, in (0, 1].

        Returns:
            A context, entered around the backbone's `generate` or `forward` in the calling thread; it gives a record, or None where all layers see the
            whole prompt.
        """
        return nullcontext()

    def compress(
        self, prompt: Prompt, model: CompressibleModel, retention_ratios: Sequence[float | AutoBudget]
    ) -> Compression:
        """Select in every video of the prompt; whoever cuts the prompt by the masks makes a `Check` of the result too.

        Args:
            prompt: the embedded prompts.
            model: the wrapped model, for the methods that use its policy or its backbone.
            retention_ratios: one per video: in (0, 1], or a budget that its scores decide.
        """
        selections: list[VideoSelection] = []
        expected: list[int | None] = []
        embeds = prompt.inputs_embeds
        for span, scores, ratio in zip(prompt.layout.videos, self.score(prompt, model), retention_ratios, strict=True):
            budget: int | None
            if isinstance(ratio, AutoBudget):
                if scores is None:
                    raise ValueError(_NO_SCORES.format(self.name))
                budget = ratio.count(scores.token)
                ratio = budget / span.num_tokens
            else:
                budget = self.budget(span, ratio)
            chosen: Tensor | Merged
            if budget == span.num_tokens:
                chosen = torch.ones(span.num_frames, span.tokens_per_frame, dtype=torch.bool, device=embeds.device)
            else:
                with full_precision(embeds.device):  # neighbours by cosine or distance, too
                    chosen = self.select_at(prompt, span, scores, ratio, budget)
            if isinstance(chosen, Merged):
                keep, features = chosen
                # The caller's prompt stays as it is.
                embeds = embeds.clone() if embeds is prompt.inputs_embeds else embeds
                embeds[span.row].index_copy_(
                    0, to_device_async(span.positions, embeds.device), features.flatten(0, 1).to(embeds)
                )
            else:
                keep = chosen
            token_scores, frame_scores = (scores.token, scores.frame) if scores else (None, None)
            selections.append(VideoSelection(span, keep, token_scores, frame_scores))
            expected.append(budget)
        # Only a count that nobody knows beforehand is read back from the device.
        budgets = [int(s.keep.sum()) if n is None else n for n, s in zip(expected, selections, strict=True)]
        return Compression(replace(prompt, inputs_embeds=embeds), tuple(selections), budgets)


class ScoreCompressor(Compressor):
    """A method that keeps a video's highest scores, all frames in one pool; of equal scores the lower index. A subclass writes `score_tokens` alone."""

    @abstractmethod
    def score_tokens(self, prompt: Prompt, span: VideoSpan) -> Tensor:
        """Scores `(T, P)` of one video's tokens, larger = keep.

        Args:
            prompt: the embedded prompts; `prompt.video_features(span)` are the video's tokens.
            span: its place and grid.
        """

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor:
        """Return the tokens with the highest scores."""
        return highest_tokens(self.score_tokens(prompt, span), budget)
