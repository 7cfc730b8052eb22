"""Qwen3.5, which serves Qwen3.6 too: the prompts of Qwen3-VL without DeepStack. Three of four layers are linear attention.

Such a layer reads every token into one state. A token that is dropped never enters it; one that is masked still would.
"""

from typing import ClassVar

from .qwen3_vl import Qwen3VLBackbone


class Qwen3_5Backbone(Qwen3VLBackbone):
    """`Qwen3_5ForConditionalGeneration`."""

    model_type = "qwen3_5"
    extra_names: ClassVar[tuple[str, ...]] = ()

    def extra_width(self, config) -> int:
        """None: there are no DeepStack features."""
        return 0


class Qwen3_5MoeBackbone(Qwen3_5Backbone):
    """`Qwen3_5MoeForConditionalGeneration`."""

    model_type = "qwen3_5_moe"
