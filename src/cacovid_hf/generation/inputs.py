"""The arguments of a call: settings, masks, and which of them embed the prompt."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import TransformersKwargs

from .._compat import CACHE_NAMES, attention_implementation
from ..backbones.family import Family
from ..backbones.layer_kinds import has_windows

# Arguments of the backbone's forward that concern its language model and not how the prompt is embedded.
DECODING_ARGUMENTS = {
    "input_ids",
    "attention_mask",
    *CACHE_NAMES,
    "inputs_embeds",
    "labels",
    "use_cache",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "kwargs",
}


# Kinds of rotary embedding whose frequencies depend on the length of a forward.
_BY_LENGTH = ("dynamic", "longrope")

# Taken by every stock forward, whose signature does not name them.
STOCK_ARGUMENTS = {*TransformersKwargs.__annotations__, "ignore_index", "shift_labels", "mm_token_type_ids"}


def asked_ratio(retention_ratio: Any, *configs: GenerationConfig | None) -> Any:
    """Return the retention ratio that a call asks for, or else the first that a generation config holds: servers pass on those and nothing else."""
    for config in configs:
        if retention_ratio is None:
            retention_ratio = getattr(config, "retention_ratio", None)
    return retention_ratio


def check_length(config: Any, length: int) -> None:
    """Make sure that a language model treats the tokens of a cut prompt of so many positions as those of the whole one.

    Raises:
        ValueError: shorter windows of a kernel that takes no masks, and so cannot count what was dropped; or heads that are turned by the length.
    """
    text = config.get_text_config()
    kernel = attention_implementation(text) or ""
    if has_windows(config) and text.sliding_window < length and "flash" in kernel:
        raise ValueError(
            f"The language model's sliding windows of {text.sliding_window} positions are shorter than the {length} of the uncompressed prompt and its answer, "
            f"which {kernel} cannot count. Load the backbone with attn_implementation='sdpa', or use retention_ratio=1.0."
        )
    rope = getattr(text, "rope_parameters", None) or {}
    for parameters in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        kind = parameters.get("rope_type")
        bound = parameters.get("original_max_position_embeddings") or text.max_position_embeddings
        if kind in _BY_LENGTH and length > bound:
            raise ValueError(
                f"The language model turns heads by a prompt's length (rope_type {kind!r}) beyond {bound} positions, and the uncompressed prompt and its "
                f"answer have {length}. Sample fewer frames, or use retention_ratio=1.0."
            )


def forward_arguments(model: PreTrainedModel, family: Family) -> set[str]:
    """Names of everything that a stock forward takes."""
    return (DECODING_ARGUMENTS - {"kwargs"}) | embedding_arguments(model, family) | STOCK_ARGUMENTS


def stock_attention_mask(input_ids: Tensor, settings: GenerationConfig) -> Tensor:
    """Return the mask `(B, L)` that stock generation assumes if none is given: padding ids are padding, unless they may be ends of text."""
    pad, eos = settings.pad_token_id, settings.eos_token_id
    if pad is None or pad in (eos if isinstance(eos, (list, tuple)) else [eos]):
        return torch.ones_like(input_ids, dtype=torch.long)
    return (input_ids != pad).long()


def embedding_arguments(model: PreTrainedModel, family: Family) -> set[str]:
    """Names of the arguments that embed a prompt: pixels, grids, positions, and what the family's videos bring besides."""
    return {*_parameters(type(model).forward), *family.video_inputs, *family.own_inputs} - DECODING_ARGUMENTS


@functools.cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    """Names that a class's forward takes; reading a signature takes longer than the rest of a call's checks."""
    return frozenset(inspect.signature(forward).parameters) - {"self"}


def take_embedding_arguments(model: PreTrainedModel, family: Family, arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments that embed a prompt (pixels, grids, positions) out of `arguments`."""
    accepted = embedding_arguments(model, family)
    return {name: arguments.pop(name) for name in list(arguments) if name in accepted}


def without_own_inputs(family: Family, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the stock forward and `generate` take of the arguments of a call."""
    return {name: value for name, value in arguments.items() if name not in family.own_inputs}


def effective_settings(
    backbone: PreTrainedModel, generation_config: GenerationConfig | None, arguments: dict[str, Any]
) -> GenerationConfig:
    """Return the generation settings of a call, in stock order: arguments, then `generation_config`, then the backbone's own."""
    settings: dict[str, Any] = {}
    for source in (backbone.generation_config, generation_config):
        if source is not None:
            settings.update({name: value for name, value in source.to_dict().items() if value is not None})
    known = GenerationConfig().to_dict()
    settings.update({name: value for name, value in arguments.items() if name in known and value is not None})
    settings.pop("transformers_version", None)
    return GenerationConfig(**settings)


def expansion(settings: GenerationConfig) -> int:
    """How often stock generation repeats each row (beams, or sequences to return)."""
    return max(settings.num_beams or 1, settings.num_return_sequences or 1)


def cached_length(cache: Any) -> int:
    """Positions that a cache holds; 0 of None."""
    return 0 if cache is None else int(cache.get_seq_length())
