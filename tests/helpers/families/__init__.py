"""The rows that the tables of cases share: a further family is a further subclass of `Family` and its entry in `BY_NAME`.

The quick run takes `FIRST` everywhere, and the other families through a spread of the cases (see `conftest.py`); `-m slow` runs the rest.
"""

from .base import Family
from .gemma4 import Gemma4
from .glm4v import Glm4v, Glm4vMoe, Glm46V
from .llava import LlavaNextVideo, LlavaOnevision, VideoLlava
from .minicpmv4_6 import MiniCPMV46
from .perception_lm import PerceptionLM
from .qwen2 import Qwen2VL, Qwen25VL
from .qwen3 import Qwen3VL, Qwen3VLMoe, Qwen35, Qwen35Moe
from .tiles import InternVL, SmolVLM
from .video_llama_3 import VideoLlama3

BY_NAME: dict[str, Family] = {
    family.name: family
    for family in (
        LlavaOnevision(),
        Qwen25VL(),
        Qwen2VL(),
        LlavaNextVideo(),
        Qwen3VL(),
        Qwen3VLMoe(),
        Qwen35(),
        Qwen35Moe(),
        VideoLlama3(),
        InternVL(),
        SmolVLM(),
        Glm4v(),
        Glm4vMoe(),
        Glm46V(),
        Gemma4(),
        VideoLlava(),
        PerceptionLM(),
        MiniCPMV46(),
    )
}
FAMILIES = tuple(BY_NAME)
FIRST = FAMILIES[:2]
