"""Keep the video tokens that the question attends to in a layer of the language model, read before anything is dropped."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..policies.stock_parts import check_readable
from ..prompt import Prompt, PromptLayout, VideoSpan
from ..utils.hooks import Hook, attached
from .base import CompressibleModel, Compressor, Scores
from .tools.inside import attention_rows
from .tools.tokens import highest_tokens

QUERIES = ("last", "question")


@dataclass(frozen=True)
class Attention(Compressor):
    """Keep the tokens with the most attention, mean over the heads, in layer `layer` of the language model.

    Ours, of FastV's criterion (arXiv 2403.06764) moved in front of the language model: its first layers are run once on the whole prompt, and the few rows
    of attention that matter are computed beside whatever kernel it uses. Costs at most `layer + 1` layers of an uncompressed prefill.

    Args:
        layer: from 0.
        query: whose attention: of the `"last"` token of the prompt, or the mean over the `"question"`, the text tokens behind the video.
    """

    layer: int = 1
    query: str = "question"

    name = "attention"

    def __post_init__(self):
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise ValueError(f"layer={self.layer!r} is not a layer: give a whole number from 0.")
        if self.query not in QUERIES:
            raise ValueError(f"query={self.query!r} is unknown: choose one of {', '.join(map(repr, QUERIES))}.")

    def score(self, prompt: Prompt, model: CompressibleModel) -> list[Scores | None]:
        """Return the attention that each token receives; of a frame the sum over its tokens."""
        received = video_attention(model, prompt, [self.layer], self.query)[self.layer]
        return [Scores(tokens, tokens.sum(dim=1)) for tokens in received]

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int) -> Tensor:
        """Return the tokens with the most attention, whatever their frame."""
        if scores is None:
            raise ValueError("The attention compressor selects by its scores, and there are none: call `score` first.")
        return highest_tokens(scores.token, budget)


class _Done(Exception):
    """Every layer that was asked for has been read."""


@torch.no_grad()
def video_attention(
    model: CompressibleModel, prompt: Prompt, layers: Sequence[int], query: str
) -> dict[int, list[Tensor]]:
    """How much attention every video token receives, in some layers of the uncompressed language model, in one pass that ends at the deepest of them.

    Args:
        model: the wrapped model.
        prompt: embedded.
        layers: from 0.
        query: see `Attention`.

    Returns:
        For each layer, for each video, float32 `(T, P)`: softmaxed attention, mean over the heads (and over the question's tokens).

    Raises:
        ValueError: the language model has no such layer, or it does not attend; or no text follows a video.
    """
    decoder: Any = model.backbone.get_decoder()
    for layer in layers:
        if not 0 <= layer < len(decoder.layers):
            raise ValueError(
                f"layer={layer} is none of the language model's {len(decoder.layers)} layers: give one from 0 to {len(decoder.layers) - 1}."
            )
    check_readable(decoder.config, layers)
    queries = [_queries(prompt.layout, span, query) for span in prompt.layout.videos]
    received: dict[int, list[Tensor]] = {}

    def read(layer: int, module: nn.Module, states: Tensor, cos: Tensor, sin: Tensor) -> None:
        device = states.device
        received[layer] = []
        for span, asking in zip(prompt.layout.videos, queries, strict=True):
            row, valid = span.row, prompt.layout.valid[span.row].nonzero()[:, 0]
            columns, places = torch.searchsorted(valid, span.positions), torch.searchsorted(valid, asking)
            valid = valid.to(device)
            turn = [part[row if len(part) > 1 else 0, valid] for part in (cos, sin)]
            # A few queries at a time: the scores of all heads are the size of a video each.
            rows = [
                attention_rows(module, states[row, valid], turn[0], turn[1], some.to(device))[
                    :, columns.to(device)
                ].sum(dim=0)
                for some in places.split(32)
            ]
            received[layer].append((torch.stack(rows).sum(dim=0) / len(places)).view(span.num_frames, -1))
        if len(received) == len(set(layers)):
            raise _Done

    def enter(layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        read(layer, module, states, *kwargs["position_embeddings"])

    hooks = [Hook(decoder.layers[layer].self_attn, pre=partial(enter, layer)) for layer in set(layers)]
    with suppress(_Done), attached(*hooks), model.family.handed_over(model.backbone, prompt.places, prompt.extra):
        decoder(
            inputs_embeds=prompt.inputs_embeds,
            attention_mask=prompt.layout.valid.long().to(prompt.inputs_embeds.device),
            position_ids=prompt.position_ids,
            use_cache=False,
            **model.family.stock_arguments(model.backbone, prompt.input_ids),
        )
    return received


def _queries(layout: PromptLayout, span: VideoSpan, query: str) -> Tensor:
    """Places of the tokens whose attention counts for a video."""
    if query == "last":
        return layout.valid[span.row].nonzero()[-1:, 0]
    text = layout.text[span.row].nonzero()[:, 0]
    question = text[text > span.positions[-1]]
    if len(question) == 0:
        raise ValueError(
            f"Row {span.row} of the prompt has no text behind a video, and query='question' reads nothing else: put the question there, or use query='last'."
        )
    return question
