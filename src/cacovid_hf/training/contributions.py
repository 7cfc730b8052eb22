"""Learning what single tokens contribute, from a few rollouts a sample that every later pass over the data uses again (ours)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..policies.base import PolicyOutput
from .batches import BatchHeader, sample_generator
from .learner import Learner
from .replay import BatchMemory
from .resuming import TOKEN_VALUES
from .rollouts import select_subsets
from .sample_store import SampleStore
from .token_values import TokenValues, draw_among_likely, ranking_loss, token_values

logger = logging.get_logger(__name__)


class ContributionRanking(Learner):
    """Measures the tokens that the policy finds likely when it first meets a sample, and learns their order then and in all later passes.

    What was measured is kept by the sample's place in the dataset, in all processes and in checkpoints. Samples of a stream have no place, and are
    measured in every pass. A sample that comes back with another number of tokens is measured again.
    """

    def __init__(self, *of_all: Any):
        super().__init__(*of_all)
        self._known = SampleStore(TOKEN_VALUES, "tokens", "values")

    def begin(self, checkpoint: str | None) -> None:
        """Forget what was measured on other samples, or go on with what a checkpoint knows."""
        if checkpoint is None:
            self._known.clear()
        elif not self._known.load(checkpoint):
            logger.warning(f"{checkpoint} has no {TOKEN_VALUES}. Its samples are measured again.")

    def share(self) -> None:
        """Tell the other processes what was measured."""
        self._known.share(self.args.world_size)

    def save(self, checkpoint: Path) -> None:
        """Write what is known."""
        self._known.save(checkpoint)

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return how far the scores are from the measured order, one loss per video."""
        if header.iteration == 0:
            self.measure(memory, header)
        args, losses = self.args, []
        for video, output in zip(memory.videos, outputs, strict=True):
            generator = sample_generator(args.seed, header, video.number, "ranking")
            losses.append(
                ranking_loss(
                    output, video.measured, args.least_value, harm_weight=args.harm_weight, generator=generator
                )
            )
            self.note(ranking_loss=losses[-1], score_spread=output.token_scores.std(correction=0))
        return losses

    @torch.no_grad()
    def measure(self, memory: BatchMemory, header: BatchHeader) -> None:
        """Give every video the values of its likely tokens: those that are known, or else what the backbone answers from subsets."""
        keeps: list[Tensor] = []
        likely: list[Tensor | None] = []
        for video in memory.videos:
            scores = video.old.token_scores
            if known := self._known.get(video.index, scores.numel()):
                video.measured = TokenValues(known[0], known[1], scores.numel())
                keeps.append(torch.zeros(0, scores.numel(), dtype=torch.bool, device=scores.device))
                likely.append(None)
                continue
            generator = sample_generator(self.args.seed, header, video.number, "rollouts")
            masks, found = draw_among_likely(scores, video.ratio, self.args.num_token_rollouts, generator=generator)
            keeps.append(masks.flatten(1))  # (G, N)
            likely.append(found)
        groups = self._rewards(memory, keeps).split([*map(len, keeps)])
        for video, keep, tokens, group in zip(memory.videos, keeps, likely, groups, strict=True):
            if tokens is None:
                continue
            video.measured = token_values(keep, group, tokens).to("cpu")
            values = video.measured.values
            self._known.put(video.index, video.measured.size, video.measured.tokens, values)
            self.note(reward=group.mean(), greedy_reward=group[0], sampling_ratio=video.ratio)
            self.note(misleading=(values < -self.args.least_value).float().mean(), zero_variance=not group.var().item())

    def _rewards(self, memory: BatchMemory, keeps: list[Tensor]) -> Tensor:
        """Return what the answers from all subsets of all videos earn, `(R,)`."""
        if not any(map(len, keeps)):
            return torch.zeros(0)
        prompts, rows = select_subsets(memory.prompt, keeps)
        questions = [memory.videos[row].question for row in rows.tolist()]
        return self.examiner.reward(self.examiner.answer(prompts, questions), questions)
