"""Stock generation from a compressed prompt: what is handed on, and what is translated.

The backbone's own `generate` gets the caller's `input_ids` together with the compressed embeddings, mask and positions. The loop then
decodes from the compressed prompt, while everything that looks at ids (streamers, stopping criteria, logits processors, the returned
sequences) sees the caller's prompt. Left to settle are the lengths: stock code takes the width of the embeddings off `max_length` and
`min_length`, and sizes static caches for both widths.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StaticCache,
)
from transformers.cache_utils import StaticLayer

from .._compat import CACHE
from ..backbones.family import Family
from ..backbones.layer_kinds import has_windows, keeps_states
from ..compressors.check import Check
from ..prompt import CompressedPrompt
from .inputs import cached_length, expansion


def _may_share_prefill(settings: GenerationConfig) -> bool:
    """Whether the beams or sequences of a prompt can have one prefill: nothing of the prefill but its cache is asked for."""
    return settings.use_cache is not False and not (settings.output_attentions or settings.output_hidden_states)


def generate_compressed(
    backbone: Any,
    family: Family,
    stock_generate: Callable[..., Any],
    prompt: CompressedPrompt,
    input_ids: Tensor,
    settings: GenerationConfig,
    generation_config: GenerationConfig | None,
    arguments: dict[str, Any],
    check: Check | None = None,
    whole_prefill: bool = False,
) -> Any:
    """Run the backbone's own `generate` from a compressed prompt.

    Args:
        backbone: the stock model.
        family: of the backbone.
        stock_generate: its own `generate`.
        prompt: `(B, K)`.
        input_ids: `(B, L)`, the caller's prompt; returned sequences begin with it.
        settings: of the call, see `effective_settings`.
        generation_config: the caller's, if any; not changed.
        arguments: the caller's other arguments of `generate`, without the model's inputs.
        check: of the compression, if it is still to be settled.
        whole_prefill: the prompt must go through the language model in one forward, its last token too.
    """
    length, kept = input_ids.shape[1], prompt.inputs_embeds.shape[1]
    arguments = dict(arguments)
    generation_config = copy.deepcopy(generation_config)

    def override(name: str, value: Any) -> None:
        """Set where the caller set it, since stock code frowns upon both a config and arguments."""
        if generation_config is not None and arguments.get(name) is None:
            setattr(generation_config, name, value)
        else:
            arguments[name] = value

    if kept != length:
        if settings.max_new_tokens is None and settings.max_length is not None:
            override("max_length", settings.max_length + kept)
        if settings.min_new_tokens is None and settings.min_length:
            override("min_length", settings.min_length + kept)

    cache: Any = arguments.get(CACHE)
    chunk_size = settings.prefill_chunk_size
    new_tokens = settings.max_new_tokens or (settings.max_length - length if settings.max_length is not None else 20)
    if isinstance(cache, StaticCache):
        # A layer that keeps one state has no length, one with a window has room for that.
        layers = [layer for layer in cache.layers if isinstance(layer, StaticLayer) and not layer.is_sliding]
        room = min((layer.max_cache_len for layer in layers), default=None)
        if room is not None and room < kept + new_tokens - 1:
            raise ValueError(
                f"The cache has room for {room} positions, and {kept} of the prompt and {new_tokens - 1} of the answer are to go into it: make a "
                "StaticCache with a larger max_cache_len."
            )
    if settings.cache_implementation == "static":
        size = max(kept + new_tokens, settings.max_cache_len or 0)
        cache = StaticCache(config=backbone.config.get_text_config(decoder=True), max_cache_len=size)
        override("cache_implementation", None)
    if chunk_size is None and cached_length(cache) and prompt.videos:
        chunk_size = kept  # stock flash attention would misread gapped positions behind a cache, see there
    repeats = expansion(settings)
    shares = repeats > 1 and cache is None and chunk_size is None and _may_share_prefill(settings)
    # A cache with states cannot be repeated.
    shares = shares and not whole_prefill and not keeps_states(backbone.config)
    if shares or chunk_size is not None:
        if cache is None:
            cache = DynamicCache(config=backbone.config.get_text_config(decoder=True))
        prefill_in_chunks(backbone, family, prompt, cache, kept if shares else chunk_size, 1 if shares else repeats)
        if shares:
            cache.batch_repeat_interleave(repeats)
        override("prefill_chunk_size", None)
    if cache is not None:
        arguments[CACHE] = cache
    if has_windows(backbone.config):
        override("disable_compile", True)  # a compiled step would not call the hook that makes its masks
    if check is not None and check.waits:
        processors = arguments.get("logits_processor") or []
        arguments["logits_processor"] = LogitsProcessorList([*processors, _Settling(check)])
    outputs = stock_generate(
        input_ids=input_ids,
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        generation_config=generation_config,
        **family.stock_arguments(backbone, prompt.input_ids[:, cached_length(cache) :]),
        **arguments,
    )
    if check is not None:
        check.settle()
    return outputs


class _Settling(LogitsProcessor):
    """Asks whether the compression was sound, behind the launch of the prefill, and hears it a step later; the logits pass through."""

    def __init__(self, check: Check):
        self.check, self.asked = check, False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.asked:
            self.check.settle()
        self.check.launch()
        self.asked = True
        return scores


def prefill_in_chunks(
    backbone: PreTrainedModel, family: Family, prompt: CompressedPrompt, cache: Any, chunk_size: int, repeats: int
) -> None:
    """Fill `cache` with what it lacks of all but the last position of `prompt`, `chunk_size` positions at a time; stock chunking takes ids only.

    `repeats` is how often stock generation will repeat each row (beams, or sequences to return).
    """
    if chunk_size < 1:
        raise ValueError(
            f"prefill_chunk_size={chunk_size} is not positive: give the number of positions to prefill at a time."
        )
    ids = prompt.input_ids.repeat_interleave(repeats, dim=0)
    mask = prompt.attention_mask.repeat_interleave(repeats, dim=0)
    embeds = prompt.inputs_embeds.repeat_interleave(repeats, dim=0)
    positions = prompt.position_ids.repeat_interleave(repeats, dim=prompt.position_ids.ndim - 2)
    last = embeds.shape[1] - 1
    tells_lengths = not keeps_states(backbone.config)
    rows = torch.arange(len(mask) + 1, dtype=torch.int32, device=embeds.device)
    with torch.no_grad():
        for start in range(cached_length(cache), last, chunk_size):
            stop = min(start + chunk_size, last)
            backbone(
                inputs_embeds=embeds[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=positions[..., start:stop],
                use_cache=True,
                logits_to_keep=1,
                **family.stock_arguments(backbone, ids[:, start:stop]),
                **(_lengths(rows, start, stop) if tells_lengths else {}),
                **{CACHE: cache},
            )


def _lengths(rows: Tensor, start: int, stop: int) -> dict[str, Any]:
    """Flash attention would read the gaps of a chunk's positions as packed sequences, and look at the first keys only; told the lengths, it does not.

    Other attentions ignore them. Layers with a state would read them as packed sequences.
    """
    return {
        "cu_seq_lens_q": rows * (stop - start),
        "cu_seq_lens_k": rows * stop,
        "max_length_q": stop - start,
        "max_length_k": stop,
    }
