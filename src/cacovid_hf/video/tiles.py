"""Frames and tiles of images in one list, for models that take frames as images: which is which.

`frame_numbers` has a number for every tile: a frame's in its video from 0, `IMAGE` for a tile of an image, `PADDING` for none.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

IMAGE, PADDING = -1, -2

# What belongs to the tiles of one image or video, `(tiles, ...)` by name.
Tiles = dict[str, Tensor]


def frame_counts(frame_numbers: Tensor) -> list[int]:
    """How many frames each video has.

    Raises:
        ValueError: numbers that do not count from 0 in every video.
    """
    counts: list[int] = []
    is_open = False
    for number in frame_numbers.flatten().tolist():
        if number == 0:
            counts.append(1)
        elif number > 0 and is_open and number == counts[-1]:
            counts[-1] += 1
        elif number not in (IMAGE, PADDING):
            raise ValueError(
                f"frame_numbers has {number} where the next frame of a video or an image is due: pass what the processor returned."
            )
        is_open = number >= 0
    return counts


def split_tiles(tiles: Mapping[str, Tensor], counts: Sequence[int]) -> list[Tiles]:
    """Tiles of several images or videos, so many of each: padding behind them is left out."""
    parts = {name: value[: sum(counts)].split(list(counts)) for name, value in tiles.items()}
    return [{name: of_all[number] for name, of_all in parts.items()} for number in range(len(counts))]


def in_one_list(prompts: list[list[Tiles]]) -> Tiles:
    """Return the tiles of the images and videos of several prompts, one after the other; at least one."""
    media = [one for prompt in prompts for one in prompt]
    return {name: torch.cat([one[name] for one in media]) for name in media[0]}


def in_rows(prompts: list[list[Tiles]]) -> Tiles:
    """As `in_one_list`, in one row for each prompt `(prompts, tiles, ...)`, padded with zeros."""
    rows = [in_one_list([prompt]) if prompt else {} for prompt in prompts]
    padded: Tiles = {}
    for name, like in next(filter(None, rows)).items():
        found = [row.get(name, like[:0]) for row in rows]
        padding = PADDING if name == "frame_numbers" else 0
        padded[name] = torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=padding)
    return padded


def token_types(rows: Sequence[Sequence[int]], frame_numbers: Tensor, placeholder: int, length: int) -> list[list[int]]:
    """Of every id 1 at placeholders of images, 2 at those of frames, else 0.

    Args:
        rows: ids, of whose placeholders so many stand for a tile.
        frame_numbers: of the tiles, in the order of the placeholders.
        placeholder: the id.
        length: placeholders of a tile.
    """
    numbers = [number for number in frame_numbers.flatten().tolist() if number != PADDING]
    each = iter([1 if number == IMAGE else 2 for number in numbers for _ in range(length)])
    return [[next(each) if token == placeholder else 0 for token in row] for row in rows]
