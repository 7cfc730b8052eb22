"""VideoLLaMA3: patches, and a time before every frame."""

import torch
from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

from .base import COLON, COMMA, IMAGE, TIME, VIDEO, Part, chat_template
from .qwen2 import Qwen2VL


class VideoLlama3(Qwen2VL):
    """A token per 2 x 2 patches and a time before every frame; images are not merged. Positions are the places."""

    name = "video_llama_3"
    model_class = VideoLlama3ForConditionalGeneration
    has_token_types = False
    mrope = False
    keeps_logits = False

    def config(self, text):
        return VideoLlama3Config(
            vision_config=dict(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=14
            ),
            text_config=dict(model_type="qwen2", **text),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )

    def video(self, video, draw):
        count = video.height * video.width
        ids: list[int] = []
        for frame in range(video.frames):
            ids += [*([COMMA] if frame else []), TIME, *draw.words(2), COLON, *[VIDEO] * count]
        fields = {
            "pixel_values_videos": draw.noise(4 * count * video.frames, 3 * 14**2),
            "video_grid_thw": torch.tensor([[video.frames, video.height * 2, video.width * 2]]),
            "video_merge_sizes": torch.tensor([2]),
            "video_compression_mask": torch.ones(count * video.frames, dtype=torch.bool),
        }
        return Part(ids, [2 if token == VIDEO else 0 for token in ids], fields)

    def image(self, draw):
        fields = {
            "pixel_values": draw.noise(16, 3 * 14**2),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "image_merge_sizes": torch.tensor([1]),
        }
        return Part([IMAGE] * 16, [1] * 16, fields)

    def tower(self, stock):
        return stock.model.vision_model

    def last_attention(self, stock):
        return self.tower(stock).encoder.layers[-1].self_attn

    def positions(self, stock, inputs, places):
        return places

    def processor(self, tokenizer):
        from transformers import VideoLlama3ImageProcessor, VideoLlama3Processor, VideoLlama3VideoProcessor

        return VideoLlama3Processor(
            image_processor=VideoLlama3ImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84}),
            video_processor=VideoLlama3VideoProcessor(
                size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84 * 16}, use_token_compression=False
            ),
            tokenizer=tokenizer,
            chat_template=chat_template("<video>", "<image>"),
        )
