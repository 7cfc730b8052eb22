"""Compression methods behind one interface: `generate(..., compressor="uniform")` or an instance with its settings."""

from .base import Compression, Compressor, Merged, Scores
from .baselines import Random, Uniform
from .cacovid import CaCoVid
from .check import Check
from .divprune import DivPrune
from .evs import Evs
from .vidcom2 import VidCom2

COMPRESSORS: dict[str, type[Compressor]] = {
    method.name: method
    for method in (
        CaCoVid,
        Random,
        Uniform,
        DivPrune,
        VidCom2,
        Evs,
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
    "CaCoVid",
    "Check",
    "Compression",
    "Compressor",
    "DivPrune",
    "Evs",
    "Merged",
    "Random",
    "Scores",
    "Uniform",
    "VidCom2",
    "resolve_compressor",
]
