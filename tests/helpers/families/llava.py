"""LLaVA-OneVision, LLaVA-NeXT-Video and Video-LLaVA: pixels are one row per video, frames have one size."""

from inspect import signature

import torch
from transformers import (
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from .base import IMAGE, VIDEO, Family, Part, chat_template


class LlavaOnevision(Family):
    """4 tokens per frame and a newline per video."""

    name = "llava_onevision"
    model_class = LlavaOnevisionForConditionalGeneration
    has_token_types = False
    packed_pixels = False
    mrope = False

    def config(self, text):
        return LlavaOnevisionConfig(
            vision_config=dict(
                model_type="siglip_vision_model",
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=56,
                patch_size=14,
                vision_use_head=False,
            ),
            text_config=dict(model_type="qwen2", **text),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[56, 56], [56, 112]],
        )

    def video(self, video, draw):
        count = video.frames * 4 + 1
        return Part([VIDEO] * count, [2] * count, {"pixel_values_videos": draw.noise(1, video.frames, 3, 56, 56)})

    def image(self, draw):
        count = 16 + 16 + 4
        fields = {"pixel_values": draw.noise(1, 2, 3, 56, 56), "image_sizes": torch.tensor([[56, 56]])}
        return Part([IMAGE] * count, [1] * count, fields)

    def tower(self, stock):
        return stock.model.vision_tower

    def processor(self, tokenizer):
        from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

        size = {"height": 56, "width": 56}
        return LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[56, 56], [56, 112]]),
            video_processor=LlavaOnevisionVideoProcessor(size=size),
            tokenizer=tokenizer,
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=chat_template("<video>", "<image>"),
        )


class LlavaNextVideo(LlavaOnevision):
    """4 tokens per frame, nothing behind a video; the tower's class token is left out."""

    name = "llava_next_video"
    model_class = LlavaNextVideoForConditionalGeneration

    def config(self, text):
        return LlavaNextVideoConfig(
            vision_config=dict(
                model_type="clip_vision_model",
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=56,
                patch_size=14,
                projection_dim=32,
            ),
            text_config=dict(model_type="llama", **text),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[56, 56], [56, 112]],
        )

    def video(self, video, draw):
        count = video.frames * 4
        return Part([VIDEO] * count, [2] * count, {"pixel_values_videos": draw.noise(1, video.frames, 3, 56, 56)})

    def processor(self, tokenizer):
        from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

        sizes = dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        return LlavaNextVideoProcessor(
            image_processor=LlavaNextImageProcessor(**sizes, image_grid_pinpoints=[[56, 56], [56, 112]]),
            video_processor=LlavaNextVideoVideoProcessor(**sizes),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat_template("<video>", "<image>"),
        )

    def pooled(self, stock, patches, grid):
        return stock.model.vision_resampler(patches[None, 1:, None])[0, :, 0]


class VideoLlava(LlavaNextVideo):
    """17 tokens per frame, the tower's class token the first of them; nothing behind a video. Videos have a tower of their own."""

    name = "video_llava"
    model_class = VideoLlavaForConditionalGeneration
    # Older versions of transformers have another name for it.
    takes = signature(VideoLlavaForConditionalGeneration.forward).parameters
    image_pixels = "pixel_values" if "pixel_values" in takes else "pixel_values_images"

    def config(self, text):
        return VideoLlavaConfig(
            vision_config=dict(
                model_type="clip_vision_model",
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=56,
                patch_size=14,
                projection_dim=32,
            ),
            text_config=dict(model_type="llama", **text),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )

    def video(self, video, draw):
        count = video.frames * 17
        return Part([VIDEO] * count, [2] * count, {"pixel_values_videos": draw.noise(1, video.frames, 3, 56, 56)})

    def image(self, draw):
        return Part([IMAGE] * 16, [1] * 16, {self.image_pixels: draw.noise(1, 3, 56, 56)})

    def tower(self, stock):
        return stock.model.video_tower

    def processor(self, tokenizer):
        from transformers import VideoLlavaImageProcessor, VideoLlavaProcessor, VideoLlavaVideoProcessor

        sizes = dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        return VideoLlavaProcessor(
            image_processor=VideoLlavaImageProcessor(**sizes),
            video_processor=VideoLlavaVideoProcessor(**sizes),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat_template("<video>", "<image>"),
        )

    def pooled(self, stock, patches, grid):
        return patches
