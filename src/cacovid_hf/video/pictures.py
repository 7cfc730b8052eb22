"""Pictures in messages: what is read, within limits, with one error for whatever is wrong with one."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image
from transformers.image_utils import load_image

from .addresses import opened_address, shown
from .limits import current_guard, current_limits

# Pillow's names of what browsers and cameras write; others start programs (EPS) or are read by rarely used code.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")


def read_picture(address: str) -> Image.Image:
    """Read a picture, upright and RGB.

    Args:
        address: as for videos (see `cacovid_hf.video.addresses.opened_address`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable picture, one over a limit, or an address that cannot be fetched.
    """
    name = shown(address)
    with opened_address(address) as file:
        if isinstance(file, str) and not os.path.exists(file):
            raise FileNotFoundError(f"{name} does not exist: check the path of the picture.")
        with _one_error(name):
            picture = _opened(file)
        with picture:
            pixels, limit = picture.width * picture.height, current_limits().max_picture_pixels
            if pixels > limit:
                raise ValueError(
                    f"{name} has {picture.width}x{picture.height} pixels, over the limit max_picture_pixels={limit}: scale it down."
                )
            current_guard().holding(pixels)
            with _one_error(name):
                picture.load()
                return load_image(picture)


def _opened(file: str | BinaryIO) -> Image.Image:
    """Read the header alone."""
    if isinstance(file, str) and not os.path.isfile(file):
        raise IsADirectoryError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its limit is not ours
        return Image.open(file, formats=_FORMATS)


@contextlib.contextmanager
def _one_error(name: str) -> Iterator[None]:
    """Turn what Pillow raises within the block, of a damaged picture nearly anything, into a `ValueError`."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{name} is not a readable picture ({type(error).__name__}): check it, or give a video in a part of type video."
        ) from None
