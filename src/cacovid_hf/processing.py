"""Stock processors that read video files: how they are made, saved and found again.

A stock processor (`LlavaOnevisionProcessor`, `Qwen2_5_VLProcessor`) holds one of our video processors, is saved with its name, and loads through
`AutoProcessor` once `register()` has run. This module imports no processor by itself.
"""

import copy
import functools
import importlib
import os
import time
from typing import TYPE_CHECKING

from transformers import ProcessorMixin

from .checkpoints.auto_file import AUTO_MODULE
from .video.files import SampledVideo

if TYPE_CHECKING:
    from transformers import ProcessorMixin

# Stock video processor to ours, by name.
_READERS = {
    "LlavaOnevisionVideoProcessor": "CaCoVidLlavaOnevisionVideoProcessor",
    "Qwen2VLVideoProcessor": "CaCoVidQwen2VLVideoProcessor",
}


# A pipeline hands unknown arguments of its call to the chat template, which ignores them: a ratio given there would silently do nothing.
_GUARD = (
    "{%- if retention_ratio is defined -%}{{- raise_exception('retention_ratio is an argument of generate: give "
    'generate_kwargs={"retention_ratio": ...} to a pipeline, or retention_ratio=... to model.generate.\') -}}{%- endif -%}'
)


class _StandIn:
    """Has the name of one of our video processors, and loads that one."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load the video processor that this one stands for."""
        return _reader(cls.__name__).from_pretrained(*args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoVideoProcessor"):
        """Nothing to do: what is saved names `AUTO_MODULE`, and this package's sources are not copied beside it."""


class CaCoVidLlavaOnevisionVideoProcessor(_StandIn):
    """Of `video_processing.CaCoVidLlavaOnevisionVideoProcessor`."""


class CaCoVidQwen2VLVideoProcessor(_StandIn):
    """Of `video_processing.CaCoVidQwen2VLVideoProcessor`."""


def register() -> None:
    """Make our video processors known to `AutoVideoProcessor` and `AutoProcessor` by name; may be called again.

    The registry finds a saved video processor by its class's name, whatever the key; a stock config as key would replace the stock class, so
    each entry is its own key. The entries are stand-ins: this runs in the middle of transformers' own imports, where the stock classes
    that ours extend may be half made.
    """
    from transformers import AutoVideoProcessor

    for stand_in in (CaCoVidLlavaOnevisionVideoProcessor, CaCoVidQwen2VLVideoProcessor):
        AutoVideoProcessor.register(stand_in, stand_in, exist_ok=True)


def with_video_reader(processor: "ProcessorMixin") -> "ProcessorMixin":
    """Return a copy of a processor whose video processor, with the same settings, reads video files.

    Its chat template refuses a `retention_ratio`, which belongs to `generate`. Saved beside a model of this package, or its video processor alone, it loads
    with `trust_remote_code=True` where this package is installed and not imported; saved as a whole on its own, after `import cacovid_hf`.

    Args:
        processor: of a LLaVA-OneVision or Qwen2.5-VL model, stock or already such a copy; left as it is.

    Raises:
        ValueError: its video processor is of another family.
    """
    stock = processor.video_processor
    family = type(stock).__name__
    name = family if family in _READERS.values() else _READERS.get(family)
    if name is None:
        raise ValueError(
            f"{type(processor).__name__} has a video processor of type {family}, for which there is no file reader: use the processor of a "
            "LLaVA-OneVision or Qwen2.5-VL checkpoint, or decode with cacovid_hf.read_video."
        )
    settings = {setting: value for setting, value in stock.to_dict().items() if value is not None}
    if "fps" in settings:
        settings["max_fps"] = settings.pop("fps")
    settings["auto_map"] = {"AutoVideoProcessor": f"{AUTO_MODULE}.{name}"}
    result = copy.copy(processor)
    result.video_processor = _reader(name).from_dict(settings)
    template = result.chat_template
    if isinstance(template, str) and not template.startswith(_GUARD):
        result.chat_template = _GUARD + template
    return result


def _reader(name: str):
    return getattr(importlib.import_module("cacovid_hf.video_processing"), name)


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
