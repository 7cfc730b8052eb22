"""Stock processors that read video files: how they are made, saved and found again.

A stock processor (`LlavaOnevisionProcessor`, `Qwen2_5_VLProcessor`) holds one of our video processors, is saved with its name, and loads through
`AutoProcessor`.
"""

import copy
import functools
import os
import time
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from transformers.utils import logging

from ._compat import commit_of
from .configuration import CaCoVidConfig
from .hub.auto_file import AUTO_MODULE
from .hub.source import PROCESSOR_FILES, Source
from .video.files import SampledVideo
from .video_processing import CaCoVidLlavaOnevisionVideoProcessor, CaCoVidQwen2VLVideoProcessor

logger = logging.get_logger(__name__)

# By the name of the stock video processor that it extends.
_READERS: dict[str, Any] = {
    "LlavaOnevisionVideoProcessor": CaCoVidLlavaOnevisionVideoProcessor,
    "Qwen2VLVideoProcessor": CaCoVidQwen2VLVideoProcessor,
}


# A pipeline hands unknown arguments of its call to the chat template, which ignores them: a ratio given there would silently do nothing.
_GUARD = (
    "{%- if retention_ratio is defined -%}{{- raise_exception('retention_ratio is an argument of generate: give "
    'generate_kwargs={"retention_ratio": ...} to a pipeline, or retention_ratio=... to model.generate.\') -}}{%- endif -%}'
)


def with_video_reader(processor: ProcessorMixin) -> ProcessorMixin:
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
    reader: Any = type(stock) if isinstance(stock, tuple(_READERS.values())) else _READERS.get(family)
    if reader is None:
        raise ValueError(
            f"{type(processor).__name__} has a video processor of type {family}, for which there is no file reader: use the processor of a "
            "LLaVA-OneVision or Qwen2.5-VL checkpoint, or decode with cacovid_hf.read_video."
        )
    settings = {setting: value for setting, value in stock.to_dict().items() if value is not None}
    if "fps" in settings:
        settings["max_fps"] = settings.pop("fps")
    settings["auto_map"] = {"AutoVideoProcessor": f"{AUTO_MODULE}.{reader.__name__}"}
    result = copy.copy(processor)
    result.video_processor = reader.from_dict(settings)
    template = result.chat_template
    if isinstance(template, str) and not template.startswith(_GUARD):
        result.chat_template = _GUARD + template
    return result


def processor_of(config: CaCoVidConfig, token: str | bool | None = None) -> ProcessorMixin | None:
    """The processor of the checkpoint that a model was loaded from, or of its backbone, each at its own revision, reading video files.

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
                return with_video_reader(
                    AutoProcessor.from_pretrained(source.name, trust_remote_code=False, **source.hub)
                )
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
