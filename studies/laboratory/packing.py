"""Many questions behind one video in one forward: each sees the video's tokens and itself. Tokens keep their original positions."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studies.laboratory.questions import NUM_TOKENS, Asked

BEGIN = 1  # <|im_start|>, in front of every prompt
QUESTION = NUM_TOKENS + 2  # the position of a question's first token: behind the video stands the newline


@dataclass(frozen=True)
class Packed:
    """Inputs of the language model.

    Attributes:
        inputs_embeds: `(B, 1 + K + 1 + Q * M, D)`.
        position_ids: int64, likewise without `D`.
        attention_mask: bool `(B, 1, L, L)`.
        num_kept: `K`.
    """

    inputs_embeds: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    num_kept: int


def pack(model: Any, asked: Asked, clips: Tensor, kept: Tensor) -> Packed:
    """Prompts with all questions of some clips, packed.

    Args:
        model: the video model.
        asked: the clips.
        clips: int64 `(B,)`, which of them; one may come several times.
        kept: int64 `(B, K)`, the tokens that stay, ascending.
    """
    embed, newline = model.get_input_embeddings(), model.model.image_newline
    questions = asked.ids[clips]  # (B, Q, M)
    batch, count, size = questions.shape
    embeds = [
        embed.weight[BEGIN].expand(batch, 1, -1),
        asked.tokens[clips[:, None], kept].float(),
        newline.expand(batch, 1, -1),
        embed(questions).flatten(1, 2),
    ]
    behind = torch.arange(QUESTION, QUESTION + size).repeat(count)
    fixed = torch.tensor([0]).expand(batch, 1), torch.tensor([QUESTION - 1]).expand(batch, 1)
    positions = torch.cat([fixed[0], kept + 1, fixed[1], behind.expand(batch, -1)], dim=1)
    prefix = kept.shape[1] + 2
    number = torch.cat([torch.full((prefix,), -1), torch.arange(count).repeat_interleave(size)])
    sees = ((number[None] == -1) | (number[None] == number[:, None])).tril()
    return Packed(torch.cat(embeds, dim=1), positions, sees.expand(batch, 1, -1, -1), kept.shape[1])


def answer_logits(model: Any, asked: Asked, clips: Tensor, kept: Tensor) -> Tensor:
    """What the language model would say next behind each question: `(B, Q, vocabulary)`; arguments as of `pack`."""
    packed = pack(model, asked, clips, kept)
    states = model.get_decoder()(
        inputs_embeds=packed.inputs_embeds,
        position_ids=packed.position_ids,
        attention_mask=packed.attention_mask,
        use_cache=False,
    ).last_hidden_state[:, packed.num_kept + 2 :]
    states = states.unflatten(1, asked.ids.shape[1:])
    last = (asked.lengths[clips] - 1)[..., None, None].expand(-1, -1, 1, states.shape[-1])
    return model.get_output_embeddings()(states.gather(2, last)[:, :, 0])


@torch.no_grad()
def answered_right(model: Any, asked: Asked, kept: Tensor, batch_size: int = 4) -> Tensor:
    """Which questions are answered right from the same tokens of each clip, `kept` `(C, K)`: bool `(C, Q)`."""
    right = [
        answer_logits(model, asked, clips, kept[clips]).argmax(-1) == asked.answers[clips]
        for clips in torch.arange(len(asked)).split(batch_size)
    ]
    return torch.cat(right)


def everything(count: int) -> Tensor:
    """All tokens of `count` clips: int64 `(count, N)`."""
    return torch.arange(NUM_TOKENS).expand(count, -1)
