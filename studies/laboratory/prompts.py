"""The questions as prompts of the library, made from tokens that are already there: for its methods, policies and rollouts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cacovid_hf.prompt import Prompt, PromptLayout, ReducedAttention, VideoSpan
from cacovid_hf.tiny.synthetic import GRID, NUM_FRAMES
from cacovid_hf.training.question import Question
from studies.laboratory.packing import BEGIN, QUESTION
from studies.laboratory.questions import ALL_KINDS, NUM_TOKENS, Asked
from studies.laboratory.video_model import VIDEO_TOKEN
from studies.questions import EmbeddedQuestions

_GRID = (NUM_FRAMES, GRID, GRID)


class Prompts(Sequence):
    """Batches of embedded questions, each made when it is asked for: 2,000 would hold gigabytes.

    Args:
        model: a wrapped video model.
        asked: clips and their questions.
        batch_size: questions in a batch.
        order: int64, numbers of questions, clip by clip; None: all in order.
        tower: what the vision tower attended to in every clip, for the methods that read it.
    """

    def __init__(
        self,
        model: Any,
        asked: Asked,
        batch_size: int,
        order: Tensor | None = None,
        tower: Sequence[ReducedAttention] | None = None,
    ):
        self.model, self.asked, self.tower = model, asked, tower
        count = asked.answers.numel()
        self.batches = (torch.arange(count) if order is None else order).split(batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> EmbeddedQuestions:  # type: ignore[override]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._embedded(self.batches[number])

    @torch.no_grad()
    def _embedded(self, numbers: Tensor) -> EmbeddedQuestions:
        asked, backbone = self.asked, self.model.backbone
        clips, places = numbers // asked.answers.shape[1], numbers % asked.answers.shape[1]
        ids, lengths = asked.ids[clips, places], asked.lengths[clips, places]
        batch = len(numbers)
        embed = backbone.get_input_embeddings()
        embeds = torch.cat(
            [
                embed.weight[BEGIN].expand(batch, 1, -1),
                asked.tokens[clips].float(),
                backbone.model.image_newline.expand(batch, 1, -1),
                embed(ids),
            ],
            dim=1,
        )
        # Padding on the right of a question is no part of it.
        positions = torch.arange(embeds.shape[1])
        valid = positions < QUESTION + lengths[:, None]
        text = valid.clone()
        text[:, 1:QUESTION] = False
        spans = tuple(VideoSpan(row, _GRID, torch.arange(1, NUM_TOKENS + 1)) for row in range(batch))
        head = torch.tensor([BEGIN, *[VIDEO_TOKEN] * (NUM_TOKENS + 1)]).expand(batch, -1)
        prompt = Prompt(
            layout=PromptLayout(valid=valid, text=text, videos=spans),
            input_ids=torch.cat([head, ids], dim=1),
            inputs_embeds=embeds,
            position_ids=positions.expand(batch, -1),
            tower=None if self.tower is None else tuple(self.tower[clip] for clip in clips.tolist()),
        )
        answers = asked.answers[clips, places]
        questions = [Question("", answer=answer[None]) for answer in answers]
        kinds = [ALL_KINDS[kind] for kind in asked.kinds[clips, places].tolist()]
        return EmbeddedQuestions(prompt, questions, asked.evidence[clips, places], kinds)
