"""What does not work from a compressed prompt: one table, looked up before anything is computed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.generation.configuration_utils import GenerationMode

from .._compat import CACHE
from ..backbones.family import Family
from ..backbones.layer_kinds import has_windows, keeps_states
from ..compressors.base import Compressor
from ..compressors.tools.inside import check_cuttable
from ..prompt import EncodedVideos
from .inputs import cached_length, expansion

WAY_ROUND = "Use retention_ratio=1.0 or the backbone itself"
SUPPORTED_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
_CANDIDATES = "candidate tokens come out silently wrong when a prompt is given as embeddings (an upstream limit)"
_UNCONDITIONAL = "the unconditional branch would read the uncompressed prompt"
_READS_IDS = "it would read embeddings as token ids (an upstream limit)"
_UNTRIED = "it has not been tried with a compressed prompt"


class Refused(NamedTuple):
    """One argument or setting.

    Attributes:
        reason: why it does not work.
        given: whether a value, which is not None, asks for it.
    """

    reason: str
    given: Callable[[Any], bool] = lambda value: True


# Of every call, by name: arguments first, then settings, whose values the message shows.
ARGUMENTS = {
    "assistant_model": Refused(_CANDIDATES),
    "inputs_embeds": Refused("video tokens are found by their placeholder ids, so the prompt must come as input_ids"),
    "mm_encoder_outputs": Refused("the grid of a video is read off its pixel inputs"),
    "negative_prompt_ids": Refused(_UNCONDITIONAL),
    "negative_prompt_attention_mask": Refused(_UNCONDITIONAL),
    "custom_generate": Refused("a custom loop has not been tried with a compressed prompt"),
}
SETTINGS = {
    "prompt_lookup_num_tokens": Refused(_CANDIDATES),
    "guidance_scale": Refused(_UNCONDITIONAL, lambda value: value != 1.0),
    "token_healing": Refused("it rewrites the prompt's ids, which no longer stand for its embeddings", bool),
    "encoder_repetition_penalty": Refused(_READS_IDS, lambda value: value != 1.0),
    "encoder_no_repeat_ngram_size": Refused(_READS_IDS, lambda value: value != 0),
    "cache_implementation": Refused(_UNTRIED, lambda value: value not in ("dynamic", "static")),
}
# Of a method that drops tokens between layers, whose cache holds another length in each of them.
GENERATE_INSIDE = {
    "cache_implementation": Refused("a static cache has one length for all layers", lambda value: value == "static"),
    "prefill_chunk_size": Refused("the last token must see the whole prompt in one forward"),
    "use_cache": Refused("every step would choose the tokens anew", lambda value: value is False),
    CACHE: Refused("the layers' caches differ in length"),
}
# Where tokens of a frame see each other in both directions.
JOINT_FRAMES = {"prefill_chunk_size": Refused("the tokens of a frame must see each other in one forward")}
FORWARD_INSIDE = {
    "labels": Refused("each layer sees another prompt"),
    "use_cache": Refused("the layers' caches differ in length", bool),
}
_SHOWN = {*SETTINGS, *GENERATE_INSIDE, *JOINT_FRAMES} - {CACHE}


def check_generation(
    settings: GenerationConfig, arguments: dict[str, Any], method: Compressor, family: Family, config: Any
) -> None:
    """Refuse what does not work in `generate`.

    Args:
        settings: of the call, see `effective_settings`.
        arguments: of the call.
        method: of compression.
        family: of the backbone.
        config: of the backbone.

    Raises:
        ValueError: the argument, the reason and the way round. A language model that the method does not serve comes first.
    """
    _check_inside(method, family, config)
    if arguments.get("inputs") is not None and arguments.get("input_ids") is not None:
        raise ValueError("The prompt is given twice, as the first argument and as input_ids: give one of them.")
    values = {**vars(settings), **{name: value for name, value in arguments.items() if value is not None}}
    _look_up({**ARGUMENTS, **SETTINGS}, values)
    _check_cache(settings, arguments.get(CACHE), config)
    if family.joint_frames(config):
        _look_up(JOINT_FRAMES, values)
    mode = settings.get_generation_mode()
    if mode not in SUPPORTED_MODES:
        _refuse(f"Generation mode {mode.value!r}", _UNTRIED)
    if method.inside_llm:
        _look_up(GENERATE_INSIDE, values, method)


def check_forward(backbone: Any, arguments: dict[str, Any], method: Compressor, family: Family) -> None:
    """Refuse what does not work in `forward`; arguments, errors as in `check_generation`."""
    _check_inside(method, family, backbone.config)
    _look_up({**ARGUMENTS, CACHE: Refused("a forward from a cache goes on with new text alone")}, arguments)
    if method.inside_llm:
        _look_up(FORWARD_INSIDE, arguments, method)
        if torch.is_grad_enabled() and backbone.training and backbone.get_decoder().layers[0].gradient_checkpointing:
            raise ValueError(
                f"Gradient checkpointing does not work with compressor {method.name!r}, whose choices between the layers would be made a second time: "
                "call gradient_checkpointing_disable, or use a compressor that drops tokens before the language model."
            )


def check_session(family: Family, config: Any, method: Compressor, keep_selection: bool, video: Any) -> None:
    """Refuse what does not work in a session.

    Args:
        family: of the backbone.
        config: of the backbone.
        method: of compression.
        keep_selection: whether all questions share the tokens that the first one chose.
        video: what the session is about; encoded videos are looked into.

    Raises:
        ValueError: what does not go together, the reason and the way round.
    """
    _check_inside(method, family, config)
    if keep_selection and keeps_states(config):
        raise ValueError(
            f"keep_selection=True cuts the cache back to what two questions share, and the states of {config.model_type}'s linear attention "
            "cannot be cut: make a session without."
        )
    if keep_selection and has_windows(config):
        raise ValueError(
            f"keep_selection=True cuts the cache back to what two questions share, and the windows of {config.model_type}'s sliding attention "
            "do not hold it: make a session without."
        )
    if keep_selection and method.inside_llm:
        raise ValueError(
            f"compressor {method.name!r} drops tokens inside the language model, and no question can go on from such a cache (keep_selection=True): "
            "choose another for a session."
        )
    if isinstance(video, EncodedVideos) and video.tower is None and method.reads_tower:
        raise ValueError(
            f"compressor {method.name!r} reads what the vision tower attends to, which these encoded videos do not hold: encode them with "
            "with_tower_attention=True."
        )


def check_gaps(config: Any, attention_mask: Tensor) -> None:
    """Refuse padding between the tokens of a row where layers keep one state of all tokens before, which it would change.

    Args:
        config: of the backbone.
        attention_mask: `(B, L)`, of what is cached and what is new, 0 at padding.

    Raises:
        ValueError: a row with padding behind its first token and before its last one.
    """
    if not keeps_states(config):
        return
    is_token = attention_mask.bool()
    begun, goes_on = (is_token.cummax(1).values, is_token.flip(1).cummax(1).values.flip(1))
    if bool((broken := (begun & goes_on & ~is_token).any(dim=1)).any()):
        raise ValueError(
            f"Row {int(broken.nonzero()[0])} of the conversation has padding between its turns, which the states of {config.model_type}'s linear attention "
            "would read. Give one conversation at a time, or start without a cache."
        )


def check_hidden(config: Any, cached: Tensor, attention_mask: Tensor) -> None:
    """Refuse a mask that hides cached tokens from later ones where layers keep one state of all tokens before, which has read them.

    Args:
        config: of the backbone.
        cached: bool `(B, C)`, the tokens of the cache.
        attention_mask: `(B, C + n)`, of what is cached and what is new, 0 at what is hidden.

    Raises:
        ValueError: a row that hides one.
    """
    if not keeps_states(config):
        return
    goes_on = attention_mask.flip(1).cummax(1).values.flip(1).bool()
    hidden = cached & goes_on[:, : cached.shape[1]] & ~attention_mask[:, : cached.shape[1]].bool()
    if bool((rows := hidden.any(dim=1)).any()):
        raise ValueError(
            f"attention_mask hides cached tokens of row {int(rows.nonzero()[0])}, which the states of {config.model_type}'s linear attention have read. "
            "Give the mask of the turns before, or start without a cache."
        )


def _check_inside(method: Compressor, family: Family, config: Any) -> None:
    if method.inside_llm:
        check_cuttable(method.name, family, config)


def _check_cache(settings: GenerationConfig, cache: Any, config: Any) -> None:
    if cache is None:
        return
    if type(cache) not in (DynamicCache, StaticCache):
        _refuse(f"A cache of type {type(cache).__name__}", "only DynamicCache and StaticCache have been tried")
    if keeps_states(config) and not cache.layers:
        raise ValueError(
            "The cache was made without a config, and does not know which layers are linear attention: give "
            "DynamicCache(config=model.config.get_text_config())."
        )
    if settings.cache_implementation is not None or settings.use_cache is False:
        _refuse("A cache beside cache_implementation or use_cache=False", "they ask for different caches")
    if cached_length(cache) and expansion(settings) > 1:
        raise ValueError(
            "The cache of an earlier turn has one row for each prompt: ask for one beam and one sequence, or start without a cache."
        )


def _look_up(table: dict[str, Refused], values: dict[str, Any], method: Compressor | None = None) -> None:
    for name, (reason, given) in table.items():
        value = values.get(name)
        if value is not None and given(value):
            _refuse(f"{name}={value!r}" if name in _SHOWN else name, reason, method)


def _refuse(what: str, reason: str, method: Compressor | None = None) -> None:
    if method is None:
        raise ValueError(f"{what} does not work with compressed video tokens: {reason}. {WAY_ROUND} for it.")
    raise ValueError(
        f"{what} does not work with compressor {method.name!r}, which drops tokens inside the language model: {reason}. Leave it out, or use a "
        "compressor that drops them before the language model."
    )


def without_prompt(arguments: dict[str, Any], embedding: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call that go on to the stock one, which gets the compressed prompt in place of those that are `embedding` it."""
    prompt = {"inputs", "input_ids", "attention_mask", *embedding}
    dropped = {*prompt, "generation_config", *ARGUMENTS}  # what is refused may be None
    return {name: value for name, value in arguments.items() if name not in dropped}
