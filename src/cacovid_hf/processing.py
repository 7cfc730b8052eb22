"""Stock processors that read video files: how they are made, saved and found again.

A subclass of the stock processor (`LlavaOnevisionProcessor`, `Qwen2_5_VLProcessor`) follows messages and holds one of our video processors. It is
saved by its name, and loads through `AutoProcessor`.
"""

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError, TemplateSyntaxError
from torch import Tensor
from transformers import (
    AutoProcessor,
    Gemma4Processor,
    Glm4vProcessor,
    Glm46VProcessor,
    InternVLProcessor,
    LlavaNextVideoProcessor,
    LlavaOnevisionProcessor,
    MiniCPMV4_6Processor,
    PerceptionLMProcessor,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SmolVLMProcessor,
    VideoLlama3Processor,
    VideoLlavaProcessor,
)
from transformers.utils import logging

from ._compat import commit_of
from .checkpoints.stock_processor import load_stock_processor
from .configuration import CaCoVidConfig
from .hub.auto_file import AUTO_MODULE, AUTO_SOURCE
from .hub.source import PROCESSOR_FILES, Source
from .video.files import SampledVideo
from .video.messages import as_parts, check_call, follow_messages, has_plain_text
from .video.pictures import read_picture
from .video.reader import paths_as_text
from .video.tiles import IMAGE, Tiles, frame_counts, in_one_list, in_rows, split_tiles, token_types
from .video_processing import READERS, OwnSamplingMixin

# Checkpoints that earlier versions wrote find them here.
from .video_processing import CaCoVidLlavaOnevisionVideoProcessor as CaCoVidLlavaOnevisionVideoProcessor
from .video_processing import CaCoVidQwen2VLVideoProcessor as CaCoVidQwen2VLVideoProcessor

logger = logging.get_logger(__name__)

_PROBE = "Is this text written?"


class MessagesMixin(ProcessorMixin):
    """Follows or refuses every part and key of chat messages (see `cacovid_hf.video.messages.follow_messages`); else the stock processor."""

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the stock processor; videos may be `Path` objects.

        Raises:
            ValueError: settings that are not followed, or what the stock processor raises.
        """
        for name in ("retention_ratio", "compressor"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not an argument of the processor: give it to model.generate.")
        self._check_call(kwargs)
        return self._processed(images, text, paths_as_text(videos), *args, **kwargs)

    def _processed(self, images: Any, text: Any, videos: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the stock call."""
        return super().__call__(images, text, videos, *args, **kwargs)

    def apply_chat_template(self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
        """As the stock processor.

        Raises:
            ValueError: a part or key of a message that is not followed, no chat template or a damaged one, or what the stock processor raises.
        """
        if not self.chat_template and not kwargs.get("chat_template") and not args:
            raise ValueError(
                "The processor has no chat template: copy chat_template.jinja of the model beside its tokenizer.json, or give chat_template=..."
            )
        self._check_call(kwargs)
        followed = follow_messages(
            conversation,
            bounds_refused=self.video_processor.bounds_refused,
            read_picture=read_picture if tokenize else None,
        )
        kwargs["tokenize"] = tokenize
        try:
            if has_plain_text(followed) and not self._writes_plain_text(
                args[0] if args else kwargs.get("chat_template")
            ):
                followed = as_parts(followed)
            return super().apply_chat_template(followed, *args, **kwargs)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"The chat template cannot be read (line {error.lineno}: {error.message}): copy chat_template.jinja of the model again."
            ) from error

    def _check_call(self, kwargs: dict[str, Any]) -> None:
        for place in (kwargs, kwargs.get("videos_kwargs") or {}):
            check_call(place, bounds_refused=self.video_processor.bounds_refused)

    def _writes_plain_text(self, template: str | None) -> bool:
        """Whether the chat template writes a content that is a text: some, such as LLaVA-OneVision's own, write parts alone and drop it."""
        messages = [{"role": "user", "content": _PROBE}]
        try:
            return _PROBE in super().apply_chat_template(messages, chat_template=template, tokenize=False)
        except TemplateSyntaxError:
            raise
        except TemplateError:
            return False

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Do nothing: what is saved names `AUTO_MODULE`, and this package's sources are not copied beside it."""

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings, and beside them the file in which they say that this class is found."""
        super().to_json_file(json_file_path)
        Path(json_file_path).with_name(f"{AUTO_MODULE}.py").write_text(AUTO_SOURCE, encoding="utf-8")

    def words_of_video(self, video_inputs: dict, number: int) -> str:
        """Return how a prompt writes its video of this number, counted from 0.

        Args:
            video_inputs: what the video processor returns for this video alone.
            number: of the video in its prompt.
        """
        return self.replace_video_token(video_inputs, 0)


class OwnFramesMixin(MessagesMixin):
    """For processors whose videos are rows of one tensor, where clips of different lengths come padded."""

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        """Return the placeholders of one video, of its own frames alone where clips are padded."""
        if "video_lengths" in video_inputs:
            clips = zip(video_inputs["pixel_values_videos"], video_inputs["video_lengths"].tolist(), strict=True)
            video_inputs = {**video_inputs, "pixel_values_videos": [clip[:length] for clip, length in clips]}
        return super().replace_video_token(video_inputs, video_idx, **kwargs)


class DivisorMixin(MessagesMixin):
    """For MiniCPM-V, whose stock processor counts placeholders by what its own call says beside a video."""

    video_token_divisor: int
    use_image_id: bool | None = None
    default_use_image_id: bool
    image_id_start_token: str
    image_id_end_token: str

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        """Return the marks and placeholders of one video."""
        kwargs.setdefault("video_token_divisor", self.video_token_divisor)
        return super().replace_video_token(video_inputs, video_idx, **kwargs)

    def words_of_video(self, video_inputs: dict, number: int) -> str:
        """As of every processor; its number stands in front, unless `use_image_id` is off."""
        words = super().words_of_video(video_inputs, number)
        is_named = self.default_use_image_id if self.use_image_id is None else self.use_image_id
        return f"{self.image_id_start_token}{number}{self.image_id_end_token}{words}" if is_named else words


class FramesAsImagesMixin(MessagesMixin):
    """For processors of models that take frames as images: the stock ones do not say which tiles of `pixel_values` are frames.

    Adds `frame_numbers` and `mm_token_type_ids` (see `cacovid_hf.backbones.frames_as_images`), which the models of this package alone take. Clips may have
    different lengths, and images may stand beside videos.
    """

    image_token_id: int
    image_seq_length: int
    image_seq_len: int
    skip_tensor_conversion: ClassVar[list[str]] = [  # type: ignore[misc]
        *ProcessorMixin.skip_tensor_conversion,
        "_image",
        "_video",
    ]

    @property
    def placeholders_of_a_tile(self) -> int:
        """So many."""
        return self.image_seq_length

    def tiles_of_images(self, found: Mapping[str, Any]) -> list[Tiles]:
        """Image by image, of what the image processor returned."""
        return split_tiles({"pixel_values": found["pixel_values"]}, [int(count) for count in found["num_patches"]])

    def laid_out(self, prompts: list[list[Tiles]]) -> Tiles:
        """Return the tiles of every prompt's images and videos as the model takes them."""
        return in_one_list(prompts)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        """Return the words and placeholders of one video, of as many frames as `frame_numbers` says."""
        frames = torch.empty(frame_counts(video_inputs["frame_numbers"])[video_idx], 0)
        own: dict[str, Any] = {"pixel_values_videos": [frames], "pixel_values": frames[None]}
        if "video_metadata" in video_inputs:
            own["video_metadata"] = [video_inputs["video_metadata"][video_idx]]
        return super().replace_video_token(own, 0, **kwargs)

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        found, words = super()._process_images(images, **{**kwargs, "return_tensors": "pt"})
        tiles = self.tiles_of_images(found)
        return {
            "_image": [{**one, "frame_numbers": torch.full((len(one["pixel_values"]),), IMAGE)} for one in tiles]
        }, words

    def _process_videos(self, videos: Any, **kwargs: Any) -> Any:
        found, words = super()._process_videos(videos, **{**kwargs, "return_tensors": "pt"})
        metadata = {name: found.pop(name) for name in ("video_metadata",) if name in found}
        tiles = {name: value.flatten(0, 1) if self.video_processor.in_rows else value for name, value in found.items()}
        return {**metadata, "_video": split_tiles(tiles, frame_counts(tiles["frame_numbers"]))}, words

    def _processed(self, images: Any, text: Any, videos: Any, *args: Any, **kwargs: Any) -> Any:
        # Not the stock class's own, whose list of tiles does not say what is what.
        found = ProcessorMixin.__call__(
            self, images, text, videos, *args, return_text_replacement_offsets=True, **kwargs
        )
        order = found.pop("text_replacement_offsets", None)
        media = {kind: found.pop(f"_{kind}", []) for kind in ("image", "video")}
        if not any(media.values()):
            return found
        if order is None:
            raise ValueError("text is missing: give the prompt that the images and videos stand in.")
        each = {kind: iter(of_kind) for kind, of_kind in media.items()}
        found.update(self.laid_out([[next(each[place["type"]]) for place in prompt] for prompt in order]))
        ids = found["input_ids"]
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        types = token_types(rows, found["frame_numbers"], self.image_token_id, self.placeholders_of_a_tile)
        found["mm_token_type_ids"] = torch.tensor(types) if isinstance(ids, Tensor) else types
        return found


class RowsOfTilesMixin(FramesAsImagesMixin):
    """For SmolVLM, which takes a row of tiles for each prompt."""

    @property
    def placeholders_of_a_tile(self) -> int:
        """So many."""
        return self.image_seq_len

    def tiles_of_images(self, found: Mapping[str, Any]) -> list[Tiles]:
        """Return the tiles of images: of one that is split, one for each part, and one for the whole."""
        tiles: list[Tiles] = []
        for row, sizes in enumerate(zip(found["rows"], found["cols"], strict=True)):
            counts = [height * width + 1 for height, width in zip(*sizes, strict=True)]
            of_row = {name: found[name][row] for name in ("pixel_values", "pixel_attention_mask") if name in found}
            tiles += split_tiles(of_row, counts)
        return tiles

    def laid_out(self, prompts: list[list[Tiles]]) -> Tiles:
        """Return the tiles in rows, a row of padding for a prompt without images and videos."""
        return in_rows(prompts)


def following(stock: type[ProcessorMixin], mixin: type[MessagesMixin] = MessagesMixin) -> Any:
    """Return the class of a stock processor with our following of messages in front: `CaCoVid` and its name, registered with `AutoProcessor`."""
    doc = f"`{stock.__name__}`, which follows or refuses every part of a message (see `{mixin.__name__}`)."
    own = type(f"CaCoVid{stock.__name__}", (mixin, stock), {"__doc__": doc, "__module__": __name__})
    # Its own key, because a stock config as key would replace the stock class. A saved processor is found by its class's name.
    AutoProcessor.register(own, own, exist_ok=True)
    return own


CaCoVidLlavaOnevisionProcessor = following(LlavaOnevisionProcessor, OwnFramesMixin)
CaCoVidLlavaNextVideoProcessor = following(LlavaNextVideoProcessor, OwnFramesMixin)
CaCoVidQwen2_5_VLProcessor = following(Qwen2_5_VLProcessor)
CaCoVidQwen2VLProcessor = following(Qwen2VLProcessor)
CaCoVidQwen3VLProcessor = following(Qwen3VLProcessor)
CaCoVidVideoLlama3Processor = following(VideoLlama3Processor)
CaCoVidInternVLProcessor = following(InternVLProcessor, FramesAsImagesMixin)
CaCoVidSmolVLMProcessor = following(SmolVLMProcessor, RowsOfTilesMixin)
CaCoVidGlm4vProcessor = following(Glm4vProcessor)
CaCoVidGlm46VProcessor = following(Glm46VProcessor)
CaCoVidGemma4Processor = following(Gemma4Processor)
CaCoVidVideoLlavaProcessor = following(VideoLlavaProcessor, OwnFramesMixin)
CaCoVidPerceptionLMProcessor = following(PerceptionLMProcessor, OwnFramesMixin)
CaCoVidMiniCPMV4_6Processor = following(MiniCPMV4_6Processor, DivisorMixin)

# By the name of the stock processor that each extends.
_PROCESSORS: dict[str, Any] = {
    own.__name__.removeprefix("CaCoVid"): own
    for own in (
        CaCoVidLlavaOnevisionProcessor,
        CaCoVidLlavaNextVideoProcessor,
        CaCoVidQwen2_5_VLProcessor,
        CaCoVidQwen2VLProcessor,
        CaCoVidQwen3VLProcessor,
        CaCoVidVideoLlama3Processor,
        CaCoVidInternVLProcessor,
        CaCoVidSmolVLMProcessor,
        CaCoVidGlm4vProcessor,
        CaCoVidGlm46VProcessor,
        CaCoVidGemma4Processor,
        CaCoVidVideoLlavaProcessor,
        CaCoVidPerceptionLMProcessor,
        CaCoVidMiniCPMV4_6Processor,
    )
}


# A pipeline hands unknown arguments of its call to the chat template, which ignores them: a ratio given there would silently do nothing.
_GUARD = (
    "{%- if retention_ratio is defined -%}{{- raise_exception('retention_ratio is an argument of generate: give "
    'generate_kwargs={"retention_ratio": ...} to a pipeline, or retention_ratio=... to model.generate.\') -}}{%- endif -%}'
)


def with_video_reader(processor: ProcessorMixin) -> ProcessorMixin:
    """Return a copy of a processor that reads video files, with the same settings, and follows or refuses every part of a message.

    Its chat template refuses a `retention_ratio`, which belongs to `generate`. Saved, it loads after `import cacovid_hf`, or with
    `trust_remote_code=True` where this package is installed and not imported.

    Args:
        processor: of a model of a supported family, stock or already such a copy; left as it is.

    Raises:
        ValueError: it is not a processor, or it or its video processor is of another family.
    """
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(
            f"A {type(processor).__name__} is not a processor of videos: give what AutoProcessor.from_pretrained returns."
        )
    stock = getattr(processor, "video_processor", None)
    if stock is None:
        raise ValueError(
            f"{type(processor).__name__} has no video processor, because its model takes images alone: use the processor of a model of a supported family."
        )
    family = type(stock).__name__
    reader: Any = type(stock) if isinstance(stock, tuple(READERS.values())) else READERS.get(family)
    if reader is None:
        raise ValueError(
            f"{type(processor).__name__} has a video processor of type {family}, for which there is no file reader: use the processor of a "
            "model of a supported family, or decode with cacovid_hf.read_video."
        )
    settings = {setting: value for setting, value in stock.to_dict().items() if value is not None}
    if not issubclass(reader, OwnSamplingMixin):
        if "fps" in settings:
            settings["max_fps"] = settings.pop("fps")
    elif reader is not type(stock):
        settings = {setting: value for setting, value in settings.items() if setting not in reader.unread}
    settings["auto_map"] = {"AutoVideoProcessor": f"{AUTO_MODULE}.{reader.__name__}"}
    own = type(processor) if isinstance(processor, MessagesMixin) else _PROCESSORS.get(type(processor).__name__)
    if own is None:
        raise ValueError(
            f"{type(processor).__name__} is not a processor whose messages are known: use that of a model of a supported family, or decode with "
            "cacovid_hf.read_video."
        )
    result = own.__new__(own)
    vars(result).update(vars(processor), auto_map={"AutoProcessor": f"{AUTO_MODULE}.{own.__name__}"})
    result.video_processor = reader.from_dict(settings)
    template = result.chat_template
    if isinstance(template, str) and not template.startswith(_GUARD):
        result.chat_template = _GUARD + template
    return result


def processor_of(config: CaCoVidConfig, token: str | bool | None = None) -> ProcessorMixin | None:
    """Return the processor of the checkpoint that a model was loaded from, or of its backbone, each at its own revision, reading video files.

    None if neither has one.
    """
    places = [
        (config.name_or_path, commit_of(config)),
        (config.base_model_name_or_path, config.base_model_revision),
    ]
    for name, revision in places:
        if not name:
            continue
        hub = {} if os.path.isdir(name) else {"revision": revision, "token": token}
        source = Source(str(name), {key: value for key, value in hub.items() if value is not None})
        try:
            if any(source.file(file) for file in PROCESSOR_FILES):
                return with_video_reader(load_stock_processor(source))
        except (OSError, ValueError) as error:
            logger.warning(f"The processor of {name} cannot be loaded ({' '.join(str(error).split())}).")
    return None


def sample_video(processor: ProcessorMixin, video: str | os.PathLike, num_frames: int | None = None) -> SampledVideo:
    """Read the frames of a video file that a model is to see.

    Args:
        processor: of the model; its video processor says how frames are sampled (see `cacovid_hf.read_video`).
        video: a path or an http(s) address.
        num_frames: at most so many frames; None is the processor's setting.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable video, or `num_frames` out of range.
    """
    started = time.perf_counter()
    reader = with_video_reader(processor).video_processor
    choose = functools.partial(reader.sample_frames, num_frames=num_frames)
    frames, metadata = reader.fetch_videos(os.fspath(video), choose)
    return SampledVideo(frames, metadata, time.perf_counter() - started)
