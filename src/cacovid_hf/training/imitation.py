"""A teacher in the place of rollouts: the frozen language model's own attention to the video (ours, an ablation)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compressors.attention import video_attention
from ..policies.base import PolicyOutput
from ..policies.shape import attending_layers
from ..prompt import Prompt
from .batches import BatchHeader
from .learner import Learner
from .objective import distillation_loss
from .replay import BatchMemory
from .resuming import ATTENTION
from .sample_store import SampleStore


class Imitation(Learner):
    """Scores learn to be the attention that a video's tokens receive, which is read when a sample comes in.

    What was read is used again when the sample comes back, so it must be the same in every pass. One that comes back with another number of tokens
    is read again. Samples of a stream are read in every pass.

    Attributes:
        comes_back: whether samples come in again while the teacher is followed. What was read of them is then kept until it ends, by their place in
            the dataset, in all processes and in checkpoints: a float32 for each of a sample's tokens, on the CPU.
    """

    comes_back = False

    def __init__(self, *of_all: Any):
        super().__init__(*of_all)
        self._known = SampleStore(ATTENTION, "attention")

    def begin(self, checkpoint: str | None) -> None:
        """Forget what was read of other samples, or go on with what a checkpoint knows."""
        if checkpoint is None:
            self._known.clear()
        else:
            self._known.load(checkpoint)

    def share(self) -> None:
        """Tell the other processes what was read."""
        if self.comes_back:
            self._known.share(self.args.world_size)

    def save(self, checkpoint: Path) -> None:
        """Write what is known, if samples come back."""
        if self.comes_back:
            self._known.save(checkpoint)

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return the divergences from the teacher, one per video."""
        if header.iteration == 0:
            self.read(memory)
        losses = []
        for video, output in zip(memory.videos, outputs, strict=True):
            losses.append(distillation_loss(output, video.attention, frames=self.args.num_frame_rollouts > 0))
            self.note(teacher_loss=losses[-1], score_spread=output.token_scores.std(correction=0))
        return losses

    def read(self, memory: BatchMemory) -> None:
        """Give every video the teacher's attention `(T, P)`: what is known of it, or else what a pass of the backbone over the batch shows."""
        known = [self._known.get(video.index, video.old.token_scores.numel()) for video in memory.videos]
        seen: list[Any] = self._attention(memory.prompt) if None in known else [None] * len(known)
        for video, figures, attention in zip(memory.videos, known, seen, strict=True):
            if figures is not None:
                video.attention = figures[0].view_as(video.old.token_scores).to(video.old.token_scores.device)
                continue
            video.attention = attention
            if self.comes_back:
                self._known.put(video.index, attention.numel(), attention.flatten())

    def _attention(self, prompt: Prompt) -> list[Tensor]:
        """Return what the tokens of each video receive, `(T, P)` each: the mean over the teacher's layers."""
        config = self.model.backbone.get_decoder().config
        layers = attending_layers(config) if self.args.teacher_layer is None else [self.args.teacher_layer]
        read = video_attention(self.model, prompt, layers, self.args.teacher_query)
        return [torch.stack(of_video).mean(0) for of_video in zip(*read.values(), strict=True)]
