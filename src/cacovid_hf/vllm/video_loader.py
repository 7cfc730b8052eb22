"""This package's reading of video files as a loader of vLLM: a file gives the same frames as everywhere here."""

import io
from typing import Any

from vllm.multimodal.media.video import VideoMediaIO
from vllm.multimodal.video import VideoLoader

from ..video.files import read_video
from .frame_limits import LOADER, PACKAGE, limits_of_request, limits_of_server


class PackageVideoLoader(VideoLoader):
    """`read_video` behind vLLM's interface."""

    @classmethod
    def load_bytes(cls, data: bytes, **settings: Any) -> Any:
        """Sample frames of a file evenly.

        Args:
            data: the file's content.
            **settings: as of `limits_of_server`.

        Returns:
            Frames uint8 `(T, H, W, 3)`, and what vLLM's processors want to know of them.

        Raises:
            ValueError: not a readable video, or a setting that there is not.
        """
        limits = limits_of_server(settings)
        frames, metadata = read_video(io.BytesIO(data), limits.num_frames, limits.fps)
        names = ("total_num_frames", "fps", "duration", "video_backend", "frames_indices")
        return frames, {**{name: getattr(metadata, name) for name in names}, "do_sample_frames": False}


class BoundedVideoIO(VideoMediaIO):
    """vLLM's rule of what a request may change about reading, with the bounds that it lacks.

    Memory is planned at the start, and stock vLLM lets a request ask for any number of frames, of a loader of its choice. Where the server reads by
    the loader of this package, a request may lower the server's limits and do no more. With any other loader, the rule is vLLM's.
    """

    @classmethod
    def merge_kwargs(
        cls, default_kwargs: dict[str, Any] | None, runtime_kwargs: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Return the settings by which the videos of a request are read.

        Args:
            default_kwargs: the server's `media_io_kwargs` of videos.
            runtime_kwargs: the request's; None if it says nothing.

        Raises:
            ValueError: the request gives another setting, a value that makes no sense, or one over the server's.
        """
        server = default_kwargs or {}
        if server.get(LOADER) != PACKAGE or not runtime_kwargs:
            return super().merge_kwargs(default_kwargs, runtime_kwargs)
        return {**server, **limits_of_request(runtime_kwargs, limits_of_server(server))}
