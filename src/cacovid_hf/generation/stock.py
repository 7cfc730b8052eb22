"""Stock generation from a compressed prompt: what is handed on, what is translated, what is refused.

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
from transformers.generation.configuration_utils import GenerationMode

from .._compat import CACHE
from ..compressors import Check
from ..prompt import CompressedPrompt
from .turns import cached_length

WAY_ROUND = "Use retention_ratio=1.0 or the backbone itself"
SUPPORTED_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
SUPPORTED_CACHES = (None, "dynamic", "static")
# Values that switch a setting off, beside None.
REFUSED_SETTINGS = {
    "prompt_lookup_num_tokens": (
        None,
        "candidate tokens come out silently wrong when a prompt is given as embeddings (an upstream limit)",
    ),
    "guidance_scale": (1.0, "the unconditional branch would read the uncompressed prompt"),
    "token_healing": (False, "it rewrites the prompt's ids, which no longer stand for its embeddings"),
    "encoder_repetition_penalty": (1.0, "it would read embeddings as token ids (an upstream limit)"),
    "encoder_no_repeat_ngram_size": (0, "it would read embeddings as token ids (an upstream limit)"),
}
REFUSED_ARGUMENTS = {
    "assistant_model": "candidate tokens come out silently wrong when a prompt is given as embeddings (an upstream limit)",
    "inputs_embeds": "video tokens are found by their placeholder ids, so the prompt must come as input_ids",
    "mm_encoder_outputs": "the grid of a video is read off its pixel inputs",
    "negative_prompt_ids": "the unconditional branch would read the uncompressed prompt",
    "negative_prompt_attention_mask": "the unconditional branch would read the uncompressed prompt",
    "custom_generate": "a custom loop has not been tried with a compressed prompt",
}


def effective_settings(
    backbone: PreTrainedModel, generation_config: GenerationConfig | None, arguments: dict[str, Any]
) -> GenerationConfig:
    """The generation settings of a call, in stock order: arguments, then `generation_config`, then the backbone's own."""
    settings: dict[str, Any] = {}
    for source in (backbone.generation_config, generation_config):
        if source is not None:
            settings.update({name: value for name, value in source.to_dict().items() if value is not None})
    known = GenerationConfig().to_dict()
    settings.update({name: value for name, value in arguments.items() if name in known and value is not None})
    settings.pop("transformers_version", None)
    return GenerationConfig(**settings)


def check_generation(settings: GenerationConfig, arguments: dict[str, Any]) -> None:
    """Refuse what does not work from a compressed prompt, naming the argument, the reason and the way round."""

    def refuse(what: str, reason: str) -> None:
        raise ValueError(f"{what} does not work with compressed video tokens: {reason}. {WAY_ROUND} for it.")

    for name, reason in REFUSED_ARGUMENTS.items():
        if arguments.get(name) is not None:
            refuse(name, reason)
    for name, (off, reason) in REFUSED_SETTINGS.items():
        value = getattr(settings, name, None)
        if value is not None and value != off:
            refuse(f"{name}={value!r}", reason)
    if settings.cache_implementation not in SUPPORTED_CACHES:
        refuse(
            f"cache_implementation={settings.cache_implementation!r}", "it has not been tried with a compressed prompt"
        )
    cache = arguments.get(CACHE)
    if cache is not None:
        if type(cache) not in (DynamicCache, StaticCache):
            refuse(f"A cache of type {type(cache).__name__}", "only DynamicCache and StaticCache have been tried")
        if settings.cache_implementation is not None or settings.use_cache is False:
            refuse("A cache beside cache_implementation or use_cache=False", "they ask for different caches")
        if cached_length(cache) and _expansion(settings) > 1:
            raise ValueError(
                "The cache of an earlier turn has one row for each prompt: ask for one beam and one sequence, or start without a cache."
            )
    mode = settings.get_generation_mode()
    if mode not in SUPPORTED_MODES:
        refuse(f"Generation mode {mode.value!r}", "it has not been tried with a compressed prompt")


def check_generation_inside(name: str, settings: GenerationConfig, arguments: dict[str, Any]) -> None:
    """Refuse what does not work with a method that drops tokens between layers, whose cache holds another length in each of them."""
    refused = {
        f"cache_implementation={settings.cache_implementation!r}": (
            settings.cache_implementation == "static",
            "a static cache has one length for all layers",
        ),
        f"prefill_chunk_size={settings.prefill_chunk_size!r}": (
            settings.prefill_chunk_size is not None,
            "the last token must see the whole prompt in one forward",
        ),
        f"use_cache={settings.use_cache!r}": (settings.use_cache is False, "every step would choose the tokens anew"),
        CACHE: (arguments.get(CACHE) is not None, "the layers' caches differ in length"),
    }
    for setting, (given, reason) in refused.items():
        if given:
            raise ValueError(
                f"{setting} does not work with compressor {name!r}, which drops tokens inside the language model: {reason}. Leave it out, or use a "
                "compressor that drops them before the language model."
            )


def _expansion(settings: GenerationConfig) -> int:
    """How often stock generation repeats each row."""
    return max(settings.num_beams or 1, settings.num_return_sequences or 1)


def _may_share_prefill(settings: GenerationConfig) -> bool:
    """Whether the beams or sequences of a prompt can have one prefill: nothing of the prefill but its cache is asked for."""
    return settings.use_cache is not False and not (settings.output_attentions or settings.output_hidden_states)


def generate_compressed(
    backbone: Any,
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
        layers: list[Any] = cache.layers
        room = min(layer.max_cache_len for layer in layers)
        if room < kept + new_tokens - 1:
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
    expansion = _expansion(settings)
    shares = expansion > 1 and cache is None and chunk_size is None and _may_share_prefill(settings)
    shares = shares and not whole_prefill
    if shares or chunk_size is not None:
        if cache is None:
            cache = DynamicCache(config=backbone.config.get_text_config(decoder=True))
        prefill_in_chunks(backbone, prompt, cache, kept if shares else chunk_size, 1 if shares else expansion)
        if shares:
            cache.batch_repeat_interleave(expansion)
        override("prefill_chunk_size", None)
    if cache is not None:
        arguments[CACHE] = cache
    if check is not None and check.waits:
        processors = arguments.get("logits_processor") or []
        arguments["logits_processor"] = LogitsProcessorList([*processors, _Settling(check)])
    outputs = stock_generate(
        input_ids=input_ids,
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        generation_config=generation_config,
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
    backbone: PreTrainedModel, prompt: CompressedPrompt, cache: Any, chunk_size: int, expansion: int
) -> None:
    """Fill `cache` with what it lacks of all but the last position of `prompt`, `chunk_size` positions at a time; stock chunking takes ids only.

    `expansion` is how often stock generation will repeat each row (beams, or sequences to return).
    """
    if chunk_size < 1:
        raise ValueError(
            f"prefill_chunk_size={chunk_size} is not positive: give the number of positions to prefill at a time."
        )
    mask = prompt.attention_mask.repeat_interleave(expansion, dim=0)
    embeds = prompt.inputs_embeds.repeat_interleave(expansion, dim=0)
    positions = prompt.position_ids.repeat_interleave(expansion, dim=prompt.position_ids.ndim - 2)
    last = embeds.shape[1] - 1
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
                # Flash attention would read the gaps of a chunk's positions as packed sequences, and look at the first keys only; told
                # the lengths, it does not. Other attentions ignore them.
                cu_seq_lens_q=rows * (stop - start),
                cu_seq_lens_k=rows * stop,
                max_length_q=stop - start,
                max_length_k=stop,
                **{CACHE: cache},
            )
