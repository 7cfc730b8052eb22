"""What a question to a stream may set: all of `generate` but what the stream itself gives."""

from typing import Any

from ..._compat import CACHE_NAMES
from ...compressors.base import Compressor
from ..inputs import effective_settings, embedding_arguments
from ..wrapped import WrappedModel

_OWN = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "encoded_videos", *CACHE_NAMES)


def checked_arguments(model: WrappedModel, memory: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a question that are for `generate`.

    Args:
        model: a wrapped model.
        memory: kind of the stream's memory.
        arguments: the caller's.

    Raises:
        ValueError: one that the stream gives itself, or that its memory cannot serve.
    """
    own = {*_OWN, "retention_ratio", *embedding_arguments(model.backbone, model.family)}
    for name in own & arguments.keys():
        if arguments[name] is not None:
            remedy = "use num_tokens" if name == "retention_ratio" else "leave it out"
            raise ValueError(
                f"{name} is not an argument of a stream's questions, whose prompt the stream makes: {remedy}."
            )
    arguments = {name: value for name, value in arguments.items() if name not in own}
    settings = effective_settings(model.backbone, arguments.get("generation_config"), arguments)
    if settings.return_dict_in_generate:
        raise ValueError(
            "return_dict_in_generate=True asks for more than new tokens, which a stream returns: set False."
        )
    if memory == "kv":
        _check_cache(settings)
    return arguments


def _check_cache(settings: Any) -> None:
    """Refuse settings of the cache by which a question would not read what it retrieves."""
    asked = {
        "cache_implementation": settings.cache_implementation,
        "use_cache": False if settings.use_cache is False else None,
        "prefill_chunk_size": settings.prefill_chunk_size,
    }
    for name, value in asked.items():
        if value is not None:
            raise ValueError(
                f"{name}={value!r} does not work with memory='kv', whose questions bring a cache of their own: leave it out, or use memory='features'."
            )


def check_choice(method: Compressor) -> Compressor:
    """Return a method that chooses among stored features.

    Raises:
        ValueError: it looks at what is not stored, or drops tokens later.
    """
    if method.inside_llm:
        raise ValueError(f"compressor={method.name!r} drops tokens inside the language model: choose another.")
    if method.reads_tower:
        raise ValueError(
            f"compressor={method.name!r} reads what the vision tower attends to, which a memory of features does not hold: choose another."
        )
    return method
