"""Clips in which the tokens beside the evidence matter by design: near matches, copies, objects to be counted, and questions with nothing to be found.

A clip has four scenes on tints of their own, a white digit in each, and six of the eight shapes, each object in one cell of one frame:

* two shapes stand in three of the scenes each, in another color every time: near matches of each other, and out of the same four colors;
* one shape has three or four copies in one color, another one or two;
* two shapes stand there once.

Copies and shapes that stand there once have a color of their own. Patterns and letters fill other cells as in `synthetic`, whose pens draw these clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cacovid_hf.tiny.synthetic import (
    BITMAPS,
    COLORS,
    DIGITS,
    FRAME_SIZE,
    GRID,
    NUM_FRAMES,
    SHAPE_COLORS,
    SHAPES,
    TINTS,
    Clip,
    Question,
    add_noise,
    draw,
    draw_distractors,
)

HARD_KINDS = ("near_match", "redundancy", "counting", "order", "two_hops", "nothing")
NONE = "none"  # the answer if there is nothing to be found
CHANCE = {"near_match": 1 / 3, "redundancy": 1 / 8, "counting": 1 / 4, "order": 1 / 3, "two_hops": 1 / 3}
"""Accuracy of who guesses among the near matches, the colors, the shapes or the counts that there are."""

_NUM_SCENES, _TWIN_SCENES, _TWIN_COLORS = 4, 3, 4


@dataclass(frozen=True, eq=False)
class HardQuestion(Question):
    """A question that may need several tokens.

    Attributes:
        groups: int8 `(T, GRID, GRID)`, 0 or the number of a group from 1 on. The answer needs a token of *every* group, whichever of it.
            `counting` has a group for each object, `two_hops` one for the digit and one for the shape. `order` has the first or the last object
            alone: that none comes before it, no token shows. `nothing` has none. `evidence` is the cells of all groups.
    """

    groups: np.ndarray


class _Board:
    """A clip in the making: one object in a free cell of a frame at a time."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        cuts = np.sort(rng.permutation(NUM_FRAMES - 1)[: _NUM_SCENES - 1] + 1)
        self.starts, self.ends = [0, *cuts], [*cuts, NUM_FRAMES]
        self.tints = [list(TINTS)[i] for i in rng.permutation(len(TINTS))[:_NUM_SCENES]]
        self.free = np.ones((NUM_FRAMES, GRID * GRID), dtype=bool)
        self.frames = np.empty((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.int16)
        for tint, start, end in zip(self.tints, self.starts, self.ends, strict=True):
            self.frames[start:end] = TINTS[tint]

    def place(self, name: str, color: str, scene: int) -> int:
        """Draw an object in a scene; its token."""
        frame = int(self.rng.integers(self.starts[scene], self.ends[scene]))
        cell = int(self.rng.choice(np.flatnonzero(self.free[frame])))
        draw(self.frames[frame], cell, BITMAPS[name], COLORS[color], self.rng)
        self.free[frame, cell] = False
        return frame * GRID * GRID + cell

    def finished(self) -> np.ndarray:
        """The frames, uint8, with patterns and letters in other cells."""
        for frame, free in zip(self.frames, self.free, strict=True):
            draw_distractors(frame, np.flatnonzero(free), self.rng)
        return add_noise(self.frames, self.rng)


def make_hard_clip(seed: int | Sequence[int]) -> Clip:
    """Render the clip of a seed and write down its questions: 38, in an order of kinds that is the same for every clip; 14 are of the old kinds."""
    rng = np.random.default_rng(seed)
    board = _Board(rng)
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    colors = [list(SHAPE_COLORS)[i] for i in rng.permutation(len(SHAPE_COLORS))]
    digits = [DIGITS[i] for i in rng.permutation(len(DIGITS))[:_NUM_SCENES]]
    digit_tokens = [board.place(digit, "white", scene) for scene, digit in enumerate(digits)]
    questions: list[HardQuestion] = []

    def note(kind: str, text: str, answer: str, *groups: Sequence[int]) -> None:
        marks = np.zeros(board.free.size, dtype=np.int8)
        for number, tokens in enumerate(groups, start=1):
            marks[list(tokens)] = number
        marks = marks.reshape(NUM_FRAMES, GRID, GRID)
        questions.append(HardQuestion(text, answer, kind, marks > 0, marks))

    once, twins, (crowd, few), absent = shapes[:2], shapes[2:4], shapes[4:6], shapes[6:]
    for shape, color in zip(once, colors[:2], strict=True):
        scene = int(rng.integers(_NUM_SCENES))
        token = [board.place(shape, color, scene)]
        note("color", f"What color is the {shape}?", color, token)
        note("shape", f"What shape is colored {color}?", shape, token)
        note("scene_of_shape", f"Which scene has the {shape}?", board.tints[scene], token)
    for digit, tint, token in zip(digits, board.tints, digit_tokens, strict=True):
        note("digit", f"What digit is on {tint}?", digit, [token])
        note("scene_of_digit", f"Which scene has the {digit}?", tint, [token])
    for shape in twins:
        scenes = np.sort(rng.permutation(_NUM_SCENES)[:_TWIN_SCENES]).tolist()
        palette = [colors[2 + i] for i in rng.permutation(_TWIN_COLORS)[:_TWIN_SCENES]]
        tokens = [board.place(shape, color, scene) for color, scene in zip(palette, scenes, strict=True)]
        for color, scene, token in zip(palette, scenes, tokens, strict=True):
            note("near_match", f"What color is the {shape} on {board.tints[scene]}?", color, [token])
            hops = [digit_tokens[scene]], [token]
            note("two_hops", f"What color is the {shape} with {digits[scene]}?", color, *hops)
        note("order", f"What color is the first {shape}?", palette[0], tokens[:1])
        note("order", f"What color is the last {shape}?", palette[-1], tokens[-1:])
        (without,) = set(range(_NUM_SCENES)) - set(scenes)
        note("nothing", f"What color is the {shape} on {board.tints[without]}?", NONE)
    for shape, color, count in (
        (crowd, colors[-1], int(rng.integers(3, 5))),
        (few, colors[-2], int(rng.integers(1, 3))),
    ):
        tokens = [board.place(shape, color, int(scene)) for scene in rng.integers(_NUM_SCENES, size=count)]
        note("counting", f"How many {plural(shape)} are there?", str(count), *([token] for token in tokens))
        if shape == crowd:
            note("redundancy", f"What color is the {shape}?", color, tokens)
            note("redundancy", f"What shape is colored {color}?", shape, tokens)
    for shape in absent:
        note("nothing", f"What color is the {shape}?", NONE)
    return Clip(board.finished(), tuple(questions))


def plural(shape: str) -> str:
    """Of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")
