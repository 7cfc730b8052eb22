"""Policies of the laboratory: they imitate attention, or the evidence itself, or learn contributions or by rollouts, or one after the other."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cacovid_hf.policies.base import PolicyOutput
from cacovid_hf.training.objective import distillation_loss
from cacovid_hf.training.sampling import sample_multinomial
from cacovid_hf.training.token_values import TokenValues, ranking_loss
from studies.laboratory.contributions import PRICE, Contributions, measure
from studies.laboratory.prompts import Prompts
from studies.laboratory.questions import NUM_TOKENS, Asked
from studies.laboratory.scores import Attended
from studies.miniature import ITERATIONS, learn, token_scores

CONTRIBUTION_QUESTIONS = 1600
IMITATION_RATE, IMITATION_BATCH = 1.5e-3, 32
ROLLOUT_RATE, ROLLOUT_BATCH, ROLLOUTS = 3e-4, 32, 12


@dataclass(frozen=True)
class Recipe:
    """How a policy is trained.

    Args:
        teacher: `"question"` or `"last"` (attention, mean over the layers), or `"evidence"` (labels, which no method has); None: none.
        steps: optimiser steps that imitate.
        contribution_steps: optimiser steps that learn the order of measured contributions, after them.
        by_policy: contributions of the tokens that the policy finds likely, as the library's trainer has it; else that attention finds likely.
        in_a_row: 0: each question that is measured comes back in passes over all. More: it is in so many steps and never again, which was the
            trainer's first form.
        harm_weight: of contributions below zero, see `ranking_loss`.
        rollout_questions: questions that rollouts follow on.
        tokens: in a rollout, one of them a question in turn.
        policy_type, policy_attention: see `CaCoVidConfig`.
        learning_rate: of the rollouts.
        descent_rate: the largest learning rate of imitation and of contributions.
    """

    teacher: str | None = None
    steps: int = 0
    contribution_steps: int = 0
    by_policy: bool = False
    in_a_row: int = 0
    harm_weight: float = 1.0
    rollout_questions: int = 0
    tokens: tuple[int, ...] = (5,)
    policy_type: str = "light"
    policy_attention: str = "question"
    learning_rate: float = ROLLOUT_RATE
    descent_rate: float = IMITATION_RATE


RECIPES = {
    "imitation of the question": Recipe("question", steps=250),
    "imitation of the last token": Recipe("last", steps=250),
    "long imitation of the last token": Recipe("last", steps=650),
    "labels": Recipe("evidence", steps=250),
    "rollouts": Recipe(rollout_questions=4000),
    "imitation, then rollouts": Recipe("last", steps=250, rollout_questions=2000),
    "imitation, then rollouts of 1 to 14": Recipe("last", steps=250, rollout_questions=2000, tokens=(1, 2, 5, 14)),
    "imitation, then contributions": Recipe("last", steps=250, contribution_steps=400),
    "imitation, then contributions, as the trainer": Recipe("last", steps=250, contribution_steps=400, in_a_row=8),
    "imitation, then contributions by its own choice": Recipe(
        "last", steps=250, contribution_steps=400, by_policy=True
    ),
    "imitation, then contributions, harm a quarter": Recipe(
        "last", steps=250, contribution_steps=400, harm_weight=0.25
    ),
    "contributions": Recipe(contribution_steps=400),
    "full, imitation, then contributions": Recipe("last", steps=250, contribution_steps=400, policy_type="full"),
    "residual, imitation, then contributions": Recipe(
        "last", steps=250, contribution_steps=400, policy_type="residual"
    ),
    "imitation, then contributions, then rollouts": Recipe(
        "last", steps=250, contribution_steps=400, rollout_questions=1000
    ),
    "full, labels": Recipe("evidence", steps=250, policy_type="full"),
    "full and bidirectional, labels": Recipe(
        "evidence", steps=250, policy_type="full", policy_attention="bidirectional"
    ),
    "full, imitation, then rollouts": Recipe("last", steps=250, rollout_questions=2000, policy_type="full"),
}


def train(
    model: Any,
    asked: Asked,
    attention: Attended,
    recipe: Recipe,
    seed: int,
    contributions: Contributions | None = None,
) -> dict[str, Any]:
    """Train the policy of a wrapped video model in place.

    Args:
        model: its policy starts from layer 0.
        asked: clips and questions that nothing else was trained on.
        attention: of these questions.
        recipe: how.
        seed: of the order of the questions and of the rollouts.
        contributions: measured on some of these questions, if the recipe wants them.

    Returns:
        Seconds of the processor and rollouts, and what was logged.
    """
    generator = torch.Generator().manual_seed(seed)
    model.policy.frame_head.requires_grad_(False)
    begun = time.process_time()
    logs: dict[str, Any] = {}
    if recipe.teacher:
        order = _order(asked, recipe.steps * IMITATION_BATCH, generator)
        targets = teacher_scores(asked, attention, recipe.teacher)

        def imitation(output: PolicyOutput, number: int) -> Tensor:
            return distillation_loss(output, targets[number].view_as(output.token_scores), frames=False)

        logs["imitation"] = _descend(model, asked, order, imitation, recipe.descent_rate)
    logs["imitation_seconds"] = round(time.process_time() - begun, 1)
    if recipe.in_a_row:
        logs["contributions"] = _measure_and_rank(model, asked, recipe, generator)
    elif recipe.contribution_steps:
        if recipe.by_policy:
            contributions = _measured_by_policy(model, asked, generator)
        assert contributions is not None
        logs["contributions"] = _rank(model, asked, contributions, recipe, generator)
    if recipe.rollout_questions:
        order = _order(asked, recipe.rollout_questions, generator)
        batches: Any = Prompts(model, asked, ROLLOUT_BATCH, order)
        draw = _draws(recipe.tokens)
        logs["rollouts_log"] = learn(model, batches, draw, seed=seed, learning_rate=recipe.learning_rate)
    logs["rollouts"] = recipe.rollout_questions * ROLLOUTS * ITERATIONS
    return logs | {"processor_seconds": round(time.process_time() - begun, 1)}


def teacher_scores(asked: Asked, attention: Attended, teacher: str) -> Tensor:
    """What a policy imitates, `(C * Q, N)`, larger = keep; of labels all tokens alike where nothing is needed."""
    if teacher == "evidence":
        marks = asked.evidence.flatten(0, 1)
        return (marks | ~marks.any(1, keepdim=True)).float()
    rows = attention.question if teacher == "question" else attention.last
    return rows.float().mean(2).flatten(0, 1)


@torch.no_grad()
def policy_scores(model: Any, asked: Asked, batch_size: int = 24) -> Tensor:
    """How the policy scores the tokens of every question, `(C, Q, N)`."""
    scores = [score.flatten() for batch in Prompts(model, asked, batch_size) for score in token_scores(model, batch)]
    return torch.stack(scores).unflatten(0, asked.answers.shape)


def _order(asked: Asked, count: int, generator: torch.Generator) -> Tensor:
    """Numbers of `count` questions, each pass over them in an order of its own."""
    size = asked.answers.numel()
    passes = [torch.randperm(size, generator=generator) for _ in range(-(-count // size))]
    return torch.cat(passes)[:count]


def _rank(model: Any, asked: Asked, measured: Contributions, recipe: Recipe, generator: torch.Generator) -> list[float]:
    """Learn the order of measured contributions."""
    count, steps = len(measured.questions), recipe.contribution_steps
    found = dict(zip(measured.questions.tolist(), measured.measured(), strict=True))
    passes = [torch.randperm(count, generator=generator) for _ in range(-(-steps * IMITATION_BATCH // count))]
    order = measured.questions[torch.cat(passes)[: steps * IMITATION_BATCH]]
    return _descend(model, asked, order, _ranking(recipe, found, generator), recipe.descent_rate)


def _ranking(
    recipe: Recipe, found: dict[int, TokenValues], generator: torch.Generator
) -> Callable[[PolicyOutput, int], Tensor]:
    """The loss of what a policy says of one question, by what was found about its tokens until then."""

    def loss(output: PolicyOutput, number: int) -> Tensor:
        return ranking_loss(output, found[number], PRICE, harm_weight=recipe.harm_weight, generator=generator)

    return loss


@torch.no_grad()
def _measured_by_policy(model: Any, asked: Asked, generator: torch.Generator) -> Contributions:
    """Contributions of some questions' tokens that the policy finds likely."""
    order = _order(asked, CONTRIBUTION_QUESTIONS, generator)
    parts = []
    for numbers, batch in zip(order.split(IMITATION_BATCH), Prompts(model, asked, IMITATION_BATCH, order), strict=True):
        scores = torch.stack([score.flatten() for score in token_scores(model, batch)])
        parts.append(vars(measure(model.backbone, asked, scores, numbers, generator)))
    return Contributions(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _measure_and_rank(model: Any, asked: Asked, recipe: Recipe, generator: torch.Generator) -> list[float]:
    """The policy says which tokens are likely, and each batch is trained on at once, for several steps."""
    order = _order(asked, recipe.contribution_steps // recipe.in_a_row * IMITATION_BATCH, generator)
    batches = order.split(IMITATION_BATCH)
    found: dict[int, TokenValues] = {}

    def measured(numbers: list[int], outputs: list[PolicyOutput]) -> None:
        scores = torch.stack([output.token_scores.detach().flatten() for output in outputs])
        with torch.no_grad():
            values = measure(model.backbone, asked, scores, torch.tensor(numbers), generator).measured()
        found.clear()
        found.update(zip(numbers, values, strict=True))

    repeated = torch.cat([batch.repeat(recipe.in_a_row) for batch in batches])
    return _descend(
        model,
        asked,
        repeated,
        _ranking(recipe, found, generator),
        recipe.descent_rate,
        lambda step, *seen: None if step % recipe.in_a_row else measured(*seen),
    )


def _descend(
    model: Any,
    asked: Asked,
    order: Tensor,
    loss: Callable[[PolicyOutput, int], Tensor],
    rate: float,
    before: Callable[[int, list[int], list[PolicyOutput]], None] = lambda *_: None,
) -> list[float]:
    """Take a step for every batch of questions `order` down a loss of what the policy says of one question; the losses.

    The learning rate rises to `rate` and falls to 0. `before` is told the step, its questions and what the policy says of them.
    """
    policy = model.policy
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=0.01)
    batches, losses = Prompts(model, asked, IMITATION_BATCH, order), []
    for step, batch in enumerate(batches):
        prompt = batch.prompt
        outputs: list[PolicyOutput] = policy(prompt.inputs_embeds, prompt.position_ids, prompt.layout)
        numbers = batches.batches[step].tolist()
        before(step, numbers, outputs)
        total = torch.stack([loss(output, number) for output, number in zip(outputs, numbers, strict=True)]).mean()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 15) * (1 + math.cos(math.pi * step / len(batches))) / 2
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(round(total.item(), 4))
    return losses


def _draws(tokens: tuple[int, ...]) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Rollouts of one of several sizes, drawn anew for each question and iteration."""

    def draw(scores: Tensor, generator: torch.Generator) -> Tensor:
        count = tokens[int(torch.randint(len(tokens), (), generator=generator))]
        return sample_multinomial(scores, count / NUM_TOKENS, ROLLOUTS, scope="video", generator=generator)

    return draw
