"""Long videos: features gathered chunk by chunk, frames decoded while the frames before them are encoded."""

from collections.abc import Iterable

import torch
from torch import Tensor


def check_frames_per_chunk(frames_per_chunk: int | None) -> None:
    """Raise a `ValueError` unless it is None or an integer of at least 1."""
    if frames_per_chunk is None:
        return
    if isinstance(frames_per_chunk, bool) or not isinstance(frames_per_chunk, int) or frames_per_chunk < 1:
        raise ValueError(
            f"frames_per_chunk={frames_per_chunk!r}: give the number of frames to encode at a time, at least 1, or None for all."
        )


def collect(chunks: Iterable[Tensor], sizes: list[int], device: torch.device | str | None = None) -> tuple[Tensor, ...]:
    """Join chunks `(n, D)` into tensors `(size, D)` on `device` (None: where the first one is), without holding any chunk twice."""
    tensors: list[Tensor] = []
    filled = 0
    for chunk in chunks:
        if not tensors or filled == len(tensors[-1]):
            tensors.append(chunk.new_empty(sizes[len(tensors)], chunk.shape[-1], device=device))
            filled = 0
        tensors[-1][filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return tuple(tensors)
