"""A teacher in the place of rollouts: the frozen language model's own attention to the video (ours, an ablation)."""

from typing import Any

import torch
from torch import Tensor

from ..compressors.attention import video_attention
from ..policies.shape import attending_layers
from ..prompt import Prompt
from .arguments import ContributionTrainingArguments


def is_taught(args: ContributionTrainingArguments, first_step: int) -> bool:
    """Whether a sample is imitated or explored, for all its iterations: by the step that it came in with."""
    return args.teacher is not None and (args.teacher_steps is None or first_step < args.teacher_steps)


def teacher_attention(model: Any, args: ContributionTrainingArguments, prompt: Prompt) -> list[Tensor]:
    """Return what the tokens of each video receive of the question's attention, `(T, P)` each: the mean over the teacher's layers.

    Args:
        model: the wrapped model.
        args: say which layers, and whose attention.
        prompt: embedded.
    """
    config = model.backbone.get_decoder().config
    layers = attending_layers(config) if args.teacher_layer is None else [args.teacher_layer]
    read = video_attention(model, prompt, layers, args.teacher_query)
    return [torch.stack(of_video).mean(0) for of_video in zip(*read.values(), strict=True)]
