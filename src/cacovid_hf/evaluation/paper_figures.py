"""Figures of the paper and of rival methods, as data, and the refusal to compare what does not compare."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("published.json")
BEFORE_LLM, LAYER_AVERAGE = "before the LLM", "averaged over the LLM's layers"
BEHIND_CUT, DECODE_KV = "behind the cut inside the LLM", "of the KV cache while decoding"
"""What a retention ratio counts. A method that drops all its tokens before the LLM has the same ratio by the first and the second."""


@dataclass(frozen=True)
class Figure:
    """Relative accuracy of one method at one ratio.

    Attributes:
        method: its name.
        ratio: fraction of video tokens kept, as the table defines it.
        value: mean score over the benchmark set, in percent of the uncompressed model's in the same table.
    """

    method: str
    ratio: float
    value: float


@dataclass(frozen=True)
class Table:
    """One published table.

    Attributes:
        name: to ask for it by.
        source: where it was printed, and by whom if not by the methods' authors.
        backbone: the model, and its number of frames if the source says.
        benchmark_set: names of the benchmarks whose scores are averaged; none where they are not known.
        ratio_definition: what its ratios count.
        figures: its figures.
        scores: absolute scores in percent, by method (`"all tokens"` is the uncompressed model), ratio and benchmark.
    """

    name: str
    source: str
    backbone: str
    benchmark_set: tuple[str, ...]
    ratio_definition: str
    figures: tuple[Figure, ...]
    scores: tuple[dict[str, Any], ...] = ()


@cache
def published_tables() -> dict[str, Table]:
    """All tables by name."""
    tables = {}
    for entry in json.loads(DATA.read_text(encoding="utf-8"))["tables"]:
        figures = tuple(
            Figure(method, ratio, value)
            for method, values in entry["relative_percent"].items()
            for ratio, value in zip(entry["ratios"], values, strict=True)
            if value is not None
        )
        tables[entry["name"]] = Table(
            entry["name"],
            entry["source"],
            entry["backbone"],
            tuple(entry["benchmark_set"]),
            entry["ratio_definition"],
            figures,
            tuple(entry.get("scores", ())),
        )
    return tables


def satisfies(definition: str, wanted: str) -> bool:
    """Whether a ratio by `definition` is also one by `wanted`: what is dropped before the LLM is missing in all of its layers."""
    return definition == wanted or (definition, wanted) == (BEFORE_LLM, LAYER_AVERAGE)


def check_comparable(table: Table, benchmarks: set[str], definitions: dict[str, str]) -> None:
    """Refuse to set a run beside a table of another benchmark set or ratio definition.

    Args:
        table: the published one.
        benchmarks: names of the benchmarks of the run.
        definitions: the ratio definition of every method of the run.

    Raises:
        ValueError: naming what differs, and what to do.
    """
    if not table.benchmark_set:
        raise ValueError(
            f"The figures of {table.name!r} are of unknown benchmarks, so nothing compares with them: choose another table."
        )
    if missing := sorted(set(table.benchmark_set) - benchmarks):
        raise ValueError(
            f"The run has {', '.join(sorted(benchmarks))}, and the figures of {table.name!r} are means over {', '.join(table.benchmark_set)}: means over "
            f"different benchmark sets do not compare. Evaluate {', '.join(missing)} too, or choose another table."
        )
    for method, definition in definitions.items():
        if not satisfies(definition, table.ratio_definition):
            raise ValueError(
                f"The ratio of {method!r} is counted {definition}, that of {table.name!r} {table.ratio_definition}: the same number means different work. "
                f"Leave the method out, or choose a table whose ratio is counted {definition}."
            )
