"""What published checkpoints of every family say of videos, and what that makes of a file: facts, from the files of checkpoints or the defaults of stock classes."""

from dataclasses import dataclass, field
from typing import Any

import transformers
from helpers.models import BY_NAME, TEXT
from helpers.processors import tiny_processor


@dataclass(frozen=True)
class Published:
    """What a checkpoint says.

    Attributes:
        reader: name of its stock video processor.
        video: settings of that.
        per_step: frames of a temporal step.
        tokens: of a temporal step of 320 x 180 pixels, by these settings.
        rate: frames a second that the stock rule is called with, where neither call nor settings say any.
        seconds: frames that it takes of files of 25 frames a second, by their seconds; empty: the caller says how many.
        processor: what the whole processor knows beside it.
        model: settings of the model's config that follow from it.
    """

    reader: str
    video: dict[str, Any]
    per_step: int
    tokens: int
    rate: dict[str, float] = field(default_factory=dict)
    seconds: dict[float, int] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


GLM = dict(size={"shortest_edge": 12544, "longest_edge": 47040000}, patch_size=14, temporal_patch_size=2, merge_size=2)
QWEN2 = dict(patch_size=14, temporal_patch_size=2, merge_size=2, min_frames=4, max_frames=768)
QWEN3 = Published(
    "Qwen3VLVideoProcessor",
    dict(
        size={"longest_edge": 25165824, "shortest_edge": 4096},
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        fps=2,
        min_frames=4,
        max_frames=768,
    ),
    per_step=2,
    tokens=10 * 6,
    seconds={1.0: 4, 60.0: 120, 3600.0: 768},
)
GLM4V = Published(
    "Glm4vVideoProcessor",
    dict(GLM, fps=2, max_duration=300),
    per_step=2,
    tokens=11 * 6,
    seconds={1.0: 2, 60.0: 120, 3600.0: 600},
)
PUBLISHED = {
    "llava_onevision": Published(
        "LlavaOnevisionVideoProcessor",
        dict(size={"height": 384, "width": 384}),
        per_step=1,
        tokens=14 * 14,
        processor=dict(num_image_tokens=729),
        model={"vision_config.image_size": 384},
    ),
    "qwen2_vl": Published("Qwen2VLVideoProcessor", QWEN2, per_step=2, tokens=16 * 9),
    "qwen2_5_vl": Published("Qwen2VLVideoProcessor", QWEN2, per_step=2, tokens=16 * 9),
    "qwen3_vl": QWEN3,
    "qwen3_vl_moe": QWEN3,
    "qwen3_5": QWEN3,
    "qwen3_5_moe": QWEN3,
    "llava_next_video": Published(
        "LlavaNextVideoVideoProcessor",
        dict(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        per_step=1,
        tokens=12 * 12,
        model={"vision_config.image_size": 336},
    ),
    "video_llava": Published(
        "VideoLlavaVideoProcessor",
        dict(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
        per_step=1,
        tokens=1 + 16 * 16,
        model={"vision_config.image_size": 224},
    ),
    # Of Perception-LM-1B and 3B; the tower of 8B is larger, without a class token, and makes as many tokens.
    "perception_lm": Published(
        "PerceptionLMVideoProcessor",
        dict(size={"height": 448, "width": 448}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]),
        per_step=1,
        tokens=16 * 16,
        processor=dict(patch_size=14, pooling_ratio=2),
        model={
            "vision_config.model_args": dict(
                img_size=[448, 448],
                ref_feat_shape=[32, 32],
                global_pool="",
                init_values=0.1,
                use_post_transformer_norm=False,
                embed_dim=32,
                depth=2,
                num_heads=2,
            )
        },
    ),
    "video_llama_3": Published(
        "VideoLlama3VideoProcessor",
        dict(
            size={"shortest_edge": 100352, "longest_edge": 602112},
            patch_size=14,
            temporal_patch_size=1,
            merge_size=2,
            min_frames=4,
            max_frames=180,
            use_token_compression=True,
        ),
        per_step=1,
        tokens=16 * 9,
        rate={"fps": 1},
        seconds={1.0: 4, 60.0: 60, 3600.0: 180},
    ),
    "internvl": Published(
        "InternVLVideoProcessor",
        dict(size={"height": 448, "width": 448}, initial_shift=True),
        per_step=1,
        tokens=256,
        processor=dict(image_seq_length=256),
        model={"vision_config.image_size": [448, 448], "image_seq_length": 256},
    ),
    "smolvlm": Published(
        "SmolVLMVideoProcessor",
        dict(
            size={"longest_edge": 2048},
            max_image_size={"longest_edge": 512},
            video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 2048}},
        ),
        per_step=1,
        tokens=64,
        seconds={3.0: 3, 60.0: 60, 3600.0: 64},
        processor=dict(image_seq_len=64),
        model={"vision_config.image_size": 512, "vision_config.patch_size": 16, "scale_factor": 4},
    ),
    "glm4v": GLM4V,
    "glm4v_moe": GLM4V,
    "glm46v": Published(
        "Glm46VVideoProcessor", GLM, per_step=2, tokens=11 * 6, seconds={1.0: 6, 60.0: 120, 3600.0: 640}
    ),
    "minicpmv4_6": Published(
        "MiniCPMV4_6VideoProcessor",
        dict(scale_resolution=448, patch_size=14, max_num_frames=128, stack_frames=1, downsample_mode="16x"),
        per_step=1,
        tokens=11 * 6,
        seconds={1.0: 1, 60.0: 60, 3600.0: 128},
    ),
    "gemma4": Published(
        "Gemma4VideoProcessor",
        dict(
            num_frames=32,
            patch_size=16,
            pooling_kernel_size=3,
            max_soft_tokens=70,
            image_mean=[0.0, 0.0, 0.0],
            image_std=[1.0, 1.0, 1.0],
        ),
        per_step=1,
        tokens=11 * 6,
        seconds={2.0: 32, 60.0: 32, 3600.0: 32},
    ),
}


def published_processor(family: str):
    """The family's stock processor with the settings of a checkpoint and a tiny tokenizer."""
    known, processor = PUBLISHED[family], tiny_processor(family)
    processor.video_processor = getattr(transformers, known.reader)(**known.video)
    for name, value in known.processor.items():
        setattr(processor, name, value)
    return processor


def published_model(family: str):
    """A random model whose vision tower takes what such a processor gives."""
    known, row = PUBLISHED[family], BY_NAME[family]
    config = row.config(TEXT)
    for name, value in known.model.items():
        place, _, setting = name.rpartition(".")
        setattr(getattr(config, place) if place else config, setting, value)
    return row.model_class(config).eval()
