"""Qwen3-VL and Qwen3.5, with and without experts: a time before every temporal step."""

from typing import Any, ClassVar

import torch
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from .base import TEXT, VIDEO, VISION_END, VISION_START, Part, amplify_experts, chat_template
from .qwen2 import Qwen2VL


class Qwen3VL(Qwen2VL):
    """As Qwen2-VL, with three words and marks of its own around every temporal step, and DeepStack features of two layers."""

    name = "qwen3_vl"
    model_class = Qwen3VLForConditionalGeneration
    config_class = Qwen3VLConfig
    patch = 16
    vision: ClassVar[dict[str, Any]] = dict(
        hidden_size=32,
        intermediate_size=64,
        depth=3,
        num_heads=2,
        patch_size=16,
        spatial_merge_size=2,
        temporal_patch_size=2,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    )
    rope: ClassVar[dict[str, Any]] = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    text: ClassVar[dict[str, Any]] = dict(head_dim=16)

    def config(self, text):
        return super().config({**self.text, **text})

    def vision_config(self, size):
        return dict(out_hidden_size=size, **self.vision)

    def video(self, video, draw):
        count = video.height * video.width
        ids: list[int] = []
        for _ in range(video.frames):
            ids += [*draw.words(3), VISION_START, *[VIDEO] * count, VISION_END]
        ids = [VISION_START, *ids, VISION_END]
        return Part(ids, [2 if token == VIDEO else 0 for token in ids], self.pixels(video, draw))

    def amplify(self, stock):
        """A freshly initialised merger makes features that no answer depends on."""
        for weight in stock.model.visual.deepstack_merger_list.parameters():
            weight.normal_(std=0.3)

    def processor(self, tokenizer):
        from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

        marked = "<|vision_start|>{}<|vision_end|>"
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(
                size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96}, patch_size=16
            ),
            video_processor=Qwen3VLVideoProcessor(
                size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96 * 16}, cap_pixels_per_frame=False
            ),
            tokenizer=tokenizer,
            chat_template=chat_template(marked.format("<video>"), marked.format("<image>")),
        )

    def beside(self, stock, found, row, places, made):
        new = len(made)
        mask, layers = found["visual_pos_masks"], found["deepstack_visual_embeds"]
        if layers is None:
            return {}
        numbers = (mask.flatten().cumsum(0) - 1).view_as(mask)[row, places]
        is_vision = mask[row, places]
        return {
            "visual_pos_masks": torch.cat([is_vision, is_vision.new_zeros(new)])[None],
            "deepstack_visual_embeds": [layer[numbers[is_vision]] for layer in layers],
        }


class Qwen3VLMoe(Qwen3VL):
    """With experts."""

    name = "qwen3_vl_moe"
    model_class = Qwen3VLMoeForConditionalGeneration
    config_class = Qwen3VLMoeConfig
    text: ClassVar[dict[str, Any]] = dict(
        head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
    )

    def amplify(self, stock):
        super().amplify(stock)
        amplify_experts(stock)


class Qwen35(Qwen3VL):
    """As Qwen3-VL, without DeepStack; two layers of linear attention in front of one that attends."""

    name = "qwen3_5"
    model_class = Qwen3_5ForConditionalGeneration
    config_class = Qwen3_5Config
    vision: ClassVar[dict[str, Any]] = {
        **{name: value for name, value in Qwen3VL.vision.items() if name != "deepstack_visual_indexes"},
        "depth": 2,
    }
    rope: ClassVar[dict[str, Any]] = {
        "rope_type": "default",
        "rope_theta": 1e7,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    }
    text: ClassVar[dict[str, Any]] = dict(
        head_dim=16,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    attends = False
    cuts_inside = False
    cuts_cache = False

    def config(self, text):
        layers = text.get("num_hidden_layers", TEXT["num_hidden_layers"])
        types = ["full_attention" if number % 3 == 2 else "linear_attention" for number in range(layers)]
        return super().config({"layer_types": types, **text})

    def amplify(self, stock):
        """States that forget slowly, so that answers depend on the whole prompt."""
        for name, weight in stock.named_parameters():
            if name.endswith("A_log"):
                weight.fill_(-4.0)

    def beside(self, stock, found, row, places, made):
        return {}


class Qwen35Moe(Qwen35):
    """With experts."""

    name = "qwen3_5_moe"
    model_class = Qwen3_5MoeForConditionalGeneration
    config_class = Qwen3_5MoeConfig
    text: ClassVar[dict[str, Any]] = dict(
        **Qwen35.text,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )

    def config(self, text):
        return super().config({name: value for name, value in text.items() if name != "intermediate_size"})

    def amplify(self, stock):
        super().amplify(stock)
        amplify_experts(stock)
