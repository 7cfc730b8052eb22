"""Synthetic streams: minutes of scenes, in which every shape and every digit is shown once, for a moment; the laboratory of streams.

The frames are like those of `synthetic.make_clip`, at one per second. A scene lasts for seconds, and its background and distractors stand still. Eight shapes in
eight colors and ten white digits are visible for one or two frames each, at any time of the stream. All questions are asked at its end.
"""

from dataclasses import dataclass

import numpy as np

from .synthetic import (
    BITMAPS,
    COLORS,
    DIGITS,
    FRAME_SIZE,
    GRID,
    SHAPE_COLORS,
    SHAPES,
    TINTS,
    add_noise,
    draw,
    draw_distractors,
)

_STREAM = 7
SHORTEST_SCENE, LONGEST_SCENE = 4, 16


@dataclass(frozen=True, eq=False)
class StreamQuestion:
    """A question about a stream.

    Attributes:
        text: five words.
        answer: one word.
        kind: one of `synthetic.QUESTION_KINDS`.
        age: seconds from the last frame that shows the answer to the end of the stream.
    """

    text: str
    answer: str
    kind: str
    age: int


@dataclass(frozen=True, eq=False)
class Stream:
    """Frames uint8 `(T, H, W, 3)`, one per second, and all questions about them, 34."""

    frames: np.ndarray
    questions: tuple[StreamQuestion, ...]


def make_stream(num_frames: int, seed: int) -> Stream:
    """Render a stream and write down its questions.

    Args:
        num_frames: at least 30.
        seed: of its content; no seed yields what the model was trained on.
    """
    rng = np.random.default_rng((_STREAM, seed))
    scene_of, tints = _scenes(num_frames, rng)
    names = [*SHAPES, *DIGITS]
    colors = [list(SHAPE_COLORS)[i] for i in rng.permutation(len(SHAPE_COLORS))]
    color_of = dict(zip(SHAPES, colors, strict=True)) | dict.fromkeys(DIGITS, "white")
    first = dict(zip(names, rng.integers(num_frames, size=len(names)), strict=True))
    last = {}
    for name, start in first.items():
        goes_on = name in SHAPES and rng.integers(10) >= 6 and start + 1 < num_frames
        last[name] = start + int(goes_on and scene_of[start + 1] == scene_of[start])
    # Objects of a scene have cells of their own, which its distractors leave free.
    cells: dict[str, int] = {}
    for scene in range(len(tints)):
        here = [name for name in names if scene_of[first[name]] == scene]
        order = rng.permutation(GRID * GRID)
        cells |= {name: int(cell) for name, cell in zip(here, order, strict=False)}
    frames = np.empty((num_frames, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.int16)
    for scene, tint in enumerate(tints):
        board = np.empty(frames.shape[1:], dtype=np.int16)
        board[:] = TINTS[tint]
        taken = [cell for name, cell in cells.items() if scene_of[first[name]] == scene]
        draw_distractors(board, np.setdiff1d(np.arange(GRID * GRID), taken), rng)
        frames[scene_of == scene] = board
    for name in names:
        for frame in frames[first[name] : last[name] + 1]:
            draw(frame, cells[name], BITMAPS[name], COLORS[color_of[name]], rng)
    age = {name: num_frames - 1 - last[name] for name in names}
    tint_of = {name: tints[scene_of[first[name]]] for name in names}
    asked = [
        *[("color", f"What color is the {name}?", color_of[name], name) for name in SHAPES],
        *[("shape", f"What shape is colored {color_of[name]}?", name, name) for name in SHAPES],
        *[("scene_of_shape", f"Which scene has the {name}?", tint_of[name], name) for name in SHAPES],
        *[("scene_of_digit", f"Which scene has the {name}?", tint_of[name], name) for name in DIGITS],
    ]
    questions = tuple(StreamQuestion(text, answer, kind, int(age[name])) for kind, text, answer, name in asked)
    return Stream(add_noise(frames, rng), questions)


def _scenes(num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Return the scene of every frame `(T,)`, and the tint of every scene, another than the one before."""
    lengths: list[int] = []
    tints: list[str] = []
    while sum(lengths) < num_frames:
        lengths.append(int(rng.integers(SHORTEST_SCENE, LONGEST_SCENE + 1)))
        others = [tint for tint in TINTS if not tints or tint != tints[-1]]
        tints.append(others[rng.integers(len(others))])
    return np.repeat(np.arange(len(lengths)), lengths)[:num_frames], tints
