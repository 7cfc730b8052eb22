"""Perception LM: pixels are one row per video, frames have one size, the tower is one of timm."""

import pytest
import torch
from transformers import PerceptionLMConfig, PerceptionLMForConditionalGeneration

from .base import IMAGE, VIDEO, Family, Part, chat_template


class PerceptionLM(Family):
    """4 tokens per frame, pooled two by two from 16 patches behind a class token; nothing behind a video."""

    name = "perception_lm"
    model_class = PerceptionLMForConditionalGeneration
    has_token_types = False
    packed_pixels = False
    mrope = False
    tower_kernels = False
    # Its wrapper moves pixels to the device of its weights, which from disk have none.
    held = ("model.vision_tower",)

    def config(self, text):
        pytest.importorskip("timm", reason="Perception LM's vision tower is one of timm")
        return PerceptionLMConfig(
            vision_config=dict(
                model_type="timm_wrapper",
                architecture="vit_pe_lang_large_patch14_448",
                model_args=dict(
                    embed_dim=32,
                    depth=2,
                    num_heads=2,
                    img_size=[56, 56],
                    ref_feat_shape=[4, 4],
                    global_pool="",
                    init_values=0.1,
                    use_post_transformer_norm=False,
                ),
            ),
            text_config=dict(model_type="llama", **text),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            projector_pooling_ratio=2,
        )

    def video(self, video, draw):
        count = video.frames * 4
        return Part([VIDEO] * count, [2] * count, {"pixel_values_videos": draw.noise(1, video.frames, 3, 56, 56)})

    def image(self, draw):
        """Its whole and one tile."""
        return Part([IMAGE] * 8, [1] * 8, {"pixel_values": draw.noise(1, 2, 3, 56, 56)})

    def tower(self, stock):
        return stock.model.vision_tower

    def tower_maps(self, stock, inputs):
        """Those that the last block drops from, on the path of timm that makes them."""
        attends, maps = self.tower(stock).timm_model.blocks[-1].attn, []
        attends.fused_attn = False
        noted = attends.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0]))
        try:
            self.tower(stock)(self.frame_pixels(inputs))
        finally:
            noted.remove()
            attends.fused_attn = True
        return list(maps[-1])

    def amplify(self, stock):
        """The scales of the tower's blocks, without which a frame's patches hardly see each other."""
        for name, weight in self.tower(stock).named_parameters():
            if "gamma" in name:
                torch.nn.init.ones_(weight)

    def processor(self, tokenizer):
        from transformers import PerceptionLMImageProcessor, PerceptionLMProcessor, PerceptionLMVideoProcessor

        return PerceptionLMProcessor(
            image_processor=PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4),
            video_processor=PerceptionLMVideoProcessor(size={"height": 56, "width": 56}),
            tokenizer=tokenizer,
            patch_size=14,
            pooling_ratio=2,
            chat_template=chat_template("<video>", "<image>"),
        )

    def pooled(self, stock, patches, grid):
        return stock.model.multi_modal_projector.pooling(patches[None, 1:, None])[0, :, 0]
