"""Compression methods behind one interface: `generate(..., compressor="uniform")` or an instance with its settings."""

# What is imported here is public.
# ruff: noqa: F401

from ..policies.settings import SelectionConfig
from .attention import Attention
from .base import Compression, Compressor, LayerRecord, Merged, ScoreCompressor, Scores
from .baselines import Random, Uniform
from .cacovid import CaCoVid
from .check import Check
from .divprune import DivPrune
from .evs import Evs
from .fastv import FastV
from .fastvid import FastVid
from .flashvid import FlashVid
from .frame_prior import FramePrior
from .framefusion import FrameFusion
from .gleanvid import GleanVid
from .infomerge import InfoMerge
from .marc import Marc
from .prunevid import PruneVid
from .simplecluster import SimpleCluster
from .streamingtom import StreamingTom
from .vcast import VCast
from .vidcom2 import VidCom2
from .visionzip import VisionZip

# Every method imported above, by its name.
COMPRESSORS: dict[str, type[Compressor]] = {
    kind.name: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Compressor) and kind not in (Compressor, ScoreCompressor)
}


def resolve_compressor(compressor: "str | Compressor | None", config: SelectionConfig | None = None) -> Compressor:
    """Return a compressor from its name (default settings) or itself; a `ValueError` lists the known names.

    None and `"cacovid"` are the policy, with the settings of a config if one is given.
    """
    if isinstance(compressor, Compressor):
        return compressor
    if compressor is None or compressor == CaCoVid.name:
        return CaCoVid() if config is None else CaCoVid(config.contribution_share, config.frame_cap, config.scope)
    if compressor not in COMPRESSORS:
        raise ValueError(
            f"compressor={compressor!r} is unknown: choose one of {', '.join(map(repr, COMPRESSORS))} or give an instance "
            "of cacovid_hf.compressors.Compressor."
        )
    return COMPRESSORS[compressor]()
