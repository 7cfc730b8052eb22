"""Reading a checkpoint of unknown origin: files by plain name, safetensors alone, headers before tensors, sizes before memory."""

import json
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, is_offline_mode
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils.hub import extract_commit_hash

from .._compat import ATTENTION_KEYS, cached_file_or_none, is_known_missing
from ..utils.staging import staging_folder
from ..utils.tensors import first_not_finite

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BACKBONE_FOLDER = "backbone"  # of a self-contained checkpoint
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")
LARGEST_JSON = 64 << 20  # bytes; the index of a model of a million tensors
# Generous: tens of times what models of today have. A config beyond them is a mistake or an attack.
LARGEST_SIZES = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "depth": 1 << 10,
    "num_attention_heads": 1 << 11,
    "num_heads": 1 << 11,
    "num_key_value_heads": 1 << 11,
    "head_dim": 1 << 14,
    "global_head_dim": 1 << 14,
    "num_experts": 1 << 14,
    "num_local_experts": 1 << 14,
    "n_routed_experts": 1 << 14,
    "n_shared_experts": 1 << 14,
    "moe_intermediate_size": 1 << 20,
    "shared_expert_intermediate_size": 1 << 20,
    "linear_num_key_heads": 1 << 11,
    "linear_num_value_heads": 1 << 11,
    "linear_key_head_dim": 1 << 14,
    "linear_value_head_dim": 1 << 14,
    "linear_conv_kernel_dim": 1 << 10,
    "hidden_size_per_layer_input": 1 << 17,
    "vocab_size_per_layer_input": 1 << 23,
    "vocab_size": 1 << 23,
    "image_size": 1 << 14,
    "patch_size": 1 << 12,
    "temporal_patch_size": 1 << 6,
    "spatial_merge_size": 1 << 6,
    "num_channels": 1 << 6,
    "in_channels": 1 << 6,
    "in_chans": 1 << 6,
    "window_size": 1 << 14,
    "out_hidden_size": 1 << 17,
    "projection_dim": 1 << 17,
    "max_position_embeddings": 1 << 30,
    "num_position_embeddings": 1 << 24,
    "position_embedding_size": 1 << 24,
}
# Of these, a model without them says 0.
ABSENT_AS_ZERO = ("hidden_size_per_layer_input", "n_shared_experts")
# Of these, some families give height and width.
PAIRS = ("image_size", "patch_size")
LARGEST_LIST = 1 << 12  # entries; layer types, grid pinpoints


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, of which so far only the header was read."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """Return the tensor, on the CPU."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.name)


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is: a folder or a Hub id, and the arguments to reach it.

    Attributes:
        staged: folder of it whose files count before the others, left by a save that was killed (see `utils.staging`).
    """

    name: str
    hub: dict[str, Any]
    staged: str | None = None

    @classmethod
    def of(cls, name: str | os.PathLike, kwargs: dict[str, Any]) -> "Source":
        """Take the Hub's arguments out of those of a `from_pretrained`."""
        return cls(os.fspath(name), {key: kwargs.pop(key) for key in HUB_ARGUMENTS if kwargs.get(key) is not None})

    def inside(self, folder: str) -> "Source":
        """Return a folder of this one."""
        if self.staged and (staged := self.inside_staged().inside(folder)).file("config.json"):
            return staged
        return Source(self.name, {**self.hub, "subfolder": "/".join(filter(None, (self.hub.get("subfolder"), folder)))})

    def inside_staged(self) -> "Source":
        """Return the files that count before the others; only where there are any."""
        return Source(self.name, self.hub).inside(str(self.staged))

    def pinned(self) -> "Source":
        """As it is now: at the one commit that its `config.json` is of, and with the files of a save that was killed after its decision.

        Raises:
            ValueError: those files are not there.
        """
        path = self.file("config.json")
        if path is None:
            return self
        commit = extract_commit_hash(path, None)
        staged = staging_folder(self.json("config.json") or {})
        pinned = Source(self.name, self.hub if commit is None else {**self.hub, "revision": commit}, staged)
        if staged is not None and pinned.inside_staged().file("config.json") is None:
            raise ValueError(f"{self.name} lacks its hidden folder {staged}, which has newer weights: copy that too.")
        return pinned

    def file(self, filename: str) -> str | None:
        """Local path of one of the checkpoint's files, fetched if need be; None if there is none.

        Raises:
            ValueError: the name is not plain, and could lead out of the checkpoint's folder.
        """
        plain = isinstance(filename, str) and filename not in ("", ".", "..") and not set(filename) & set("/\\:\0")
        if not plain:
            raise ValueError(f"{self.name} names a file outside its folder, {filename!r}: do not use this checkpoint.")
        if self.staged and (path := self.inside_staged().file(filename)):
            return path
        path = cached_file_or_none(self.name, filename, **self.hub)
        if path is None and not os.path.isdir(self.name):
            self._check_missing(filename)
        return path

    def _check_missing(self, filename: str) -> None:
        """Raise an `OSError` if a file was not found because the Hub could not be asked."""
        if self.hub.get("local_files_only") or is_offline_mode():
            return
        path = "/".join(filter(None, (self.hub.get("subfolder"), filename)))
        revision = self.hub.get("revision")
        if is_known_missing(self.name, path, self.hub.get("cache_dir"), revision):
            return
        try:
            there = HfApi(token=self.hub.get("token")).file_exists(self.name, path, revision=revision)
        except Exception as error:  # of whichever HTTP library
            raise OSError(
                f"{path} of {self.name} cannot be fetched ({' '.join(str(error).split())}): try again, or use what is cached with "
                "local_files_only=True."
            ) from error
        if there:
            raise OSError(f"{path} of {self.name} could not be fetched at first: try again.")

    def json(self, filename: str) -> dict[str, Any] | None:
        """Return a JSON file of the checkpoint; None if there is none."""
        path = self.file(filename)
        if path is None:
            return None
        size = os.path.getsize(path)
        if size > LARGEST_JSON:
            raise ValueError(f"{filename} of {self.name} has {size} bytes, far too many: do not use this checkpoint.")
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{filename} of {self.name} is not readable JSON ({error}): copy or download it again."
            ) from error
        if not isinstance(values, dict):
            raise ValueError(f"{filename} of {self.name} does not hold a JSON object: copy or download it again.")
        return values

    def config(self) -> dict[str, Any]:
        """`config.json`, checked for what must never come from a file: sizes out of reach, kernels to be fetched.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not JSON, or asks for what it must not.
        """
        values = self.json("config.json")
        if values is None:
            raise FileNotFoundError(
                f"{self.name} has no config.json: give the folder or the Hub id of a CaCoVid checkpoint."
            )
        check_config_values(values, self.name)
        return values

    def stored(self, prefix: str) -> dict[str, StoredTensor]:
        """Return the tensors under `prefix` (taken off their names), from one file or from shards; only headers are read, and no other file.

        Raises:
            FileNotFoundError: no weights, or a shard is missing.
            ValueError: pickled weights only, or files that are no safetensors.
        """
        if single := self.file(WEIGHTS):
            return read_header(single, prefix)
        index = self.json(INDEX)
        if index is None:
            for name in PICKLES:
                if self.file(name):
                    raise ValueError(
                        f"{self.name} holds only pickled weights ({name}), which are never opened: save it as {WEIGHTS}."
                    )
            raise FileNotFoundError(f"{self.name} has no {WEIGHTS}: save a model there with save_pretrained.")
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{INDEX} of {self.name} has no weight_map: copy or download it again.")
        for shard in weight_map.values():
            if not str(shard).endswith(".safetensors"):
                raise ValueError(
                    f"{INDEX} of {self.name} names {shard!r}, which is not a safetensors file and is never opened: do not use this checkpoint."
                )
        tensors: dict[str, StoredTensor] = {}
        for shard in sorted({shard for name, shard in weight_map.items() if name.startswith(prefix)}):
            path = self.file(shard)
            if path is None:
                raise FileNotFoundError(
                    f"{self.name} lacks the shard {shard}, which {INDEX} names: copy or download it again."
                )
            tensors.update(read_header(path, prefix))
        return tensors


def is_absent_folder(name: str) -> bool:
    """Whether a name can only be a folder's, and there is none: the Hub's reason would be about its ids."""
    return name.startswith((".", "~", os.sep)) and not os.path.isdir(name)


def cached_commit(name: str | None) -> str | None:
    """Return the commit of a repository whose files were loaded from the Hub's cache; None if that holds several, or none."""
    if not name or os.path.isdir(name):
        return None
    folder = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
    commits = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return commits[0] if len(commits) == 1 else None


def read_header(path: str, prefix: str) -> dict[str, StoredTensor]:
    """Return what a safetensors file says of its tensors whose names start with `prefix`, the prefix taken off."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            slices = {name: file.get_slice(name) for name in names}
            return {
                name[len(prefix) :]: StoredTensor(path, name, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}): it is damaged, or a renamed pickle, which is never opened. Copy or download it again."
        ) from error


def check_config_values(values: Any, name: str, place: str = "") -> None:
    """Refuse sizes that no model has and attention kernels that would be fetched from elsewhere, at any depth of a config.

    Raises:
        ValueError: naming the place and the value.
    """
    for key, value in values.items() if isinstance(values, dict) else ():
        where = f"{place}{key}"
        if key in LARGEST_SIZES and value is not None:
            is_pair = key in PAIRS and isinstance(value, list) and len(value) == 2
            sizes, least = value if is_pair else [value], 0 if key in ABSENT_AS_ZERO else 1
            if not all(type(size) is int and least <= size <= LARGEST_SIZES[key] for size in sizes):
                raise ValueError(
                    f"config.json of {name} says {where}={reprlib.repr(value)}, which must be a whole number from {least} to {LARGEST_SIZES[key]}: do not "
                    "use this checkpoint."
                )
        elif key in ATTENTION_KEYS and "/" in str(value):
            raise ValueError(
                f"config.json of {name} asks for an attention kernel from elsewhere, {where}={reprlib.repr(value)}: pass attn_implementation yourself if you "
                "trust it, and take it out of the file."
            )
        elif isinstance(value, list) and len(value) > LARGEST_LIST:
            raise ValueError(
                f"config.json of {name} has {len(value)} entries in {where}, far too many: do not use this checkpoint."
            )
        check_config_values(value, name, f"{where}.")


def load_weights(module: nn.Module, stored: dict[str, StoredTensor], name: str) -> None:
    """Give `module`, which may be on the meta device, the tensors of a checkpoint; nothing is read before everything fits (`check_weights`)."""
    check_weights(module.state_dict(), stored, name)
    tensors = {key: tensor.read() for key, tensor in stored.items()}
    if (bad := first_not_finite(tensors.items())) is not None:
        raise ValueError(
            f"{stored[bad].name} in the weights of {name} holds NaN or infinite values: copy or download them again."
        )
    module.load_state_dict(tensors, assign=True)


def check_weights(expected: dict[str, Tensor], stored: dict[str, StoredTensor], name: str) -> None:
    """Compare headers with what a policy needs.

    Raises:
        ValueError: naming what is missing, left over, misshapen or not a floating-point tensor.
    """
    missing, extra = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected))
    shapes = [
        f"{key} is {stored[key].shape}, not {tuple(expected[key].shape)}"
        for key in sorted(set(expected) & set(stored))
        if stored[key].shape != tuple(expected[key].shape)
    ]
    types = [
        f"{key} is of type {stored[key].dtype}"
        for key in sorted(set(expected) & set(stored))
        if stored[key].dtype not in ("F64", "F32", "F16", "BF16")
    ]
    problems = [
        *[f"missing: {', '.join(missing)}"] * bool(missing),
        *[f"unexpected: {', '.join(extra)}"] * bool(extra),
        *shapes,
        *types,
    ]
    if problems:
        more = [f"and {len(problems) - 4} more"] if len(problems) > 4 else []
        shown = "; ".join([*(part if len(part) <= 300 else f"{part[:300]}..." for part in problems[:4]), *more])
        raise ValueError(
            f"The policy's weights in {name} do not fit its config ({shown}): they belong to another version or backbone, or are "
            "damaged. Copy or download the checkpoint again."
        )
