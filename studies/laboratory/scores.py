"""What tokens are chosen by: attention of every layer, known evidence, and what a budget is filled with beside it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studies.laboratory.packing import QUESTION, answer_logits, everything, pack
from studies.laboratory.questions import NUM_TOKENS, Asked


@dataclass(frozen=True)
class Attended:
    """What questions attend to in the uncompressed prompt, mean over the heads.

    Attributes:
        question: half precision `(C, Q, layers, N)`, mean over the question's tokens.
        last: likewise, of the prompt's last token.
    """

    question: Tensor
    last: Tensor


@torch.no_grad()
def attended(model: Any, asked: Asked) -> Attended:
    """The attention of all layers, read with all questions of a clip packed; as each question alone would have it.

    Args:
        model: the video model.
        asked: clips and questions.
    """
    decoder = model.get_decoder()
    kernel = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        found = [_of_clip(model, asked.of(clip)) for clip in torch.arange(len(asked)).split(1)]
    finally:
        decoder.set_attn_implementation(kernel)
    question, last = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Attended(question, last)


def _of_clip(model: Any, asked: Asked) -> tuple[Tensor, Tensor]:
    packed = pack(model, asked, torch.tensor([0]), everything(1))
    hidden = torch.zeros(packed.attention_mask.shape).masked_fill(
        ~packed.attention_mask, torch.finfo(torch.float32).min
    )
    attentions = model.get_decoder()(
        inputs_embeds=packed.inputs_embeds,
        position_ids=packed.position_ids,
        attention_mask=hidden,
        use_cache=False,
        output_attentions=True,
    ).attentions
    count, size = asked.ids.shape[1:]
    lengths = asked.lengths[0]
    is_question = (torch.arange(size) < lengths[:, None]).float()
    question, last = [], []
    for layer in attentions:
        rows = layer[0, :, QUESTION:, 1 : NUM_TOKENS + 1].mean(0).unflatten(0, (count, size))  # (Q, M, N)
        question.append((rows * is_question[..., None]).sum(1) / lengths[:, None])
        last.append(rows[torch.arange(count), lengths - 1])
    return torch.stack(question, dim=1).half(), torch.stack(last, dim=1).half()


def highest(scores: Tensor, count: int) -> Tensor:
    """The `count` highest scores of `(..., N)`, ascending in place: int64 `(..., count)`; the earlier one of equals."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


@torch.no_grad()
def right_from(model: Any, asked: Asked, kept: Tensor, batch_size: int = 24) -> tuple[Tensor, Tensor]:
    """How questions are answered from tokens of their own.

    Args:
        model: the video model.
        asked: `C` clips and `Q` questions about each.
        kept: int64 `(C, Q, K)`, ascending.
        batch_size: prompts in one forward.

    Returns:
        bool `(C, Q)`, which are right, and float32 `(C, Q)`, the probability of the right answer.
    """
    exact, probability = [], []
    for numbers in torch.arange(asked.answers.numel()).split(batch_size):
        some = asked.alone(numbers)
        logits = answer_logits(model, some, torch.arange(len(numbers)), kept.flatten(0, 1)[numbers])[:, 0]
        exact.append(logits.argmax(-1) == some.answers[:, 0])
        probability.append(logits.softmax(-1).gather(1, some.answers)[:, 0])
    return torch.cat(exact).view_as(asked.answers), torch.cat(probability).view_as(asked.answers)


def right_of_sets(model: Any, asked: Asked, keep: Tensor) -> tuple[Tensor, Tensor]:
    """As `right_from`, for sets of any size: bool `(C, Q, N)`."""
    right, probability = torch.zeros(asked.answers.shape).bool(), torch.zeros(asked.answers.shape)
    sizes = keep.sum(2)
    for size in sizes.unique().tolist():
        numbers = (sizes == size).flatten().nonzero()[:, 0]
        kept = highest(keep.flatten(0, 1)[numbers].float(), size)
        found = right_from(model, asked.alone(numbers), kept[:, None])
        right.view(-1)[numbers], probability.view(-1)[numbers] = found[0][:, 0], found[1][:, 0]
    return right, probability


HARMLESS = "cells without objects"  # beside the evidence
NEXT_CHOICES = "attention's next choices"
ALONE = "evidence alone"


def fillers(asked: Asked, attention: Tensor, seed: int) -> dict[str, Tensor]:
    """Scores `(C, Q, N)` that keep a token of every group of the evidence first, with scores above 100, and then: what attention likes, other objects, cells without objects, anything.

    Args:
        asked: clips and questions.
        attention: `(C, Q, N)`, of the choice of tokens that is tried.
        seed: of what is drawn.
    """
    noise = torch.rand(asked.evidence.shape, generator=torch.Generator().manual_seed(seed))
    one = torch.zeros_like(noise)
    for number in range(1, int(asked.groups.max()) + 1):
        inside = asked.groups == number
        one += torch.zeros_like(noise).scatter(2, highest(noise * inside, 1), 1e3) * inside
    objects = asked.objects[:, None].expand_as(asked.evidence) & ~asked.evidence
    return {
        NEXT_CHOICES: attention / attention.amax(-1, keepdim=True).clamp(min=1e-30) + one,
        "other objects": noise + 10 * objects + one,
        HARMLESS: noise - 10 * objects + one,
        "anything": noise + one,
    }
