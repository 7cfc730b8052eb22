"""The supported families of backbones, one small file each."""

from .._compat import older_transformers
from .base import Backbone
from .gemma4 import Gemma4Backbone
from .glm4v import Glm4vBackbone, Glm4vMoeBackbone, Glm46VBackbone
from .internvl import InternVLBackbone
from .llava_next_video import LlavaNextVideoBackbone
from .llava_onevision import LlavaOnevisionBackbone
from .minicpmv4_6 import MiniCPMV46Backbone
from .perception_lm import PerceptionLMBackbone
from .qwen2_5_vl import Qwen2_5_VLBackbone
from .qwen2_vl import Qwen2VLBackbone
from .qwen3_5 import Qwen3_5Backbone, Qwen3_5MoeBackbone
from .qwen3_vl import Qwen3VLBackbone, Qwen3VLMoeBackbone
from .smolvlm import SmolVLMBackbone
from .video_llama_3 import VideoLlama3Backbone
from .video_llava import VideoLlavaBackbone

BACKBONES: dict[str, Backbone] = {
    family.model_type: family
    for family in (
        LlavaOnevisionBackbone(),
        Qwen2_5_VLBackbone(),
        Qwen2VLBackbone(),
        LlavaNextVideoBackbone(),
        Qwen3VLBackbone(),
        Qwen3VLMoeBackbone(),
        Qwen3_5Backbone(),
        Qwen3_5MoeBackbone(),
        VideoLlama3Backbone(),
        InternVLBackbone(),
        SmolVLMBackbone(),
        Glm4vBackbone(),
        Glm4vMoeBackbone(),
        Glm46VBackbone(),
        Gemma4Backbone(),
        VideoLlavaBackbone(),
        PerceptionLMBackbone(),
        MiniCPMV46Backbone(),
    )
}


def backbone_family(config) -> Backbone:
    """Return the family of a backbone's config.

    Raises:
        ValueError: one that is not supported, with a list of those that are, or not on the installed transformers.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in BACKBONES:
        raise ValueError(
            f"Backbone family {model_type!r} is not supported: use one of {', '.join(BACKBONES)} "
            "(CONTRIBUTING.md says how to add a family)."
        )
    family = BACKBONES[model_type]
    if family.since is not None and (installed := older_transformers(family.since)):
        raise ValueError(
            f"Backbone family {model_type!r} needs transformers {family.since} or newer, and {installed} is installed. Upgrade transformers."
        )
    return family


__all__ = ["BACKBONES", "Backbone", "backbone_family"]
