"""Combinatorial policy optimisation: subsets, their rewards and the policy's logits in, a loss out.

Pure functions of tensors (arXiv 2602.01649, section on training; published constants as defaults). Every token and every frame is a choice of
its own between dropping and keeping; a subset's advantage over the others moves all the choices that made it, by a ratio to the old policy that
is clipped as in PPO. Not to be confused with "contrastive preference optimisation".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..policies.base import PolicyOutput

# Of a log-probability: beyond it a ratio has no gradient. The squares of gradients, which AdamW sums, stay finite.
_LARGEST_CHANGE = 20.0


@dataclass(frozen=True)
class Statistics:
    """What to watch in training: 0-dimensional tensors without graph, on the logits' device.

    Attributes:
        token_loss: loss of the token head, without the KL term.
        frame_loss: loss of the frame head, without the KL term.
        clip_fraction: share of the tokens' choices, over all subsets, at which the clip stops the gradient; near 1 = the old policy is too old.
        ratio_mean: mean ratio of the tokens' choices to the old policy; 1 at the first iteration.
        entropy: mean entropy of the tokens' keep probabilities in nats, in [0, log 2]; towards 0 = the policy has stopped trying.
        score_spread: standard deviation of the token scores (keep minus drop logit); growing without end = scores blow up.
        zero_variance: 1 if all token advantages are zero (equal rewards), so that the token head learns nothing, else 0.
        kl: divergence from the coin flip, before its weight, mean over tokens plus (if there are frame rollouts) mean over frames.
    """

    token_loss: Tensor
    frame_loss: Tensor
    clip_fraction: Tensor
    ratio_mean: Tensor
    entropy: Tensor
    score_spread: Tensor
    zero_variance: Tensor
    kl: Tensor


def advantages(rewards: Tensor) -> Tensor:
    """How much better than the others each subset did: `(R - mean) / (std + 1e-4)`, with the sample standard deviation.

    Args:
        rewards: `(R,)`, larger = better.

    Returns:
        float32 `(R,)`; zeros for a single reward (the published code gives NaN) or equal ones.
    """
    rewards = rewards.float()
    if rewards.numel() < 2:
        return torch.zeros_like(rewards)
    # The mean of equal rewards is not always bit-equal to them.
    differ = (rewards != rewards[0]).any()
    return torch.where(differ, (rewards - rewards.mean()) / (rewards.std() + 1e-4), 0.0)


def summed_advantages(rewards: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Advantages of several rewards, each normalised among the subsets by itself, then added by weight (after SCORE, arXiv 2603.26365; derived by us).

    Subsets that earn the same by one reward still learn from the others, and a weight means the same whatever the spread of a reward.

    Args:
        rewards: `K` of `(R,)`, larger = better.
        weights: `K` numbers.

    Returns:
        float32 `(R,)`.
    """
    parts = [weight * advantages(reward) for reward, weight in zip(rewards, weights, strict=True)]
    return torch.stack(parts).sum(0)


def priced(rewards: Tensor, masks: Tensor, token_price: float) -> Tensor:
    """Rewards less what their tokens cost (ours).

    Args:
        rewards: `(R,)`.
        masks: bool `(R, ...)`, the tokens kept.
        token_price: reward that keeping all tokens of the video would cost; larger = fewer tokens.

    Returns:
        float32 `(R,)`: `rewards - token_price * mean(mask)`.
    """
    return rewards.float() - token_price * masks.flatten(1).float().mean(1)


def cpo_loss(
    output: PolicyOutput,
    old: PolicyOutput,
    token_masks: Tensor,
    token_advantages: Tensor,
    frame_masks: Tensor | None = None,
    frame_advantages: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    kl_weight: float = 0.0,
    balanced: bool = True,
) -> tuple[Tensor, Statistics]:
    """Loss of one video over all subsets tried on it so far (the replay memory), token rollouts and frame rollouts apart.

    A subset's loss is the mean of `-min(ratio * A, clip(ratio) * A)` over its choices, and the loss of a head the mean over its subsets. Tokens
    are balanced: those kept weigh `1 - mean(mask)`, those dropped `mean(mask)`, which is half a mean over each of the two. Frames are
    not. Departures from the published code: no frame rollouts (or no token rollouts), and subsets of everything or nothing, give finite losses; a ratio beyond
    `exp(20)` or under `exp(-20)` counts as that, without a gradient, so that no choice makes all weights NaN.

    Args:
        output: of the policy in training, `T` frames of `P` tokens.
        old: of the policy that the subsets were drawn by; takes no gradient.
        token_masks: bool `(R, T, P)`, the tokens kept in each token rollout; `R` may be 0.
        token_advantages: `(R,)`, see `advantages`.
        frame_masks: bool `(F, T)`, the frames chosen in each frame rollout; None without any: nothing depends on the frame head.
        frame_advantages: `(F,)`; None without frame rollouts.
        clip_low: how far a ratio under 1 may go before its gradient stops.
        clip_high: how far a ratio above 1 may go.
        dual_clip: where the gradient stops of choices that did worse than the mean but have become likelier, as a ratio above `1 + clip_high`
            (ours; the paper: None, and a single such choice can outweigh all others).
        kl_weight: weight of the divergence from the coin flip, `KL(1/2 || policy)`, see `Statistics.kl` (paper: 0; larger =
            scores stay smaller). In this direction its pull does not fade where scores are large.
        balanced: whether kept and dropped tokens have the same say, however few are kept (paper). Then no reward teaches *how many* to keep: the
            pull of kept tokens on a common shift of all scores is the same for every subset. Off (ours), every token has the same say.

    Returns:
        The loss, 0-dimensional with a graph to the token head and, with frame rollouts, to the frame head; and what to log.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if (frame_masks is None) is not (frame_advantages is None):
        raise ValueError("One of frame_masks and frame_advantages is None. Give both, or neither.")
    _check_shapes("token", output.token_logits, old.token_logits, token_masks, token_advantages)
    token_masks = token_masks.flatten(1)  # (R, N)
    tokens, old_tokens = _log_probs(output.token_logits), _log_probs(old.token_logits).detach()  # (N, 2)
    token_ratios = _ratios(tokens, old_tokens, token_masks)  # (R, N)
    token_losses, stopped = _clipped(token_ratios, token_advantages, clip_low, clip_high, dual_clip)
    weights = balanced_weights(token_masks) if balanced else token_losses.new_full((), 1 / token_masks.shape[1])
    token_loss = _mean((token_losses * weights).sum(1))
    frame_loss, kl = torch.zeros_like(token_loss), _divergence(tokens).mean()

    if frame_masks is not None and frame_advantages is not None:
        _check_shapes("frame", output.frame_logits, old.frame_logits, frame_masks, frame_advantages)
        frames, old_frames = _log_probs(output.frame_logits), _log_probs(old.frame_logits).detach()  # (T, 2)
        frame_ratios = _ratios(frames, old_frames, frame_masks)  # (F, T)
        frame_losses, _ = _clipped(frame_ratios, frame_advantages, clip_low, clip_high, dual_clip)
        frame_loss, kl = _mean(frame_losses.mean(1)), kl + _divergence(frames).mean()
    loss = token_loss + frame_loss + kl_weight * kl

    with torch.no_grad():
        statistics = Statistics(
            token_loss=token_loss.detach(),
            frame_loss=frame_loss.detach(),
            clip_fraction=_mean(stopped.float()),
            ratio_mean=_mean(token_ratios),
            entropy=_entropy(tokens).mean(),
            score_spread=output.token_scores.float().std(correction=0),
            zero_variance=(token_advantages == 0).all().float(),
            kl=kl.detach(),
        )
    return loss, statistics


def distillation_loss(output: PolicyOutput, attention: Tensor, *, frames: bool = True) -> Tensor:
    """How far the scores are from a teacher's attention: `KL(attention || softmax(scores))`, over tokens and over frames (ours, an ablation).

    Args:
        output: of the policy in training, `T` frames of `P` tokens.
        attention: `(T, P)`, not negative, what each token receives of a question's attention; need not add up to one. A frame's is the sum
            of its tokens'.
        frames: whether the frame head learns too.

    Returns:
        The loss in nats, 0-dimensional with a graph to the heads that learn.

    Raises:
        ValueError: shapes that do not fit.
    """
    if attention.shape != output.token_logits.shape[:-1]:
        raise ValueError(
            f"attention has shape {tuple(attention.shape)}, the policy scored {tuple(output.token_logits.shape[:-1])}: give (T, P) of the same video."
        )
    attention = (attention / attention.sum()).to(output.token_logits.device)

    def divergence(target: Tensor, scores: Tensor) -> Tensor:
        return F.kl_div(scores.float().log_softmax(0), target.float(), reduction="sum")

    loss = divergence(attention.flatten(), output.token_scores.flatten())
    return loss + divergence(attention.sum(1), output.frame_scores) if frames else loss


def balanced_weights(masks: Tensor) -> Tensor:
    """Weights that give kept and dropped tokens the same say: kept in proportion to `1 - mean(mask)`, dropped to `mean(mask)`.

    Args:
        masks: bool `(R, N)`.

    Returns:
        float32 `(R, N)`, each row adding up to one; to zero if its mask keeps everything or nothing.
    """
    share = masks.float().mean(1, keepdim=True)
    weights = torch.where(masks, 1 - share, share)
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def next_ratio(
    ratio: float,
    mean_reward: float,
    *,
    start: float,
    low: float = 0.125,
    high: float = 0.875,
    floor: float = 0.01,
    ceiling: float = 0.12,
) -> float:
    """Return the sampling ratio of the next iteration: half of it where the task has become easy, double where it is too hard.

    Args:
        ratio: of this iteration, in (0, 1].
        mean_reward: mean reward of the token rollouts in the replay memory.
        start: ratio of the sample's first iteration (paper: 0.02); widens the limits if it lies outside.
        low: at or below this reward the ratio doubles, up to `max(ceiling, start)`.
        high: at or above this reward the ratio halves, down to `min(floor, start)`.
        floor: smallest ratio.
        ceiling: largest ratio.

    Returns:
        The ratio, unchanged between `low` and `high`.
    """
    if not low < high:
        raise ValueError(f"low={low} is not under high={high}: give the rewards that count as too hard and as easy.")
    if mean_reward >= high:
        return max(ratio / 2, min(floor, start))
    if mean_reward <= low:
        return min(ratio * 2, max(ceiling, start))
    return ratio


def _check_shapes(kind: str, logits: Tensor, old_logits: Tensor, masks: Tensor, advantage: Tensor) -> None:
    fits = masks.shape[1:] == logits.shape[:-1] and masks.shape[:1] == advantage.shape
    if not fits or old_logits.shape != logits.shape:
        raise ValueError(
            f"{kind}_logits {tuple(logits.shape)}, the old ones {tuple(old_logits.shape)}, {kind}_masks {tuple(masks.shape)} and "
            f"{kind}_advantages {tuple(advantage.shape)} do not fit: give (..., 2) twice, (R, ...) and (R,)."
        )


def _log_probs(logits: Tensor) -> Tensor:
    """Logits `(..., 2)` to float32 log-probabilities `(n, 2)`."""
    return logits.flatten(0, -2).float().log_softmax(-1)


def _ratios(log_probs: Tensor, old_log_probs: Tensor, masks: Tensor) -> Tensor:
    """Log-probabilities `(n, 2)`, new and old, to the ratios `(R, n)` of the choices that the masks `(R, n)` made."""
    change = log_probs - old_log_probs  # (n, 2)
    # Chosen before `exp`: an infinite ratio of the other choice would be NaN times zero in the backward pass.
    return torch.where(masks, change[:, 1], change[:, 0]).clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE).exp()


def _clipped(ratios: Tensor, advantage: Tensor, low: float, high: float, dual: float | None) -> tuple[Tensor, Tensor]:
    """Losses `(R, n)` of single choices, and where the clip stops their gradient."""
    advantage = advantage[:, None]
    free, clipped = ratios * advantage, ratios.clamp(1 - low, 1 + high) * advantage
    objective, stopped = torch.minimum(free, clipped), clipped < free
    if dual is not None:
        floor = dual * advantage.clamp(max=0)
        stopped = stopped | ((advantage < 0) & (objective < floor))
        objective = torch.where(advantage < 0, torch.maximum(objective, floor), objective)
    return -objective, stopped


def _divergence(log_probs: Tensor) -> Tensor:
    """`KL(1/2 || policy)` `(n,)` in nats of `(n, 2)` log-probabilities."""
    return -math.log(2) - log_probs.mean(-1)


def _entropy(log_probs: Tensor) -> Tensor:
    """Entropy `(n,)` in nats of `(n, 2)` log-probabilities."""
    return -(log_probs.exp() * log_probs).sum(-1)


def _mean(values: Tensor) -> Tensor:
    """Mean of all values; 0, with their graph, if there are none."""
    return values.sum() / max(values.numel(), 1)
