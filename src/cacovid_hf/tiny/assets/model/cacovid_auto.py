"""The classes of this checkpoint, from the installed package cacovid-hf."""

from .... import CaCoVidConfig, CaCoVidForConditionalGeneration
from ....processing import CaCoVidLlavaOnevisionVideoProcessor, CaCoVidQwen2VLVideoProcessor

__all__ = [
    "CaCoVidConfig",
    "CaCoVidForConditionalGeneration",
    "CaCoVidLlavaOnevisionVideoProcessor",
    "CaCoVidQwen2VLVideoProcessor",
]
