"""A prior over frames for any method: frames get budgets by learnt scores, and a blind method chooses within them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..prompt import Prompt, VideoSpan
from .base import CompressibleModel, Compressor, Merged, Scores
from .prior import check_prior, frame_counts, prior_scores
from .registry import COMPRESSORS


@dataclass(frozen=True)
class FramePrior(Compressor):
    """Share the budget out over frames by learnt scores, and let a blind method choose within each; sees the question as its prior does.

    Ours, after DyToK (NeurIPS 2025, arXiv 2512.06866), whose frame weights are the attention of a second language model. With `"cacovid"` a frame gets as many
    tokens as the policy's own selection would keep of it, by the settings of the model's config. With `"attention"` frames share in proportion to the
    attention that their tokens receive from the question in an early layer, by largest remainders (as DyToK).

    Args:
        method: which tokens of a frame stay: the name of a blind method that works before the language model (DyToK: VisionZip), or one with its settings.
        by: `"cacovid"` or `"attention"`.
        window: frames that the method sees, and shares a budget over, at a time; more than 1 for methods that compare frames.
    """

    method: "str | Compressor" = "visionzip"
    by: str = "cacovid"
    window: int = 1

    name = "frame_prior"

    def __post_init__(self):
        check_prior(self.by, "by")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window={self.window!r}: give a whole number of frames, at least 1.")
        inner = self.inner
        if not _goes_with_a_prior(inner):
            raise ValueError(
                f"method={inner.name!r} with these settings does not go with a prior over frames. Give a method that is blind to the question, works "
                "before the language model and keeps an exact number of tokens."
            )

    @property
    def inner(self) -> Compressor:
        """The blind method."""
        if isinstance(self.method, Compressor):
            return self.method
        if self.method not in COMPRESSORS:
            raise ValueError(
                f"method={self.method!r} is unknown. Give one of {', '.join(map(repr, blind_methods()))}, or an instance."
            )
        return COMPRESSORS[self.method]()

    @property
    def uses_policy(self) -> bool:  # type: ignore[override]
        """If the policy is the prior."""
        return self.by == "cacovid"

    @property
    def reads_tower(self) -> bool:  # type: ignore[override]
        """As the blind method."""
        return self.inner.reads_tower

    def score(self, prompt: Prompt, model: CompressibleModel) -> list[Scores | None]:
        """Those of the prior."""
        return prior_scores(self.by, prompt, model)

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Tensor | Merged:
        """Return the method's choice in every window; the frames' counts are read back from the device once."""
        if scores is None or budget is None:
            raise ValueError("A prior over frames shares out a budget by its scores: call `score` first.")
        counts = frame_counts(scores, retention_ratio, budget).tolist()
        features = prompt.video_features(span).float()
        inner = self.inner
        keep = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
        merges = False
        for start in range(0, span.num_frames, self.window):
            frames = slice(start, min(start + self.window, span.num_frames))
            count, size = sum(counts[frames]), (frames.stop - start) * span.tokens_per_frame
            if count in (0, size):
                keep[frames] = count > 0
                continue
            chosen = inner.select_at(*part_of_video(prompt, span, frames), None, count / size, count)
            if isinstance(chosen, Merged):
                keep[frames], features[frames] = chosen.keep, chosen.features.to(features)
                merges = True
            else:
                keep[frames] = chosen
        return Merged(keep, features) if merges else keep


def blind_methods() -> list[str]:
    """Names of the methods that go with a prior by their default settings."""
    return [name for name, kind in COMPRESSORS.items() if _goes_with_a_prior(kind())]


def _goes_with_a_prior(method: Compressor) -> bool:
    return method.is_blind and method.exact_count


def part_of_video(prompt: Prompt, span: VideoSpan, frames: slice) -> tuple[Prompt, VideoSpan]:
    """Return some frames of a video as a video of their own: the prompt with that one alone, and its span."""
    positions = span.positions.view(span.num_frames, -1)[frames].flatten()
    part = VideoSpan(span.row, (frames.stop - frames.start, *span.grid[1:]), positions)
    tower = None if prompt.tower is None else (prompt.tower_attention(span).frames(frames),)
    return replace(prompt, layout=replace(prompt.layout, videos=(part,)), tower=tower), part
