"""A picture of what was kept of a video: its frames with dropped tokens pale, and the scores beneath."""

import math
import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .prompt import VideoSelection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pixels.
_WIDTH, _MARGIN, _GAP, _LINE = 1440, 36, 12, 20
_LARGEST_TILE, _COLUMNS = 240, 8
_INK, _GREY, _FAINT, _ACCENT = "#1a1a1a", "#6b6b6b", "#e4e4e4", "#b5367a"
_COLORMAP = "magma"
_CONTRAST = 0.22  # what is left of a dropped token's, the rest is white


def check_map_target(path: str | os.PathLike) -> None:
    """Raise an error if no map can be drawn or none can be written to `path`; worth asking before heavy work.

    Raises:
        ValueError: the name does not end in `.png`, or is a folder.
        OSError: its folder is missing or cannot be written.
        ImportError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"A map is written as PNG, and {path} is named otherwise: give a name that ends in .png.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, so no map can be written there: give the name of a file.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f"No map can be written to {path} ({error.strerror}): give a file in a folder that exists and can be written."
        ) from error
    _require_matplotlib()


def save_map(
    path: str | os.PathLike,
    frames: np.ndarray,
    selection: VideoSelection,
    *,
    seconds: Sequence[float] | None = None,
    caption: str | None = None,
) -> None:
    """Write `draw_map`'s picture to a PNG file, under a temporary name first.

    Raises:
        ValueError, OSError, ImportError: as `check_map_target` and `draw_map`.
    """
    check_map_target(path)
    path = Path(path)
    figure = draw_map(frames, selection, seconds=seconds, caption=caption)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.png")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def draw_map(
    frames: np.ndarray,
    selection: VideoSelection,
    *,
    seconds: Sequence[float] | None = None,
    caption: str | None = None,
) -> "Figure":
    """Draw one video: every sampled frame with its dropped tokens pale; beneath, a heat map of the token scores and a bar of the
    frame's score.

    Where the backbone merges frames in time (Qwen2.5-VL: two a grid step), the frames of a step stand above each other over the scores that
    they share. Scores are coloured on one scale for the whole video. Nothing of matplotlib's global state is touched.

    Args:
        frames: uint8 `(F, H, W, 3)`, the sampled frames, `F >= T`.
        selection: what was kept of them, `T` grid steps; without scores only the frames are drawn.
        seconds: `(F,)`, the time of each frame in the clip, for the labels.
        caption: a line above the frames, such as question and answer.

    Returns:
        A `matplotlib.figure.Figure`, at 100 dots an inch.

    Raises:
        ValueError: frames of another shape, or fewer than the selection has steps.
        ImportError: matplotlib is not installed.
    """
    _require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
    heat = _array(selection.token_scores, (num_steps, rows, columns))
    bars = _array(selection.frame_scores, (num_steps,))

    per_step = math.ceil(len(frames) / num_steps)
    per_row = min(_COLUMNS, num_steps)
    inner = _WIDTH - 2 * _MARGIN
    width = min(_LARGEST_TILE, (inner - (per_row - 1) * _GAP) // per_row)
    height = max(1, round(width * frames.shape[1] / frames.shape[2]))
    left = _MARGIN
    step_height = _LINE + per_step * height + (per_step - 1) * 2
    step_height += (4 + height) * (heat is not None) + 14 * (bars is not None)
    num_rows = math.ceil(num_steps / per_row)
    top = _MARGIN + 34 + (26 if caption else 0) + 6
    legend = 40 if heat is not None else 0
    total_width = 2 * _MARGIN + max(per_row * (width + _GAP) - _GAP, 560)
    total_height = top + num_rows * (step_height + 2 * _GAP) - 2 * _GAP + legend + _MARGIN

    figure = Figure(figsize=(total_width / 100, total_height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, total_width)
    axes.set_ylim(total_height, 0)
    axes.set_autoscale_on(False)
    axes.axis("off")

    def text(x: float, y: float, words: str, **style: Any) -> None:
        # Question and answer are anybody's words: a dollar sign in them starts no formula.
        axes.text(x, y, words, va="center", parse_math=False, **{"color": _INK, "fontsize": 10, **style})

    def picture(x: float, y: float, image: np.ndarray, **style: Any) -> None:
        axes.imshow(image, extent=(x, x + width, y + height, y), aspect="auto", interpolation="nearest", **style)

    kept, total = int(keep.sum()), keep.size
    text(left, _MARGIN + 8, f"{kept} of {total} video tokens kept", fontsize=17, fontweight="bold")
    text(total_width - _MARGIN, _MARGIN + 8, f"{kept / total:.1%}", fontsize=17, color=_ACCENT, ha="right")
    if caption:
        text(left, _MARGIN + 40, _shortened(caption, total_width - 2 * _MARGIN), fontsize=12, color=_GREY)

    low, high = _range(heat)
    bar_low, bar_high = _range(bars)
    for step in range(num_steps):
        x = left + step % per_row * (width + _GAP)
        y = top + step // per_row * (step_height + 2 * _GAP)
        numbers = range(step * per_step, min((step + 1) * per_step, len(frames)))
        if seconds is not None and len(numbers):
            text(x, y + 9, f"{seconds[numbers[0]]:.1f} s", color=_GREY, fontsize=9)
        text(x + width, y + 9, f"{keep[step].sum()} / {rows * columns}", color=_GREY, fontsize=9, ha="right")
        y += _LINE
        for place, number in enumerate(numbers):
            picture(x, y + place * (height + 2), _veiled(frames[number], keep[step], width, height))
        y += per_step * (height + 2)
        if heat is not None:
            y += 2
            picture(x, y, heat[step], cmap=_COLORMAP, vmin=low, vmax=high)
            y += height
        if bars is not None:
            share = (bars[step] - bar_low) / (bar_high - bar_low)
            axes.barh(y + 9, width, height=5, left=x, color=_FAINT)
            axes.barh(y + 9, max(2.0, share * width), height=5, left=x, color=_ACCENT)

    if heat is not None:
        y = total_height - _MARGIN
        ramp = np.linspace(0, 1, 256)[None]
        axes.imshow(ramp, extent=(left + 34, left + 154, y + 5, y - 5), aspect="auto", cmap=_COLORMAP)
        text(left, y, "low", color=_GREY, fontsize=9)
        text(left + 162, y, "high token score", color=_GREY, fontsize=9)
        if bars is not None:
            axes.barh(y, 60, height=5, left=left + 310, color=_FAINT)
            axes.barh(y, 40, height=5, left=left + 310, color=_ACCENT)
            text(left + 378, y, "frame score, lowest to highest", color=_GREY, fontsize=9)
    return figure


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError('Drawing a map needs matplotlib: pip install "cacovid-hf[demo]".') from None


def _array(scores: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    return None if scores is None else scores.detach().float().cpu().numpy().reshape(shape)


def _range(scores: np.ndarray | None) -> tuple[float, float]:
    """Lowest and highest score, never equal."""
    if scores is None:
        return 0.0, 1.0
    low, high = float(scores.min()), float(scores.max())
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _veiled(frame: np.ndarray, keep: np.ndarray, width: int, height: int) -> np.ndarray:
    """`(H, W, 3)` to `(height, width, 3)`: the tokens that are not in `keep` `(h, w)` grey and pale."""
    enlarged = width >= frame.shape[1]
    resized = Image.fromarray(frame).resize(
        (width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    )
    picture = np.asarray(resized, dtype=np.float32)
    rows = np.arange(height) * keep.shape[0] // height
    columns = np.arange(width) * keep.shape[1] // width
    clear = keep[rows][:, columns, None]
    veiled = 255 - (255 - picture.mean(axis=2, keepdims=True)) * _CONTRAST
    return np.where(clear, picture, veiled).astype(np.uint8)


def _shortened(words: str, width: int) -> str:
    """One line of at most about `width` pixels."""
    words, limit = " ".join(words.split()), width // 8
    return words if len(words) <= limit else f"{words[: limit - 1].rstrip()}…"
