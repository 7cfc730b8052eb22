"""Load a stock processor from files of unknown origin: sizes before memory, and one clear error that names the file."""

import math
import os
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, AutoVideoProcessor, ProcessorMixin
from transformers.video_utils import VideoMetadata

from ..hub.source import LARGEST_JSON, PROCESSOR_FILES, Source
from ..utils.blame import blamed_on, one_line

VIDEO_FILE = "video_preprocessor_config.json"
SETTINGS = (*PROCESSOR_FILES, VIDEO_FILE)
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
# Stock loading takes the first that is there.
TEMPLATES = ("chat_template.json", "chat_template.jinja")
# Pixels of a side, and pixels of a frame or of all frames of a video where a family limits those: what a size must reach, and what it may be (published
# ones have 234,881,024). Generous, as `hub.source.LARGEST_SIZES`.
LARGEST_SIDE, LARGEST_LEAST, LARGEST_MOST = 1 << 12, 1 << 26, 1 << 30
_SIDES = ("height", "width")
_SIZES = ("size", "crop_size", "pad_size")
_EDGES = {
    "shortest_edge": LARGEST_LEAST,
    "min_pixels": LARGEST_LEAST,
    "longest_edge": LARGEST_MOST,
    "max_pixels": LARGEST_MOST,
}
_COUNTS = {
    "patch_size": 1 << 10,
    "temporal_patch_size": 1 << 6,
    "merge_size": 1 << 6,
    "num_frames": 1 << 16,
    "num_image_tokens": 1 << 16,
}
_RATES = ("fps", "max_fps")
_MOST_PINPOINTS = 1 << 10


def load_stock_processor(source: Source) -> ProcessorMixin:
    """Return the processor of a model, by safe files alone.

    Raises:
        OSError: files are missing or cannot be fetched.
        ValueError: a file is damaged, missing or asks for what it must not; it is named.
    """
    for file in SETTINGS:
        if (values := source.json(file)) is not None:
            check_settings(values, f"{file} of {source.name}")
    for file in (*TOKENIZER, *TEMPLATES):
        if (path := source.file(file)) and (size := os.path.getsize(path)) > LARGEST_JSON:
            raise ValueError(f"{file} of {source.name} has {size} bytes, far too many: do not use this checkpoint.")
    if not source.json("tokenizer_config.json"):  # without it, padding and end of text are missing in silence
        raise ValueError(f"tokenizer_config.json of {source.name} is missing or empty: copy or download it again.")
    try:
        processor = AutoProcessor.from_pretrained(source.name, trust_remote_code=False, **source.hub)
    except ImportError:
        raise
    except Exception as error:
        _blame(source)
        raise ValueError(
            f"The processor of {source.name} cannot be loaded ({one_line(error)}): copy or download its files again, {', '.join(_present(source))}."
        ) from error
    if not isinstance(processor, ProcessorMixin):
        files = " and ".join(file for file in (*SETTINGS, "tokenizer_config.json") if source.file(file))
        raise ValueError(f"{files} of {source.name} name no processor_class: copy or download them again.")
    with blamed_on(" or ".join(file for file in SETTINGS if source.file(file)), source.name):
        check_settings(processor.video_processor.to_dict(), f"{SETTINGS[0]} or {VIDEO_FILE} of {source.name}")
        frames = np.zeros((2, 64, 64, 3), dtype=np.uint8)
        # With their times, or a reader that needs them would warn of frames that nobody gave.
        times = VideoMetadata(total_num_frames=2, fps=1.0, duration=2.0, frames_indices=[0, 1])
        processor.video_processor(frames, do_sample_frames=False, video_metadata=times, return_tensors="pt")
    _check_template(processor, source)
    return processor


def _check_template(processor: Any, source: Source) -> None:
    """Write one message, in which the text and the video must be found again."""
    file = next((file for file in TEMPLATES if source.file(file)), TEMPLATES[-1])
    if not processor.chat_template:
        raise ValueError(f"{file} of {source.name} is missing or empty: copy or download it again.")
    if isinstance(processor.chat_template, dict) and "default" not in processor.chat_template:
        return  # each call names one
    content = [{"type": "video"}, {"type": "text", "text": "What is shown?"}]
    with blamed_on(file, source.name):
        text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        if "What is shown?" not in text:
            raise ValueError("it writes no text of a message")
    if processor.video_token not in text:
        names = " or ".join([*(file for file in SETTINGS if source.file(file)), TOKENIZER[1], file])
        raise ValueError(
            f"{names} of {source.name} cannot be used (the template writes no {reprlib.repr(processor.video_token)}, which stands for a video): copy "
            "or download it again."
        )


def _present(source: Source) -> list[str]:
    return [file for file in (*SETTINGS, *TOKENIZER, *TEMPLATES) if source.file(file)]


def _blame(source: Source) -> None:
    """Raise a `ValueError` that names the file which keeps a processor from being loaded, if it can be told."""
    for file in TOKENIZER:
        source.json(file)
    template = source.json(TEMPLATES[0])
    if template is not None and not isinstance(template.get("chat_template"), (str, list)):
        raise ValueError(f"{TEMPLATES[0]} of {source.name} has no chat_template: copy or download it again.")
    if path := source.file(TEMPLATES[1]):
        with blamed_on(TEMPLATES[1], source.name):
            Path(path).read_text(encoding="utf-8")
    if path := source.file(TOKENIZER[0]):
        with blamed_on(TOKENIZER[0], source.name):
            Tokenizer.from_file(path)
    settings = [file for file in SETTINGS if source.file(file)]
    if settings == [SETTINGS[0]] and "video_processor" not in (source.json(SETTINGS[0]) or {}):
        raise ValueError(f"{SETTINGS[0]} of {source.name} has no video_processor: copy or download it again.")
    parts: list[tuple[Any, tuple[str, ...]]] = [
        (AutoTokenizer, TOKENIZER[1:]),
        (AutoVideoProcessor, SETTINGS),
        (AutoImageProcessor, SETTINGS),
    ]
    for kind, files in parts:
        try:
            kind.from_pretrained(source.name, trust_remote_code=False, **source.hub)
        except Exception as error:
            if kind is AutoTokenizer and not source.file(TOKENIZER[0]):
                raise ValueError(f"{TOKENIZER[0]} of {source.name} is missing: copy or download it again.") from error
            names = " or ".join(file for file in files if source.file(file))
            raise ValueError(
                f"{names} of {source.name} cannot be used ({one_line(error)}): copy or download it again."
            ) from error


def check_settings(values: Any, file: str, place: str = "") -> None:
    """Refuse sizes that no processor has, at any depth of its settings.

    Raises:
        ValueError: naming the file, the place and the value.
    """
    for low, high in (
        (("min_pixels", "max_pixels"), ("shortest_edge", "longest_edge")) if isinstance(values, dict) else ()
    ):
        least, most = values.get(low), values.get(high)
        if _is_number(least) and _is_number(most) and least > most:
            raise ValueError(f"{file} says {place}{low}={least} and {place}{high}={most}: copy or download it again.")
    for key, value in values.items() if isinstance(values, dict) else ():
        where = f"{place}{key}"
        if value is None:
            continue
        if key in _SIZES and not isinstance(value, dict):
            _check_number(value, LARGEST_SIDE, where, file)
        elif key in _SIDES or key in _COUNTS:
            _check_number(value, _COUNTS.get(key, LARGEST_SIDE), where, file)
        elif key in _EDGES:
            _check_number(value, _EDGES[key], where, file)
        elif key in _RATES and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(
                f"{file} says {where}={reprlib.repr(value)}, which is not a number above 0: copy or download it again."
            )
        elif key == "image_grid_pinpoints" and not (isinstance(value, list) and len(value) <= _MOST_PINPOINTS):
            raise ValueError(f"{file} has no list of at most {_MOST_PINPOINTS} {where}: copy or download it again.")
        check_settings(value, file, f"{where}.")


def _check_number(value: Any, largest: int, where: str, file: str) -> None:
    if type(value) is not int or not 0 < value <= largest:
        raise ValueError(
            f"{file} says {where}={reprlib.repr(value)}, which must be a whole number from 1 to {largest}: copy or download it again."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
