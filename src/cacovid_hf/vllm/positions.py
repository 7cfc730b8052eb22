"""Positions of images and videos in a prompt, relative to their first token, and where the text behind them goes on.

Stock transformers and stock vLLM disagree on the text behind a video of Qwen2.5-VL. `text_advance` is the one place that knows the two rules.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RULES = ("transformers", "vllm")


@dataclass(frozen=True)
class MediaItem:
    """One image or video of a prompt, uncompressed.

    Attributes:
        modality: `"image"` or `"video"`.
        grid: `(T, h, w)` in tokens. An image of a family without grids is `(1, 1, n)`.
        relative: int64 `(3, n + trailing)`, rows time, height and width, positions relative to the item's start.
        advance: how far behind the item's start the text behind it begins.
        trailing: placeholders at its end that are always kept.
    """

    modality: str
    grid: tuple[int, int, int]
    relative: Tensor
    advance: int
    trailing: int = 0

    @property
    def num_tokens(self) -> int:
        """`T * h * w`."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def length(self) -> int:
        """Placeholders of the uncompressed item."""
        return self.num_tokens + self.trailing


def text_advance(grid: tuple[int, int, int], last_time: int, rule: str) -> int:
    """How far behind the start of an M-RoPE item its text begins.

    Args:
        grid: `(T, h, w)` in tokens.
        last_time: position in time of its last frame, relative to its start.
        rule: `"transformers"` (5.3 and later; seconds of a step unrounded since 5.19): the larger side of a frame, however long the video lasts. `"vllm"` (transformers up to 5.2 too): behind
            the largest position of the item.
    """
    _, height, width = grid
    if rule == "transformers":
        return max(height, width)
    return max(last_time, height - 1, width - 1) + 1


def grid_item(
    modality: str, grid: tuple[int, int, int], seconds_per_step: float | Tensor, tokens_per_second: float, rule: str
) -> MediaItem:
    """Return an item with M-RoPE positions: time in units of `1 / tokens_per_second` seconds, rounded down; then row and column.

    Args:
        modality: images have no time.
        grid: `(T, h, w)` in tokens.
        seconds_per_step: between two temporal steps of a video.
        tokens_per_second: of the vision config.
        rule: see `text_advance`.
    """
    steps, height, width = grid
    interval = tokens_per_second * seconds_per_step if modality == "video" else 1
    times = (torch.arange(steps) * interval).long()
    axes = torch.meshgrid(times, torch.arange(height), torch.arange(width), indexing="ij")
    advance = text_advance(grid, int(times[-1]), rule)
    return MediaItem(modality, grid, torch.stack(axes).reshape(3, -1), advance)


def check_times(grids: Tensor, seconds: Tensor, tokens_per_second: float, positions: int, rule: str) -> None:
    """Refuse videos that last longer than the positions of a model: vLLM would look for positions that it has not, and its engine would end.

    Args:
        grids: int64 `(n, 3)` of a prompt's videos, the temporal steps first.
        seconds: `(n,)`, between two of them.
        tokens_per_second: of the vision config.
        positions: of the language model. vLLM makes four times as many, so that there is room for the prompt.
        rule: see `text_advance`. By vLLM's, a video begins behind the times of those before it, so that all of a prompt count together.

    Raises:
        ValueError: one of them does, or by vLLM's rule all together.
    """
    lasts = ((grids[:, 0] - 1) * seconds.double()).tolist()
    is_one = len(lasts) == 1 or rule == "transformers"
    last = max(lasts, default=0.0) if is_one else sum(lasts)
    if not all(0 <= each < math.inf for each in lasts) or last * tokens_per_second > positions:
        who = "A video lasts" if is_one else f"The {len(lasts)} videos last"
        raise ValueError(
            f"{who} {last:.4g} s by the times given, and the model has positions for {positions / tokens_per_second:.4g} s: "
            "give shorter ones, or true times."
        )


def flat_item(modality: str, grid: tuple[int, int, int], trailing: int = 0) -> MediaItem:
    """Return an item with 1-D positions, as three equal rows."""
    length = grid[0] * grid[1] * grid[2] + trailing
    return MediaItem(modality, grid, torch.arange(length).expand(3, -1), length, trailing)
