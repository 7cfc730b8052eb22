"""What stands in front of a stock video processor so that it reads video files itself, with `cacovid_hf.video.files` in place of torchcodec."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata, make_batched_videos

from .addresses import address_rules, current_rules, opened_address, shown
from .files import iter_chosen_frames, read_chosen_frames, uniform_indices
from .messages import (
    ALL_FRAMES,
    ONE_SIZE,
    PIXEL_BOUNDS,
    BoundsRefused,
    ClipSettings,
    VideoAddress,
    check_frames,
    check_pixel_bounds,
)
from .timeline import ClipMetadata, frames_between

logger = logging.get_logger(__name__)


class VideoFileMixin(BaseVideoProcessor):
    """Video files in, by path or URL, sampled as CaCoVID does; frames that are already decoded go the stock way.

    Settings, saved with the processor and overridable in each call: `num_frames`, at most so many frames of a video (32), and `max_fps`, at most
    so many a second of it (1.0); a call's `fps` is taken as its `max_fps`. They hold for every file, and for decoded frames with
    `do_sample_frames=True`.
    """

    num_frames = 32
    max_fps = 1.0
    # Whether the family's processor bounds the pixels of a frame, and whether it reads the times of frames.
    bounds_pixels = False
    reads_times = False
    # What stock code takes as the rate of decoded frames that come without times.
    assumed_fps = 24
    # Whether `size` bounds the pixels of all frames of a video together, so that a part of it must be told its share.
    size_is_of_all_frames = False
    # What the stock processor takes; a single frame is repeated.
    least_frames = 1

    @property
    def bounds_refused(self) -> BoundsRefused | None:
        """Why `min_pixels` and `max_pixels` of one video are not followed; None: they are."""
        if self.bounds_pixels:
            return None
        return ALL_FRAMES if self.size_is_of_all_frames else ONE_SIZE

    def preprocess(self, videos: VideoInput, **kwargs) -> BatchFeature:
        """Turn videos (decoded, or paths and URLs) into pixel values, as the stock video processor does.

        Raises:
            FileNotFoundError: no such file.
            ValueError: an unreadable video, settings out of range, or files mixed with decoded frames.
        """
        videos = paths_as_text(videos)
        flat = make_batched_videos(videos)
        is_file = [isinstance(video, str) for video in flat]
        for video in flat:
            if not isinstance(video, str):
                check_frames(video)
        if any(is_file):
            if not all(is_file):
                raise ValueError(
                    "The call mixes video files with decoded frames: decode them all (cacovid_hf.read_video) or none."
                )
            if kwargs.get("video_metadata") is not None:
                raise ValueError("video_metadata is of decoded frames, and files have their own: leave it out.")
            kwargs["do_sample_frames"] = True
            with _contents_apart(flat) as named:
                if any(settings_of(video).pixels for video in named):
                    parts = [super(VideoFileMixin, self).preprocess([one], **self._sized(kwargs, one)) for one in named]
                    return _joined(parts)
                return super().preprocess(named, **self._sized(kwargs))
        elif kwargs.get("video_metadata") is None and not kwargs.get("do_sample_frames"):
            kwargs["video_metadata"] = self._assumed_times(flat, kwargs.get("fps"))
        elif kwargs.get("video_metadata") is not None:
            kwargs["video_metadata"] = _with_totals(kwargs["video_metadata"], flat)
        return super().preprocess(videos, **self._sized(kwargs))

    def _sized(self, kwargs: dict[str, Any], video: Any = None) -> dict[str, Any]:
        """Return the arguments of a call, the bounds of a frame's pixels (its own, over them those of one video) as the stock `size`."""
        if not self.bounds_pixels:
            return kwargs
        own = {name: value for name in PIXEL_BOUNDS if (value := kwargs.get(name)) is not None}
        bounds = {**own, **settings_of(video).pixels}
        check_pixel_bounds(**bounds)
        kwargs = {name: value for name, value in kwargs.items() if name not in PIXEL_BOUNDS}
        given = kwargs.get("size") or self.to_dict()["size"]
        if isinstance(given, int):
            raise ValueError(f"size={given}: give {{'shortest_edge': ..., 'longest_edge': ...}}, numbers of pixels.")
        size: dict[str, Any] = dict(given)
        largest, smallest = size.get("longest_edge"), size.get("shortest_edge")
        if "max_pixels" in bounds:  # a smaller frame than the processor's smallest is then meant
            largest = bounds["max_pixels"]
            smallest = smallest and min(smallest, largest)
        smallest = bounds.get("min_pixels", smallest)
        if largest and smallest and smallest > largest:
            raise ValueError(
                f"A frame would have at least {smallest} pixels and at most {largest}: give min_pixels and max_pixels in order."
            )
        return {**kwargs, "size": {"shortest_edge": smallest, "longest_edge": largest}} if bounds else kwargs

    def _assumed_times(self, videos: Sequence[Any], fps: Any) -> list[VideoMetadata] | None:
        """Metadata of decoded frames that come without: at the rate of the call's `fps`, which such frames say of themselves; else None."""
        if not self.reads_times or not all(isinstance(video, (np.ndarray, Tensor)) for video in videos):
            return None
        if fps is None:
            logger.warning_once(
                f"Decoded frames came without times, and {self.assumed_fps} frames a second are assumed: give video_metadata, as cacovid_hf.read_video "
                "returns it."
            )
            return None
        logger.warning_once(
            f"Decoded frames came without times, and fps={fps} is taken as their rate: give video_metadata for others, or do_sample_frames=True "
            "to sample them."
        )
        return [
            VideoMetadata(
                total_num_frames=len(video), fps=fps, duration=len(video) / fps, frames_indices=list(range(len(video)))
            )
            for video in videos
        ]

    def sample_frames(  # type: ignore[override]
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        max_fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        **kwargs,
    ) -> np.ndarray:
        """Choose uniformly among the frames of a video (see `cacovid_hf.video.files.uniform_indices`): int64 `(n,)`.

        With `start` or `end` (seconds), among those of this part, as if it were the whole video.
        """
        if metadata.frames_indices is not None and len(metadata.frames_indices) != metadata.total_num_frames:
            raise ValueError(
                f"The video is sampled already ({len(metadata.frames_indices)} of {metadata.total_num_frames} frames): give do_sample_frames=False "
                "and no num_frames, or the file."
            )
        num_frames = self.num_frames if num_frames is None else num_frames
        max_fps = self.max_fps if max_fps is None else max_fps
        rate = max_fps if fps is None else fps
        if start is None and end is None:
            return self.choose(metadata.total_num_frames, metadata.duration, metadata.fps, num_frames, rate)
        try:
            first, last, seconds = frames_between(metadata, start, end)
        except ValueError as error:
            raise ValueError(f"The video {error}: give a video_start within it.") from None
        return first + self.choose(last - first, seconds, metadata.fps, num_frames, rate)

    def choose(
        self, total: int, seconds: float | None, fps: float | None, num_frames: int | None, rate: float | None
    ) -> np.ndarray:
        """Ascending indices of the frames to read, int64 `(n,)`.

        Args:
            total: frames of the video, or of the part of it that is asked for.
            seconds: that they take; None: not known.
            fps: of the file; None: not known.
            num_frames: at most so many, by the call or the settings; None: as the family does.
            rate: at most so many a second, likewise.
        """
        return uniform_indices(total, seconds, 32 if num_frames is None else num_frames, 1.0 if rate is None else rate)

    def part_settings(self, frames: int, total: int) -> dict[str, Any]:
        """Return the settings of a call on a part of a video's frames, so that they come out as those of the whole video do."""
        if not self.size_is_of_all_frames or frames == total:
            return {}
        step = self.to_dict()["temporal_patch_size"]
        share = (-(-frames // step)) / (-(-total // step))
        return {
            "size": {edge: max(1, round(pixels * share)) for edge, pixels in self.to_dict()["size"].items() if pixels}
        }

    def fetch_videos(  # type: ignore[override]
        self, video_url_or_urls: str | list[str], sample_indices_fn: Callable[..., Any] | None = None
    ) -> tuple[np.ndarray, VideoMetadata] | tuple[list[np.ndarray], list[VideoMetadata]]:
        """Read one video or a list of them: paths, `file://`, `http://`, `https://` or `data:...;base64,`.

        Args:
            video_url_or_urls: where each video lies.
            sample_indices_fn: from a video's metadata to the ascending indices of its frames; the processor's settings if None.

        Returns:
            Frames uint8 `(T, H, W, 3)` and their metadata, or a list of each for a list.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a readable video, or an address that cannot be fetched.
        """
        choose = sample_indices_fn or self.sample_frames
        video_url_or_urls = paths_as_text(video_url_or_urls)
        if isinstance(video_url_or_urls, list):
            pairs = [self._read(address, choose) for address in video_url_or_urls]
            return [frames for frames, _ in pairs], [metadata for _, metadata in pairs]
        return self._read(video_url_or_urls, choose)

    def iter_frames(
        self, address: str, frames_per_chunk: int | None, num_frames: int | None = None
    ) -> Iterator[tuple[np.ndarray, VideoMetadata]]:
        """Read one video as `fetch_videos` does, so many frames at a time, decoded when they are asked for.

        Args:
            address: where it lies.
            frames_per_chunk: at least 1; None: all at once.
            num_frames: at most so many frames of the video; None is the processor's setting.

        Yields:
            Frames uint8 `(n, H, W, 3)`, and the metadata of all of them.
        """
        with opened_address(address) as file:
            for frames, metadata in iter_chosen_frames(
                file, lambda metadata: self.sample_frames(metadata=metadata, num_frames=num_frames), frames_per_chunk
            ):
                yield self._enough(frames), metadata

    def _read(self, address: str, choose: Callable[..., Any]) -> tuple[np.ndarray, VideoMetadata]:
        own = settings_of(address).sampling
        if "max_fps" in own:
            own["fps"] = None  # of the call, which would go before
        with opened_address(address) as file:
            frames, metadata = read_chosen_frames(file, lambda metadata: choose(metadata=metadata, **own))
        if isinstance(metadata, ClipMetadata) and ("start" in own or "end" in own):
            metadata.sampled_seconds = frames_between(metadata, own.get("start"), own.get("end"))[2]
        return self._enough(frames), metadata

    def _enough(self, frames: np.ndarray) -> np.ndarray:
        """Return the frames, a single one `least_frames` times."""
        return frames if len(frames) >= self.least_frames else frames.repeat(self.least_frames, axis=0)


@contextlib.contextmanager
def _contents_apart(videos: list[Any]) -> Iterator[list[str]]:
    """Within the block, names stand for `data:` addresses, of which stock code would make a list with an entry for each character."""
    rules = current_rules()
    named, contents = list(videos), dict(rules.contents)
    with contextlib.ExitStack() as opened:
        for place, video in enumerate(videos):
            if video[:100].lstrip()[:5].lower() == "data:":
                name = f"{shown(video)} (video {place + 1})"
                contents[name] = opened.enter_context(opened_address(video))
                named[place] = VideoAddress(name, settings_of(video))
        with address_rules(dataclasses.replace(rules, contents=contents)):
            yield named


def settings_of(video: Any) -> ClipSettings:
    """Return what stood beside a video's address in a message."""
    return video.settings if isinstance(video, VideoAddress) else ClipSettings()


def _with_totals(metadata: Any, videos: Sequence[Any]) -> Any:
    """Metadata of decoded frames, with their number where a dict does not say it."""
    given = metadata if isinstance(metadata, (list, tuple)) else [metadata]
    if len(given) != len(videos):
        return metadata
    return [
        {**one, "total_num_frames": one.get("total_num_frames", len(video))} if isinstance(one, Mapping) else one
        for one, video in zip(given, videos, strict=True)
    ]


def paths_as_text(videos: Any) -> Any:
    """Videos as given, `Path` objects as `str`, in lists too."""
    if isinstance(videos, os.PathLike):
        return os.fspath(videos)
    if isinstance(videos, (list, tuple)) and any(isinstance(one, (os.PathLike, list, tuple)) for one in videos):
        return [paths_as_text(one) for one in videos]
    return videos


def _joined(parts: list[BatchFeature]) -> BatchFeature:
    """Return what several calls returned, as of one."""
    joined: dict[str, Any] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        joined[name] = (
            torch.cat(values) if isinstance(values[0], Tensor) else [one for value in values for one in value]
        )
    return BatchFeature(data=joined)
