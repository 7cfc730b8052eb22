"""The file of a checkpoint by which the Auto classes find this package where it is installed and not imported."""

# The file of a checkpoint by which the Auto classes find this package where it is installed and not imported (with `trust_remote_code=True`).
AUTO_MODULE = "cacovid_auto"


AUTO_SOURCE = '''"""The classes of this checkpoint, from the installed package cacovid-hf."""

from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration, processing, video_processing

__all__ = ["CaCoVidConfig", "CaCoVidForConditionalGeneration"]


def __getattr__(name):
    """The processor or video processor that the checkpoint names."""
    return getattr(video_processing if hasattr(video_processing, name) else processing, name)
'''
