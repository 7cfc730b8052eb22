"""Recipes of the policy's training, as settings of `ContributionTrainingArguments`."""

from typing import Any

# The recipe of the paper, and ours: by rollouts, and by contributions, what won in miniature and is near what won in the
# laboratory (docs/background/evidence.md, docs/background/laboratory.md).
PUBLISHED: dict[str, Any] = {}
OURS: dict[str, Any] = {
    "sampler": "multinomial",
    "sampling_scope": "video",
    "reward": "probability",
    "dual_clip": 3.0,
    "kl_weight": 0.05,
    "num_token_rollouts": 12,
    "num_frame_rollouts": 0,
    "num_iterations": 2,
    "layer_learning_rate_factor": 1.0,
}
CONTRIBUTIONS: dict[str, Any] = {
    "objective": "contributions",
    "reward": "probability",
    "num_token_rollouts": 24,
    "num_frame_rollouts": 0,
    "num_iterations": 1,
    "num_train_epochs": 8.0,
    "layer_learning_rate_factor": 1.0,
    "teacher": "attention",
    "teacher_query": "last",
    "teacher_steps": 0.4,
}
# Of "cpo" alone: how its subsets are drawn, how large they are after the first, and what its loss is made of.
OF_CPO = (
    "sampler",
    "sampling_scope",
    "group_spread",
    "group_cap",
    "dynamic_ratio",
    "ratio_low",
    "ratio_high",
    "ratio_floor",
    "ratio_ceiling",
    "replay",
    "advantage",
    "clip_low",
    "clip_high",
    "dual_clip",
    "kl_weight",
)
NONE_OF_CPO = ("num_frame_rollouts", "retention_weight", "token_price")  # likewise, off at 0
OF_CONTRIBUTIONS = ("least_value", "harm_weight")  # of "contributions" alone

PRESETS = {"published": PUBLISHED, "ours": OURS, "contributions": CONTRIBUTIONS}
DEFAULT_PRESET = "contributions"
# Settings of a policy that is made new, where a config says nothing of its shape.
NEW_POLICY: dict[str, dict[str, Any]] = {"contributions": {"policy_type": "light"}}
