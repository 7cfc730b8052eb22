"""From compressed prompts to rewards: what the backbone answers, and what the answers earn; the same in training and in evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..prompt import CompressedPrompt
from .arguments import ContributionTrainingArguments
from .question import Question
from .rewards import Completion, Reward, accuracy_reward
from .rollouts import generate_answers, score_answers

_SCORED = "scored answers"


def answer_questions(
    backbone: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: CompressedPrompt,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 512,
) -> list[Completion]:
    """Return what the backbone answers to `R` prompts, one question each.

    A scored answer's text is the solution if greedy generation would begin with it. Otherwise it is what greedy generation writes up to the
    first token that differs.

    Args:
        backbone: the frozen stock model, in evaluation mode.
        processor: turns tokens into text.
        prompts: to be answered.
        questions: with the tokens of the right answer where a prefill scores it.
        max_new_tokens: of a generated answer.
        batch_size: prompts in one forward of the backbone.

    Returns:
        `R` completions in the order of the prompts.
    """
    found: dict[int, Completion] = {}
    scored = [row for row, question in enumerate(questions) if question.answer is not None]
    if scored:
        answers: list[Any] = [questions[row].answer for row in scored]
        scores = score_answers(backbone, _rows(prompts, scored), answers, batch_size=batch_size)
        texts = _texts(processor, [[token for token in tokens if token >= 0] for tokens in scores.likeliest.tolist()])
        for row, text, exact, probability in zip(
            scored, texts, scores.exact.tolist(), scores.probability.tolist(), strict=True
        ):
            found[row] = Completion(questions[row].solution if exact else text, probability)
    if generated := [row for row, question in enumerate(questions) if question.answer is None]:
        tokens = generate_answers(
            backbone, _rows(prompts, generated), max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        found |= zip(generated, map(Completion, _texts(processor, tokens.tolist())), strict=True)
    return [found[row] for row in range(len(questions))]


def judge(
    completions: Sequence[Completion],
    questions: Sequence[Question],
    rewards: Mapping[str, Reward],
    scored: Reward = accuracy_reward,
) -> Tensor:
    """Return what `R` completions earn: each is judged by a plain function, whether it was scored or generated.

    Args:
        completions: answers.
        questions: one per completion.
        rewards: of generated answers, by problem type.
        scored: of scored answers.

    Returns:
        float32 `(R,)` on the CPU, larger = better.

    Raises:
        ValueError: a reward that does not give one finite number per completion.
    """
    kinds = [question.problem_type if question.answer is None else _SCORED for question in questions]
    earned = torch.zeros(len(kinds))
    for kind in set(kinds):
        rows = [row for row, other in enumerate(kinds) if other == kind]
        reward = scored if kind == _SCORED else rewards[kind]
        judged = reward([completions[row] for row in rows], [questions[row].solution for row in rows])
        earned[rows] = _checked(judged, len(rows), kind)
    return earned


class Examiner:
    """Asks the backbone and judges what it says.

    Args:
        backbone: the frozen stock model, in evaluation mode.
        processor: turns tokens into text.
        args: the settings.
    """

    def __init__(self, backbone: PreTrainedModel, processor: Any, args: ContributionTrainingArguments):
        self.backbone, self.processor, self.args = backbone, processor, args
        self.rewards, self.scored_reward = args.resolved_rewards(), args.scored_reward()

    def answer(self, prompts: CompressedPrompt, questions: Sequence[Question]) -> list[Completion]:
        """Return what the backbone answers to `R` prompts, one question each."""
        return answer_questions(
            self.backbone,
            self.processor,
            prompts,
            questions,
            max_new_tokens=self.args.max_new_tokens,
            batch_size=self.args.rollout_batch_size,
        )

    def reward(self, completions: Sequence[Completion], questions: Sequence[Question]) -> Tensor:
        """Return what `R` completions earn in training: float32 `(R,)` on the CPU, larger = better."""
        return judge(completions, questions, self.rewards, self.scored_reward)

    def accuracy(self, completions: Sequence[Completion], questions: Sequence[Question]) -> Tensor:
        """Return what they earn in evaluation, likewise: a scored answer counts 1 or 0 there, whatever it earns in training."""
        return judge(completions, questions, self.rewards)


def _checked(judged: Any, count: int, kind: str) -> Tensor:
    """Return a reward function's answer, float32 `(count,)`; a single NaN would make every weight of the policy one."""
    try:
        rewards = torch.tensor(judged, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        rewards = torch.full((count,), torch.nan)
    if rewards.shape != (count,) or not bool(rewards.isfinite().all()):
        shown = repr(judged)
        raise ValueError(
            f"The reward of {kind!r} gave {shown if len(shown) <= 80 else f'{shown[:77]}...'} for {count} answers. "
            "Return a list of one finite number per answer."
        )
    return rewards


def _texts(processor: Any, tokens: list[list[int]]) -> list[str]:
    return processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def _rows(prompts: CompressedPrompt, rows: list[int]) -> CompressedPrompt:
    if len(rows) == len(prompts.input_ids):
        return prompts
    return prompts.rows(torch.tensor(rows, device=prompts.input_ids.device))
