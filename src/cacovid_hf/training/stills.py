"""Pictures shown as videos: what a curriculum begins with (after SCORE, arXiv 2603.26365).

A picture that is repeated has no news after its first frame, so that a policy learns there to keep one copy. How the authors vary the copies is not known to us.
"""

import io
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .video_paths import video_path

IMAGE = "image"
# Of the copies of a picture, ours: how far they move, as a fraction of its sides, and how much lighter or darker they get.
SHIFT, BRIGHTNESS = 1 / 32, 0.05


def are_images(dataset: Any) -> list[bool]:
    """Return of every sample of a map-style dataset whether it is about a picture. Of a table, one column is read, of any other dataset each sample."""
    columns = getattr(dataset, "column_names", None)
    if columns is not None:
        kinds = dataset["data_type"] if "data_type" in columns else [None] * len(dataset)
    else:
        samples = (dataset[index] for index in range(len(dataset)))
        kinds = [sample.get("data_type") if isinstance(sample, Mapping) else None for sample in samples]
    return [kind == IMAGE for kind in kinds]


def picture_of(
    sample: Mapping[str, Any], root: str | os.PathLike = "", allowed_roots: Sequence[str | os.PathLike] = ()
) -> np.ndarray:
    """Return the picture of a sample, uint8 `(H, W, 3)`.

    Args:
        sample: its `image`, or else its `path`, is a path, bytes, a picture, or what `datasets` makes of an undecoded one.
        root: folder of relative paths, see `video_paths.video_path`.
        allowed_roots: likewise.

    Raises:
        ValueError: no picture, an address that is no file's, or a picture of too many pixels.
        OSError: a file that cannot be read.
    """
    picture = sample.get("path") if sample.get("image") is None else sample["image"]
    if isinstance(picture, Mapping):
        picture = picture["bytes"] if picture.get("bytes") is not None else picture.get("path")
    if picture is None:
        raise ValueError("the sample has neither image nor path")
    if isinstance(picture, (str, os.PathLike)):
        picture = video_path(picture, root, allowed_roots)
        if "://" in picture or picture.startswith("data:"):
            raise ValueError("the image is an address: give a file")
    elif isinstance(picture, bytes):
        picture = io.BytesIO(picture)
    if isinstance(picture, (str, io.BytesIO)):
        try:
            with Image.open(picture) as opened:
                picture = opened.convert("RGB")
        except Image.DecompressionBombError as error:
            raise ValueError(f"the image is too large ({error})") from error
    if isinstance(picture, Image.Image):
        picture = picture.convert("RGB")
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or pixels.dtype != np.uint8:
        raise ValueError(
            f"the image is a {type(picture).__name__} of shape {pixels.shape}: give a path, bytes, or (H, W, 3)"
        )
    return pixels


def still_video(picture: np.ndarray, num_frames: int) -> np.ndarray:
    """Show a picture as a video: the first frame is the picture, the others are copies that move and flicker a little.

    Args:
        picture: uint8 `(H, W, 3)`.
        num_frames: `T`, at least 1.

    Returns:
        uint8 `(T, H, W, 3)`. It depends on the picture alone, so that every process and every pass shows the same.
    """
    height, width, _ = picture.shape
    rng = np.random.default_rng(zlib.crc32(picture.tobytes()))
    most = np.maximum(1, np.round(np.array([height, width]) * SHIFT).astype(int))
    frames = np.empty((num_frames, *picture.shape), dtype=np.uint8)
    frames[0] = picture
    for frame in frames[1:]:
        down, right = rng.integers(-most, most + 1)
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        light = 1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        frame[:] = np.clip(np.round(picture[rows][:, columns] * light), 0, 255)
    return frames
