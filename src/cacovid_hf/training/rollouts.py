"""Rollouts: the frozen language model answers from many subsets of a video's tokens at once, and each answer gets its reward.

A sample is encoded once; all its subsets are taken from the same embedded prompt and run as one batch. For closed answers one prefill scores the
answer: the answer's tokens stand behind the prompt, and greedy generation would have produced them exactly if each is the likeliest at its place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..backbones import backbone_family
from ..backbones.loaded import taking_embeddings
from ..prompt import CompressedPrompt, Prompt, gather, ordered_places


@dataclass(frozen=True)
class AnswerScores:
    """How an answer fares, one entry a rollout.

    Attributes:
        probability: float32 `(R,)`, of the whole answer.
        exact: bool `(R,)`, whether greedy generation would begin with the whole answer.
        likeliest: int64 `(R, A)`, the tokens that greedy generation begins with, up to the first that is not the answer's; -1 behind it
            and behind the answer.
    """

    probability: Tensor
    exact: Tensor
    likeliest: Tensor


def select_subsets(prompt: Prompt, keeps: list[Tensor]) -> tuple[CompressedPrompt, Tensor]:
    """All subsets of all samples as one batch of compressed prompts.

    Args:
        prompt: `B` prompts with one video each.
        keeps: one bool `(G, N)` a prompt, its `G` subsets of the video's `N` tokens.

    Returns:
        `R = B * G` compressed prompts, sample by sample, and int64 `(R,)`, the prompt that each is taken from.
    """
    layout = prompt.layout
    spans = {span.row: span for span in layout.videos}
    if sorted(spans) != list(range(len(layout.valid))) or len(layout.videos) != len(spans):
        raise ValueError(
            f"{len(layout.videos)} video(s) in {len(layout.valid)} prompt(s): a training sample has exactly one video. Drop the others."
        )
    device = keeps[0].device
    rows = torch.cat([torch.full((len(keep),), row, device=device) for row, keep in enumerate(keeps)])
    stays = layout.valid.to(device)[rows]  # (R, L)
    start = 0
    for row, keep in enumerate(keeps):
        stays[start : start + len(keep), spans[row].positions.to(device)] = keep
        start += len(keep)
    places = ordered_places(stays, int(stays.sum(dim=1).max()))
    return gather(prompt, places, rows=rows), rows


@torch.no_grad()
def score_answers(
    backbone: PreTrainedModel, prompts: CompressedPrompt, answers: list[Tensor], *, batch_size: int = 512
) -> AnswerScores:
    """Score one given answer a rollout by a single forward, without a generation loop.

    Args:
        backbone: the frozen stock model, in evaluation mode.
        prompts: `R` compressed prompts.
        answers: one int64 `(A_i,)` a rollout, at least one token each.
        batch_size: rollouts in one forward.
    """
    family = backbone_family(backbone.config)
    probabilities, exact, begun = [], [], []
    for start in range(0, len(answers), batch_size):
        part = slice(start, start + batch_size)
        some = prompts.rows(part)
        lengths = torch.tensor([len(answer) for answer in answers[part]])
        ids = torch.nn.utils.rnn.pad_sequence(answers[part], batch_first=True).to(
            prompts.inputs_embeds.device
        )  # (R, A)
        longest = ids.shape[1]
        steps = torch.arange(longest, device=ids.device)
        given = steps < lengths.to(ids.device)[:, None]
        # The last answer token is scored, not read.
        read = slice(0, longest - 1)
        embeds = backbone.get_input_embeddings()(ids[:, read]).to(some.inputs_embeds)
        positions = some.position_ids
        with family.handed_over(backbone, some.kept_indices, some.extra):
            logits = (
                backbone(
                    inputs_embeds=torch.cat([some.inputs_embeds, embeds], dim=1),
                    attention_mask=torch.cat([some.attention_mask, given[:, read].long()], dim=1),
                    position_ids=torch.cat([positions, positions[..., -1:] + 1 + steps[read]], dim=-1),
                    logits_to_keep=longest,
                    use_cache=False,
                    **family.stock_arguments(backbone, torch.cat([some.input_ids.to(ids), ids[:, read]], dim=1)),
                )
                .logits[:, -longest:]
                .float()
            )  # (R, A, vocabulary); some models (VideoLLaMA3) keep those of every position
        log_probabilities = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        probabilities.append((log_probabilities * given).sum(1).exp())
        likeliest = logits.argmax(-1)
        differs = (likeliest != ids) & given
        exact.append(~differs.any(1))
        is_behind = differs.cumsum(1) - differs.long() > 0
        begun.append(likeliest.masked_fill(is_behind | ~given, -1))
    return AnswerScores(torch.cat(probabilities), torch.cat(exact), _stacked(begun, -1))


@torch.no_grad()
def generate_answers(
    backbone: PreTrainedModel, prompts: CompressedPrompt, *, max_new_tokens: int, batch_size: int = 64
) -> Tensor:
    """Greedy answers for open questions, int64 `(R, A)`, padded on the right."""
    family, pad = backbone_family(backbone.config), backbone.generation_config.pad_token_id or 0
    parts = []
    for start in range(0, len(prompts.input_ids), batch_size):
        some = prompts.rows(slice(start, start + batch_size))
        with family.handed_over(backbone, some.kept_indices, some.extra):
            sequences = taking_embeddings(backbone).generate(
                input_ids=some.input_ids,
                inputs_embeds=some.inputs_embeds,
                attention_mask=some.attention_mask,
                position_ids=some.position_ids,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                **family.stock_arguments(backbone, some.input_ids),
            )
        parts.append(sequences[:, prompts.input_ids.shape[1] :])
    return _stacked(parts, pad)


def _stacked(parts: list[Tensor], pad: int) -> Tensor:
    """Tokens `(R_i, A_i)` as one `(R, A)`, padded on the right."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=pad) for part in parts])
