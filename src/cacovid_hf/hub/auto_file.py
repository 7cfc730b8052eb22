"""The file of a checkpoint by which the Auto classes find this package where it is installed and not imported."""

# The file of a checkpoint by which the Auto classes find this package where it is installed and not imported (with `trust_remote_code=True`).
AUTO_MODULE = "cacovid_auto"


AUTO_SOURCE = '''"""The classes of this checkpoint, from the installed package cacovid-hf."""

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
'''
