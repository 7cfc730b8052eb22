"""Video processors that read video files themselves: stock ones with `cacovid_hf.video.reader` in front, and what families need beside it."""

import copy
import math
import os
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
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .hub.auto_file import AUTO_MODULE, AUTO_SOURCE
from .video.files import uniform_indices
from .video.messages import BoundsRefused
from .video.reader import VideoFileMixin


class SavedMixin(BaseVideoProcessor):
    """Saved processors name a class of this package, which the Auto classes find by the file `AUTO_SOURCE` beside them."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoVideoProcessor") -> None:
        """Do nothing: what is saved names `AUTO_MODULE`, and this package's sources are not copied beside it."""

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings, and beside them the file in which they say that this class is found."""
        super().to_json_file(json_file_path)
        if getattr(self, "auto_map", None):
            Path(json_file_path).with_name(f"{AUTO_MODULE}.py").write_text(AUTO_SOURCE, encoding="utf-8")


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
    own = type(f"CaCoVid{stock.__name__}", (SavedMixin, mixin, stock), body)
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
