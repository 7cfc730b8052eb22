"""What there is to know of a loaded model before it is wrapped: adapters, devices, sizes."""

import functools
import inspect
import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from .._compat import offloaded_to


def base_model(backbone: Any) -> PreTrainedModel:
    """Return the stock model inside a `PeftModel`, or the model itself."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(backbone, peft.PeftModel):
        return backbone
    if any(config.is_prompt_learning for config in backbone.peft_config.values()):
        raise ValueError(
            "The PeftModel learns prompts, which its base model alone does not see: merge it, or use LoRA-like adapters."
        )
    return backbone.get_base_model()


def embedding_device(backbone: Any) -> torch.device:
    """Where the backbone embeds its prompt; of offloaded embeddings, where they are loaded to."""
    embeddings = backbone.get_input_embeddings()
    device = next(embeddings.parameters()).device
    return offloaded_to(embeddings) or device if device.type == "meta" else device


def taking_embeddings(model: Any) -> Any:
    """Return the same stock model as one whose `generate` takes `inputs_embeds`: itself, or a view of it that shares all of its state.

    Stock `generate` looks for the name in the signature of `prepare_inputs_for_generation`, from which some classes (Gemma 4) leave it out, though
    they pass it on. The view's class has the name.
    """
    kind: Any = type(model)
    if "inputs_embeds" in inspect.signature(kind.prepare_inputs_for_generation).parameters:
        return model
    view = object.__new__(_with_embeddings(kind))
    object.__setattr__(view, "__dict__", model.__dict__)
    return view


@functools.cache
def _with_embeddings(kind: Any) -> Any:
    """Return a subclass of the same name whose signature says what the class does."""

    def prepare_inputs_for_generation(self: Any, input_ids: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return kind.prepare_inputs_for_generation(self, input_ids, inputs_embeds=inputs_embeds, **kwargs)

    own = {
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "prepare_inputs_for_generation": prepare_inputs_for_generation,
    }
    return type(kind.__name__, (kind,), own)
