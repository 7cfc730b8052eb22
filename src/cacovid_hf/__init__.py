"""CaCoVID for transformers: video language models that read only the video tokens that contribute to the answer."""

import importlib
from typing import TYPE_CHECKING

from ._registration import register

__version__ = "0.1.0"

_EXPORTS = {
    "AutoBudget": "ratio",
    "CaCoVidConfig": "configuration",
    "CaCoVidForConditionalGeneration": "modeling",
    "CaCoVidOutput": "modeling",
    "CompressedPrompt": "prompt",
    "EncodedVideos": "prompt",
    "Compressor": "compressors",
    "ContributionPolicy": "policies.full",
    "LightPolicy": "policies.light",
    "VideoSelection": "prompt",
    "VideoSession": "generation.session",
    "read_video": "video.files",
    "select_tokens": "compressors.tools.selection",
    "with_video_reader": "processing",
}
__all__ = [
    "AutoBudget",
    "CaCoVidConfig",
    "CaCoVidForConditionalGeneration",
    "CaCoVidOutput",
    "CompressedPrompt",
    "Compressor",
    "ContributionPolicy",
    "EncodedVideos",
    "LightPolicy",
    "VideoSelection",
    "VideoSession",
    "__version__",
    "read_video",
    "select_tokens",
    "with_video_reader",
]

if TYPE_CHECKING:
    from .compressors import Compressor
    from .compressors.tools.selection import select_tokens
    from .configuration import CaCoVidConfig
    from .generation.session import VideoSession
    from .modeling import CaCoVidForConditionalGeneration, CaCoVidOutput
    from .policies.full import ContributionPolicy
    from .policies.light import LightPolicy
    from .processing import with_video_reader
    from .prompt import CompressedPrompt, EncodedVideos, VideoSelection
    from .ratio import AutoBudget
    from .video.files import read_video


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


register()
