"""The map of kept tokens as HTML that fits any screen, drawn from the panels that `--save-map` draws from; and the budget over time."""

import base64
import functools
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from cacovid_hf.ratio import Ratio

from ..panels import COLORMAP, Panel, panels_of, veiled
from .report import Report
from .views import ratio_words

# Pixels of a frame's longer side.
_LARGEST = 224
_INSIDE = "This method drops tokens inside the language model: ask again to see it at another ratio."


def maps(report: Report, ratio: Ratio) -> str:
    """Every method's map at a ratio, side by side; nothing is computed anew but the choice of tokens."""
    clip = report.clip
    if clip is None or not report.choices:
        return '<p class="cv-hint">The frames with kept and dropped tokens will stand here.</p>'
    sections = []
    for method, choice in report.choices:
        note = _INSIDE if choice.method.inside_llm and ratio != report.ratio else ""
        try:
            panels = panels_of(clip.sampled.frames, choice.at(ratio), clip.sampled.timestamps)
        except ValueError as error:
            sections.append(
                f'<section class="cv-map"><h3>{escape(method)}</h3><p class="cv-note">{escape(str(error))}</p></section>'
            )
            continue
        sections.append(section(method, panels, note))
    hint = ""
    if ratio != report.ratio:
        hint = (
            f'<p class="cv-hint">The answers above were given at {ratio_words(report.ratio)}. This is {ratio_words(ratio)}: '
            "ask again to hear what it answers.</p>"
        )
    return f'{hint}<div class="cv-maps">{"".join(sections)}</div>'


def section(method: str, panels: Sequence[Panel], note: str = "") -> str:
    """One method's map: how much is kept, the budget over time, and the panels."""
    kept, total = sum(panel.kept for panel in panels), sum(panel.total for panel in panels)
    steps = "".join(_figure(number, panel) for number, panel in enumerate(panels))
    remark = f'<p class="cv-note">{escape(note)}</p>' if note else ""
    return (
        f'<section class="cv-map" aria-label="{escape(method)}"><h3>{escape(method)} <small>{kept} of {total} video tokens kept, '
        f"{kept / total:.1%}</small></h3>{remark}{strip(panels)}"
        f'<div class="cv-steps" tabindex="0" role="group" aria-label="Frames">{steps}</div>{_legend(panels)}</section>'
    )


def strip(panels: Sequence[Panel]) -> str:
    """Return the budget over time: a bar per grid step, as high as the part of its tokens that is kept."""
    bars = "".join(
        f'<i style="--part:{panel.kept / panel.total:.4f}" title="{_when(number, panel)}: {panel.kept} of {panel.total}"></i>'
        for number, panel in enumerate(panels)
    )
    counts = ", ".join(str(panel.kept) for panel in panels)
    return (
        f'<div class="cv-strip" role="img" aria-label="Tokens kept over time: {counts}">{bars}</div>'
        f'<p class="cv-axis"><span>{_when(0, panels[0])}</span><span>tokens kept over time</span>'
        f"<span>{_when(len(panels) - 1, panels[-1])}</span></p>"
    )


def _figure(number: int, panel: Panel) -> str:
    frames = "".join(
        f'<img src="{_picture(frame, panel.keep)}" alt="{_when(number, panel)}, {panel.kept} of {panel.total} tokens kept">'
        for frame in panel.frames
    )
    heat = ""
    if panel.heat is not None:
        height, width = panel.frames[0].shape[:2]
        heat = f'<img class="cv-heat" style="aspect-ratio:{width}/{height}" src="{_heat(panel.heat)}" alt="token scores of {_when(number, panel)}">'
    level = (
        "" if panel.level is None else f'<i class="cv-level" style="--part:{panel.level:.4f}" title="frame score"></i>'
    )
    return f"<figure><figcaption><span>{_when(number, panel)}</span><span>{panel.kept} / {panel.total}</span></figcaption>{frames}{heat}{level}</figure>"


def _legend(panels: Sequence[Panel]) -> str:
    if panels[0].heat is None:
        return '<p class="cv-axis"><span>This method has no scores to show.</span></p>'
    ramp = _heat(np.linspace(0, 1, 64)[None])
    level = "" if panels[0].level is None else "<span>bar: the frame's score</span>"
    return (
        f'<p class="cv-legend"><span>low <img class="cv-ramp" src="{ramp}" alt=""> high token score</span>{level}</p>'
    )


def _when(number: int, panel: Panel) -> str:
    return f"step {number + 1}" if panel.seconds is None else f"{panel.seconds:.1f} s"


def _picture(frame: np.ndarray, keep: np.ndarray) -> str:
    height, width = frame.shape[:2]
    scale = _LARGEST / max(height, width)
    pixels = veiled(frame, keep, max(1, round(width * scale)), max(1, round(height * scale)))
    return _address(pixels, "JPEG", quality=82)


def _heat(values: np.ndarray) -> str:
    return _address(_colours()[(values * 255).round().astype(int)], "PNG")


@functools.cache
def _colours() -> np.ndarray:
    """uint8 `(256, 3)`."""
    from matplotlib import colormaps

    return (colormaps[COLORMAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def _address(pixels: np.ndarray, form: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
