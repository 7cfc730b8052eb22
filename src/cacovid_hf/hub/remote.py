"""`generate` for stock models, as a checkpoint carries it: `model.generate(..., custom_generate=repository, trust_remote_code=True)`.

This module is the source of `custom_generate/generate.py` in a repository (see `custom_generate.py`): it must not import what registers classes
or saves checkpoints. The model stays stock: the policy is loaded beside it, once a process.
"""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..backbones import Backbone, backbone_family
from ..backbones.loaded import embedding_device, taking_embeddings
from ..generation.mixin import CompressedGenerationMixin
from ..policies.base import Policy
from ..policies.factory import make_policy
from ..policies.settings import PolicySettings, check_format_version
from ..utils.blame import blamed_on
from .source import HUB_ARGUMENTS, Source, load_weights

# transformers tells this code nothing of where it came from, so a push writes it here: repository and commit of the policy.
REPOSITORY: str | None = None
REVISION: str | None = None

_policies: dict[tuple, tuple[Policy, PolicySettings]] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class StockWithPolicy(CompressedGenerationMixin):
    """A stock model and a policy, for one call."""

    backbone: Any
    policy: Policy
    config: PolicySettings

    @property
    def family(self) -> Backbone:
        """Of the model."""
        return backbone_family(self.backbone.config)

    def stock_generate(self, **arguments: Any) -> Any:
        """Call the generation of the model's class: loaded with `trust_remote_code` from a folder with this code in it, the model's own is `generate` below."""
        backbone = taking_embeddings(self.backbone)
        return type(backbone).generate(backbone, **arguments)


def generate(
    model: PreTrainedModel,
    *,
    retention_ratio: Any = None,
    compressor: Any = None,
    policy: str | None = None,
    policy_revision: str | None = None,
    **kwargs: Any,
) -> Any:
    """Generate from the video tokens that contribute, with a stock model.

    Args:
        model: LLaVA-OneVision or Qwen2.5-VL, of the size that the policy was made for.
        retention_ratio: fraction of each video's tokens kept, in (0, 1]: one number, or one per video; None is the checkpoint's default.
        compressor: a method's name; None is the policy.
        policy: folder or Hub id of the checkpoint that holds the policy; None is the one that this code came with.
        policy_revision: its branch, tag or commit.
        **kwargs: the arguments of `generate`, and `token`, `cache_dir`, `local_files_only` to reach the policy.

    Raises:
        ValueError: a policy that cannot be found or does not fit, a ratio outside (0, 1], an unsupported model.
    """
    backbone_family(model.config)
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    for name in ("revision", "subfolder"):  # of this code, not of the policy
        hub.pop(name, None)
    weights, settings = load_policy(model, policy, policy_revision, hub)
    arguments = {name: value for name, value in kwargs.items() if value is not None}
    return StockWithPolicy(model, weights, settings).generate(
        retention_ratio=retention_ratio, compressor=compressor, **arguments
    )


def load_policy(
    model: PreTrainedModel, name: str | None, revision: str | None, hub: dict[str, Any]
) -> tuple[Policy, PolicySettings]:
    """Return the policy of a checkpoint on the device and in the dtype of `model`, from memory if it was loaded before."""
    if name is None:
        name, revision = REPOSITORY, revision or REVISION
    if name is None:
        raise ValueError("This code does not say which policy it belongs to: give policy= (a folder or a Hub id).")
    name = str(name)
    text_config = model.config.get_text_config()
    device = embedding_device(model)
    key = (name, revision, str(device), model.dtype, text_config.to_json_string())
    with _lock:
        if key not in _policies:
            _policies[key] = _read_policy(model, Source(name, {**hub, **({"revision": revision} if revision else {})}))
        return _policies[key]


def _read_policy(model: PreTrainedModel, source: Source) -> tuple[Policy, PolicySettings]:
    try:
        source = source.pinned()
        values = source.config()
    except OSError as error:
        raise ValueError(
            f"The policy of {source.name} cannot be reached ({' '.join(str(error).split())}): give policy= (a folder or a Hub id), or token=."
        ) from error
    if values.get("model_type") != "cacovid":
        raise ValueError(
            f"{source.name} is not a CaCoVid checkpoint (model_type {values.get('model_type')!r}): give the folder or Hub id of one."
        )
    check_format_version(values.get("format_version", 1))
    with blamed_on("config.json", source.name):
        settings = PolicySettings.of(values)
    with torch.device("meta"):
        policy = make_policy(settings, model.config)  # type: ignore[arg-type]
    load_weights(policy, source.stored("policy."), source.name)
    return policy.to(device=embedding_device(model), dtype=model.dtype).eval(), settings
