"""Where the time of one `model.generate` goes: vision, policy, prefill, generation."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from ..compressors.base import CompressibleModel, Compression, Compressor, LayerRecord
from ..prompt import CompressedPrompt, Prompt, VideoSelection
from ..ratio import AutoBudget, Ratio
from ..utils.hooks import Hook, attached
from .wrapped import AnsweringModel


def timed_generate(
    model: AnsweringModel,
    inputs: Any,
    method: Compressor,
    stages: "Stages",
    *,
    retention_ratio: Ratio | None,
    max_new_tokens: int,
) -> tuple[Tensor, tuple[VideoSelection, ...]]:
    """Generate greedily with a plain `model.generate`, and note what it took.

    Args:
        model: a wrapped model.
        inputs: what its processor returned, on the model's device.
        method: the compression method.
        stages: gets the times.
        retention_ratio: as in `model.generate`.
        max_new_tokens: of the answers.

    Returns:
        The sequences `(B, L + new)`, and what was kept of every video, in prompt order.
    """
    watched = _Watched(method, stages)
    with stages.prefill_at(model.family.language_model(model.backbone)):
        stages.enter("vision")
        ids = model.generate(
            **inputs,
            retention_ratio=retention_ratio,
            compressor=watched,
            streamer=stages,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
    stages.enter(None)
    return ids, stages.selections or _everything(model, inputs)


def _everything(model: AnsweringModel, inputs: Any) -> tuple[VideoSelection, ...]:
    """Return the selections that drop nothing."""
    layout = model.family.layout(model.backbone.config, inputs["input_ids"], inputs["attention_mask"], dict(inputs))
    return tuple(
        VideoSelection(span, torch.ones(span.num_frames, span.tokens_per_frame, dtype=torch.bool))
        for span in layout.videos
    )


class Stages(BaseStreamer):
    """Times the stages of one `model.generate` from its public extension points; keeps what was selected, and what a method left to each layer.

    The compressor says where vision ends and the policy begins, the call of the language model where prefill begins, and the streamer (which
    gets the prompt, then every new token) where it ends.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self.device, self.clock = device, clock
        self.times = dict.fromkeys(("prepare", "vision", "policy", "prefill", "generation"), 0.0)
        self.selections: tuple[VideoSelection, ...] = ()
        self.layers: LayerRecord | None = None
        self.compressing = False
        self._stage: str | None = None
        self._since = 0.0
        self._num_put = 0

    def enter(self, stage: str | None) -> None:
        """End the current stage, once the device has done its work, and begin the next."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        now = self.clock()
        if self._stage is not None:
            self.times[self._stage] += now - self._since
        self._stage, self._since = stage, now

    def put(self, value: Tensor) -> None:
        """Take the prompt from `generate`, then every new token."""
        self._num_put += 1
        if self._num_put == 2:
            self.enter("generation")

    def end(self) -> None:
        """Take note of the end of `generate`."""

    @contextmanager
    def prefill_at(self, language_model: nn.Module) -> Iterator[None]:
        """Within the block, prefill begins where this thread calls the language model."""

        def begin(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if not self.compressing and self._stage in ("vision", "policy"):
                self.enter("prefill")

        with attached(Hook(language_model, pre=begin)):
            yield


@dataclass(frozen=True)
class _Watched(Compressor):
    """Another method, timed, its selections noted; all else is as that method does it."""

    method: Compressor
    stages: Stages

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.method.name

    @property
    def inside_llm(self) -> bool:  # type: ignore[override]
        return self.method.inside_llm

    @property
    def reads_tower(self) -> bool:  # type: ignore[override]
        return self.method.reads_tower

    def check(self, model: CompressibleModel, retention_ratios: Sequence[float | AutoBudget]) -> None:
        self.method.check(model, retention_ratios)

    def compress(
        self, prompt: Prompt, model: CompressibleModel, retention_ratios: Sequence[float | AutoBudget]
    ) -> Compression:
        self.stages.enter("policy")
        self.stages.compressing = True  # a method may ask the language model
        found = self.method.compress(prompt, model, retention_ratios)
        self.stages.compressing = False
        self.stages.selections = found.videos
        return found

    @contextmanager
    def inside(
        self, model: CompressibleModel, prompt: CompressedPrompt, retention_ratios: Sequence[float | AutoBudget]
    ) -> Iterator[LayerRecord | None]:
        with self.method.inside(model, prompt, retention_ratios) as record:
            self.stages.layers = record
            yield record
