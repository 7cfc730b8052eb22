"""The frames of a sample: a video file or a part of it, a folder of pictures, or what is decoded already."""

import functools
import time
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from ..processing import with_video_reader
from ..video.files import SampledVideo
from ..video.source import check_held_pixels
from ..video.timeline import ClipMetadata, frames_between
from .datasets import Clip

PICTURES = (".jpg", ".jpeg", ".png")


def read_clip(processor: ProcessorMixin, video: Clip | np.ndarray, num_frames: int | None = None) -> SampledVideo:
    """Return the frames that a model is to see, sampled as its processor says.

    Args:
        processor: of the model.
        video: a clip, or frames uint8 `(T, H, W, 3)`, all of which are shown.
        num_frames: at most so many; None is the processor's setting.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or nothing of it lies between `start` and `end`.
    """
    started = time.perf_counter()
    if isinstance(video, np.ndarray):
        metadata = VideoMetadata(total_num_frames=len(video), fps=1.0, frames_indices=list(range(len(video))))
        return SampledVideo(video, metadata, time.perf_counter() - started)
    reader = with_video_reader(processor).video_processor
    choose = functools.partial(_choose, reader, video, num_frames)
    if video.path.is_dir():
        frames, metadata = _read_pictures(video, choose)
    else:
        frames, metadata = reader.fetch_videos(str(video.path), choose)
    if isinstance(metadata, ClipMetadata) and (video.start is not None or video.end is not None):
        metadata.sampled_seconds = _part(video, metadata)[2]
    return SampledVideo(frames, metadata, time.perf_counter() - started)


def _choose(reader, clip: Clip, num_frames: int | None, metadata: VideoMetadata) -> np.ndarray:
    """Return indices of the frames to show: sampled from the part between `start` and `end` as if it were the whole video."""
    if not metadata.fps:
        return reader.sample_frames(metadata=metadata, num_frames=num_frames)
    first, last, seconds = _part(clip, metadata)
    part = VideoMetadata(total_num_frames=last - first, fps=metadata.fps, duration=seconds)
    return first + reader.sample_frames(metadata=part, num_frames=num_frames)


def _part(clip: Clip, metadata: VideoMetadata) -> tuple[int, int, float]:
    """Return the frames of a clip between its `start` and `end`: the first, the one after the last, and their seconds."""
    try:
        return frames_between(metadata, clip.start, clip.end)
    except ValueError as error:
        raise ValueError(f"{clip.path} {error}: check the annotation.") from None


def _read_pictures(clip: Clip, choose) -> tuple[np.ndarray, VideoMetadata]:
    files = sorted((path for path in clip.path.iterdir() if path.suffix.lower() in PICTURES), key=_number)
    if not files:
        raise ValueError(f"{clip.path} is a folder without pictures ({', '.join(PICTURES)}): check the local copy.")
    fps = clip.fps or 1.0
    metadata = VideoMetadata(total_num_frames=len(files), fps=fps, duration=len(files) / fps)
    indices = [int(i) for i in choose(metadata)]
    try:
        frames = [_picture(files[i], len(indices)) for i in indices]
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{clip.path} has a damaged picture ({error}): copy it again.") from error
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(
            f"{clip.path} has pictures of different sizes, so they are not frames of one video: give each video a folder of its own."
        )
    metadata.frames_indices = indices
    metadata.height, metadata.width = frames[0].shape[:2]
    return np.stack(frames), metadata


def _picture(path: Path, count: int) -> np.ndarray:
    """Decode one of `count` pictures to RGB `(H, W, 3)`, if so many of its size may be held."""
    with Image.open(path) as picture:
        check_held_pixels(count, *picture.size, str(path))
        return np.asarray(picture.convert("RGB"))


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits or 0), path.name
