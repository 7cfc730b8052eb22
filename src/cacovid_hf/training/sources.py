"""Samples from where a config says: a file, a dataset, or what a function makes."""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..utils.blame import one_line
from ..utils.checks import check_names
from ..utils.extras import pip_install
from .batches import is_stream
from .data import VideoQuestions, video_of
from .video_paths import video_path


def load_samples(source: Any, columns: Mapping[str, str], name: str) -> Any:
    """Return a dataset from a source; see `DataSection`.

    Raises:
        OSError: files that are missing.
        ValueError: a source of no known kind.
    """
    if isinstance(source, str):
        if Path(source).suffix.lower() in (".json", ".jsonl"):
            source = {"file": source}
        elif Path(source).is_file():
            raise ValueError(f"{name}={source!r} is not a .json or .jsonl file: give one, or the name of a dataset.")
        else:
            source = {"function" if ":" in source else "path": source}
    if not isinstance(source, Mapping) or not {"file", "path", "function"} & set(source):
        raise ValueError(f"{name}={source!r} is not a source of samples: give a file, a dataset's path, or a function.")
    arguments = dict(source)
    if "file" in arguments:
        file = arguments.pop("file")
        check_names(arguments, (), name)
        return VideoQuestions(file, columns)
    if "function" in arguments:
        made = arguments.pop("function")
        try:
            return _function(made, name)(**arguments)
        except TypeError as error:
            raise ValueError(f"{name}: {made} cannot be called like this ({error}).") from error
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{name} is a dataset, which needs the training extra: {pip_install('train')}.") from None
    path = arguments.pop("path")
    try:
        dataset = datasets.load_dataset(path, **{"split": "train", **arguments})
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: {path} cannot be read as a dataset ({one_line(error)}): give a JSON or JSONL file, a folder of data, or the Hub id of a dataset."
        ) from error
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Video):  # frames are sampled here
            dataset = dataset.cast_column(column, datasets.Video(decode=False))
    return dataset.rename_columns(dict(columns)) if columns else dataset


def check_videos(
    dataset: Any,
    root: str | os.PathLike,
    name: str,
    allowed_roots: Sequence[str] = (),
    num_samples: int = 64,
) -> None:
    """Make sure that of some samples of `name` at least one has its video, before a model of many gigabytes is loaded.

    They are the first ones of a stream, and evenly spaced over what has a length: a part of a dataset may be there and another not.

    Raises:
        FileNotFoundError: none has.
        ValueError: there are no samples, or all of their paths leave `root` and `allowed_roots`.
    """
    samples: Iterator[Any]
    if is_stream(dataset):
        beginning = iter(dataset)
        if beginning is dataset:
            return  # what is read from it is gone
        samples = islice(beginning, num_samples)
    else:
        count = min(num_samples, len(dataset))
        samples = (dataset[place * (len(dataset) - 1) // max(count - 1, 1)] for place in range(count))
    paths, refused, read = [], "", 0
    for sample in samples:
        read += 1
        video = video_of(sample) if isinstance(sample, Mapping) else None
        if not isinstance(video, str):
            return
        try:
            path = video_path(video, root, allowed_roots)
        except ValueError as error:
            refused = refused or str(error)
            continue
        if "://" in path or os.path.isfile(path):
            return
        paths.append(path)
    if not read:
        raise ValueError(f"{name} has no samples: check its file, split or function.")
    setting = "data.eval_root" if name == "data.eval" else "data.root"
    if not paths:
        raise ValueError(f"{name}: {refused}")
    raise FileNotFoundError(
        f"Of {read} videos of {name} none exists, such as {paths[0]}: set {setting} to the folder that the paths start from."
    )


def _function(name: str, place: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{place}={name!r} cannot be imported ({error}): give package.module:function.") from error
