"""Compression methods behind one interface: `generate(..., compressor="uniform")` or an instance with its settings."""

from .attention import Attention
from .base import Compression, Compressor, LayerRecord, Merged, Scores
from .baselines import Random, Uniform
from .cacovid import CaCoVid
from .check import Check
from .divprune import DivPrune
from .evs import Evs
from .fastv import FastV
from .fastvid import FastVid
from .flashvid import FlashVid
from .framefusion import FrameFusion
from .prunevid import PruneVid
from .vidcom2 import VidCom2
from .visionzip import VisionZip

COMPRESSORS: dict[str, type[Compressor]] = {
    method.name: method
    for method in (
        CaCoVid,
        Random,
        Uniform,
        Attention,
        DivPrune,
        VisionZip,
        VidCom2,
        Evs,
        FastV,
        FrameFusion,
        PruneVid,
        FastVid,
        FlashVid,
    )
}


def resolve_compressor(compressor: "str | Compressor") -> Compressor:
    """A compressor from its name (default settings) or itself; a `ValueError` lists the known names."""
    if isinstance(compressor, Compressor):
        return compressor
    if compressor not in COMPRESSORS:
        raise ValueError(
            f"compressor={compressor!r} is unknown: choose one of {', '.join(map(repr, COMPRESSORS))} or give an instance "
            "of cacovid_hf.compressors.Compressor."
        )
    return COMPRESSORS[compressor]()


__all__ = [
    "COMPRESSORS",
    "Attention",
    "CaCoVid",
    "Check",
    "Compression",
    "Compressor",
    "DivPrune",
    "Evs",
    "FastV",
    "FastVid",
    "FlashVid",
    "FrameFusion",
    "LayerRecord",
    "Merged",
    "PruneVid",
    "Random",
    "Scores",
    "Uniform",
    "VidCom2",
    "VisionZip",
    "resolve_compressor",
]
