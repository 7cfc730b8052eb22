"""Video processors that read video files themselves: the stock ones with `cacovid_hf.video.files` in place of torchcodec."""

import contextlib
import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoVideoProcessor,
    Gemma4VideoProcessor,
    Glm4vVideoProcessor,
    Glm46VVideoProcessor,
    InternVLVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionVideoProcessor,
    MiniCPMV4_6VideoProcessor,
    PerceptionLMVideoProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMVideoProcessor,
    VideoLlama3VideoProcessor,
    VideoLlavaVideoProcessor,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata, make_batched_videos

from .hub.auto_file import AUTO_MODULE, AUTO_SOURCE
from .video.addresses import address_rules, current_rules, opened_address, shown
from .video.files import iter_chosen_frames, read_chosen_frames, uniform_indices
from .video.messages import (
    ALL_FRAMES,
    ONE_SIZE,
    PIXEL_BOUNDS,
    BoundsRefused,
    ClipSettings,
    VideoAddress,
    check_frames,
    check_pixel_bounds,
)
from .video.timeline import ClipMetadata, frames_between

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

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoVideoProcessor") -> None:
        """Do nothing: what is saved names `AUTO_MODULE`, and this package's sources are not copied beside it."""

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings, and beside them the file in which they say that this class is found."""
        super().to_json_file(json_file_path)
        if getattr(self, "auto_map", None):
            Path(json_file_path).with_name(f"{AUTO_MODULE}.py").write_text(AUTO_SOURCE, encoding="utf-8")

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
        self, address: str, frames_per_chunk: int, num_frames: int | None = None
    ) -> Iterator[tuple[np.ndarray, VideoMetadata]]:
        """Read one video as `fetch_videos` does, so many frames at a time, decoded when they are asked for.

        Args:
            address: where it lies.
            frames_per_chunk: at least 1.
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


class PaddedClipsMixin(VideoFileMixin):
    """For processors whose videos are rows of one tensor.

    Clips of different lengths come padded with black frames behind the shorter ones, and `video_lengths` `(videos,)`, the true number of frames
    of each (int64). The models of this package never encode the padding; a stock model takes clips of one length alone.
    """

    def _preprocess(self, videos: list[Tensor], return_tensors: Any = None, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """As the stock one, with clips of different lengths padded into one tensor."""
        found = super()._preprocess(videos, return_tensors=None, **kwargs)
        clips = found["pixel_values_videos"]
        lengths = [len(clip) for clip in clips]
        if return_tensors is None or len(set(lengths)) == 1:
            return BatchFeature(data=dict(found), tensor_type=return_tensors)
        padded = clips[0].new_zeros(len(clips), max(lengths), *clips[0].shape[1:])
        for row, clip in zip(padded, clips, strict=True):
            row[: len(clip)] = clip
        data = {"pixel_values_videos": padded, "video_lengths": torch.tensor(lengths)}
        return BatchFeature(data=data, tensor_type=return_tensors)


class TilesMixin(VideoFileMixin):
    """For processors of models that take frames as images.

    Frames of all videos come one after the other as `pixel_values`, unpadded, and `frame_numbers` counts those of each video from 0.
    """

    # Whether the model takes rows of tiles.
    in_rows = False

    def _preprocess(self, videos: list[Tensor], return_tensors: Any = None, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """As the stock one, without padding."""
        found = super()._preprocess(videos, return_tensors=None, **kwargs)
        lengths = [len(video) for video in videos]
        names = {"pixel_values_videos": "pixel_values"}
        data = {
            names.get(name, name): torch.cat([clip[:length] for clip, length in zip(clips, lengths, strict=True)])
            for name, clips in found.items()
        }
        data["frame_numbers"] = torch.cat([torch.arange(length) for length in lengths])
        return BatchFeature(data={name: value[None] if self.in_rows else value for name, value in data.items()})


class StockPlacesMixin(VideoFileMixin):
    """For processors of which only the number of frames is ours: they stand where stock code places so many, each in its part of the video."""

    def choose(
        self, total: int, seconds: float | None, fps: float | None, num_frames: int | None, rate: float | None
    ) -> np.ndarray:
        """As the stock processor places them."""
        count = len(super().choose(total, seconds, fps, num_frames, rate))
        part = VideoMetadata(total_num_frames=total, fps=fps, duration=seconds)
        chosen = super(VideoFileMixin, self).sample_frames(metadata=part, num_frames=count)
        return np.asarray(chosen, dtype=np.int64)


class InternVLSamplingMixin(StockPlacesMixin, TilesMixin):
    """As many frames as for other families, each in the middle of its part of the video (`initial_shift`)."""


class OwnSamplingMixin(VideoFileMixin):
    """For processors whose checkpoints say how frames are sampled: the family's own rule, where nobody asks for another.

    `num_frames`, in a call or the settings, samples evenly instead, at most so many. `fps` or `max_fps` of a call is the rule's frames per second.
    """

    num_frames = None  # type: ignore[assignment]
    max_fps = None  # type: ignore[assignment]
    # Frames a second where the checkpoint says none; None: stock code knows.
    usual_fps: float | None = None
    # Settings of checkpoints that the rule does not read.
    unread: tuple[str, ...] = ()

    def sample_frames(self, metadata: VideoMetadata, max_fps: float | None = None, **kwargs: Any) -> np.ndarray:  # type: ignore[override]
        """As `VideoFileMixin`; stock code names the settings' `fps` in every call, which a call's `max_fps` overrides."""
        if max_fps is not None:
            kwargs["fps"] = None
        return super().sample_frames(metadata, max_fps=max_fps, **kwargs)

    def choose(
        self, total: int, seconds: float | None, fps: float | None, num_frames: int | None, rate: float | None
    ) -> np.ndarray:
        """As the stock processor, of this part as if it were the whole video."""
        rate = self.to_dict().get("fps") or self.usual_fps if rate is None else rate
        if num_frames is not None:
            return uniform_indices(total, seconds, num_frames, math.inf if rate is None else rate)
        part = VideoMetadata(total_num_frames=total, fps=fps, duration=seconds)
        chosen = super(VideoFileMixin, self).sample_frames(metadata=part, fps=rate)
        return np.asarray(chosen, dtype=np.int64)


class GemmaSamplingMixin(StockPlacesMixin, OwnSamplingMixin):
    """As many frames as the settings say, of a video of any length: the first of each of so many equal parts."""


class PairedFramesMixin(OwnSamplingMixin):
    """For processors whose rule takes frames in pairs: of an odd number the last one comes twice."""

    unread = ("num_frames",)

    def choose(
        self, total: int, seconds: float | None, fps: float | None, num_frames: int | None, rate: float | None
    ) -> np.ndarray:
        """As `OwnSamplingMixin`, an even number; where the rule has no frames a second in it, those of a call are taken evenly."""
        if "fps" in self.unread and rate is not None and num_frames is None:
            num_frames = total
        chosen = super().choose(total, seconds, fps, num_frames, rate)
        return np.append(chosen, chosen[-1:]) if len(chosen) % 2 else chosen


class SecondsMixin(OwnSamplingMixin):
    """For MiniCPM-V, whose rule is the first frame of every second, evenly over a video of more seconds than `max_num_frames`; its rate cannot be asked for.

    Frames are not cut into slices, which its settings would do to large ones. Adds `video_grid_thw` `(videos, 3)`: frames of each video, and height and
    width of a frame in patches. The models of this package alone take it.
    """

    max_num_frames: int
    slice_mode = False
    unread = ("slice_mode", "fps")

    def _preprocess(self, videos: list[Tensor], **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """As the stock one, which does not say which frames are of one video.

        Raises:
            ValueError: settings by which a frame is not one picture.
        """
        for name, whole in (("slice_mode", False), ("stack_frames", 1)):
            if (kwargs.get(name) or whole) != whole:
                raise ValueError(f"{name}={kwargs[name]}: a frame must be one picture. Give {name}={whole}.")
        found = super()._preprocess(videos, **kwargs)
        parts = found["target_sizes_videos"].split([int(count) for count in found["num_frames_per_video"]])
        found["video_grid_thw"] = torch.tensor([[len(part), *part[0].tolist()] for part in parts])
        return found

    def sample_frames(self, metadata: VideoMetadata, max_num_frames: int | None = None, **kwargs: Any) -> np.ndarray:  # type: ignore[override]
        """As `OwnSamplingMixin`; the rule's `max_num_frames` may be the call's."""
        if max_num_frames not in (None, self.max_num_frames):
            if max_num_frames < 1:
                raise ValueError(f"max_num_frames={max_num_frames}: give at least 1.")
            asked = copy.copy(self)
            asked.max_num_frames = max_num_frames
            return asked.sample_frames(metadata, **kwargs)
        return super().sample_frames(metadata, **kwargs)

    def choose(
        self, total: int, seconds: float | None, fps: float | None, num_frames: int | None, rate: float | None
    ) -> np.ndarray:
        """As the stock processor, where nobody asks for another number or rate, and both are known of the file."""
        if num_frames is None and rate is None and seconds is not None and fps is not None:
            return np.minimum(super().choose(total, seconds, fps, None, None), total - 1)
        num_frames = self.max_num_frames if num_frames is None else num_frames
        return VideoFileMixin.choose(self, total, seconds, fps, num_frames, rate)


class FramesShareMixin(OwnSamplingMixin):
    """For processors whose largest `size` is that of all frames of a video, and whose smallest is that of each."""

    def part_settings(self, frames: int, total: int) -> dict[str, Any]:
        """Return the settings of a part, whose frames are no larger than those of the whole."""
        size = self.to_dict()["size"]
        return {"size": {**size, "longest_edge": size["longest_edge"] // total * frames}}


class SmolVLMSamplingMixin(TilesMixin, OwnSamplingMixin):
    """For SmolVLM, whose rule is what the settings say: at most `num_frames`, `fps` a second, a second at either end of a long video left out."""

    in_rows = True

    def __init__(self, **kwargs: Any):
        # Stock code puts these over the settings that they stand for, whoever changed those since.
        sampling = kwargs.pop("video_sampling", None) or {}
        named = {"num_frames": "max_frames", "fps": "fps", "size": "video_size"}
        super().__init__(**{name: sampling[key] for name, key in named.items() if key in sampling} | kwargs)

    def choose(
        self, total: int, seconds: float | None, fps: float | None, num_frames: int | None, rate: float | None
    ) -> np.ndarray:
        """As the stock processor, of this part as if it were the whole video."""
        rate = self.to_dict().get("fps") if rate is None else rate
        if num_frames is None or rate is None or fps is None or seconds is None:
            return VideoFileMixin.choose(self, total, seconds, fps, num_frames, rate)
        part = VideoMetadata(total_num_frames=total, fps=fps, duration=seconds)
        rule = super(VideoFileMixin, self).sample_frames
        return np.asarray(rule(metadata=part, num_frames=num_frames, fps=min(rate, fps)), dtype=np.int64)


def reading(stock: type[BaseVideoProcessor], mixin: type[VideoFileMixin] = VideoFileMixin, **attributes: Any) -> Any:
    """Return the class of a stock video processor with our reading of files in front: `CaCoVid` and its name, registered with the Auto classes.

    Args:
        stock: the class.
        mixin: `VideoFileMixin`, or the one of the above that fits the family.
        **attributes: of the mixin, such as `reads_times`.
    """

    class Kwargs(stock.valid_kwargs, total=False):  # type: ignore[name-defined, misc, call-arg]
        """The stock keyword arguments and ours."""

        max_fps: float | int | None

    doc = f"`{stock.__name__}`, which reads video files (see `{mixin.__name__}`)."
    body = {"__doc__": doc, "__module__": __name__, "Kwargs": Kwargs, "valid_kwargs": Kwargs, **attributes}
    own = type(f"CaCoVid{stock.__name__}", (mixin, stock), body)
    # Its own key, because a stock config as key would replace the stock class. A saved processor is found by its class's name.
    AutoVideoProcessor.register(own, own, exist_ok=True)
    return own


CaCoVidLlavaOnevisionVideoProcessor = reading(LlavaOnevisionVideoProcessor, PaddedClipsMixin)
CaCoVidLlavaNextVideoVideoProcessor = reading(LlavaNextVideoVideoProcessor, PaddedClipsMixin)
CaCoVidQwen2VLVideoProcessor = reading(Qwen2VLVideoProcessor, bounds_pixels=True, reads_times=True)
CaCoVidQwen3VLVideoProcessor = reading(
    Qwen3VLVideoProcessor, OwnSamplingMixin, reads_times=True, size_is_of_all_frames=True, least_frames=2
)
CaCoVidGlm4vVideoProcessor = reading(
    Glm4vVideoProcessor, PairedFramesMixin, reads_times=True, size_is_of_all_frames=True, least_frames=2
)
CaCoVidGlm46VVideoProcessor = reading(
    Glm46VVideoProcessor,
    PairedFramesMixin,
    reads_times=True,
    size_is_of_all_frames=True,
    least_frames=2,
    fps=None,
    unread=("num_frames", "fps"),
)
CaCoVidVideoLlama3VideoProcessor = reading(
    VideoLlama3VideoProcessor,
    FramesShareMixin,
    reads_times=True,
    size_is_of_all_frames=True,
    assumed_fps=1,
    usual_fps=1.0,
)
CaCoVidVideoLlavaVideoProcessor = reading(VideoLlavaVideoProcessor, PaddedClipsMixin)
CaCoVidPerceptionLMVideoProcessor = reading(PerceptionLMVideoProcessor, PaddedClipsMixin)
CaCoVidMiniCPMV4_6VideoProcessor = reading(
    MiniCPMV4_6VideoProcessor,
    SecondsMixin,
    bounds_refused=BoundsRefused("this model scales every frame to one area", "scale_resolution"),
)
CaCoVidGemma4VideoProcessor = reading(
    Gemma4VideoProcessor,
    GemmaSamplingMixin,
    reads_times=True,
    bounds_refused=BoundsRefused("this model bounds the tokens of a frame", "max_soft_tokens"),
)

CaCoVidInternVLVideoProcessor = reading(InternVLVideoProcessor, InternVLSamplingMixin)
CaCoVidSmolVLMVideoProcessor = reading(SmolVLMVideoProcessor, SmolVLMSamplingMixin, reads_times=True)

# By the name of the stock video processor that each extends.
READERS: dict[str, Any] = {
    own.__name__.removeprefix("CaCoVid"): own
    for own in (
        CaCoVidLlavaOnevisionVideoProcessor,
        CaCoVidLlavaNextVideoVideoProcessor,
        CaCoVidQwen2VLVideoProcessor,
        CaCoVidQwen3VLVideoProcessor,
        CaCoVidVideoLlama3VideoProcessor,
        CaCoVidInternVLVideoProcessor,
        CaCoVidSmolVLMVideoProcessor,
        CaCoVidGlm4vVideoProcessor,
        CaCoVidGlm46VVideoProcessor,
        CaCoVidGemma4VideoProcessor,
        CaCoVidVideoLlavaVideoProcessor,
        CaCoVidPerceptionLMVideoProcessor,
        CaCoVidMiniCPMV4_6VideoProcessor,
    )
}


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
