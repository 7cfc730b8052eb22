"""How language models turn queries and keys by their positions: what their configs leave to the stock code, as facts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


@dataclass(frozen=True)
class Turning:
    """How one kind of language model turns its heads.

    Attributes:
        sections: how many frequencies turn with time, height and width, unless the config says so (`mrope_section`).
        interleaved: whether the axes take turns, frequency by frequency; if not, each axis has a block of them.
        pairs: whether neighbouring channels are turned against each other; if not, the two halves of a head.
    """

    sections: tuple[int, ...] = (16, 24, 24)
    interleaved: bool = False
    pairs: bool = False

    def axes(self, parameters: dict[str, Any], count: int) -> list[int]:
        """Which row of multimodal positions each of `count` frequencies turns with.

        Raises:
            ValueError: blocks that are not as many frequencies together.
        """
        sections = parameters.get("mrope_section", self.sections)
        if self.interleaved:
            # Height and width take every third place up to their length, time has the rest.
            return [j % 3 if j % 3 and j < 3 * sections[j % 3] else 0 for j in range(count)]
        axes = [axis for axis, size in enumerate(sections) for _ in range(size)]
        if len(axes) != count:
            raise ValueError(
                f"mrope_section={list(sections)} does not add up to the {count} frequencies of a head. Correct the backbone's config."
            )
        return axes


# By the `model_type` of the language model's config. Each row is tested against the stock layer.
TURNINGS: dict[str, Turning] = {
    **dict.fromkeys(("qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3", "qwen3_moe", "llama", "mistral"), Turning()),
    **dict.fromkeys(("gemma3_text", "gemma4_text"), Turning()),
    **dict.fromkeys(("qwen3_vl_text", "qwen3_vl_moe_text"), Turning((24, 20, 20), interleaved=True)),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), Turning((11, 11, 10), interleaved=True)),
    "glm4v_text": Turning((8, 12, 12), pairs=True),
    "glm4v_moe_text": Turning((8, 12, 12)),
}


def turning_of(model_type: str) -> Turning:
    """How a language model of this type turns its heads; of one that is not known, as Llama and Qwen2 do."""
    return TURNINGS.get(model_type, Turning())


def cos_sin(
    config: Any, head_dim: int, layer_type: str | None, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the rotary embedding of a language model's layer, with the model's own frequencies.

    Args:
        config: its text config.
        head_dim: width of a head in this layer.
        layer_type: of the layer, for models whose layers differ.
        positions: `(n,)`, or `(R, n)` with the rows of M-RoPE last.
        dtype: of the result.

    Returns:
        cos and sin `(n, E)`; `E` is smaller than `head_dim` where a part of each head is not turned.
    """
    turning = turning_of(config.model_type)
    parameters, by_layer = config.rope_parameters, {}
    if layer_type in parameters:
        parameters, by_layer = parameters[layer_type], {"layer_type": layer_type}
    scaling = 1.0
    if parameters.get("rope_type", "default") in ("default", "mrope"):
        width = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
        frequencies = 1.0 / parameters["rope_theta"] ** exponents
    else:
        frequencies, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, positions.device, **by_layer)
    if positions.ndim == 2:
        axes = turning.axes(parameters, len(frequencies))
        rows = positions[-3:]
        turned = torch.stack([rows[axis] for axis in axes], dim=-1)  # (n, frequencies)
    else:
        turned = positions[:, None]
    angles = turned.float() * frequencies
    angles = angles.repeat_interleave(2, dim=-1) if turning.pairs else torch.cat((angles, angles), dim=-1)
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)
