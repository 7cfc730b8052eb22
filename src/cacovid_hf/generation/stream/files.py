"""A video file as the frames of a stream."""

import contextlib
from collections.abc import Iterator

import numpy as np
from transformers.video_utils import VideoMetadata

from ...video.addresses import opened_address
from ...video.files import iter_chosen_frames

# Frames that are decoded at a time.
_CHUNK = 8


def frames_of_file(address: str, fps: float) -> Iterator[tuple[np.ndarray, float]]:
    """Pictures uint8 `(H, W, 3)` of a file, so many a second, and the seconds at which each is shown.

    Args:
        address: a path, or what messages take (see `cacovid_hf.video.addresses.opened_address`).
        fps: at most so many frames a second, the first one always.
    """

    def choose(metadata: VideoMetadata) -> np.ndarray:
        rate = (metadata.fps or fps) / fps
        return np.unique(np.arange(0, metadata.total_num_frames, max(1.0, rate)).astype(np.int64))

    with opened_address(address) as file, contextlib.closing(iter_chosen_frames(file, choose, _CHUNK)) as chunks:
        done = 0
        for frames, metadata in chunks:
            for picture in frames:
                yield picture, float(metadata.timestamps[done])
                done += 1
