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

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return how far the scores are from the measured order, one loss per video."""
        if header.iteration == 0:
            known = [self._known[video.index] for video in memory.videos if video.index in self._known]
            if len(known) == len(memory.videos):
                for video, measured in zip(memory.videos, known, strict=True):
                    video.measured = measured
            else:
                self.measure(memory, header)
        losses = []
        for video, output in zip(memory.videos, outputs, strict=True):
            generator = sample_generator(self.args.seed, header, video.number, "ranking")
            price = self.args.token_price / output.token_scores.numel()
            losses.append(ranking_loss(output, video.measured, price, generator=generator))
            self.note(ranking_loss=losses[-1], score_spread=output.token_scores.std(correction=0))
        return losses

    @torch.no_grad()
    def measure(self, memory: BatchMemory, header: BatchHeader) -> None:
        """Let the backbone answer from subsets of every video, and remember what each likely token is worth."""
        drawn = []
        for video in memory.videos:
            generator = sample_generator(self.args.seed, header, video.number, "rollouts")
            count = self.args.num_token_rollouts
            drawn.append(draw_among_likely(video.old.token_scores, video.ratio, count, generator=generator))
        keeps = [masks.flatten(1) for masks, _ in drawn]  # B times (G, N)
        prompts, rows = select_subsets(memory.prompt, keeps)
        questions = [memory.videos[row].question for row in rows.tolist()]
        rewards = self.examiner.reward(self.examiner.answer(prompts, questions), questions)  # (B * G,)
        groups = rewards.split([*map(len, keeps)])
        for video, keep, (_, likely), group in zip(memory.videos, keeps, drawn, groups, strict=True):
            video.measured = token_values(keep, group, likely)
            if video.index is not None:
                self._known[video.index] = video.measured
            self.note(reward=group.mean(), greedy_reward=group[0], sampling_ratio=video.ratio)
            self.note(misleading=(video.measured.values < -self.args.token_price / keep.shape[1]).float().mean())
