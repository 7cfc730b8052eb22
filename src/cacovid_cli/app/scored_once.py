"""A method whose scores are computed once for one question, and used at every ratio."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from cacovid_hf.compressors.base import Compressor, Merged, Scores
from cacovid_hf.prompt import CompressedPrompt, LayerRecord, Prompt, VideoSpan
from cacovid_hf.ratio import AutoBudget


@dataclass(frozen=True)
class ScoredOnce(Compressor):
    """Another method, of one prompt: what its `score` gives the first time is what it gives. All else is as that method does it.

    Attributes:
        method: the other one.
        scores: one per video, from the first time on.
    """

    method: Compressor
    scores: list[Scores | None] = field(default_factory=list)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The method's."""
        return self.method.name

    @property
    def inside_llm(self) -> bool:  # type: ignore[override]
        """The method's."""
        return self.method.inside_llm

    @property
    def uses_policy(self) -> bool:  # type: ignore[override]
        """The method's."""
        return self.method.uses_policy

    @property
    def reads_tower(self) -> bool:  # type: ignore[override]
        """The method's."""
        return self.method.reads_tower

    def check(self, model: Any, retention_ratios: Sequence[float | AutoBudget]) -> None:
        """Check as the method does."""
        self.method.check(model, retention_ratios)

    def score(self, prompt: Prompt, model: Any) -> list[Scores | None]:
        """Return the method's, the first time."""
        if not self.scores:
            self.scores.extend(self.method.score(prompt, model))
        return self.scores

    def budget(self, span: VideoSpan, retention_ratio: float) -> int | None:
        """Check as the method does."""
        return self.method.budget(span, retention_ratio)

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> "Any | Merged":
        """Check as the method does."""
        return self.method.select_at(prompt, span, scores, retention_ratio, budget)

    def inside(
        self, model: Any, prompt: CompressedPrompt, retention_ratios: Sequence[float | AutoBudget]
    ) -> AbstractContextManager[LayerRecord | None]:
        """Check as the method does."""
        return self.method.inside(model, prompt, retention_ratios)
