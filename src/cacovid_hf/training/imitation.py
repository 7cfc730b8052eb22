"""A teacher in the place of rollouts: the frozen language model's own attention to the video (ours, an ablation)."""

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


class Imitation(Learner):
    """Scores learn to be the attention that a video's tokens receive; it is read when a sample comes in, once a pass."""

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return the divergences from the teacher, one per video."""
        if header.iteration == 0:
            for video, attention in zip(memory.videos, self._attention(memory.prompt), strict=True):
                video.attention = attention  # (T, P)
        losses = []
        for video, output in zip(memory.videos, outputs, strict=True):
            losses.append(distillation_loss(output, video.attention, frames=self.args.num_frame_rollouts > 0))
            self.note(teacher_loss=losses[-1], score_spread=output.token_scores.std(correction=0))
        return losses

    def _attention(self, prompt: Prompt) -> list[Tensor]:
        """Return what the tokens of each video receive, `(T, P)` each: the mean over the teacher's layers."""
        config = self.model.backbone.get_decoder().config
        layers = attending_layers(config) if self.args.teacher_layer is None else [self.args.teacher_layer]
        read = video_attention(self.model, prompt, layers, self.args.teacher_query)
        return [torch.stack(of_video).mean(0) for of_video in zip(*read.values(), strict=True)]
