"""What `cacovid evaluate` and `cacovid report` do."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..utils.extras import pip_install
from ..utils.files import named_if_full
from .report import find_table, markdown, read_cells
from .sweep import Settings, evaluate


def run_evaluation(settings: Settings, output: Path) -> Iterator[str]:
    """Measure what is missing, and write the run, `<output>.md` and, with matplotlib, two plots beside it; yields lines to print, on rank 0."""
    if output.suffix != ".json":
        raise ValueError(f"--output {output}: a run is written as JSON. Give a name that ends in .json.")
    run = evaluate(settings, output)
    if run is None:
        return
    for cell, reason in run.get("refused", {}).items():
        yield f"refused: {cell}: {reason}\n"
    if not run["cells"]:
        if run.get("refused"):
            raise ValueError(
                "No question was answered, because every method was refused: choose others, or other ratios."
            )
        yield "no cell is finished"
        return
    text = markdown(run["cells"])
    table = output.with_suffix(".md")
    with named_if_full(table):
        table.write_text(text, encoding="utf-8")
    yield text
    written = [output, table]
    if importlib.util.find_spec("matplotlib"):
        from .plots import save_plots

        written += save_plots(run["cells"], output.parent, output.stem)
    else:
        yield f"no plots were drawn, which need matplotlib: {pip_install('eval')}"
    yield "written: " + ", ".join(map(str, written))
    if not any(cell["answered"] for cell in run["cells"]):
        raise ValueError(f"No question was answered: see {table} for the reasons.")


def run_report(runs: Sequence[Path], published: str | None, plots: Path | None) -> Iterator[str]:
    """Yield the lines of the report of several runs; plots go to a folder, if one is given."""
    table = None if published is None else find_table(published)
    cells = read_cells(runs)
    yield markdown(cells, table)
    if plots is not None:
        from .plots import save_plots

        plots.mkdir(parents=True, exist_ok=True)
        yield "written: " + ", ".join(map(str, save_plots(cells, plots, runs[0].stem)))
