"""CaCoVID for transformers: video language models that read only the video tokens that contribute to the answer.

Importing this package tells transformers' Auto classes of its config, model and video processors.
"""

from ._compat import warn_of_newer_transformers
from .compressors import Compressor
from .compressors.tools.selection import select_tokens
from .configuration import CaCoVidConfig
from .generation.output import CaCoVidOutput
from .generation.session import VideoSession
from .generation.stream.stream import VideoStream
from .modeling import CaCoVidForConditionalGeneration
from .policies.full import ContributionPolicy
from .policies.light import LightPolicy
from .policies.residual import ResidualPolicy
from .processing import with_video_reader
from .prompt import CompressedPrompt, EncodedVideos, VideoSelection
from .ratio import AutoBudget
from .utils.version import VERSION
from .video.files import read_video

__version__ = VERSION
__all__ = [
    "AutoBudget",
    "CaCoVidConfig",
    "CaCoVidForConditionalGeneration",
    "CaCoVidOutput",
    "CompressedPrompt",
    "Compressor",
    "ContributionPolicy",
    "EncodedVideos",
    "LightPolicy",
    "ResidualPolicy",
    "VideoSelection",
    "VideoSession",
    "VideoStream",
    "__version__",
    "read_video",
    "select_tokens",
    "with_video_reader",
]

warn_of_newer_transformers()
