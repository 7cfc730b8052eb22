"""A picture of what was kept of a video: its frames with dropped tokens pale, and the scores beneath."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cacovid_hf.prompt import VideoSelection
from cacovid_hf.utils.extras import pip_install
from cacovid_hf.utils.files import check_writable, replaced

from .panels import COLORMAP, panels_of, veiled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pixels.
_WIDTH, _MARGIN, _GAP, _LINE = 1440, 36, 12, 20
_LARGEST_TILE, _NARROWEST, _COLUMNS = 240, 560, 8
_INK, _GREY, _FAINT, _ACCENT = "#1a1a1a", "#6b6b6b", "#e4e4e4", "#b5367a"


def check_map_target(path: str | os.PathLike) -> None:
    """Raise an error if no map can be drawn or none can be written to `path`; worth asking before heavy work.

    Raises:
        ValueError: the name does not end in `.png`.
        OSError: it is a folder, or its folder is missing or cannot be written.
        ImportError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"A map is written as PNG, and {path} is named otherwise: give a name that ends in .png.")
    check_writable(path, "map")
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
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png")


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
    panels = panels_of(frames, selection, seconds)
    num_steps, per_step = len(panels), max(len(panel.frames) for panel in panels)
    has_heat, has_levels = panels[0].heat is not None, panels[0].level is not None
    frame_height, frame_width = panels[0].frames[0].shape[:2]

    # A row of columns, one per step: label, frames, heat map, bar.
    num_rows = math.ceil(num_steps / _COLUMNS)
    per_row = math.ceil(num_steps / num_rows)
    width = min(_LARGEST_TILE, (_WIDTH - 2 * _MARGIN + _GAP) // per_row - _GAP)
    height = max(1, round(width * frame_height / frame_width))
    step_height = _LINE + per_step * (height + 2) + (height + 2) * has_heat + 14 * has_levels
    top = _MARGIN + (66 if caption else 40)
    bottom = _MARGIN + (40 if has_heat else 0)
    canvas = _Canvas(
        2 * _MARGIN + max(per_row * (width + _GAP) - _GAP, _NARROWEST),
        top + num_rows * (step_height + 2 * _GAP) - 2 * _GAP + bottom,
    )

    kept, total = sum(panel.kept for panel in panels), sum(panel.total for panel in panels)
    right = canvas.width - _MARGIN
    canvas.text(_MARGIN, _MARGIN + 8, f"{kept} of {total} video tokens kept", _INK, size=17, fontweight="bold")
    canvas.text(right, _MARGIN + 8, f"{kept / total:.1%}", _ACCENT, size=17, ha="right")
    if caption:
        canvas.text(_MARGIN, _MARGIN + 40, _shortened(caption, right - _MARGIN), size=12)

    for step, panel in enumerate(panels):
        x = _MARGIN + step % per_row * (width + _GAP)
        y = top + step // per_row * (step_height + 2 * _GAP)
        if panel.seconds is not None:
            canvas.text(x, y + 9, f"{panel.seconds:.1f} s")
        canvas.text(x + width, y + 9, f"{panel.kept} / {panel.total}", ha="right")
        y += _LINE
        for place, frame in enumerate(panel.frames):
            canvas.picture(x, y + place * (height + 2), veiled(frame, panel.keep, width, height))
        y += per_step * (height + 2)
        if panel.heat is not None:
            canvas.heat(x, y + 2, width, height, panel.heat)
            y += height + 2
        if panel.level is not None:
            canvas.bar(x, y + 9, width, panel.level)

    y = canvas.height - _MARGIN
    if has_heat:
        canvas.text(_MARGIN, y, "low")
        canvas.heat(_MARGIN + 34, y - 5, 120, 10, np.linspace(0, 1, 256)[None])
        canvas.text(_MARGIN + 162, y, "high token score")
    if has_levels:
        canvas.bar(_MARGIN + 310, y, 60, 0.7)
        canvas.text(_MARGIN + 378, y, "frame score, lowest to highest")
    return canvas.figure


class _Canvas:
    """A figure whose coordinates are pixels from the top left."""

    def __init__(self, width: int, height: int):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        self.axes.set_autoscale_on(False)
        self.axes.axis("off")

    def text(self, x: float, y: float, words: str, color: str = _GREY, size: float = 9, **style: Any) -> None:
        # These are anybody's words: a dollar sign in them starts no formula.
        self.axes.text(x, y, words, color=color, fontsize=size, va="center", parse_math=False, **style)

    def picture(self, x: float, y: float, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        self.axes.imshow(image, extent=(x, x + width, y + height, y), aspect="auto", interpolation="nearest")

    def heat(self, x: float, y: float, width: int, height: int, values: np.ndarray) -> None:
        extent = (x, x + width, y + height, y)
        options: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "cmap": COLORMAP}
        self.axes.imshow(values, extent=extent, vmin=0, vmax=1, **options)

    def bar(self, x: float, y: float, width: float, level: float) -> None:
        self.axes.barh(y, width, height=5, left=x, color=_FAINT)
        self.axes.barh(y, max(2.0, level * width), height=5, left=x, color=_ACCENT)


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(f"Drawing a map needs matplotlib: {pip_install('demo')}") from None


def _shortened(words: str, width: int) -> str:
    """One line of at most about `width` pixels."""
    words, limit = " ".join(words.split()), width // 8
    return words if len(words) <= limit else f"{words[: limit - 1].rstrip()}…"
