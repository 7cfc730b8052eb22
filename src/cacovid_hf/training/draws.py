"""What the settings draw for a sample: the ratio of each of its iterations, and the subsets of its video that are tried."""

from typing import Any

import torch
from torch import Tensor

from ..prompt import Prompt, VideoSpan
from .arguments import ContributionTrainingArguments
from .batches import BatchHeader, sample_generator
from .objective import next_ratio
from .replay import Subsets, VideoMemory
from .sampling import SAMPLERS, sample_bernoulli, sample_frames


def first_ratio(args: ContributionTrainingArguments, header: BatchHeader, number: int) -> float:
    """Return the sampling ratio that a sample begins with, by its place in the pass."""
    if not args.target_ratios:
        return args.sampling_ratio
    generator = sample_generator(args.seed, header, number, "ratio")
    return args.target_ratios[int(torch.randint(len(args.target_ratios), (), generator=generator))]


def following_ratio(args: ContributionTrainingArguments, video: VideoMemory) -> float:
    """Return the sampling ratio of a sample's next iteration, by what its token rollouts earned."""
    if not args.dynamic_ratio or args.target_ratios:
        return video.ratio
    return next_ratio(
        video.ratio,
        video.tokens.rewards.mean().item(),
        start=args.sampling_ratio,
        low=args.ratio_low,
        high=args.ratio_high,
        floor=args.ratio_floor,
        ceiling=args.ratio_ceiling,
    )


def draw_subsets(
    args: ContributionTrainingArguments, header: BatchHeader, video: VideoMemory, prompt: Prompt, span: VideoSpan
) -> Subsets:
    """Return subsets of a video by the old policy's scores, the first of each kind greedy.

    Args:
        args: the settings.
        header: of the sample's batch.
        video: with the old policy's output and the ratio of this iteration.
        prompt: the embedded prompts of the batch.
        span: the video's place among them.
    """
    generator = sample_generator(args.seed, header, video.number, "rollouts")
    tokens = _token_masks(args, video.old.token_scores, video.ratio, generator)  # (G, T, P)
    if not args.num_frame_rollouts:
        return Subsets(tokens)
    frames, frame_tokens = sample_frames(  # (F, T), (F, T, P)
        video.old.frame_scores,
        prompt.video_features(span),
        video.ratio,
        args.num_frame_rollouts,
        scope=args.sampling_scope,
        generator=generator,
    )
    return Subsets(tokens, frames, frame_tokens)


def _token_masks(
    args: ContributionTrainingArguments, scores: Tensor, ratio: float, generator: torch.Generator
) -> Tensor:
    if args.sampler == "bernoulli":
        return sample_bernoulli(scores, args.num_token_rollouts, generator=generator)
    settings: dict[str, Any] = {"generator": generator, "scope": args.sampling_scope}
    if args.sampler == "ocss":
        settings |= {"spread": args.group_spread, "group_cap": args.group_cap}
    return SAMPLERS[args.sampler](scores, ratio, args.num_token_rollouts, **settings)
