"""Which policies there are, what their video tokens may attend to, and which checkpoints of them can be read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

from ..ratio import AutoBudget, checked_default

FORMAT_VERSION = 1
# What video tokens may attend to, by the type of the policy.
ATTENTIONS = {
    "full": ("causal", "bidirectional", "question"),
    "light": ("question",),
    "residual": ("question", "none"),
}
POLICY_TYPES = tuple(ATTENTIONS)
POLICY_ATTENTIONS = tuple(dict.fromkeys(attention for choices in ATTENTIONS.values() for attention in choices))


def check_policy(policy_type: str, attention: str) -> None:
    """Raise a `ValueError` that lists the choices, if a setting is none of them or the two do not go together."""
    if policy_type not in POLICY_TYPES:
        raise ValueError(
            f"policy_type={policy_type!r} is unknown: choose one of {', '.join(map(repr, POLICY_TYPES))} ('full' for the published checkpoint)."
        )
    check_attention(attention)
    if attention not in ATTENTIONS[policy_type]:
        fitting = " or ".join(f"policy_type={kind!r}" for kind, choices in ATTENTIONS.items() if attention in choices)
        raise ValueError(
            f"policy_attention={attention!r} does not go with policy_type={policy_type!r}, which has {', '.join(map(repr, ATTENTIONS[policy_type]))}: "
            f"leave it out, or use {fitting}."
        )


def check_attention(attention: str) -> None:
    """Raise a `ValueError` that lists the choices, if no policy has this attention."""
    if attention not in POLICY_ATTENTIONS:
        raise ValueError(
            f"policy_attention={attention!r} is unknown: choose one of {', '.join(map(repr, POLICY_ATTENTIONS))} "
            "('causal' for the published checkpoint)."
        )


def check_made_for(config: Any, policy: Any) -> None:
    """Raise a `ValueError` if a config says other things of its policy than the policy itself: both are set when a model is made."""
    for name, value in (("policy_type", policy.policy_type), ("policy_attention", policy.attention)):
        if getattr(config, name) != value:
            raise ValueError(
                f"config.{name} was changed to {getattr(config, name)!r} after the model was made with {value!r}: set it back, and give it to "
                "from_pretrained or reset_policy."
            )


def check_format_version(format_version: object) -> None:
    """Raise a `ValueError` if a checkpoint says that this package cannot read it."""
    if type(format_version) is not int:
        raise ValueError(
            f"format_version={format_version!r} is not a whole number, so this is not a CaCoVid checkpoint: give the folder or Hub id of one."
        )
    if format_version > FORMAT_VERSION:
        raise ValueError(
            f"This checkpoint has format_version={format_version}, this cacovid-hf reads up to {FORMAT_VERSION}: "
            "upgrade cacovid-hf."
        )


SCOPES = ("frame", "video", "tokens")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Selection:
    """How the scores of a policy are spent; the one place that its settings and defaults are declared in. Ours, the best of those compared in miniature.

    Args:
        contribution_share: part of the budget chosen by the scores, in [0, 1]; the rest is spread evenly.
        frame_cap: a frame's largest budget as a multiple of the mean, for `scope="frame"`.
        scope: `"tokens"`, `"frame"` or `"video"`, see `select_tokens`.

    Raises:
        ValueError: a setting out of range.
    """

    contribution_share: float = 1.0
    frame_cap: float = 1.5
    scope: str = "tokens"

    def __post_init__(self):
        if not _is_number(self.contribution_share) or not 0.0 <= self.contribution_share <= 1.0:
            raise ValueError(
                f"contribution_share={self.contribution_share!r} is outside [0, 1]: give the part of the budget spent by score "
                "(0.5 as published, 1.0 for no uniform tokens)."
            )
        if not _is_number(self.frame_cap) or not 0.0 < self.frame_cap < math.inf:
            raise ValueError(
                f"frame_cap={self.frame_cap!r} is outside (0, inf): give a multiple of the mean frame budget (1.5 as published)."
            )
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r} is unknown: choose one of {', '.join(map(repr, SCOPES))}.")

    @classmethod
    def of(cls, config: "SelectionConfig") -> Self:
        """Return the settings of a config."""
        return cls(config.contribution_share, config.frame_cap, config.scope)


class SelectionConfig(Protocol):
    """A config that has these settings."""

    contribution_share: float
    frame_cap: float
    scope: str


# CaCoVID, arXiv 2602.01649: the default of `select_tokens`, and what an imported published policy is used with.
PUBLISHED_SELECTION = Selection(contribution_share=0.5, frame_cap=1.5, scope="frame")


@dataclass
class PolicySettings:
    """What a checkpoint's config says of its policy and of how its scores are spent; described at `CaCoVidConfig`.

    Raises:
        ValueError: a setting out of range.
    """

    policy_type: str = "full"
    policy_attention: str = "question"
    retention_ratio: Any = None
    auto_floor: float = 0.01
    auto_cap: float = 0.25
    auto_threshold: float = 0.0
    contribution_share: float = Selection.contribution_share
    frame_cap: float = Selection.frame_cap
    scope: str = Selection.scope
    keep_frame_words: bool = True

    def __post_init__(self):
        if not isinstance(self.keep_frame_words, bool):
            raise ValueError(f"keep_frame_words={self.keep_frame_words!r} is unknown: choose true or false.")
        check_policy(self.policy_type, self.policy_attention)
        Selection.of(self)  # which checks them
        AutoBudget(self.auto_floor, self.auto_cap, self.auto_threshold)  # likewise
        self.retention_ratio = checked_default(self.retention_ratio)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "PolicySettings":
        """Return the settings among the values of a config."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
