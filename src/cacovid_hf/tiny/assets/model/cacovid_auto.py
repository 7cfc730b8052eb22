"""The classes of this checkpoint, from the installed package cacovid-hf."""

from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration
from cacovid_hf.processing import (
    CaCoVidLlavaOnevisionProcessor,
    CaCoVidLlavaOnevisionVideoProcessor,
    CaCoVidQwen2_5_VLProcessor,
    CaCoVidQwen2VLProcessor,
    CaCoVidQwen2VLVideoProcessor,
)

__all__ = [
    "CaCoVidConfig",
    "CaCoVidForConditionalGeneration",
    "CaCoVidLlavaOnevisionProcessor",
    "CaCoVidLlavaOnevisionVideoProcessor",
    "CaCoVidQwen2VLProcessor",
    "CaCoVidQwen2VLVideoProcessor",
    "CaCoVidQwen2_5_VLProcessor",
]
