"""Tables of runs: accuracy by method and ratio, what each cell took, and published figures beside them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..utils.figures import ALL_TOKENS, markdown_table, percent
from ..utils.names import nearest
from .datasets.base import clustered_mean
from .paper_figures import LAYER_AVERAGE, Table, check_comparable, published_tables, satisfies
from .run_files import identity, read_run

Cell = dict[str, Any]


def read_cells(paths: Sequence[Path]) -> list[Cell]:
    """Return the finished cells of several runs.

    Raises:
        ValueError: a file is no run, none has a cell, or two of them have a cell of the same benchmark, model, method and ratio.
    """
    cells: dict[tuple[Any, ...], tuple[Path, Cell]] = {}
    for path in paths:
        for cell in read_run(path)["cells"]:
            if (place := identity(cell)) in cells:
                other = cells[place][0]
                raise ValueError(
                    f"{' / '.join(map(str, place))} is in {other} and in {path}: give one of them, or report them one by one."
                )
            cells[place] = (path, cell)
    if not cells:
        raise ValueError(f"{', '.join(map(str, paths))}: no cell is finished. Run the same `cacovid evaluate` again.")
    return [cell for _, cell in cells.values()]


def markdown(cells: Sequence[Cell], published: Table | None = None) -> str:
    """Return the report: for every model and benchmark a table of accuracies and one of costs, then, if asked for, published figures beside the means.

    Raises:
        ValueError: cells of one benchmark and model that were made with other settings than each other, or a published table that does not compare.
    """
    parts = []
    if published is not None:
        parts.append(beside_published(cells, published))
    for (dataset, model), chosen in group_by(
        cells, lambda cell: (cell["dataset"]["name"], cell["model"]["name"])
    ).items():
        _check_one_setting(chosen)
        parts += [f"## {dataset}, {model}", _heading(chosen), accuracy_table(chosen), cost_table(chosen)]
        if parts_table := _breakdown(chosen):
            parts.append(parts_table)
        parts += _remarks(chosen)
    return "\n\n".join(parts) + "\n"


def compressed(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells in which tokens were dropped."""
    return [cell for cell in cells if cell["retention_ratio"] < 1]


def with_all_tokens(cells: Sequence[Cell]) -> Cell | None:
    """Return the cell of the stock model, if there is one."""
    return next((cell for cell in cells if cell["retention_ratio"] == 1), None)


def accuracy_table(cells: Sequence[Cell]) -> str:
    """Rows: methods; columns: ratios; the metric in percent with its standard error, the best of a column bold, and with it whatever is not
    worse by two paired standard errors. Ratios that do not mean the same work (`compares`) take no part in that.
    """
    shortened = compressed(cells)
    ratios = sorted({cell["retention_ratio"] for cell in shortened}, reverse=True)
    methods = list(dict.fromkeys(cell["method"]["label"] for cell in shortened))
    table = {(cell["method"]["label"], cell["retention_ratio"]): cell for cell in cells}
    competing = [cell for cell in shortened if compares(cell)]
    bold = {place for ratio in ratios for place in _leaders([c for c in competing if c["retention_ratio"] == ratio])}
    rows = []
    reference = with_all_tokens(cells)
    if reference is not None:
        rows.append([ALL_TOKENS, "", *[_percent(reference)] * min(1, len(ratios)), *[""] * (len(ratios) - 1)])
    for method in methods:
        row = [table.get((method, ratio)) for ratio in ratios]
        counted = next(cell["ratio_definition"] for cell in row if cell)
        shown = [
            "" if cell is None else f"**{_percent(cell)}**" if identity(cell) in bold else _percent(cell)
            for cell in row
        ]
        rows.append([method, counted, *shown])
    return markdown_table(["method", "ratio counted", *(f"{100 * ratio:g} %" for ratio in ratios)], rows)


def cost_table(cells: Sequence[Cell]) -> str:
    """Rows: cells; tokens kept, median milliseconds a sample by stage, speed-up of compression and prefill against the stock prefill of the same
    run, and peak memory.
    """
    reference = with_all_tokens(cells)
    heads = ["method", "ratio", "tokens kept", "compression, ms", "prefill, ms"]
    heads += ["against stock prefill", "generation, ms", "peak memory, MiB"]
    rows = []
    for cell in cells:
        if "median_ms" not in cell:
            continue
        times = cell["median_ms"]
        speedup = ""
        if reference is not None and cell is not reference and times["compression_and_prefill"] > 0:
            speedup = f"{reference['median_ms']['prefill'] / times['compression_and_prefill']:.2f}x"
        memory = cell["peak_memory_bytes"]
        kept = f"{cell['kept_tokens']:.1f} of {cell['video_tokens']:.1f}"
        before = [cell["method"]["label"], f"{100 * cell['retention_ratio']:g} %", kept]
        stages = [f"{times['compression']:.2f}", f"{times['prefill']:.2f}", speedup, f"{times['generation']:.2f}"]
        rows.append([*before, *stages, f"{memory / 2**20:.0f}" if memory else "not measured"])
    return markdown_table(heads, rows)


def compares(cell: Cell) -> bool:
    """Whether the cell's ratio is, or is the same as, the mean over the LLM's layers: what methods of both kinds are compared by."""
    return satisfies(cell["ratio_definition"], LAYER_AVERAGE)


def paired_difference(a: str, b: str, videos: str | None = None, parts: str | None = None) -> tuple[float, float]:
    """Mean of `a - b` over the samples that both answered, and its standard error, from outcomes as `1`, `0` and anything else.

    The same questions were asked of both, so that the error is smaller than that of two independent accuracies.

    Args:
        a: outcomes by sample.
        b: the other ones.
        videos: numbers of the samples' videos, as in a cell, whose differences are summed before they are squared; None: each has its own.
        parts: numbers of the parts that the metric is the mean over, `-` for none; None: it is the mean over samples.
    """
    count = len(a)
    columns = zip(a, b, _column(videos, count, ""), _column(parts, count, "-"), strict=True)
    rows = [
        {
            "id": f"sample {i}",
            "video_id": video,
            "groups": {} if part == "-" else {"part": part},
            "correct": int(x) - int(y),
        }
        for i, (x, y, video, part) in enumerate(columns)
        if x in "01" and y in "01"
    ]
    if not rows:
        return 0.0, 0.0
    estimate = clustered_mean(rows, None if parts is None else "part")
    return estimate.value, estimate.standard_error


def _column(numbers: str | None, count: int, default: str) -> list[str]:
    return [default] * count if numbers is None else numbers.split()


def beside_published(cells: Sequence[Cell], table: Table) -> str:
    """Means over the table's benchmark set in percent of all tokens, the run's rows above the published ones.

    Raises:
        ValueError: the run lacks a benchmark of the set or the reference at ratio 1.0, or a ratio is counted otherwise.
    """
    shown = [cell for cell in cells if cell["dataset"]["name"] in table.benchmark_set]
    definitions = {cell["method"]["label"]: cell["ratio_definition"] for cell in compressed(shown)}
    check_comparable(table, {cell["dataset"]["name"] for cell in cells}, definitions)
    lines = [
        f"## Mean over {', '.join(table.benchmark_set)}, in percent of all tokens",
        "",
        f"Ratio counted {table.ratio_definition}. Published: {table.source}; {table.backbone}. Other frames, prompts or versions of a benchmark move such figures; "
        "the published ones were not measured here.",
        "",
    ]
    ratios = sorted({f.ratio for f in table.figures} | {cell["retention_ratio"] for cell in compressed(shown)})
    ratios.reverse()
    rows = []
    for model, of_model in group_by(shown, lambda cell: cell["model"]["name"]).items():
        for label in definitions:
            values = [_relative(of_model, table, label, ratio) for ratio in ratios]
            rows.append([label, f"this run, {model}", *values])
    published = {(figure.method, figure.ratio): figure.value for figure in table.figures}
    for method in dict.fromkeys(figure.method for figure in table.figures):
        values = [f"{published[method, r]:.1f}" if (method, r) in published else "" for r in ratios]
        rows.append([method, "published", *values])
    lines.append(markdown_table(["method", "whose", *(f"{100 * ratio:g} %" for ratio in ratios)], rows))
    return "\n".join(lines)


def find_table(name: str) -> Table:
    """Return a published table by name.

    Raises:
        ValueError: there is none; the names there are.
    """
    tables = published_tables()
    if name not in tables:
        remedy = nearest(name, tables, f"choose one of {', '.join(tables)}.")
        raise ValueError(f"No published table is named {name!r}: {remedy}")
    return tables[name]


def _relative(cells: Sequence[Cell], table: Table, label: str, ratio: float) -> str:
    """Mean score of a method over the set in percent of the mean of all tokens; empty if a benchmark of the set has no such cell."""
    scores = {(c["dataset"]["name"], c["method"]["label"], c["retention_ratio"]): c["score"]["value"] for c in cells}
    names = table.benchmark_set
    if any(scores.get((name, label, ratio)) is None for name in names):
        return ""
    if missing := [name for name in names if scores.get((name, ALL_TOKENS, 1.0)) is None]:
        raise ValueError(
            f"{', '.join(missing)} has no cell of all tokens (ratio 1.0), of which the figures are percentages: evaluate it with --ratio 1.0 too."
        )
    mean = sum(scores[name, label, ratio] for name in names)
    return f"{100 * mean / sum(scores[name, ALL_TOKENS, 1.0] for name in names):.1f}"


def _leaders(cells: Sequence[Cell]) -> list[tuple[Any, ...]]:
    """Places of the best cell and of those that are not worse by two paired standard errors, both of the metric that is shown."""
    scored = [cell for cell in cells if cell["score"]["value"] is not None]
    if not scored:
        return []
    best = max(scored, key=lambda cell: cell["score"]["value"])
    leaders = []
    for cell in scored:
        difference, error = paired_difference(
            best["outcomes"], cell["outcomes"], *(best.get(name, cell.get(name)) for name in ("videos", "parts"))
        )
        if cell is best or difference <= 2 * error:
            leaders.append(identity(cell))
    return leaders


def _percent(cell: Cell) -> str:
    score = cell["score"]
    if score["value"] is None:
        return "withheld" if "?" in cell["outcomes"] else "none answered"
    return percent(score["value"], score["standard_error"])


def _heading(cells: Sequence[Cell]) -> str:
    cell = cells[0]
    machine = cell["environment"]["hardware"]
    device = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    return (
        f"{cell['score']['metric'].capitalize()} in percent on {cell['dataset']['samples']} questions, with standard errors; bold: the best of a column, and "
        f"what is within two paired standard errors of it. {cell['protocol'].capitalize()}. Model: {cell['model']['backbone']}, {cell['generation']['dtype']}, "
        f"{cell['generation']['attention']}; batch {cell['generation']['batch_size']}; {device}; times are medians a sample ({cell['environment']['clock']})."
    )


def _breakdown(cells: Sequence[Cell]) -> str:
    """Rows: methods at ratios; columns: the parts of the first group that has several, if there are not too many."""
    groups = cells[0]["score"]["parts"]
    group = next((name for name, parts in groups.items() if 1 < len(parts) <= 12), None)
    if group is None:
        return ""
    columns = list(groups[group])
    rows = []
    for cell in cells:
        parts = cell["score"]["parts"].get(group, {})
        values = [f"{100 * parts[name]['value']:.1f}" if name in parts else "" for name in columns]
        rows.append([cell["method"]["label"], f"{100 * cell['retention_ratio']:g} %", *values])
    return f"By {group}, in percent:\n\n{markdown_table(['method', 'ratio', *columns], rows)}"


def _remarks(cells: Sequence[Cell]) -> list[str]:
    remarks = []
    broken = max((cell["broken"] for cell in cells), key=lambda broken: broken["count"])
    if broken["count"]:
        remarks.append(
            f"{broken['count']} of {cells[0]['dataset']['samples']} samples could not be read or answered and count nowhere; the same command asks them again: {'; '.join(broken['first'])}"
        )
    if any(cell["model"]["policy_trained"] is False for cell in cells):
        remarks.append("The policy is untrained: expect of it what you would of a random subset.")
    return remarks


def _check_one_setting(cells: Sequence[Cell]) -> None:
    for name in ("dataset", "generation"):
        kinds = {str(cell[name]) for cell in cells}
        if len(kinds) > 1:
            raise ValueError(
                f"Cells of {cells[0]['dataset']['name']} differ in {name} ({' / '.join(sorted(kinds))}): they do not compare. Report their runs one by one."
            )


def group_by(cells: Sequence[Cell], key: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    """Cells by what `key` says of them, in order of appearance."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups
