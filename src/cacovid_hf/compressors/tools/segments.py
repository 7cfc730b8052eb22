"""Cutting a video into segments of like frames."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .tokens import top_tokens


def segment_lengths(frame_vectors: Tensor, least: int, threshold: float) -> list[int]:
    """Cut between neighbouring frames whose cosine is below the threshold, and at the smallest cosines until there are `least` segments.

    Args:
        frame_vectors: `(T, C)`.
        least: number of segments that there are at least (at most `T`).
        threshold: cosine below which a cut is made; larger = more segments.

    Returns:
        Lengths in frames, in order; read back from the device, once.
    """
    vectors = frame_vectors.float()
    similarity = cosine_similarity(vectors[:-1], vectors[1:], dim=-1)
    cuts = (similarity < threshold) | top_tokens(-similarity, least - 1)
    ends = [i + 1 for i, cut in enumerate(cuts.tolist()) if cut] + [len(vectors)]
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def frame_slices(lengths: list[int]) -> list[slice]:
    """Return the frames of every segment."""
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
