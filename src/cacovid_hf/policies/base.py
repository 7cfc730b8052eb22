"""The contribution policy: prompt embeddings in, a keep score for every video token and every frame out.

`Policy` is what every policy is: rows of a batch without their padding, so that attention needs no mask, and logits in float32. Only what the heads read
is computed: queries, MLP and norms run on the video tokens alone. The published one is in `full.py`, the light one in `light.py`, and the one after SCORE in `residual.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..prompt import PromptLayout
from ..utils.tensors import full_precision, to_device_async
from .layer import RMSNorm, Rope
from .rotary import cos_sin
from .settings import check_policy
from .shape import AttentionShape

Context = tuple[Tensor, ...]


@dataclass(frozen=True)
class PolicyOutput:
    """What the policy says of one video.

    Attributes:
        token_logits: float32 `(T, P, 2)`, (drop, keep).
        frame_logits: float32 `(T, 2)`, (drop, keep).
    """

    token_logits: Tensor
    frame_logits: Tensor

    @property
    def token_scores(self) -> Tensor:
        """Float32 `(T, P)`, keep minus drop: larger = keep."""
        return self.token_logits[..., 1] - self.token_logits[..., 0]

    @property
    def frame_scores(self) -> Tensor:
        """Float32 `(T,)`, keep minus drop: larger = more of the budget."""
        return self.frame_logits[..., 1] - self.frame_logits[..., 0]


def logits(head: nn.Sequential, states: Tensor) -> Tensor:
    """Return what a head says of `(..., S)` states, float32: its last layer is computed so, because scores would tie in half precision."""
    last: Any = head[-1]
    hidden = head[:-1](states).float()
    with full_precision(states.device):
        return F.linear(hidden, last.weight.float(), last.bias.float())


class Policy(nn.Module, ABC):
    """Scores every video token and every frame of a prompt by its contribution to the answer.

    Args:
        config: the text config of the backbone: sizes, activation, rotary parameters.
        attention: what a video token may attend to.
        shape: the attention of the language model's layer that the policy starts from.

    Attributes:
        tokens_per_chunk: so many video tokens are scored at a time where no gradients are wanted: enough to keep a device busy, few enough
            that the intermediate results of a long video stay small.
    """

    policy_type: ClassVar[str]
    tokens_per_chunk: ClassVar[int]
    norm: RMSNorm | nn.LayerNorm
    token_head: nn.Sequential
    frame_head: nn.Sequential

    def __init__(self, config, attention: str, shape: AttentionShape):
        super().__init__()
        check_policy(self.policy_type, attention)
        self.config = config
        self.attention = attention
        self.shape = shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.norm.weight.device

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor, layout: PromptLayout) -> list[PolicyOutput]:
        """Score the videos of a batch of prompts.

        Args:
            inputs_embeds: `(B, L, D)`, the embedded prompt, text and video.
            position_ids: `(B, L)`, or `(R, B, L)` with the rows of M-RoPE last (a leading text row is ignored).
            layout: what is where in the `B` prompts.

        Returns:
            One `PolicyOutput` a video, in the order of `layout.videos`.
        """
        if inputs_embeds.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"The prompt has hidden size {inputs_embeds.shape[-1]}, the policy {self.config.hidden_size}: use the policy with the "
                "backbone that it was made for."
            )
        if self.device.type == "meta" and inputs_embeds.device.type != "meta":
            raise ValueError(
                "The policy's weights are not in memory (offloaded with the whole model): offload the backbone alone, or load with device_map."
            )
        inputs_embeds = inputs_embeds.to(self.device, self.dtype)
        position_ids = position_ids.to(self.device)
        rows: dict[int, tuple[Rope, Context]] = {}
        outputs = []
        for span in layout.videos:
            embeds = inputs_embeds[span.row]
            if span.row not in rows:
                rope = self._rope(position_ids[..., span.row, :])
                rows[span.row] = rope, self._context(embeds, rope, layout, span.row)
            rope, context = rows[span.row]
            token_logits, frame_logits = [], []
            frame_size = span.tokens_per_frame
            former = torch.cat((span.positions[:frame_size], span.positions[:-frame_size]))
            chunks = (self._chunks(where, frame_size) for where in (span.positions, former))
            for places, before in zip(*chunks, strict=True):
                states = self._states(context, embeds, rope, places, before)
                tokens, frames = self._readings(states.unflatten(0, (-1, frame_size)))
                token_logits.append(logits(self.token_head, tokens))
                frame_logits.append(logits(self.frame_head, frames))
            outputs.append(PolicyOutput(torch.cat(token_logits), torch.cat(frame_logits)))
        return outputs

    @abstractmethod
    def _context(self, embeds: Tensor, rope: Rope, layout: PromptLayout, row: int) -> Context:
        """Return what video tokens of a row read, from its `(L, D)` embeddings and the turning of its `L` places."""

    @abstractmethod
    def _states(self, context: Context, embeds: Tensor, rope: Rope, places: Tensor, former: Tensor) -> Tensor:
        """States `(n, S)` of the video tokens at `places` `(n,)` of a row, from the same; `former` are those of the frame before, in the first frame its own."""

    @abstractmethod
    def _readings(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the heads read of `(T, P, S)` states of frames of a video: `(T, P, U)` of the tokens, `(T, V)` of the frames."""

    @abstractmethod
    def init_from_layer(self, layer: Any, language_model: Any = None) -> None:
        """Start from a decoder layer of the language model, in the policy's dtype.

        Published: the layer 0. Where that is linear attention, the first one that attends, `shape.layer`.

        Args:
            layer: of the language model.
            language_model: needed by the full policy alone, where layers have inputs of their own.

        Raises:
            ValueError: a layer without the parts that the policy was made for.
        """

    def _chunks(self, places: Tensor, frame_size: int) -> tuple[Tensor, ...]:
        """Places of a video's tokens on the policy's device, whole frames at a time: all where gradients are wanted, else few enough to bound the memory."""
        size = len(places) if torch.is_grad_enabled() else max(1, self.tokens_per_chunk // frame_size) * frame_size
        return to_device_async(places, self.device).split(size)

    def _text_places(self, layout: PromptLayout, row: int) -> Tensor:
        places = layout.text_places[row]
        if len(places) == 0:
            raise ValueError(
                f"Row {row} of the prompt has no text, and a policy with attention='question' reads nothing else: add the question."
            )
        return to_device_async(places, self.device)

    def _rope(self, positions: Tensor) -> Rope:
        """`(n,)` or `(R, n)` positions to cos and sin, see `cos_sin`."""
        return cos_sin(self.config, self.shape.head_dim, self.shape.layer_type, positions, self.dtype)
