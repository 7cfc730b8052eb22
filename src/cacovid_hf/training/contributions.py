"""Learning what single tokens contribute, from a few rollouts a sample that every iteration on it uses again (ours)."""

import torch
from torch import Tensor

from ..policies.base import PolicyOutput
from .batches import BatchHeader, sample_generator
from .learner import Learner
from .replay import BatchMemory
from .rollouts import select_subsets
from .token_values import draw_among_likely, ranking_loss, token_values


class ContributionRanking(Learner):
    """Measures the tokens that the policy finds likely at a sample's first iteration, and learns their order in all iterations."""

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return how far the scores are from the measured order, one loss per video."""
        if header.iteration == 0:
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
            self.note(reward=group.mean(), greedy_reward=group[0], sampling_ratio=video.ratio)
            self.note(misleading=(video.measured.values < -self.args.token_price / keep.shape[1]).float().mean())
