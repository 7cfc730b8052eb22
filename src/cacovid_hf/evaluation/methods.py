"""Compression methods as they are named in a run: `uniform`, or `cacovid:contribution_share=0.5:scope=video`."""

import dataclasses
import json
from typing import Any, get_type_hints

from ..compressors import COMPRESSORS, Compressor, FastV, resolve_compressor
from ..compressors.base import CompressibleModel
from ..utils.checks import check_type
from .paper_figures import BEFORE_LLM, BEHIND_CUT, LAYER_AVERAGE


def expand_methods(names: list[str]) -> list[str]:
    """Check names, and put every registered method in the place of `all`.

    Raises:
        ValueError: a name or a setting is unknown.
    """
    expanded = [each for name in names for each in (COMPRESSORS if name == "all" else [name])]
    for name in expanded:
        check_method(name)
    return list(dict.fromkeys(expanded))


def check_method(name: str) -> None:
    """Refuse a name that means no method.

    Raises:
        ValueError: the method or a setting is unknown.
    """
    _settings(name)


def make_method(name: str, model: CompressibleModel) -> Compressor:
    """Return the method of a name, with the model's own settings where the name gives none."""
    kind, settings = _settings(name)
    method = resolve_compressor(kind, model.config)
    return dataclasses.replace(method, **settings) if settings else method  # type: ignore[type-var]


def describe(method: Compressor) -> dict[str, Any]:
    """Name and settings of a method, for a result file."""
    return {"name": method.name, "settings": dataclasses.asdict(method)}  # type: ignore[call-overload]


def ratio_definition(method: Compressor) -> str:
    """Return what the method's retention ratio counts."""
    if not method.inside_llm:
        return BEFORE_LLM
    return BEHIND_CUT if isinstance(method, FastV) and method.ratio_of == "kept" else LAYER_AVERAGE


def _settings(name: str) -> tuple[str, dict[str, Any]]:
    kind, *pairs = name.split(":")
    method = resolve_compressor(kind)
    known = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            raise ValueError(
                f"Method {name!r}: {pair!r} is not a setting of {kind}: give {kind}:SETTING=VALUE with one of {', '.join(sorted(known)) or 'none'}."
            )
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    try:
        for key, hint in _hints(type(method)).items() if settings else ():
            if key in settings:
                check_type(settings[key], hint, key)
        dataclasses.replace(method, **settings)  # type: ignore[type-var]
    except (TypeError, ValueError) as error:
        raise ValueError(f"Method {name!r}: {error}") from error
    return kind, settings


def _hints(kind: type[Compressor]) -> dict[str, Any]:
    """Types of a method's settings; none where a user's method names types that are imported for type checkers alone."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {}
