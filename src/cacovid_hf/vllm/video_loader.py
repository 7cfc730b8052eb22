"""This package's reading of video files as a loader of vLLM: a file gives the same frames as everywhere here."""

import io
import math
from typing import Any

from vllm.multimodal.video import VideoLoader

from ..video.files import read_video

NAME = "cacovid"


class PackageVideoLoader(VideoLoader):
    """`read_video` behind vLLM's interface."""

    @classmethod
    def load_bytes(cls, data: bytes, num_frames: int = 32, fps: float | None = None, **others: Any) -> Any:
        """Sample frames of a file evenly.

        Args:
            data: the file's content.
            num_frames: at most so many frames.
            fps: at most so many frames a second; None or -1: no such limit.
            **others: other `media_io_kwargs`.

        Returns:
            Frames uint8 `(T, H, W, 3)`, and what vLLM's processors want to know of them.

        Raises:
            ValueError: not a readable video, or a setting that there is not.
        """
        if others:
            raise ValueError(
                f"media_io_kwargs has {', '.join(sorted(others))} for videos, which their loader does not know: give num_frames and fps."
            )
        limit = math.inf if fps is None or fps == -1 else fps
        frames, metadata = read_video(io.BytesIO(data), num_frames, limit)
        names = ("total_num_frames", "fps", "duration", "video_backend", "frames_indices")
        return frames, {**{name: getattr(metadata, name) for name in names}, "do_sample_frames": False}
