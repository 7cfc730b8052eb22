"""How the backbone's answers from compressed prompts are judged: the same in training and in evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..prompt import CompressedPrompt
from .rewards import Reward
from .rollouts import generate_answers, score_answers


@dataclass(frozen=True)
class Question:
    """What a prompt's answer is judged by.

    Attributes:
        solution: the right answer.
        problem_type: a key of the rewards.
        answer: int64 `(A,)`, the tokens of the one right answer, which a prefill scores; None: an answer is generated, and the reward of the
            problem type judges it.
    """

    solution: str
    problem_type: str = "multiple choice"
    answer: Tensor | None = None


class Judge:
    """Gives every compressed prompt a reward in [0, 1].

    Args:
        backbone: the frozen stock model, in evaluation mode.
        processor: turns generated tokens into text.
        rewards: by problem type, for generated answers.
        max_new_tokens: of a generated answer.
        batch_size: prompts in one forward of the backbone.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        processor: ProcessorMixin,
        rewards: Mapping[str, Reward],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 512,
    ):
        self.backbone, self.processor, self.rewards = backbone, processor, rewards
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def __call__(self, prompts: CompressedPrompt, questions: Sequence[Question], *, dense: bool = False) -> Tensor:
        """Judge `R` prompts, one question each.

        Args:
            prompts: to be answered.
            questions: what each is judged by.
            dense: whether a scored answer earns its probability instead of 1 or 0; generated ones earn their reward in both cases.

        Returns:
            float32 `(R,)` on the prompts' device, larger = better.
        """
        device = prompts.inputs_embeds.device
        rewards = torch.zeros(len(questions), device=device)
        scored = [row for row, question in enumerate(questions) if question.answer is not None]
        if scored:
            answers: list[Any] = [questions[row].answer for row in scored]
            scores = score_answers(self.backbone, _rows(prompts, scored), answers, batch_size=self.batch_size)
            rewards[scored] = (scores.probability if dense else scores.exact.float()).to(device)
        if generated := [row for row, question in enumerate(questions) if question.answer is None]:
            rewards[generated] = self._generated(_rows(prompts, generated), [questions[row] for row in generated]).to(
                device
            )
        return rewards

    def _generated(self, prompts: CompressedPrompt, questions: list[Question]) -> Tensor:
        tokens = generate_answers(
            self.backbone, prompts, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size
        )
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        rewards = torch.zeros(len(questions))
        for problem_type in {question.problem_type for question in questions}:
            rows = [row for row, question in enumerate(questions) if question.problem_type == problem_type]
            reward = self.rewards[problem_type]
            judged = reward([texts[row] for row in rows], [questions[row].solution for row in rows])
            rewards[rows] = _checked(judged, len(rows), problem_type)
        return rewards


def _checked(judged: Any, count: int, problem_type: str) -> Tensor:
    """A reward function's answer, float32 `(count,)`; a single NaN would make every weight of the policy one."""
    try:
        rewards = torch.tensor(judged, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        rewards = torch.full((count,), torch.nan)
    if rewards.shape != (count,) or not bool(rewards.isfinite().all()):
        shown = repr(judged)
        raise ValueError(
            f"The reward of {problem_type!r} gave {shown if len(shown) <= 80 else f'{shown[:77]}...'} for {count} answers: give one finite number each."
        )
    return rewards


def _rows(prompts: CompressedPrompt, rows: list[int]) -> CompressedPrompt:
    if len(rows) == len(prompts.input_ids):
        return prompts
    index = torch.tensor(rows, device=prompts.input_ids.device)
    return replace(
        prompts,
        input_ids=prompts.input_ids[index],
        inputs_embeds=prompts.inputs_embeds[index],
        attention_mask=prompts.attention_mask[index],
        position_ids=prompts.position_ids[..., index, :],
        kept_indices=prompts.kept_indices[index],
    )
