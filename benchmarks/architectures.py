"""The published shapes with random weights, and a prompt with one video for each.

Shapes are those of the checkpoints' `config.json`; weights are random, so speed and memory can be measured and answers mean nothing.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

SIGLIP_SO400M = dict(
    model_type="siglip_vision_model",
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=26,  # the last of SigLIP's 27 is cut off
    num_attention_heads=16,
    image_size=384,
    patch_size=14,
    vision_use_head=False,
)
QWEN_VISION = dict(
    hidden_size=1280,
    intermediate_size=3420,
    depth=32,
    num_heads=16,
    patch_size=14,
    spatial_merge_size=2,
    temporal_patch_size=2,
    window_size=112,
    fullatt_block_indexes=[7, 15, 23, 31],
    tokens_per_second=2,
)
ROPE = {"rope_type": "default", "rope_theta": 1e6}
MROPE = {**ROPE, "mrope_section": [16, 24, 24]}


@dataclass(frozen=True)
class Architecture:
    """A published checkpoint's shape.

    Attributes:
        checkpoint: whose shape it is.
        model_type: the family.
        text: settings of the language model's config.
        vision: settings of the vision tower's config.
        tied: whether input and output embeddings are one matrix.
        side: height and width in pixels of the frames that are measured; 14 x 14 tokens a frame (Qwen2.5-VL: every two frames) for the
            published shapes.
    """

    checkpoint: str
    model_type: str
    text: dict[str, Any]
    vision: dict[str, Any] = field(repr=False)
    tied: bool
    side: int

    def config(self, layers: int | None = None) -> PreTrainedConfig:
        """The config, with `layers` language-model layers if given."""
        text = {**self.text, "tie_word_embeddings": self.tied}
        if layers is not None:
            text["num_hidden_layers"] = layers
        text["max_window_layers"] = text["num_hidden_layers"]
        if self.model_type == "llava_onevision":
            text["model_type"] = "qwen2"
            tokens = {"image_token_index": text["vocab_size"] - 2, "video_token_index": text["vocab_size"] - 1}
        else:
            names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
            tokens = {name: text["vocab_size"] - 1 - i for i, name in enumerate(names)}
        return AutoConfig.for_model(
            self.model_type, text_config=text, vision_config=self.vision, tie_word_embeddings=self.tied, **tokens
        )


def _qwen2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, rope: dict) -> dict:
    return dict(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=32768,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
    )


ARCHITECTURES = {
    "llava-onevision-0.5b": Architecture(
        checkpoint="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        model_type="llava_onevision",
        text=_qwen2(896, 4864, 24, 14, 2, 152000, ROPE),
        vision=SIGLIP_SO400M,
        tied=True,
        side=384,
    ),
    "llava-onevision-7b": Architecture(
        checkpoint="llava-hf/llava-onevision-qwen2-7b-ov-hf",
        model_type="llava_onevision",
        text=_qwen2(3584, 18944, 28, 28, 4, 152128, ROPE),
        vision=SIGLIP_SO400M,
        tied=False,
        side=384,
    ),
    "qwen2.5-vl-3b": Architecture(
        checkpoint="Qwen/Qwen2.5-VL-3B-Instruct",
        model_type="qwen2_5_vl",
        text=_qwen2(2048, 11008, 36, 16, 2, 151936, MROPE),
        vision={**QWEN_VISION, "out_hidden_size": 2048},
        tied=True,
        side=392,
    ),
    "qwen2.5-vl-7b": Architecture(
        checkpoint="Qwen/Qwen2.5-VL-7B-Instruct",
        model_type="qwen2_5_vl",
        text=_qwen2(3584, 18944, 28, 28, 4, 152064, MROPE),
        vision={**QWEN_VISION, "out_hidden_size": 3584},
        tied=False,
        side=392,
    ),
    # Of no checkpoint: to try the benchmark itself within seconds.
    "tiny-llava-onevision": Architecture(
        checkpoint="none (a tiny shape)",
        model_type="llava_onevision",
        text=_qwen2(64, 96, 3, 4, 2, 120, ROPE),
        vision=dict(
            SIGLIP_SO400M,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=84,
        ),
        tied=True,
        side=84,
    ),
    "tiny-qwen2.5-vl": Architecture(
        checkpoint="none (a tiny shape)",
        model_type="qwen2_5_vl",
        text=_qwen2(64, 96, 3, 4, 2, 120, {**ROPE, "mrope_section": [2, 3, 3]}),
        vision=dict(
            QWEN_VISION,
            hidden_size=32,
            intermediate_size=64,
            depth=2,
            num_heads=2,
            window_size=56,
            fullatt_block_indexes=[1],
            out_hidden_size=64,
        ),
        tied=True,
        side=84,
    ),
}


def build_backbone(
    architecture: Architecture, layers: int | None, dtype: torch.dtype, device: torch.device, attention: str
) -> PreTrainedModel:
    """A stock model with random weights, made in `dtype` on `device`."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(
            architecture.config(layers), dtype=dtype, attn_implementation=attention
        )
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model.to(device).eval()


def build_inputs(
    model: PreTrainedModel, architecture: Architecture, frames: int, text_before: int, text_after: int, rows: int = 1
) -> dict[str, Tensor]:
    """What a processor returns for `rows` prompts of one video between `text_before` and `text_after` text tokens; pixels are noise, text is random.

    Raises:
        ValueError: a number of frames that the family cannot take.
    """
    config, side = model.config, architecture.side
    patch = config.vision_config.patch_size
    generator = torch.Generator().manual_seed(0)
    if architecture.model_type == "llava_onevision":
        tokens_side = -(-(side // patch) // 2)
        placeholders = [config.video_token_id] * (frames * tokens_side**2 + 1)
        inputs = {"pixel_values_videos": torch.randn(rows, frames, 3, side, side, generator=generator)}
    else:
        vision = config.vision_config
        if frames % vision.temporal_patch_size:
            raise ValueError(
                f"frames={frames} is odd, and Qwen2.5-VL merges frames two by two: give an even number of frames."
            )
        steps, patches = frames // vision.temporal_patch_size, side // patch
        tokens = steps * (patches // vision.spatial_merge_size) ** 2
        placeholders = [config.vision_start_token_id, *[config.video_token_id] * tokens, config.vision_end_token_id]
        pixels = torch.randn(rows * steps * patches**2, 3 * vision.temporal_patch_size * patch**2, generator=generator)
        inputs = {
            "pixel_values_videos": pixels,
            "video_grid_thw": torch.tensor([[steps, patches, patches]] * rows),
            "second_per_grid_ts": torch.tensor([1.0] * rows),
        }
    texts = torch.randint(5, 100, (rows, text_before + text_after), generator=generator).tolist()
    ids = torch.tensor([[*text[:text_before], *placeholders, *text[text_before:]] for text in texts])
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if architecture.model_type == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = (ids == config.video_token_id).long() * 2
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(model.dtype)
    return {name: value.to(model.device) for name, value in inputs.items()}
