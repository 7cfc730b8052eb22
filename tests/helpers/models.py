"""Tiny random models of every family, prompts for them, and what a stock model takes of those."""

from typing import Any

import pytest
import torch
from helpers.families import BY_NAME, FAMILIES, FIRST  # noqa: F401 -- most tests know these from here
from helpers.families.base import PAD, TEXT, WORD_FIELDS, Draw, Family, Image, Part, Video
from torch import Tensor, nn

from cacovid_hf import CaCoVidForConditionalGeneration


def family_of(stock) -> Family:
    """The family of a stock model."""
    return BY_NAME[stock.config.model_type]


def attending_layer(decoder) -> nn.Module:
    """The first layer of a language model that attends."""
    return next(layer for layer in decoder.layers if "self_attn" in dict(layer.named_children()))


def refused_methods(family: str) -> tuple[str, ...]:
    """The names of the methods that refuse the language model of a family by name."""
    known = BY_NAME[family]
    inside = () if known.cuts_inside else ("fastv", "framefusion")
    return inside if known.attends else (*inside, "attention")


def skip_unless_served(family: str, method: Any) -> None:
    """Skip a test of a method, by name or instance, that refuses the language model of a family by name."""
    name = method if isinstance(method, str) else method.name
    if name in refused_methods(family):
        pytest.skip(f"{name} refuses {family}")


def skip_unless_a_cache_can_be_cut(stock) -> None:
    """Skip a test that cuts back the cache of a model that has states or windows."""
    if not family_of(stock).cuts_cache:
        pytest.skip("states of linear attention, and windows that are full, cannot be cut back")


def skip_unless_split(family: str, settings: dict[str, Any]) -> None:
    """Skip a test of a prefill in chunks that a family refuses by name."""
    if settings.get("prefill_chunk_size") is not None and not BY_NAME[family].splits_prefill:
        pytest.skip(f"{family} refuses a prefill in chunks")


def skip_without_flash(family: str) -> None:
    """Skip a test of flash attention that a family refuses by name."""
    if not BY_NAME[family].flash:
        pytest.skip(f"{family} refuses flash attention")


def tower(stock) -> nn.Module:
    """The vision tower of a stock model."""
    return family_of(stock).tower(stock)


def stock_model(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text):
    """A random stock model whose answers depend on its whole prompt (weights larger than the usual initialisation)."""
    torch.manual_seed(seed)
    config = BY_NAME[family].config({**TEXT, **text})
    config._attn_implementation = attention
    model = BY_NAME[family].model_class(config).eval()
    with torch.no_grad():
        for weight in model.get_decoder().layers.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.2)
        model.lm_head.weight.normal_(std=0.5)
        model.get_input_embeddings().weight.normal_(std=1.0)
        BY_NAME[family].amplify(model)
    model.to(dtype)
    # No end of text, so that every case decodes its full length.
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    # Placeholders that stand for no pixels are an error of the stock model without a cache.
    model.generation_config.suppress_tokens = list(BY_NAME[family].suppressed)
    return model


def wrapped(family: str, attention: str = "sdpa", **options):
    """A stock model and the same one wrapped, with these options of `from_backbone`."""
    stock = stock_model(family, attention)
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock, **options)


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
) -> dict[str, Tensor]:
    """What a processor would return for `rows`, each a list of text lengths, videos and images."""
    family, draw = family_of(model), Draw(torch.Generator().manual_seed(seed), pixel_scale)

    def part_of(asked) -> Part:
        if isinstance(asked, Video):
            return family.video(asked, draw)
        if isinstance(asked, Image):
            return family.image(draw)
        return Part(draw.words(asked), [0] * asked)

    prompts = [[part_of(asked) for asked in row] for row in rows]
    ids = [[token for part in parts for token in part.ids] for parts in prompts]
    types = [[kind for part in parts for kind in part.types] for parts in prompts]
    longest = max(map(len, ids))

    def padded(lists: list[list[int]], value: int) -> Tensor:
        gaps = [[value] * (longest - len(found)) for found in lists]
        return torch.tensor([g + x if padding_side == "left" else x + g for g, x in zip(gaps, lists, strict=True)])

    inputs = {"input_ids": padded(ids, PAD), "attention_mask": padded([[1] * len(x) for x in ids], 0)}
    if family.has_token_types:
        inputs["mm_token_type_ids"] = padded(types, 0)
    inputs |= family.joined(prompts)
    for name in ("pixel_values", "pixel_values_images", "pixel_values_videos"):
        if name in inputs:
            inputs[name] = inputs[name].to(model.dtype)
    return inputs


def twice(model, inputs) -> dict[str, Tensor]:
    """The inputs of the same prompts once more behind themselves."""
    words = {name: value for name, value in inputs.items() if name in WORD_FIELDS}
    fields = {name: value for name, value in inputs.items() if name not in WORD_FIELDS}
    return {name: torch.cat([value, value]) for name, value in words.items()} | family_of(model).stacked([fields] * 2)


def share(model, inputs, row: int, rows: int) -> dict[str, Tensor]:
    """The inputs of one of so many rows whose fields are alike in length."""
    along = family_of(model).joined_along
    return {name: value.chunk(rows, dim=along(name))[row] for name, value in inputs.items()}


def original_positions(model, inputs) -> Tensor:
    """Explicit `position_ids` of an uncompressed prompt."""
    mask = inputs["attention_mask"]
    places = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return family_of(model).positions(model, inputs, places)


def masked_inputs(model, inputs, kept_indices, **settings) -> dict[str, Tensor]:
    """The oracle's inputs for these settings of generation: the uncompressed prompt, dropped tokens masked out as keys, explicit original positions.

    Skips the test where masking is not dropping, because some layers do not attend (see `helpers.cut_oracle`).
    """
    if not family_of(model).attends:
        pytest.skip(f"{model.config.model_type} has layers that do not attend, which read masked tokens too")
    kept = torch.zeros_like(inputs["attention_mask"])
    for row, places in enumerate(kept_indices):
        kept[row, places[places >= 0]] = 1
    masked = {"attention_mask": kept, "position_ids": original_positions(model, inputs)}
    return {**stock_inputs(model, inputs, **settings), **masked}


def stock_inputs(model, inputs, **settings) -> dict[str, Tensor]:
    """What the stock model takes of a prompt's inputs; where that cannot be their pixels, the embeddings that it makes of them.

    Args:
        model: the stock one.
        inputs: of the prompts.
        **settings: of generation.
    """
    family = family_of(model)
    is_mixed = all(inputs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
    expands = max(settings.get("num_beams", 1), settings.get("num_return_sequences", 1)) > 1
    if (family.mixes or not is_mixed) and (family.expands or not expands):
        return family.of_stock(inputs)
    with torch.no_grad():
        embeds = family.embedded(model, inputs)
    words = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    return {**words, "inputs_embeds": embeds, "position_ids": original_positions(model, inputs)}


def for_forward(inputs) -> dict[str, Tensor]:
    """The same for a stock forward, which does not take ids beside embeddings."""
    return {name: value for name, value in inputs.items() if name != "input_ids" or "inputs_embeds" not in inputs}
