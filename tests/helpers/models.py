"""Tiny random models of every family, and prompts for them: the rows that the tables of cases share."""

from dataclasses import dataclass

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

FAMILIES = ("llava_onevision", "qwen2_5_vl")
PAD, BOS, EOS, VISION_START, VISION_END, IMAGE, VIDEO = 0, 1, 2, 3, 4, 110, 111
TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=120,
    bos_token_id=BOS,
    eos_token_id=EOS,
    pad_token_id=PAD,
    tie_word_embeddings=False,
)


def stock_model(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text):
    """A random stock model whose answers depend on its whole prompt (weights larger than the usual initialisation)."""
    torch.manual_seed(seed)
    if family == "llava_onevision":
        config = LlavaOnevisionConfig(
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
            text_config=dict(model_type="qwen2", **{**TEXT, **text}),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[56, 56], [56, 112]],
        )
        kind = LlavaOnevisionForConditionalGeneration
    else:
        config = Qwen2_5_VLConfig(
            vision_config=dict(
                hidden_size=32,
                intermediate_size=64,
                depth=2,
                num_heads=2,
                patch_size=14,
                spatial_merge_size=2,
                temporal_patch_size=2,
                window_size=56,
                out_hidden_size={**TEXT, **text}["hidden_size"],
                fullatt_block_indexes=[1],
                tokens_per_second=2,
            ),
            text_config=dict(
                rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
                **{**TEXT, **text},
            ),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
        )
        kind = Qwen2_5_VLForConditionalGeneration
    config._attn_implementation = attention
    model = kind(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "language_model.layers" in name:
                weight.normal_(std=0.2)
        model.lm_head.weight.normal_(std=0.5)
        model.get_input_embeddings().weight.normal_(std=1.0)
    model.to(dtype)
    # No end of text, so that every case decodes its full length.
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    # Placeholders that stand for no pixels are an error of the stock model without a cache.
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]
    return model


@dataclass(frozen=True)
class Video:
    """`frames` temporal grid steps; Qwen2.5-VL also varies the size of the grid."""

    frames: int = 4
    height: int = 2
    width: int = 3
    seconds_per_step: float = 1.0


@dataclass(frozen=True)
class Image:
    """One image."""


ONE_VIDEO = [[3, Video(), 6]]
RAGGED = [[3, Video(), 6], [1, Video(), 11], [2, Video(), 2]]
TWO_VIDEOS = [[2, Video(4), 3, Video(4, 3, 2, 2.5), 5]]
ADJACENT_VIDEOS = [[2, Video(4), Video(4), 5]]
IMAGE_AND_VIDEO = [[2, Image(), 2, Video(), 5]]
VIDEO_AND_TEXT_ROWS = [[2, Video(), 5], [9]]
TEXT_ONLY = [[8], [5]]
PROMPTS = {
    "one video": ONE_VIDEO,
    "ragged batch": RAGGED,
    "two videos": TWO_VIDEOS,
    "adjacent videos": ADJACENT_VIDEOS,
    "image beside video": IMAGE_AND_VIDEO,
    "video and text rows": VIDEO_AND_TEXT_ROWS,
}


def prompt_inputs(
    model, rows, *, seed: int = 1, padding_side: str = "left", pixel_scale: float = 1.0
) -> dict[str, torch.Tensor]:
    """What a processor would return for `rows`, each a list of text lengths, videos and images."""
    generator = torch.Generator().manual_seed(seed)
    llava = model.config.model_type == "llava_onevision"

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float32) * pixel_scale

    ids, types = [], []
    videos, images, video_grids, image_grids, seconds = [], [], [], [], []
    for row in rows:
        row_ids, row_types = [], []

        def add(tokens, kind=0, row_ids=row_ids, row_types=row_types):
            row_ids += tokens
            row_types += [kind] * len(tokens)

        for part in row:
            if isinstance(part, int):
                add(torch.randint(5, 100, (part,), generator=generator).tolist())
            elif llava and isinstance(part, Video):
                add([VIDEO] * (part.frames * 4 + 1), 2)
                videos.append(noise(part.frames, 3, 56, 56))
            elif llava:
                add([IMAGE] * (16 + 16 + 4), 1)
                images.append(noise(2, 3, 56, 56))
            elif isinstance(part, Video):
                size = part.height * part.width * part.frames
                add([VISION_START])
                add([VIDEO] * size, 2)
                add([VISION_END])
                videos.append(noise(size * 4, 3 * 2 * 14 * 14))
                video_grids.append([part.frames, part.height * 2, part.width * 2])
                seconds.append(part.seconds_per_step)
            else:
                add([VISION_START])
                add([IMAGE] * 4, 1)
                add([VISION_END])
                images.append(noise(16, 3 * 2 * 14 * 14))
                image_grids.append([1, 4, 4])
        ids.append(row_ids)
        types.append(row_types)

    longest = max(map(len, ids))

    def padded(lists, value):
        filled = [
            [value] * (longest - len(x)) + x if padding_side == "left" else x + [value] * (longest - len(x))
            for x in lists
        ]
        return torch.tensor(filled)

    inputs = {"input_ids": padded(ids, PAD), "attention_mask": padded([[1] * len(x) for x in ids], 0)}
    if llava:
        if videos:
            inputs["pixel_values_videos"] = torch.stack(videos)
        if images:
            inputs["pixel_values"] = torch.stack(images)
            inputs["image_sizes"] = torch.tensor([[56, 56]] * len(images))
    else:
        inputs["mm_token_type_ids"] = padded(types, 0)
        if videos:
            inputs["pixel_values_videos"] = torch.cat(videos)
            inputs["video_grid_thw"] = torch.tensor(video_grids)
            inputs["second_per_grid_ts"] = torch.tensor(seconds)
        if images:
            inputs["pixel_values"] = torch.cat(images)
            inputs["image_grid_thw"] = torch.tensor(image_grids)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in inputs:
            inputs[name] = inputs[name].to(model.dtype)
    return inputs


def masked_inputs(model, inputs, kept_indices) -> dict[str, torch.Tensor]:
    """The oracle's inputs: the uncompressed prompt, dropped tokens masked out as keys, explicit original positions."""
    mask = inputs["attention_mask"]
    kept = torch.zeros_like(mask)
    for row, places in enumerate(kept_indices):
        kept[row, places[places >= 0]] = 1
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    if model.config.model_type == "qwen2_5_vl":
        grids = {k: inputs.get(k) for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")}
        mrope, _ = model.model.get_rope_index(
            inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], attention_mask=mask, **grids
        )
        positions = torch.cat([positions[None], mrope])
    return {**inputs, "attention_mask": kept, "position_ids": positions}
