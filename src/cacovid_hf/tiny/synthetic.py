"""Synthetic clips and questions with known evidence: the laboratory of the embedded model. Pure numpy, no fonts.

A clip has `NUM_FRAMES` frames of `FRAME_SIZE` x `FRAME_SIZE` pixels, cut into four scenes, each with a dark background
tint of its own. A frame is a `GRID` x `GRID` board of cells, and one cell becomes one video token. Eight shapes in eight
distinct colors and one white digit a scene are each visible for one or two frames; patterns and colored letters fill many
of the other cells to distract. Every question is answered by the few cells that its `evidence` marks.

Rendering is integer arithmetic on integers drawn from a seeded generator, so a seed gives the same bytes everywhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NUM_FRAMES = 8
GRID = 6
CELL = 14
FRAME_SIZE = GRID * CELL

SHAPE_COLORS = {
    "red": (225, 35, 40),
    "green": (40, 190, 50),
    "blue": (60, 90, 255),
    "yellow": (250, 230, 40),
    "orange": (255, 135, 15),
    "purple": (160, 60, 225),
    "pink": (255, 130, 195),
    "cyan": (50, 220, 235),
}
LETTER_COLORS = {"gray": (150, 150, 150), "olive": (130, 130, 0), "tan": (215, 180, 140), "mint": (150, 245, 185)}
DIGIT_COLOR = {"white": (255, 255, 255)}
COLORS = SHAPE_COLORS | LETTER_COLORS | DIGIT_COLOR
TINTS = {
    "navy": (15, 20, 85),
    "maroon": (85, 10, 20),
    "forest": (10, 65, 20),
    "plum": (70, 10, 75),
    "teal": (5, 70, 80),
    "slate": (60, 65, 70),
}

# 10 x 10 pixels each.
_SHAPE_ART = {
    "circle": "...####... .########. .########. ########## ########## ########## ########## .########. .########. ...####...",
    "square": "########## ########## ########## ########## ########## ########## ########## ########## ########## ##########",
    "triangle": "....##.... ....##.... ...####... ...####... ..######.. ..######.. .########. .########. ########## ##########",
    "diamond": "....##.... ...####... ..######.. .########. ########## ########## .########. ..######.. ...####... ....##....",
    "cross": "...####... ...####... ...####... ########## ########## ########## ########## ...####... ...####... ...####...",
    "ring": "..######.. .########. ###....### ##......## ##......## ##......## ##......## ###....### .########. ..######..",
    "heart": ".###..###. ########## ########## ########## ########## .########. ..######.. ...####... ....##.... ..........",
    "moon": "....#####. ..#####... .#####.... .####..... #####..... #####..... .####..... .#####.... ..#####... ....#####.",
}
# 4 x 5 pixels each, drawn at twice the size.
_GLYPH_ART = {
    "0": ".##. #..# #..# #..# .##.",
    "1": "..#. .##. ..#. ..#. .###",
    "2": "###. ...# .##. #... ####",
    "3": "###. ...# .##. ...# ###.",
    "4": "#..# #..# #### ...# ...#",
    "5": "#### #... ###. ...# ###.",
    "6": ".##. #... ###. #..# .##.",
    "7": "#### ...# ..#. .#.. .#..",
    "8": ".##. #..# .##. #..# .##.",
    "9": ".##. #..# .### ...# .##.",
    "a": ".##. #..# #### #..# #..#",
    "b": "###. #..# ###. #..# ###.",
    "c": ".### #... #... #... .###",
    "d": "###. #..# #..# #..# ###.",
    "e": "#### #... ###. #... ####",
    "f": "#### #... ###. #... #...",
    "g": ".### #... #.## #..# .###",
    "h": "#..# #..# #### #..# #..#",
    "i": "###. .#.. .#.. .#.. ###.",
    "j": "...# ...# ...# #..# .##.",
}


def _bitmap(art: str, scale: int) -> np.ndarray:
    pixels = np.array([[char == "#" for char in row] for row in art.split()])
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


BITMAPS = {name: _bitmap(art, 1) for name, art in _SHAPE_ART.items()} | {
    name: _bitmap(art, 2) for name, art in _GLYPH_ART.items()
}
SHAPES = tuple(_SHAPE_ART)
DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghij")
OBJECTS = SHAPES + DIGITS + LETTERS

QUESTION_KINDS = ("color", "shape", "scene_of_shape", "digit", "scene_of_digit", "order")
QUESTION_WORDS = (
    "what",
    "which",
    "color",
    "shape",
    "scene",
    "digit",
    "is",
    "has",
    "the",
    "on",
    "colored",
    "shown",
    "first",
    "last",
)
WORDS = QUESTION_WORDS + OBJECTS + tuple(COLORS) + tuple(TINTS)
"""Every word of the questions, in lower case, and of the answers."""

_NUM_SCENES = 4
_NOISE = 12
_TEST_STREAM = 1


@dataclass(frozen=True, eq=False)
class Question:
    """A question about one clip: `text`, five words, `answer`, one word, `kind`, one of `QUESTION_KINDS`.

    `evidence` is bool `(T, GRID, GRID)`: the cells (video tokens) that show the answer. For the questions about shapes and
    digits it is the one or two cells with the object; for `order` it is every cell of the scene, any one of which will do.
    """

    text: str
    answer: str
    kind: str
    evidence: np.ndarray


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip: `frames` uint8 `(T, H, W, 3)` and all its questions (34), in an order of kinds that is the same for every clip."""

    frames: np.ndarray
    questions: tuple[Question, ...]


def make_clip(seed: int | Sequence[int]) -> Clip:
    """Render the clip of a seed (one integer, or several: a stream and an index, say) and write down its questions."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.permutation(NUM_FRAMES - 1)[: _NUM_SCENES - 1] + 1)
    starts, ends = [0, *cuts], [*cuts, NUM_FRAMES]
    tints = [list(TINTS)[i] for i in rng.permutation(len(TINTS))[:_NUM_SCENES]]
    free = np.ones((NUM_FRAMES, GRID * GRID), dtype=bool)
    frames = np.empty((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.int16)
    for tint, start, end in zip(tints, starts, ends, strict=True):
        frames[start:end] = TINTS[tint]

    def place(name: str, color: tuple[int, int, int], scene: int, duration: int) -> np.ndarray:
        """Draw an object in a free cell of a scene for `duration` frames; returns its cells, bool (T, GRID * GRID)."""
        duration = min(duration, ends[scene] - starts[scene])
        first = rng.integers(starts[scene], ends[scene] - duration + 1)
        candidates = np.flatnonzero(free[first : first + duration].all(axis=0))
        cell = candidates[rng.integers(len(candidates))]
        for frame in frames[first : first + duration]:
            draw(frame, cell, BITMAPS[name], color, rng)
        cells = np.zeros_like(free)
        cells[first : first + duration, cell] = True
        free[cells] = False
        return cells

    shape_colors = [list(SHAPE_COLORS)[i] for i in rng.permutation(len(SHAPE_COLORS))]
    shape_scenes = rng.integers(_NUM_SCENES, size=len(SHAPES))
    shape_cells = [
        place(shape, COLORS[color], scene, duration=1 if rng.integers(10) < 6 else 2)
        for shape, color, scene in zip(SHAPES, shape_colors, shape_scenes, strict=True)
    ]
    digits = [DIGITS[i] for i in rng.permutation(len(DIGITS))[:_NUM_SCENES]]
    digit_cells = [place(digit, COLORS["white"], scene, duration=1) for scene, digit in enumerate(digits)]
    for frame, free_cells in zip(frames, free, strict=True):
        draw_distractors(frame, np.flatnonzero(free_cells), rng)

    def scene_cells(scene: int) -> np.ndarray:
        cells = np.zeros_like(free)
        cells[starts[scene] : ends[scene]] = True
        return cells

    shapes = list(zip(SHAPES, shape_colors, [tints[i] for i in shape_scenes], shape_cells, strict=True))
    scenes = list(zip(digits, tints, digit_cells, strict=True))
    questions = [
        *[("color", f"What color is the {shape}?", color, cells) for shape, color, _, cells in shapes],
        *[("shape", f"What shape is colored {color}?", shape, cells) for shape, color, _, cells in shapes],
        *[("scene_of_shape", f"Which scene has the {shape}?", tint, cells) for shape, _, tint, cells in shapes],
        *[("digit", f"What digit is on {tint}?", digit, cells) for digit, tint, cells in scenes],
        *[("scene_of_digit", f"Which scene has the {digit}?", tint, cells) for digit, tint, cells in scenes],
        ("order", "Which scene is shown first?", tints[0], scene_cells(0)),
        ("order", "Which scene is shown last?", tints[-1], scene_cells(_NUM_SCENES - 1)),
    ]
    return Clip(
        frames=add_noise(frames, rng),
        questions=tuple(
            Question(text, answer, kind, cells.reshape(NUM_FRAMES, GRID, GRID))
            for kind, text, answer, cells in questions
        ),
    )


def sample_question(index: int, seed: int) -> tuple[Clip, Question]:
    """Test pair number `index` of a seed: a new clip and one question about it, the kinds in turn.

    The clips come from a stream of seeds of their own, which training never draws from.
    """
    clip = make_clip((_TEST_STREAM, seed, index))
    kind = QUESTION_KINDS[index % len(QUESTION_KINDS)]
    candidates = [question for question in clip.questions if question.kind == kind]
    choice = np.random.default_rng((_TEST_STREAM, seed, index, 1)).integers(len(candidates))
    return clip, candidates[choice]


def sample_questions(num_questions: int, seed: int) -> Iterator[tuple[Clip, Question]]:
    """Yield the first `num_questions` test pairs of a seed (so balanced by kind to within one)."""
    for index in range(num_questions):
        yield sample_question(index, seed)


def dense_frames(num_frames: int, seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Single frames full of objects, for training the vision tower.

    Returns frames uint8 `(num_frames, H, W, 3)` and labels `(num_frames, GRID * GRID, 3)`: of each cell the index of its
    object in `OBJECTS` (or -1), of the object's color in `COLORS` (or -1) and of the frame's tint in `TINTS`.
    """
    rng = np.random.default_rng(seed)
    colors, tints = list(COLORS.values()), list(TINTS.values())
    frames = np.empty((num_frames, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.int16)
    labels = np.full((num_frames, GRID * GRID, 3), -1)
    for frame, label in zip(frames, labels, strict=True):
        label[:, 2] = rng.integers(len(tints))
        frame[:] = tints[label[0, 2]]
        cells = rng.permutation(GRID * GRID)
        objects = cells[: rng.integers(12, 31)]
        label[objects, 0] = rng.integers(len(OBJECTS), size=len(objects))
        label[objects, 1] = rng.integers(len(COLORS), size=len(objects))
        for cell in objects:
            draw(frame, cell, BITMAPS[OBJECTS[label[cell, 0]]], colors[label[cell, 1]], rng)
        for cell in cells[len(objects) :][::2]:
            draw_pattern(frame, cell, rng)
    return add_noise(frames, rng), labels


def draw(
    frame: np.ndarray, cell: int, bitmap: np.ndarray, color: Sequence[int] | np.ndarray, rng: np.random.Generator
) -> None:
    """Draw a bitmap in the middle of a cell of `frame` (H, W, 3), moved by up to a pixel each way."""
    height, width = bitmap.shape
    shift_y, shift_x = rng.integers(-1, 2, size=2)
    top = (cell // GRID) * CELL + (CELL - height) // 2 + shift_y
    left = (cell % GRID) * CELL + (CELL - width) // 2 + shift_x
    frame[top : top + height, left : left + width][bitmap] = color


def draw_pattern(frame: np.ndarray, cell: int, rng: np.random.Generator) -> None:
    """Draw stripes or checks of two random colors, one much brighter than the other, in a cell."""
    y, x = np.mgrid[:10, :10]
    kind, period = rng.integers(4), rng.integers(1, 4)
    bands = (y // period, x // period, (y + x) // period, y // period + x // period)[kind]
    dark = rng.integers(128, size=3)
    pixels = dark + 128 * (bands[..., None] % 2)
    draw(frame, cell, np.ones((10, 10), dtype=bool), pixels.reshape(-1, 3), rng)


def draw_distractors(frame: np.ndarray, free_cells: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a quarter of the free cells with patterns and a fifth with colored letters."""
    cells = rng.permutation(free_cells)
    num_patterns, num_letters = len(cells) // 4, len(cells) // 5
    colors = list(LETTER_COLORS.values())
    for cell in cells[:num_patterns]:
        draw_pattern(frame, cell, rng)
    for cell in cells[num_patterns : num_patterns + num_letters]:
        letter = LETTERS[rng.integers(len(LETTERS))]
        draw(frame, cell, BITMAPS[letter], colors[rng.integers(len(colors))], rng)


def add_noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames int16 with a little noise in every pixel, as uint8."""
    noise = rng.integers(-_NOISE, _NOISE + 1, size=frames.shape, dtype=np.int16)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)
