"""Compression methods behind one interface: `generate(..., compressor="uniform")` or an instance with its settings."""

# What is imported here is public.
# ruff: noqa: F401

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
from .registry import COMPRESSORS, resolve_compressor
from .simplecluster import SimpleCluster
from .streamingtom import StreamingTom
from .vcast import VCast
from .vidcom2 import VidCom2
from .visionzip import VisionZip

# Every method imported above, by its name.
COMPRESSORS.update(
    (kind.name, kind)
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Compressor) and kind not in (Compressor, ScoreCompressor)
)
