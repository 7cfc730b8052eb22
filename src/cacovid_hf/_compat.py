"""Names of transformers, accelerate and huggingface_hub that differ between the supported versions, and the private ones that are still needed.

Nothing else in this package reads either kind: a release that renames something is answered here.
"""

import functools
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

try:
    from huggingface_hub.utils import httpx  # the HTTP library that this version of huggingface_hub brings
except ImportError:
    import httpx  # type: ignore[no-redef]

TransportError = httpx.TransportError

# The newest minor release of transformers that the whole suite has passed on; the bound in pyproject.toml ends there too.
NEWEST_TRANSFORMERS = "5.24"

# The keyword, in `generate` and in every forward, of the key-value cache, and the field of the outputs that holds it (5.24 renamed it).
CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))
CACHE_NAMES = ("cache", "past_key_values")
# Whether a query sees a key: a row, a head, and the columns of both, each a tensor without dimensions, to a bool one.
MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# Arguments of `from_pretrained` that transformers passes to itself.
PRIVATE_LOADING_ARGUMENTS = ("_from_auto", "_commit_hash")
# Keys of a stored config that choose an attention kernel, and so code.
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def warn_of_newer_transformers() -> None:
    """Warn once if transformers is newer than what the suite has passed on."""
    installed = importlib.metadata.version("transformers")
    if Version(installed).release[:2] > Version(NEWEST_TRANSFORMERS).release[:2]:
        warnings.warn(
            f"transformers {installed} is newer than {NEWEST_TRANSFORMERS}, the newest that cacovid-hf was tested with. "
            f"Install 'transformers<{_next_minor(NEWEST_TRANSFORMERS)}' if something fails.",
            stacklevel=3,
        )


@functools.cache
def older_transformers(version: str) -> str | None:
    """Return the installed version of transformers if it is older than `version`, such as "5.24"."""
    installed = importlib.metadata.version("transformers")
    return installed if Version(installed).release[:2] < Version(version).release[:2] else None


def _next_minor(version: str) -> str:
    major, minor = Version(version).release[:2]
    return f"{major}.{minor + 1}"


# ---------------------------------------------------------------- training


def trainer_smooths_labels() -> bool:
    """Whether the call comes from a `Trainer` that smooths labels itself.

    It has taken the labels out of the batch then, and tells the model by nothing else than its place on the stack.
    """
    module = sys.modules.get("transformers.trainer")
    frame = None if module is None or torch.compiler.is_compiling() else sys._getframe()
    while module is not None and frame is not None:
        if frame.f_code is module.Trainer.compute_loss.__code__:
            trainer = frame.f_locals["self"]
            return trainer.label_smoother is not None and trainer.compute_loss_func is None
        frame = frame.f_back
    return False


# ---------------------------------------------------------------- the key-value cache


def with_cache_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with the cache under this version's name, whichever of the two names the caller wrote.

    Where transformers has deprecated the old name, it is deprecated here.

    Raises:
        ValueError: both names are given.
    """
    given = [name for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) == 2:
        raise ValueError("The cache is given twice, as cache and as past_key_values. Give one of them.")
    if given and given[0] != CACHE and CACHE == "cache":
        warnings.warn("`past_key_values` is deprecated. Use `cache` instead.", FutureWarning, stacklevel=3)
    renamed = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    return renamed | ({CACHE: arguments[given[0]]} if given else {})


def cache_of(outputs: Any) -> Any:
    """Return the cache in what a forward or `generate` returned; None if there is none."""
    return outputs.get(CACHE)


@dataclass
class OutputWithCache(CausalLMOutputWithPast):
    """Output of a forward, whose cache can be read under both names in every version."""

    if CACHE != "cache":

        @property  # type: ignore[misc]
        def cache(self) -> Any:  # type: ignore[override]
            """The key-value cache, under its newer name."""
            return self.past_key_values


def drop_cache(outputs: Any) -> None:
    """Take the cache out of what a forward or `generate` returned."""
    outputs[CACHE] = None


def causal_mask(
    config: Any,
    states: Tensor,
    valid: Tensor | None,
    cache: Any,
    layer: int,
    also: "MaskRule | None" = None,
    only: "MaskRule | None" = None,
) -> Any:
    """Return the mask that a stock layer takes, in the form that its attention kernel wants.

    Args:
        config: of the language model.
        states: `(B, n, D)`, what enters the layer.
        valid: bool `(B, m)`, true at tokens, cached ones first; None: all are.
        cache: that holds `m - n` positions in this layer, or None.
        layer: its index.
        also: what is seen beside what lies behind.
        only: what alone is seen of all that.
    """
    return create_causal_mask(
        config=config,
        inputs_embeds=states,
        attention_mask=valid,
        layer_idx=layer,
        or_mask_function=also,
        and_mask_function=only,
        **{CACHE: cache},
    )


# ---------------------------------------------------------------- configs and modules


def attention_implementation(config: PreTrainedConfig) -> str | None:
    """Name of the attention kernel that a model runs; None if nobody chose one."""
    return config._attn_implementation


def commit_of(config: PreTrainedConfig) -> str | None:
    """Return the Hub's commit that a config was loaded from, where this version of transformers notes it."""
    return getattr(config, "_commit_hash", None)


def note_commit(config: PreTrainedConfig, commit: str | None) -> None:
    """Say of a config which commit it was loaded from."""
    config._commit_hash = commit


def forget_name(config: PreTrainedConfig) -> None:
    """Take the place that a config was loaded from out of it."""
    config._name_or_path = ""


def offloaded_to(module: nn.Module) -> torch.device | None:
    """Where accelerate loads an offloaded module for a call; None if it is not offloaded."""
    hook = vars(module).get("_hf_hook")
    return None if hook is None else torch.device(hook.execution_device)


class AnyAttention:
    """Base of a model class that leaves the choice of the attention kernel to the model inside it."""

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True


# ---------------------------------------------------------------- the Hub's cache


def cached_file_or_none(name: str | os.PathLike, filename: str, **hub: Any) -> str | None:
    """Local path of a file of a folder or repository, fetched if need be; None if there is none."""
    return cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub)


def is_known_missing(name: str, path: str, cache_dir: str | None, revision: str | None) -> bool:
    """Whether the cache remembers that the repository has no such file."""
    return try_to_load_from_cache(name, path, cache_dir=cache_dir, revision=revision) is _CACHED_NO_EXIST


# ---------------------------------------------------------------- Trainer


class CheckpointHooks:
    """Base of a trainer, before `Trainer`: its private hooks for checkpoints under public names."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        self.write_checkpoint(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            if self.args.should_save:  # type: ignore[attr-defined]
                from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR  # loads peft

                step = self.state.global_step  # type: ignore[attr-defined]
                folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{step}")  # type: ignore[attr-defined]
                folder.mkdir(parents=True, exist_ok=True)
                self.begin_checkpoint(folder)
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except RuntimeError as error:
            if "inline_container" not in str(error):
                raise
            # The file writer of `torch.save`, whose words do not say that the disk is full.
            folder = self.args.output_dir  # type: ignore[attr-defined]
            raise OSError(
                f"The optimiser's state cannot be written to {folder} ({' '.join(str(error).split())}): free disk space, and resume from the "
                "last complete checkpoint."
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.read_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self.read_best_checkpoint()

    def write_checkpoint(self, folder: str | None, state_dict: dict[str, Tensor] | None) -> None:
        """Write the model to a folder; None: the output folder. `state_dict` is the engine's, if it gathered one."""
        super()._save(folder, state_dict)  # type: ignore[misc]

    def begin_checkpoint(self, folder: Path) -> None:
        """Write what else belongs to a checkpoint of a run, before the engine's own files, the last of which says that all are there."""

    def read_checkpoint(self, folder: str, model: nn.Module | None) -> None:
        """Load the model's weights from a checkpoint to resume from."""
        super()._load_from_checkpoint(folder, model)  # type: ignore[misc]

    def read_best_checkpoint(self) -> None:
        """Load the weights of the best checkpoint of the run."""
        super()._load_best_model()  # type: ignore[misc]

    def to_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch on the trainer's device, as the engine moves it."""
        return self._prepare_inputs(inputs)  # type: ignore[attr-defined]
