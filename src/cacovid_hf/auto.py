"""Config, processor and model of a folder or Hub id, whether a CaCoVid checkpoint or a stock model."""

import importlib.util
import os
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, ProcessorMixin

from ._compat import cached_file_or_none
from .backbones import backbone_family
from .checkpoints.loading import backbone_not_loaded, check_backbone, load_stock_model
from .checkpoints.stock_processor import load_stock_processor
from .configuration import CaCoVidConfig
from .hub.source import PROCESSOR_FILES, Source, is_absent_folder
from .modeling import CaCoVidForConditionalGeneration
from .processing import with_video_reader
from .utils.blame import one_line


def load_config(name: str | os.PathLike, revision: str | None = None) -> PreTrainedConfig:
    """Return the config of a CaCoVid checkpoint or of a stock model.

    Args:
        name: a folder or a Hub id.
        revision: commit, branch or tag of a Hub id; None is its main branch.

    Raises:
        ValueError: there is no such model, its family is not supported, or a revision of a folder is asked for.
    """
    if revision is not None and os.path.isdir(name):
        raise ValueError(f"revision={revision!r} is for a Hub id, and {os.fspath(name)} is a folder: leave it out.")
    shown = os.fspath(name) or "''"
    if is_absent_folder(shown):
        raise _not_loaded(shown, "there is no such folder here")
    if os.path.isfile(name):
        raise _not_loaded(shown, "it is a file")
    try:
        if os.path.isdir(name):
            Source(os.fspath(name), {}).config()  # its sizes
    except (OSError, ValueError) as error:
        raise _not_loaded(shown, str(error).rpartition(": ")[0]) from error  # without its remedy
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, revision=revision)
    except ImportError:
        raise
    except Exception as error:
        where = "" if isinstance(error, OSError) else "config.json: "
        raise _not_loaded(shown, where + one_line(error).split(". ")[0].rstrip(".")) from error
    backbone_family(config.backbone_config if isinstance(config, CaCoVidConfig) else config)
    return config


def _not_loaded(name: str, reason: str) -> ValueError:
    return ValueError(
        f"{name} cannot be loaded ({reason}): give the folder or the Hub id of a CaCoVid checkpoint, or of a stock model of a supported family."
    )


def load_processor(
    name: str | os.PathLike, config: PreTrainedConfig | None = None, revision: str | None = None
) -> ProcessorMixin:
    """Return the processor of a model (a folder or a Hub id), reading video files; of a checkpoint without one, its backbone's.

    Args:
        name: as for `load_config`.
        config: what `load_config` returned, if it was called before.
        revision: as for `load_config`; the backbone's own is the one that the checkpoint pins.

    Raises:
        OSError: it has no processor, and its backbone is not where it says.
        ValueError: there is no such model, or neither it nor its backbone has a processor.
    """
    config = load_config(name, revision) if config is None else config
    sources: list[tuple[Any, str | None]] = [(name, revision)]
    if isinstance(config, CaCoVidConfig) and config.base_model_name_or_path:
        sources.append((config.base_model_name_or_path, config.base_model_revision))
    for source, revision in sources:
        if is_absent_folder(os.fspath(source)):
            raise backbone_not_loaded(os.fspath(source), os.fspath(name), "")
        options = {"revision": revision} if revision and not os.path.isdir(source) else {}
        if any(cached_file_or_none(source, file, **options) for file in PROCESSOR_FILES):
            return with_video_reader(load_stock_processor(Source(os.fspath(source), options)))
    raise ValueError(
        f"{' or '.join(PROCESSOR_FILES)} is missing in {' and in '.join(os.fspath(source) for source, _ in sources)}: copy it there, or save a "
        "processor with processor.save_pretrained."
    )


def load_model(
    name: str | os.PathLike, config: PreTrainedConfig | None = None, revision: str | None = None, **loading: Any
) -> CaCoVidForConditionalGeneration:
    """Return a CaCoVid checkpoint, or a stock backbone wrapped with an untrained policy (the same one each time), ready to answer.

    It is loaded in its own dtype, onto the accelerators if there are any.

    Args:
        name: as for `load_config`.
        config: what `load_config` returned, if it was called before.
        revision: as for `load_config`.
        **loading: for `from_pretrained`, such as `dtype` or `device_map`.

    Raises:
        OSError: files are missing.
        ValueError: there is no such model, its files are damaged, or its family is not supported.
    """
    config = load_config(name, revision) if config is None else config
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    loading.setdefault("dtype", "auto")
    if device is not None and importlib.util.find_spec("accelerate"):
        loading.setdefault("device_map", "auto")
    if isinstance(config, CaCoVidConfig):
        model = CaCoVidForConditionalGeneration.from_pretrained(name, **at, **loading)
    else:
        check_backbone(Source(os.fspath(name), at), None, loading)
        backbone = load_stock_model(name, **at, **loading)
        pinned = {} if revision is None else {"base_model_revision": revision}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CaCoVidForConditionalGeneration.from_backbone(backbone, **pinned)
    if device is not None and "device_map" not in loading:
        model = model.to(device)  # type: ignore[arg-type]
    return model
