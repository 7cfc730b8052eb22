"""Settings of the policy's training; `presets` has the recipes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from transformers import SchedulerType, TrainingArguments

from ..compressors.attention import QUERIES
from ..policies.settings import PolicySettings, check_attention, check_policy
from ..ratio import check_retention_ratio
from ..utils.checks import check_type
from .presets import NONE_OF_CPO, OF_CONTRIBUTIONS, OF_CPO
from .rewards import REWARDS, SCORED_REWARDS, Reward, resolve_reward
from .sampling import SAMPLERS, SAMPLING_SCOPES

TEACHERS = ("attention",)
_LEAST_SUBSETS = 6  # of a sample, for values of its tokens
OBJECTIVES = ("cpo", "contributions")
ADVANTAGES = ("joint", "by_token", "by_reward")
CURRICULA = ("images",)

# Settings of `TrainingArguments` that would be without effect, or break something.
_CHECKPOINTING = "one layer is trained, whose activations would be needed all at once again"
_UNSERVED = {
    "gradient_checkpointing": _CHECKPOINTING,
    "activation_checkpointing": _CHECKPOINTING,  # its name in newer versions
    "auto_find_batch_size": "the batch size is part of a run's place in the data",
    "dataloader_drop_last": "a smaller last step weighs its samples like the others",
    "neftune_noise_alpha": "the backbone that answers is never trained",
    "ignore_data_skip": "a resumed run would begin with the first samples again",
}

# What numbers may be: bounds, and whether the lower one is among them.
_BOUNDS: dict[str, tuple[float, float, bool]] = {
    "token_price": (0.0, math.inf, True),
    "least_value": (0.0, math.inf, True),
    "harm_weight": (0.0, 1.0, True),
    "retention_weight": (0.0, math.inf, True),
    "retention_floor": (0.0, 1.0, True),
    "kl_weight": (0.0, math.inf, True),
    "group_spread": (0.0, math.inf, False),
    "group_cap": (1.0, math.inf, True),
    "sampling_ratio": (0.0, 1.0, False),
    "ratio_floor": (0.0, 1.0, False),
    "ratio_ceiling": (0.0, 1.0, False),
    "clip_low": (0.0, 1.0, False),
    "clip_high": (0.0, math.inf, False),
    "dual_clip": (1.0, math.inf, False),
    "layer_learning_rate_factor": (0.0, math.inf, True),
    "learning_rate": (0.0, math.inf, True),
    "weight_decay": (0.0, math.inf, True),
    "max_grad_norm": (0.0, math.inf, True),
}

# What subsets are drawn depends on these: a run that goes on with others is another run.
SAMPLING_SETTINGS = (
    "objective",
    "sampler",
    "sampling_scope",
    "group_spread",
    "group_cap",
    "num_token_rollouts",
    "num_frame_rollouts",
    "sampling_ratio",
    "dynamic_ratio",
    "ratio_low",
    "ratio_high",
    "ratio_floor",
    "ratio_ceiling",
    "target_ratios",
    "replay",
    "teacher",
    "teacher_query",
    "teacher_layer",
    "teacher_steps",
    "reward",
    "reward_functions",
    "curriculum",
    "curriculum_frames",
)


@dataclass
class ContributionTrainingArguments(TrainingArguments):
    """Settings of the policy's training beside those of `TrainingArguments`; the defaults are the published recipe.

    Args:
        objective: what the policy learns from, behind the steps of a teacher. `"cpo"` (paper): rewards of random subsets. `"contributions"` (ours):
            values of single tokens, measured when a sample is first met and learnt in every pass (see `contributions`). Its subsets are drawn in a
            way of their own and are of one size. So settings of the sampler, of the loss and of the moving ratio are refused.
        num_iterations: optimiser steps on each batch of samples.
        num_token_rollouts: subsets a sample and iteration that the token scores choose, the greedy one included.
        num_frame_rollouts: subsets that the frame scores choose, the greedy one included; 0 freezes the frame head and leaves it out of the loss.
        sampler: how token subsets are drawn: `"ocss"` (paper), `"multinomial"` (Gumbel top-k) or `"random"`, all of a given size; or
            `"bernoulli"` (ours), every token by its own keep probability, for a policy that also decides how many (tokens are then not balanced in
            the loss, see `cpo_loss`).
        token_price: reward that keeping all tokens of a video would cost, with `"bernoulli"` (ours, for `retention_ratio="auto"`): a token costs
            `token_price / N`, and pays if it makes the answer more likely by more than that.
        least_value: with `"contributions"`, what a token must add to the reward to score above zero (ours, for `retention_ratio="auto"`).
        harm_weight: with `"contributions"`, what values below zero are multiplied by (ours). Under 1, more tokens are kept of which the
            policy cannot tell whether they are needed or mislead.
        retention_weight: of the retention reward (after MARC; 0: off): right answers earn up to `retention_weight * (1 - retention_floor)` more, the more the
            better the rollouts of an iteration answer relative to the uncompressed model, see `rewards.retention_reward`. One more answer a sample.
        retention_floor: share of the uncompressed model's accuracy that is left, from which on it pays (published: 0.6).
        sampling_scope: `"frame"` (paper) draws the same number in every frame, `"video"` from all tokens at once, by token scores alone.
        group_spread: lambda of OCSS, how many groups a frame is split into (fewer with larger values).
        group_cap: largest probability of a group as a multiple of an equal share, OCSS only.
        sampling_ratio: fraction of the tokens in a rollout at first.
        dynamic_ratio: whether to halve and double it by the mean reward.
        ratio_low: mean reward at or under which it doubles.
        ratio_high: mean reward at or over which it halves.
        ratio_floor: smallest ratio, unless it starts lower.
        ratio_ceiling: largest ratio, unless it starts higher.
        target_ratios: several ratios to train for: each sample draws one of them, for all its iterations, and neither `sampling_ratio` nor
            `dynamic_ratio` is used (ours; None: off).
        replay: whether advantages and loss are over all rollouts on the sample so far (paper), or over those of the iteration alone.
        advantage: how a subset's advantage is split (after SCORE, which names a split but not which; derived by us). `"joint"`: one, over the sum of its
            rewards. `"by_reward"`: each reward (answer, retention, price) normalised by itself, then added by weight. `"by_token"`, with
            `"bernoulli"`: kept and dropped tokens averaged apart, as every other sampler has it already.
        curriculum: `"images"` begins every pass with the samples of `data_type: image`, each shown as a video of one picture (after SCORE); None: such
            samples are left out.
        curriculum_frames: frames of such a video.
        policy_type: begin with a new policy of this type; None: of the model's.
        policy_attention: begin with a new policy of this attention, its layer from the LLM's layer 0, or its first layer that
            attends; None: of the model's. With neither, the policy that the model has is trained.
        teacher: `"attention"` learns what the LLM's question attends to in the uncompressed prompt, by distillation and without rollouts
            (`objective.distillation_loss`; ours, an ablation); None: by reinforcement learning.
        teacher_layer: whose attention, from 0; None: the mean over all layers that attend.
        teacher_query: what attends: the `"question"`, mean over its tokens, or the `"last"` token of the prompt.
        teacher_steps: optimiser steps that follow the teacher, a multiple of `num_iterations`, before rollouts take over; under 1: that share of all
            steps, rounded down; None: all.
        clip_low: how far the ratio to the old policy may fall.
        clip_high: how far it may rise.
        dual_clip: bound of the loss of choices that did worse and have become likelier (ours; None: unbounded, as published).
        kl_weight: of the divergence from a coin flip, against scores that grow without bound.
        reward: of answers that a prefill scores: `"accuracy"` (the whole answer, 1 or 0), `"probability"` (of the answer; dense), or any
            function by name (`package.module:function`). Evaluation counts accuracy in every case.
        scored_types: problem types that have one right answer, which a prefill scores; the answers of the others are generated.
        reward_functions: a problem type's reward of generated answers, by name (`package.module:function`), instead of the default one
            of `rewards.REWARDS`; answers of the types named here are always generated.
        max_new_tokens: of a generated answer.
        layer_learning_rate_factor: of the attention layer, which starts from trained weights, relative to the heads.
        rollout_batch_size: rollouts in one forward of the backbone.
        eval_ratios: retention ratios at which the accuracy on the evaluation set is measured, `eval_accuracy_at_<ratio>`; their mean is
            `eval_accuracy`, by which the best checkpoint is chosen unless `metric_for_best_model` says otherwise.
    """

    objective: str = "cpo"
    num_iterations: int = 5
    num_token_rollouts: int = 23
    num_frame_rollouts: int = 8
    sampler: str = "ocss"
    token_price: float = 0.0
    least_value: float = 0.05
    harm_weight: float = 1.0
    retention_weight: float = 0.0
    retention_floor: float = 0.6
    sampling_scope: str = "frame"
    group_spread: float = 2.0
    group_cap: float = 2.0
    sampling_ratio: float = 0.02
    dynamic_ratio: bool = True
    ratio_low: float = 0.125
    ratio_high: float = 0.875
    ratio_floor: float = 0.01
    ratio_ceiling: float = 0.12
    target_ratios: list[float] | None = None
    replay: bool = True
    advantage: str = "joint"
    curriculum: str | None = None
    curriculum_frames: int = 8
    policy_type: str | None = None
    policy_attention: str | None = None
    teacher: str | None = None
    teacher_layer: int | None = None
    teacher_query: str = "question"
    teacher_steps: float | None = None
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    kl_weight: float = 0.0
    reward: str = "accuracy"
    scored_types: list[str] = field(default_factory=lambda: ["multiple choice"])
    reward_functions: dict[str, str] = field(default_factory=dict)
    max_new_tokens: int = 64
    layer_learning_rate_factor: float = 0.1
    rollout_batch_size: int = 512
    eval_ratios: list[float] = field(default_factory=lambda: [0.25, 0.1, 0.05, 0.02])
    num_train_epochs: float = field(default=1.0)
    learning_rate: float = field(default=1e-6)
    weight_decay: float = field(default=0.01)
    max_grad_norm: float = field(default=5.0)
    lr_scheduler_type: SchedulerType | str = field(default="cosine")
    remove_unused_columns: bool = field(default=False)
    # Every parameter gets a gradient at every step.
    ddp_find_unused_parameters: bool | None = field(default=False)

    def __post_init__(self):
        if self.metric_for_best_model is None:
            self.metric_for_best_model = "accuracy"
        hints = get_type_hints(type(self))
        for name in ContributionTrainingArguments.__annotations__:
            check_type(getattr(self, name), hints[name], name)
        super().__post_init__()
        samplers = (*SAMPLERS, "bernoulli")
        for name, choices in (
            ("objective", OBJECTIVES),
            ("sampler", samplers),
            ("sampling_scope", SAMPLING_SCOPES),
            ("advantage", ADVANTAGES),
            ("curriculum", (None, *CURRICULA)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown. Choose one of {', '.join(map(repr, choices))}."
                )
        for name, least in (
            ("num_iterations", 1),
            ("num_token_rollouts", 2),
            ("num_frame_rollouts", 0),
            ("curriculum_frames", 1),
            ("max_new_tokens", 1),
            ("rollout_batch_size", 1),
            ("per_device_train_batch_size", 1),
            ("per_device_eval_batch_size", 1),
            ("gradient_accumulation_steps", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is too small. Give at least {least}.")
        for name, (low, high, closed) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not (low <= value if closed else low < value) or not value <= high or value == math.inf:
                interval = f"{'[' if closed else '('}{low:g}, {high:g}{')' if high == math.inf else ']'}"
                usual = next(one.default for one in fields(self) if one.name == name)
                remedy = "or leave it out" if usual is None else f"such as the default {usual:g}"
                raise ValueError(f"{name}={value} is outside {interval}. Give a number in there, {remedy}.")
        if not self.ratio_low < self.ratio_high:
            raise ValueError(
                f"ratio_low={self.ratio_low} is not under ratio_high={self.ratio_high}. Give a smaller ratio_low, or a larger ratio_high."
            )
        if self.ratio_floor > self.ratio_ceiling:
            raise ValueError(
                f"ratio_floor={self.ratio_floor} is above ratio_ceiling={self.ratio_ceiling}. Give a smaller ratio_floor, or a larger ratio_ceiling."
            )
        if self.objective == "contributions":
            self._check_contributions()
        elif given := self._changed(OF_CONTRIBUTIONS):
            raise ValueError(
                f"{_without_effect(given)} with objective={self.objective!r}. Leave {_them(given)} out, or choose objective='contributions'."
            )
        if self.token_price and self.sampler != "bernoulli":
            raise ValueError(
                f"token_price={self.token_price} has no effect with sampler={self.sampler!r}, whose rollouts are all of one size. Use 'bernoulli'."
            )
        if self.advantage == "by_token" and self.sampler != "bernoulli":
            raise ValueError(
                f"advantage='by_token' has no effect with sampler={self.sampler!r}, whose kept and dropped tokens are averaged apart already. Use 'bernoulli'."
            )
        if self.advantage == "by_reward" and not (self.token_price or self.retention_weight):
            raise ValueError(
                "advantage='by_reward' has no effect with one reward. Set token_price or retention_weight, or leave it out."
            )
        if self.target_ratios is not None:
            if not self.target_ratios:
                raise ValueError("target_ratios is empty. Give the ratios to train for, or None.")
            self.target_ratios = [
                check_retention_ratio(ratio, f"target_ratios[{i}]") for i, ratio in enumerate(self.target_ratios)
            ]
        if self.teacher not in (None, *TEACHERS):
            raise ValueError(
                f"teacher={self.teacher!r} is unknown. Choose 'attention', or None for reinforcement learning."
            )
        if self.teacher_layer is not None and self.teacher is None:
            raise ValueError(
                f"teacher_layer={self.teacher_layer} needs a teacher. Add teacher='attention', or leave it out."
            )
        if self.teacher_query not in QUERIES:
            raise ValueError(
                f"teacher_query={self.teacher_query!r} is unknown. Choose one of {', '.join(map(repr, QUERIES))}."
            )
        if self.teacher_query != "question" and self.teacher is None:
            raise ValueError(
                f"teacher_query={self.teacher_query!r} needs a teacher. Add teacher='attention', or leave it out."
            )
        if self.teacher_steps is not None:
            if self.teacher is None:
                raise ValueError(
                    f"teacher_steps={self.teacher_steps} needs a teacher. Add teacher='attention', or leave it out."
                )
            if not self.teacher_steps > 0 or (self.teacher_steps > 1 and not float(self.teacher_steps).is_integer()):
                raise ValueError(
                    f"teacher_steps={self.teacher_steps} is not a number of steps. Give a whole number, or the share of all steps as a number under 1."
                )
            if self.teacher_steps >= 1 and self.teacher_steps % self.num_iterations:
                raise ValueError(
                    f"teacher_steps={self.teacher_steps} ends within the {self.num_iterations} iterations on a sample (num_iterations). Give a multiple."
                )
        self.check_teacher_ends(self.max_steps if self.max_steps > 0 else None)
        if self.policy_type is not None:
            check_policy(self.policy_type, self.policy_attention or PolicySettings.policy_attention)
        elif self.policy_attention is not None:
            check_attention(self.policy_attention)
        if self.max_steps > 0 and self.max_steps % self.num_iterations:
            raise ValueError(f"max_steps={self.max_steps} {ends_within(self.max_steps, self.num_iterations)}")
        for name, types in (("scored_types", self.scored_types), ("reward_functions", self.reward_functions)):
            if unknown := sorted(set(types) - set(REWARDS)):
                raise ValueError(
                    f"{name} has {unknown[0]!r}, which is not a problem type. Choose among {', '.join(map(repr, REWARDS))}."
                )
        if not self.eval_ratios:
            raise ValueError("eval_ratios is empty. Give the retention ratios that the accuracy is measured at.")
        self.eval_ratios = [check_retention_ratio(ratio, "eval_ratios") for ratio in self.eval_ratios]
        self.resolved_rewards()
        self.scored_reward()
        for name, reason in _UNSERVED.items():
            if getattr(self, name, False):
                raise ValueError(f"{name}={getattr(self, name)} is not supported here ({reason}). Leave it out.")

    def _check_contributions(self) -> None:
        """Make sure that subsets leave most tokens out, and that the settings mean something there."""
        if self.num_token_rollouts < _LEAST_SUBSETS:
            raise ValueError(
                f"num_token_rollouts={self.num_token_rollouts} tells nothing of single tokens. Give at least {_LEAST_SUBSETS}, such as 24."
            )
        given = self._changed(OF_CPO)
        given |= {name: value for name in NONE_OF_CPO if (value := getattr(self, name))}
        if given:
            off = ", ".join(f"{name}=0" for name in NONE_OF_CPO if name in given)
            zero = f" ({off})" if off else ""
            raise ValueError(
                f"{_without_effect(given)} with objective='contributions'. Leave {_them(given)} out{zero}, or choose objective='cpo'."
            )
        for ratio in (self.sampling_ratio, *(self.target_ratios or ())):
            if ratio > 1 / 3:
                raise ValueError(
                    f"sampling_ratio={ratio} leaves no unlikely tokens to compare with, for objective='contributions'. Give at most a third."
                )

    def _changed(self, names: Iterable[str]) -> dict[str, Any]:
        """Return those of some settings that are not at their default."""
        defaults = {one.name: one.default for one in fields(ContributionTrainingArguments)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    def resolved_rewards(self) -> dict[str, Reward]:
        """Return the reward of generated answers, by problem type."""
        return REWARDS | {kind: resolve_reward(name) for kind, name in self.reward_functions.items()}

    def scored_reward(self) -> Reward:
        """Return the reward of scored answers in training."""
        return resolve_reward(self.reward, SCORED_REWARDS)

    def check_teacher_ends(self, max_steps: int | None) -> None:
        """Refuse a teacher that is followed to the end of a run that was to learn contributions; None: of unknown length."""
        if self.objective != "contributions" or self.teacher is None:
            return
        if self.taught_steps(max_steps or 1) >= (max_steps or math.inf):
            raise ValueError(
                "objective='contributions' is never reached, since the teacher is followed to the end. Give fewer teacher_steps, such as 0.4."
            )

    def taught_steps(self, max_steps: int) -> float:
        """Return how many of a run's optimiser steps follow the teacher."""
        if self.teacher is None:
            return 0
        if self.teacher_steps is None:
            return math.inf
        if self.teacher_steps >= 1:
            return self.teacher_steps
        return int(self.teacher_steps * max_steps) // self.num_iterations * self.num_iterations

    @property
    def still_frames(self) -> int | None:
        """Frames of a picture's video; None where pictures are left out."""
        return None if self.curriculum is None else self.curriculum_frames

    @property
    def prefilled_types(self) -> list[str]:
        """Problem types whose answer is scored by a prefill."""
        return [kind for kind in self.scored_types if kind not in self.reward_functions]


def _without_effect(settings: dict[str, Any]) -> str:
    listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return f"{listed} {'has' if len(settings) == 1 else 'have'} no effect"


def _them(settings: dict[str, Any]) -> str:
    return "it" if len(settings) == 1 else "them"


def ends_within(steps: int, num_iterations: int, setting: str = "") -> str:
    """Return what is wrong with a number of steps that is not a multiple of the iterations, and the next one that is."""
    return (
        f"ends within the {num_iterations} iterations on a sample (num_iterations). Give a multiple, such as "
        f"{setting}{-(-steps // num_iterations) * num_iterations}."
    )
