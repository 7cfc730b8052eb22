"""`CaCoVidConfig`: which backbone, which policy, which defaults; every check of a setting is here or called from here."""

import copy
import os
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .policies.settings import FORMAT_VERSION, PolicySettings, check_format_version
from .utils.staging import KEY


class CaCoVidConfig(PreTrainedConfig):
    """Configuration of a video language model with a contribution policy in front of its LLM.

    Args:
        backbone_config: the backbone's own config (or its dict), inlined so that the policy's shape is known without the
            backbone; always a copy, because building a model resets attention settings on the config object that it is given.
        base_model_name_or_path: the backbone's id on the Hub, or a local folder.
        base_model_revision: the backbone's commit, branch or tag.
        includes_backbone: whether the checkpoint carries the backbone's weights (in its folder `backbone`).
        policy_type: `"full"` (the paper's: one decoder layer and two heads), `"light"` (ours: a small part of a layer, at a
            fiftieth of the cost on a 7B model), or `"residual"` (after SCORE, derived from its abstract: what is new in a token since the frame
            before). What attends starts from the LLM's layer 0. Where that is linear attention (Qwen3.5), it starts from the first layer that attends.
        policy_attention: what video tokens attend to in the policy's layer: `"causal"` (what the published code runs),
            `"bidirectional"` (the paper's text), `"question"` (text alone; ours), or `"none"` (blind to the question; residual policy alone).
        policy_trained: false for a policy that is only initialised from the LLM; whoever prints answers says so.
        retention_ratio: default fraction of video tokens kept, in (0, 1], or `"auto"`; None keeps all.
        auto_floor: of `retention_ratio="auto"`: smallest fraction kept (see `AutoBudget`).
        auto_cap: largest fraction kept.
        auto_threshold: score above which a token counts as worth keeping.
        contribution_share: part of the budget chosen by contribution scores, in [0, 1] (paper: 0.5; never better in miniature).
        frame_cap: a frame's largest budget as a multiple of the mean (paper: 1.5).
        scope: `"tokens"` (ours: one budget for all frames, spent by the token scores alone; the best in miniature), `"frame"` (paper: a
            budget a frame) or `"video"` (one budget, spent by token plus frame scores).
        keep_frame_words: whether the words around a frame (Qwen3-VL: its time) stay where nothing of the frame is kept. False drops them, which
            a prompt of many frames at a small ratio mostly consists of. A frame that `fastv` or `framefusion` empties inside the language model keeps
            them, for words are not dropped there.
        format_version: of the checkpoint; a newer one than this package knows is refused.

    Raises:
        ValueError: a setting out of range, named with its remedy.
    """

    model_type = "cacovid"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012

    backbone_config: Any = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    includes_backbone: bool = False
    policy_type: str = PolicySettings.policy_type
    policy_attention: str = PolicySettings.policy_attention
    policy_trained: bool = False
    retention_ratio: Any = PolicySettings.retention_ratio
    auto_floor: float = PolicySettings.auto_floor
    auto_cap: float = PolicySettings.auto_cap
    auto_threshold: float = PolicySettings.auto_threshold
    contribution_share: float = PolicySettings.contribution_share
    frame_cap: float = PolicySettings.frame_cap
    scope: str = PolicySettings.scope
    keep_frame_words: bool = PolicySettings.keep_frame_words
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        kwargs.pop(KEY, None)  # of the folder, not of the model
        check_format_version(self.format_version)
        for name, flag in (("includes_backbone", self.includes_backbone), ("policy_trained", self.policy_trained)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name}={flag!r} is not true or false: give one of them.")
        base = {
            "base_model_name_or_path": self.base_model_name_or_path,
            "base_model_revision": self.base_model_revision,
        }
        for name, value in base.items():
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise ValueError(
                    f"{name}={value!r} is not a text: give an id, a folder or a revision, or leave it out."
                )
        self.backbone_config = backbone_config(self.backbone_config)
        self.retention_ratio = PolicySettings.of(vars(self)).retention_ratio
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """Return the text config of the backbone."""
        return self.backbone_config.get_text_config(decoder=decoder, encoder=encoder)


def backbone_config(config: PreTrainedConfig | dict | None) -> PreTrainedConfig:
    """Return a backbone's config from what a checkpoint or a caller gives; None stands for a default LLaVA-OneVision."""
    if isinstance(config, PreTrainedConfig):
        return copy.deepcopy(config)
    values = dict(config or {"model_type": "llava_onevision"})
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ValueError("backbone_config has no model_type: inline the backbone's whole config.")
    return AutoConfig.for_model(model_type, **values)


AutoConfig.register(CaCoVidConfig.model_type, CaCoVidConfig, exist_ok=True)
