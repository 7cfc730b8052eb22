"""Learning what single tokens contribute, from a few rollouts a sample that every later pass over the data uses again (ours)."""

from typing import Any

import torch
from torch import Tensor

from ..policies.base import PolicyOutput
from .batches import BatchHeader, sample_generator
from .learner import Learner
from .replay import BatchMemory
from .rollouts import select_subsets
from .token_values import TokenValues, draw_among_likely, ranking_loss, token_values


class ContributionRanking(Learner):
    """Measures the tokens that the policy finds likely when it first meets a sample, and learns their order then and in all later passes.

    What was measured is kept by the sample's place in the dataset, in each process by itself and not in checkpoints. So a sample that comes to another
    process, or back after a resumption, is measured again. Samples of a stream have no place, and are measured in every pass.
    """

    def __init__(self, *of_all: Any):
        super().__init__(*of_all)
        self._known: dict[int | None, TokenValues] = {}

    def begin(self) -> None:
        """Forget what was measured on other samples."""
        self._known.clear()

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return how far the scores are from the measured order, one loss per video."""
        if header.iteration == 0:
            self.measure(memory, header)
        losses = []
        for video, output in zip(memory.videos, outputs, strict=True):
            generator = sample_generator(self.args.seed, header, video.number, "ranking")
            losses.append(ranking_loss(output, video.measured, self.args.least_value, generator=generator))
            self.note(ranking_loss=losses[-1], score_spread=output.token_scores.std(correction=0))
        return losses

    @torch.no_grad()
    def measure(self, memory: BatchMemory, header: BatchHeader) -> None:
        """Give every video the values of its likely tokens: those that are known, or else what the backbone answers from subsets."""
        keeps: list[Tensor] = []
        likely: list[Tensor | None] = []
        for video in memory.videos:
            scores = video.old.token_scores
            if video.index in self._known:
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
                video.measured = self._known[video.index]
                continue
            video.measured = token_values(keep, group, tokens).to("cpu")
            if video.index is not None:
                self._known[video.index] = video.measured
            values = video.measured.values
            self.note(reward=group.mean(), greedy_reward=group[0], sampling_ratio=video.ratio)
            self.note(misleading=(values < -self.args.least_value).float().mean(), zero_variance=not group.var().item())

    def _rewards(self, memory: BatchMemory, keeps: list[Tensor]) -> Tensor:
        """Return what the answers from all subsets of all videos earn, `(R,)`."""
        if not any(map(len, keeps)):
            return torch.zeros(0)
        prompts, rows = select_subsets(memory.prompt, keeps)
        questions = [memory.videos[row].question for row in rows.tolist()]
        return self.examiner.reward(self.examiner.answer(prompts, questions), questions)
