"""The frames of a sample: a video file or a part of it, a folder of pictures, or what is decoded already."""

import functools
import time
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from ..asking import SampledVideo
from ..processing import with_video_reader
from .datasets import Clip

PICTURES = (".jpg", ".jpeg", ".png")


def read_clip(processor: ProcessorMixin, video: Clip | np.ndarray, num_frames: int | None = None) -> SampledVideo:
    """The frames that a model is to see, sampled as its processor says.

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
    return SampledVideo(frames, metadata, time.perf_counter() - started)


def _choose(reader, clip: Clip, num_frames: int | None, metadata: VideoMetadata) -> np.ndarray:
    """Indices of the frames to show: sampled from the part between `start` and `end` as if it were the whole video."""
    total, rate = metadata.total_num_frames, metadata.fps
    if not rate:
        return reader.sample_frames(metadata=metadata, num_frames=num_frames)
    first, last = 0, total
    if clip.start is not None:
        first = max(0, round(clip.start * rate))
    if clip.end is not None:
        last = min(total, max(round(clip.end * rate), first + 1))
    if first >= total:
        raise ValueError(
            f"{clip.path} lasts {total / rate:.1f} seconds, and the part to show begins at {clip.start} s: check the annotation."
        )
    part = VideoMetadata(total_num_frames=last - first, fps=rate, duration=(last - first) / rate)
    return first + reader.sample_frames(metadata=part, num_frames=num_frames)


def _read_pictures(clip: Clip, choose) -> tuple[np.ndarray, VideoMetadata]:
    files = sorted((path for path in clip.path.iterdir() if path.suffix.lower() in PICTURES), key=_number)
    if not files:
        raise ValueError(f"{clip.path} is a folder without pictures ({', '.join(PICTURES)}): check the local copy.")
    fps = clip.fps or 1.0
    metadata = VideoMetadata(total_num_frames=len(files), fps=fps, duration=len(files) / fps)
    indices = [int(i) for i in choose(metadata)]
    try:
        frames = [np.asarray(Image.open(files[i]).convert("RGB")) for i in indices]
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{clip.path} has a damaged picture ({error}): copy it again.") from error
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"{clip.path} has pictures of different sizes: they are no frames of one video.")
    metadata.frames_indices = indices
    metadata.height, metadata.width = frames[0].shape[:2]
    return np.stack(frames), metadata


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits or 0), path.name
