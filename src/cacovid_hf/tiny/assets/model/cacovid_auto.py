"""The classes of this checkpoint, from the installed package cacovid-hf."""

from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration

__all__ = ["CaCoVidConfig", "CaCoVidForConditionalGeneration"]
