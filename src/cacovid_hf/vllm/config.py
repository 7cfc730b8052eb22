"""What vLLM sees of a CaCoVid checkpoint: the backbone's own config, with what the plugin must know as one attribute."""

import copy
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import PreTrainedConfig

from ..configuration import CaCoVidConfig
from ..policies.settings import PolicySettings
from ..utils.staging import staging_folder
from .positions import RULES

ATTRIBUTE = "cacovid"
SERVER = "cacovid_server"
"""What the server's `--mm-processor-kwargs` say of ours, where the front end finds it."""
_ROWS = "mrope_section"
ARCHITECTURES = {
    "llava_onevision": "CaCoVidLlavaOnevisionForConditionalGeneration",
    "qwen2_5_vl": "CaCoVidQwen2_5_VLForConditionalGeneration",
}
"""The name in vLLM's registry of models, by `config.model_type` of the backbone. Each stands in the module of its model type."""


class ServedConfig(PreTrainedConfig):
    """Is never made: `from_dict` gives the config of the backbone, so that vLLM treats the model as one of that family."""

    model_type = CaCoVidConfig.model_type

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the backbone's config.

        Raises:
            ValueError: as of `CaCoVidConfig`, a family that is not served, or a checkpoint whose last save was not finished.
        """
        returns_unused = kwargs.pop("return_unused_kwargs", False)
        if staging_folder(config_dict) is not None:
            raise ValueError(
                "The last save of this checkpoint was not finished, and vLLM reads the files that were there before. Load it with transformers and save it again."
            )
        whole = CaCoVidConfig.from_dict(dict(config_dict))
        config = whole.backbone_config
        if config.model_type not in ARCHITECTURES:
            raise ValueError(
                f"Backbone family {config.model_type!r} is not served by vLLM: use one of {', '.join(ARCHITECTURES)}, or `cacovid serve`."
            )
        config.architectures = [ARCHITECTURES[config.model_type]]
        config.dtype = whole.dtype
        config.name_or_path = str(kwargs.get("name_or_path", ""))
        config.cacovid = {
            "policy": asdict(PolicySettings.of(vars(whole))),
            "includes_backbone": whole.includes_backbone,
            "base": whole.base_model_name_or_path,
            "base_revision": whole.base_model_revision,
        }
        return (config, kwargs) if returns_unused else config


def policy_settings(config: PreTrainedConfig) -> PolicySettings | None:
    """Return what a served config says of its policy; None for a stock checkpoint."""
    ours = vars(config).get(ATTRIBUTE)
    return None if ours is None else PolicySettings(**ours["policy"])


@dataclass(frozen=True)
class ServerSettings:
    """What a server may set with `--hf-overrides`, under these names with `cacovid_` before them.

    Args:
        positions: where text goes on behind a video of Qwen2.5-VL, see `positions.text_advance`.
        tower_cache_gb: host memory, in GiB per worker, for what the vision tower made of recent videos; 0 turns it off.
        pixel_cache_gb: host memory, in GiB per front end, for recent videos as the processor made them.
        request_sizes: whether a request's `mm_processor_kwargs` may have settings of the processor beside ours. Sizes that the model does not take end
            vLLM's engine, for everybody.

    Raises:
        ValueError: a setting out of range.
    """

    positions: str = "transformers"
    tower_cache_gb: float = 2.0
    pixel_cache_gb: float = 1.0
    request_sizes: bool = False

    def __post_init__(self):
        if self.positions not in RULES:
            raise ValueError(
                f"cacovid_positions={self.positions!r} is unknown: choose one of {', '.join(map(repr, RULES))}."
            )
        if not isinstance(self.request_sizes, bool):
            raise ValueError(f"cacovid_request_sizes={self.request_sizes!r} is not true or false: give one of them.")
        for name in ("tower_cache_gb", "pixel_cache_gb"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 20:
                raise ValueError(f"cacovid_{name}={value!r} is not a size: give GiB, such as 2.0, or 0 for none.")

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "ServerSettings":
        """Return the settings among the attributes of a served config."""
        given = vars(config)
        names = [field.name for field in fields(cls)]
        return cls(**{name: given[f"cacovid_{name}"] for name in names if f"cacovid_{name}" in given})


def give_rows(text_config: PreTrainedConfig) -> None:
    """Have 1-D positions counted as three equal rows.

    Positions of kept tokens have gaps, and vLLM takes positions from a model where its config has several rows of them.
    """
    width = text_config.to_dict().get("head_dim") or text_config.hidden_size // text_config.num_attention_heads
    half = width // 2
    part = half // 3
    text_config.rope_parameters = {**text_config.rope_parameters, _ROWS: [half - 2 * part, part, part]}


def without_rows(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a backbone's config as it was before `give_rows`; one of a family with rows of its own is left alone."""
    if config.model_type != "llava_onevision":
        return config
    config = copy.deepcopy(config)
    text_config = config.get_text_config()
    text_config.rope_parameters = {n: value for n, value in text_config.rope_parameters.items() if n != _ROWS}
    return config
