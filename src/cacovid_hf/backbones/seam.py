"""The seam between a stock multimodal model and its language model: what a call of the latter would have received, without the call.

Every supported model ends its multimodal forward in one call `language_model(inputs_embeds=..., ...)`. A forward pre-hook there, attached for one call, takes
the arguments and stops the forward, so the stock code itself embeds the prompt. Safe under threads.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..utils.hooks import Hook, attached

# What a call of the language model may hold: what a prompt carries, and what does not change its embeddings.
CARRIED = ("inputs_embeds", "attention_mask", "position_ids")
WITHOUT_EFFECT = ("use_cache", "logits_to_keep", "output_router_logits", "return_dict", "labels")


class _Captured(Exception):
    """Carries the language model's arguments out of the stock forward."""

    def __init__(self, arguments: dict[str, Any]):
        super().__init__("the language model's arguments were captured")
        self.arguments = arguments


def capture_language_model_inputs(
    model: nn.Module, language_model: nn.Module, inputs: dict[str, Any]
) -> dict[str, Any]:
    """Call `model(**inputs)` and return the keyword arguments that reach `language_model`, which is not run."""

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        raise _Captured(kwargs)

    try:
        with attached(Hook(language_model, pre=stop, first=True)):
            model(**inputs)
    except _Captured as captured:
        return captured.arguments
    raise RuntimeError(
        f"{type(model).__name__} did not call its language model: this version of transformers is not supported."
    )


def with_features(embeds: Tensor, places: Tensor, features: Iterable[Tensor]) -> Tensor:
    """`embeds` `(B, L, D)` with `features`, `(n, D)` each, one after the other at `places` `(N, 2)` (row, place); written in place unless gradients reach it."""
    embeds = embeds.clone() if embeds.requires_grad else embeds
    rows, columns = places.unbind(dim=1)
    start = 0
    for part in features:
        if part.shape[-1] != embeds.shape[-1]:
            raise ValueError(
                f"The videos were encoded with hidden size {part.shape[-1]}, the model has {embeds.shape[-1]}: encode them with this model."
            )
        stop = start + len(part)
        embeds[rows[start:stop], columns[start:stop]] = part.to(embeds)
        start = stop
    return embeds
