"""The classes of this checkpoint, from the installed package cacovid-hf."""

from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration
from cacovid_hf.processing import CaCoVidLlavaOnevisionVideoProcessor, CaCoVidQwen2VLVideoProcessor

__all__ = [
    "CaCoVidConfig",
    "CaCoVidForConditionalGeneration",
    "CaCoVidLlavaOnevisionVideoProcessor",
    "CaCoVidQwen2VLVideoProcessor",
]
