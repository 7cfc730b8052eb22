"""Combinatorial policy optimisation: one iteration of rollouts on a batch of samples, in the order of the mathematics.

    old policy -> sampling -> rollouts -> rewards -> replay memory -> advantages -> clipped loss -> next ratio

Shapes in comments: `B` prompts of one video each, `T` frames of `P` tokens, `N = T * P`, `G` token rollouts and `F` frame rollouts per
iteration, `R` rollouts of the batch.
"""

import torch
from torch import Tensor

from ..policies.base import PolicyOutput
from .batches import BatchHeader
from .draws import draw_subsets, following_ratio
from .learner import Learner
from .objective import advantages, cpo_loss, priced, summed_advantages
from .replay import BatchMemory, Rollouts, Subsets
from .rewards import retention_reward
from .rollouts import select_subsets


class PolicyOptimisation(Learner):
    """Choices that did better than others of the same sample become likelier (arXiv 2602.01649, section on training)."""

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return the clipped losses over the replay memory, one per video."""
        self.roll_out(memory, header)
        return self._optimise(memory, outputs)

    # ---------------------------------------------------------------- rollouts, rewards, replay memory

    @torch.no_grad()
    def roll_out(self, memory: BatchMemory, header: BatchHeader) -> None:
        """Draw new subsets of every video, let the backbone answer from each, and remember what they earn."""
        # Sampling, from the old policy's scores.
        prompt = memory.prompt
        pairs = zip(memory.videos, prompt.layout.videos, strict=True)
        drawn = [draw_subsets(self.args, header, video, prompt, span) for video, span in pairs]
        # Rollouts: all subsets of all videos as one batch.
        keeps = [subsets.keeps for subsets in drawn]  # B times (G + F, N)
        prompts, rows = select_subsets(prompt, keeps)  # R = B * (G + F) prompts, the video of each
        questions = [memory.videos[row].question for row in rows.tolist()]
        completions = self.examiner.answer(prompts, questions)  # R texts
        # Rewards.
        rewards = self.examiner.reward(completions, questions)  # (R,)
        retained = torch.zeros_like(rewards)
        if self.args.retention_weight:
            accuracies = self.examiner.accuracy(completions, questions)
            retained = self._retained(memory, header, drawn, accuracies).to(rewards)
        # Replay memory.
        counts = [*map(len, keeps)]
        groups = torch.stack((rewards, retained), dim=1).split(counts)
        for video, subsets, group in zip(memory.videos, drawn, groups, strict=True):
            mask, frames = subsets.tokens, subsets.frames  # (G, T, P), (F, T)
            parts = group.to(mask.device)  # (G + F, 2), for the answer and for what it retains
            of_tokens, of_frames = subsets.split(parts)  # (G, 2), (F, 2)
            answered = of_tokens.sum(1)
            net = priced(answered, mask, self.args.token_price)  # (G,), less what the kept tokens cost
            saved = 1 - mask.flatten(1).float().mean(1, keepdim=True)
            video.remember(
                Rollouts(mask, net, torch.cat([of_tokens, saved], dim=1)),
                None if frames is None else Rollouts(frames, of_frames.sum(1), of_frames),
                behind_former=self.args.replay and header.iteration > 0,
            )
            self.note(reward=answered.mean(), greedy_reward=answered[0])
            self.note(kept_ratio=mask.float().mean(), sampling_ratio=video.ratio)

    def _retained(self, memory: BatchMemory, header: BatchHeader, drawn: list[Subsets], accuracies: Tensor) -> Tensor:
        """Return the retention reward of every rollout `(R,)`, from their accuracies; the uncompressed model answers once, at a sample's first rollouts."""
        if header.iteration == 0:
            questions = [video.question for video in memory.videos]
            whole = self.model.compress_prompt(memory.prompt, retention_ratio=1.0)
            full = self.examiner.accuracy(self.examiner.answer(whole, questions), questions)  # (B,)
            for video, accuracy in zip(memory.videos, full.tolist(), strict=True):
                video.full = accuracy
        earned: list[float] = []
        groups = accuracies.split([len(subsets.keeps) for subsets in drawn])
        for video, subsets, of_video in zip(memory.videos, drawn, groups, strict=True):
            # Token rollouts and frame rollouts are groups of their own.
            for group in filter(len, subsets.split(of_video)):
                settings = (video.full, self.args.retention_weight, self.args.retention_floor)
                earned += retention_reward(group.tolist(), *settings)
            self.note(full_accuracy=video.full)
        return torch.tensor(earned)

    # ---------------------------------------------------------------- advantages, clipped loss

    def _optimise(self, memory: BatchMemory, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Losses over the replay memory, one per video; then the ratio of its next iteration."""
        losses = []
        for video, output in zip(memory.videos, outputs, strict=True):
            tokens, frames = video.tokens, video.frames
            loss, statistics = cpo_loss(
                output,
                video.old,
                tokens.masks,
                self.advantages(tokens),
                None if frames is None else frames.masks,
                None if frames is None else self.advantages(frames),
                clip_low=self.args.clip_low,
                clip_high=self.args.clip_high,
                dual_clip=self.args.dual_clip,
                kl_weight=self.args.kl_weight,
                balanced=self.args.sampler != "bernoulli" or self.args.advantage == "by_token",
            )
            losses.append(loss)
            self.note(**vars(statistics))
            video.ratio = following_ratio(self.args, video)
        return losses

    def advantages(self, rollouts: Rollouts) -> Tensor:
        """Return the advantage of each rollout, `(R,)`: over the sum of the rewards, or over each by itself."""
        if self.args.advantage != "by_reward":
            return advantages(rollouts.rewards)
        # The retention reward has its weight already; normalised by itself it needs it again. Frame rollouts have no price.
        weights = (1.0, self.args.retention_weight, self.args.token_price)[: rollouts.parts.shape[1]]
        return summed_advantages(rollouts.parts.unbind(1), weights)
