"""What a forward on compressed prompts returns: all that the backbone's own output holds, and where the tokens stood."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._compat import OutputWithCache
from ..prompt import LayerRecord


@dataclass
class CaCoVidOutput(OutputWithCache):
    """Output of `forward`: all that the backbone's own output holds, and where the tokens stood.

    Attributes:
        loss: of the compressed prompt, if labels were given.
        logits: `(B, K, vocabulary)` of the compressed prompt.
        cache: of the compressed prompt; `past_key_values` in transformers before 5.24.
        hidden_states: of the compressed prompt, if asked for.
        attentions: of the compressed prompt, if asked for.
        kept_indices: `(B, K)`, the place in the caller's prompt of each position, -1 at padding.
        layer_tokens: int64 `(layers, videos)`, how many tokens of each video each layer of the language model saw, for compressors that drop tokens
            between its layers; None for others.
        labels: `(B, K)`, the given labels of the positions that were kept, -100 at padding; None without labels.
    """

    kept_indices: Tensor | None = None
    layer_tokens: Tensor | None = None
    labels: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "last_hidden_state":  # TRL's SFTTrainer takes it and the caller's labels
            raise AttributeError(
                "A compressed prompt has no last_hidden_state for labels of the whole one. With TRL's SFTTrainer, override compute_loss with that of "
                "transformers.Trainer (docs/how_to/train.md, 'Other trainers')."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def with_places(
    outputs: Any, places: Tensor | None, layers: LayerRecord | None = None, labels: Tensor | None = None
) -> Any:
    """Return the backbone's output with the kept places; a tuple (`return_dict=False`) gets them as its last element."""
    if layers is not None:
        places = layers.kept_indices
    if isinstance(outputs, tuple):
        return (*outputs, places)
    whole = CaCoVidOutput()
    for name, value in outputs.items():  # whatever fields this version has
        whole[name] = value
    whole.kept_indices = places
    whole.layer_tokens = None if layers is None else torch.tensor(layers.layer_tokens)
    whole.labels = labels
    return whole
