"""What a picture of a video's tokens shows, one panel per grid step: for the file that `--save-map` writes and for the page of `cacovid app` alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cacovid_hf.prompt import VideoSelection

COLORMAP = "magma"
# Brightness of dropped tokens, black to white: apart from that of a kept token at either end.
_VEIL = (160, 226)


@dataclass(frozen=True)
class Panel:
    """One grid step of a video.

    Attributes:
        frames: uint8 `(H, W, 3)` each; two where the backbone merges frames in time.
        keep: bool `(h, w)`.
        heat: token scores `(h, w)`, 0 the lowest of the video and 1 the highest; None for methods without scores.
        level: the frame's score on the same scale; None for methods without scores.
        seconds: of its first frame in the clip; None if unknown.
    """

    frames: tuple[np.ndarray, ...]
    keep: np.ndarray
    heat: np.ndarray | None
    level: float | None
    seconds: float | None

    @property
    def kept(self) -> int:
        """Tokens that stay."""
        return int(self.keep.sum())

    @property
    def total(self) -> int:
        """Tokens of the step."""
        return self.keep.size


def panels_of(frames: Any, selection: VideoSelection, seconds: Sequence[float] | None = None) -> list[Panel]:
    """Return the panels of one video, in order; each has at least one frame.

    Args:
        frames: uint8 `(F, H, W, 3)`, the sampled frames, `F >= T`.
        selection: what was kept of them, `T` grid steps.
        seconds: `(F,)`, the time of each frame in the clip.

    Raises:
        ValueError: frames of another shape, or fewer than the selection has steps.
    """
    frames = np.asarray(frames)
    num_steps, rows, columns = selection.grid
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}: give the sampled RGB frames, uint8 (frames, height, width, 3)."
        )
    if len(frames) < num_steps:
        raise ValueError(
            f"There are {len(frames)} frames for {num_steps} temporal steps: give all the frames that were sampled."
        )
    keep = selection.keep.cpu().numpy().reshape(num_steps, rows, columns)
    heat = _scaled(selection.token_scores, (num_steps, rows, columns))
    levels = _scaled(selection.frame_scores, (num_steps,))
    per_step = math.ceil(len(frames) / num_steps)
    panels = []
    for step in range(num_steps):
        first = min(step * per_step, len(frames) - 1)
        panels.append(
            Panel(
                frames=tuple(frames[first : first + per_step]),
                keep=keep[step],
                heat=None if heat is None else heat[step],
                level=None if levels is None else float(levels[step]),
                seconds=None if seconds is None else seconds[first],
            )
        )
    return panels


def veiled(frame: np.ndarray, keep: np.ndarray, width: int, height: int) -> np.ndarray:
    """`(H, W, 3)` to `(height, width, 3)`: the tokens that are not in `keep` `(h, w)` grey and pale."""
    enlarged = width >= frame.shape[1]
    resized = Image.fromarray(frame).resize(
        (width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    )
    picture = np.asarray(resized, dtype=np.float32)
    rows = np.arange(height) * keep.shape[0] // height
    columns = np.arange(width) * keep.shape[1] // width
    clear = keep[rows][:, columns, None]
    pale = _VEIL[0] + picture.mean(axis=2, keepdims=True) / 255 * (_VEIL[1] - _VEIL[0])
    return np.where(clear, picture, pale).astype(np.uint8)


def _scaled(scores: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Scores moved and scaled to [0, 1], from the lowest of the video to the highest; one half if they are all the same."""
    if scores is None:
        return None
    values = scores.detach().float().cpu().numpy().reshape(shape)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
