"""What vLLM is told of us: configs, models, settings that follow from a checkpoint, the video loader."""

import math
import os
from typing import Any

from vllm import ModelRegistry
from vllm.logger import init_logger
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.multimodal.media.connector import MODALITY_IO_MAP  # there is no public way to bound what a request asks
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
from vllm.transformers_utils.config import _CONFIG_REGISTRY  # there is no public way to give a model type a config

from ..checkpoints.stock_processor import load_stock_processor
from ..hub.source import BACKBONE_FOLDER, PROCESSOR_FILES, Source
from ..processing import with_video_reader
from ..utils.values import one_line
from .config import ARCHITECTURES, ATTRIBUTE, SERVER, ServedConfig, ServerSettings, give_rows, policy_settings
from .cpu_runner import notice_pruning_on_cpus
from .frame_limits import LOADER, PACKAGE, limits_of_server
from .requests import NAMES, asked_of, check_kwargs
from .video_loader import BoundedVideoIO, PackageVideoLoader

logger = init_logger(__name__)

# vLLM lets a model correct the positions of kept tokens where its own pruning is on. What the rate is, nothing of ours reads.
_ON = 0.5


def register_all() -> None:
    """See `register`."""
    known = ModelRegistry.get_supported_archs()
    for family, name in ARCHITECTURES.items():
        if name not in known:
            ModelRegistry.register_model(name, f"{__package__}.{family}:{name}")
        MODELS_CONFIG_MAP[name] = ServedModelConfig
    _CONFIG_REGISTRY[ServedConfig.model_type] = ServedConfig
    VIDEO_LOADER_REGISTRY.register(PACKAGE)(PackageVideoLoader)
    MODALITY_IO_MAP["video"] = BoundedVideoIO
    notice_pruning_on_cpus()


class ServedModelConfig(VerifyAndUpdateConfig):
    """What a checkpoint of ours means for vLLM's settings. vLLM calls it before anything is loaded."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Check the server's settings, and complete them.

        Raises:
            ValueError: a setting that is not served.
        """
        config = model_config.hf_config
        media = model_config.multimodal_config
        if media.video_pruning_rate:
            raise ValueError(
                "--video-pruning-rate is vLLM's own pruning: leave it out, and give --mm-processor-kwargs '{\"retention_ratio\": ...}'."
            )
        ServerSettings.of(config)
        given = media.mm_processor_kwargs or {}
        check_kwargs(given)
        asked_of(_ratios_of_server(given), {}, policy_settings(config), 1)
        # Out of the processor's sight, which would warn of names that it does not know.
        config.update({SERVER: {name: given[name] for name in NAMES if name in given}})
        media.mm_processor_kwargs = {name: value for name, value in given.items() if name not in NAMES} or None
        media.video_pruning_rate = _ON
        if config.model_type == "llava_onevision":
            give_rows(config.get_text_config())
        _complete_files(model_config)
        _complete_reading(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse ways of running that would give wrong answers.

        Raises:
            ValueError: one of them is asked for.
        """
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError(
                "--pipeline-parallel-size above 1 is not served, because later stages never learn the positions of kept tokens: use --tensor-parallel-size."
            )
        lora = vllm_config.lora_config
        if lora is not None and lora.enable_tower_connector_lora:
            raise ValueError(
                "--enable-tower-connector-lora is not served, because what the vision tower makes of a video is remembered for all adapters: leave it out."
            )


def _ratios_of_server(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the server's settings as those of a request with one video; a list says nothing of how many a request will have."""
    ratio = kwargs.get("retention_ratio")
    if isinstance(ratio, (list, tuple)):
        raise ValueError(
            f"retention_ratio={list(ratio)} of the server is a list: give one number there, and a list in requests."
        )
    return kwargs


def _complete_files(model_config: Any) -> None:
    """Say where tokenizer, processor and generation settings are, where the checkpoint itself has none."""
    config = model_config.hf_config
    ours = vars(config).get(ATTRIBUTE)
    if ours is None:
        return
    own = _source(model_config.model, model_config.revision)
    base = None if ours["includes_backbone"] or not ours["base"] else _source(ours["base"], ours["base_revision"])
    if base is not None and not any(own.file(file) for file in PROCESSOR_FILES):
        if model_config.tokenizer == model_config.model:
            model_config.tokenizer, model_config.tokenizer_revision = base.name, base.hub.get("revision")
        config.cacovid = {**ours, "processor": base.name, "processor_revision": base.hub.get("revision")}
        # vLLM has looked already, found no tokenizer, and noted that there are no videos to serve.
        vars(model_config).pop("_supports_multimodal_inputs_cache", None)
        # The worker would look for the processor's mean and deviation in the checkpoint.
        model_config.multimodal_config.mm_device_do_normalize = False
        logger.info("%s has no processor: that of %s is used.", own.name, base.name)
    backbone = base or own.inside(BACKBONE_FOLDER)
    if model_config.generation_config == "auto" and own.file("generation_config.json") is None:
        try:
            path = backbone.file("generation_config.json")
        except OSError as error:
            raise ValueError(
                f"The backbone {backbone.name} that {own.name} was made for cannot be read ({one_line(error)}): correct base_model_name_or_path in its config.json."
            ) from error
        if path is not None:
            model_config.generation_config = os.path.dirname(path)


def _complete_reading(model_config: Any) -> None:
    """Read video files as this package does, unless the server's settings name another loader.

    Raises:
        ValueError: a limit of the server that makes no sense.
    """
    media = model_config.multimodal_config
    given = media.media_io_kwargs.get("video", {})
    if given.get(LOADER, PACKAGE) != PACKAGE:
        return
    limits_of_server(given)
    ours = vars(model_config.hf_config).get(ATTRIBUTE) or {}
    name, revision = model_config.model, model_config.revision
    if "processor" in ours:
        name, revision = ours["processor"], ours["processor_revision"]
    reader = with_video_reader(load_stock_processor(_source(name, revision))).video_processor
    limit = {} if math.isinf(reader.max_fps) else {"fps": reader.max_fps}
    defaults = {LOADER: PACKAGE, "num_frames": reader.num_frames, **limit}
    media.media_io_kwargs = {**media.media_io_kwargs, "video": {**defaults, **given}}


def _source(name: str, revision: str | None) -> Source:
    return Source(name, {"revision": revision} if revision and not os.path.isdir(name) else {})
