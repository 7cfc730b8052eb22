"""The cells of the laboratory; a cell that is there is not run again.

python -m studies.laboratory                            # everything that is not there yet: days
python -m studies.laboratory --only 'reader/0/*'        # some cells
python -m studies.laboratory --list

Cells named `hard-...` are about the clips of `hard_clips`, told by kind.
A cell is one JSON under studies/results/laboratory. Weights stay in `--work` and are not shipped: 538 MB of SmolLM2 and 106 MB for each reader.
Any number of processes may work on the same folders.
"""

import argparse
import functools
from pathlib import Path

import torch

from benchmarks.record import ROOT
from studies.cells import RESULTS, Cells, Job, chosen
from studies.laboratory.hard_laboratory import HardLaboratory
from studies.laboratory.laboratory import RIVALS, SEEDS, STRENGTHS, TEACHERS, Laboratory
from studies.laboratory.policies import RECIPES
from studies.laboratory.table import BEST

METHODS = (
    *("uniform", "random", "divprune", "vidcom2", "evs", "vcast", "simplecluster", "gleanvid", "marc", "prunevid"),
    *("visionzip", "fastvid", "flashvid", "infomerge", "streamingtom"),  # read the vision tower's attention
    *("fastv:ratio_of=kept", "framefusion"),  # inside the language model, whose first layers see more
)


def jobs(laboratory: Laboratory) -> dict[str, Job]:
    """Every cell, in the order in which they build on each other."""
    hard = HardLaboratory(laboratory)
    before = {
        f"hard-untrained/{seed}/{strength}": functools.partial(hard.unread, seed, strength)
        for seed in SEEDS
        for strength in STRENGTHS
    }
    pictures = {
        f"picture/{seed}/{strength}": functools.partial(laboratory.picture, seed, strength)
        for seed in SEEDS
        for strength in STRENGTHS
    }
    return _jobs(laboratory) | pictures | before | _jobs(hard)


def _jobs(laboratory: Laboratory) -> dict[str, Job]:
    found: dict[str, Job] = {}
    for seed in SEEDS:
        for strength in STRENGTHS:
            at = f"{seed}/{strength}"
            found[f"reader/{at}"] = functools.partial(laboratory.read, seed, strength)
            found[f"headroom/{at}"] = functools.partial(laboratory.headroom, seed, strength)
            found[f"layers/{at}"] = functools.partial(laboratory.layers, seed, strength)
            for method in METHODS:
                found[f"method/{at}/{method}"] = functools.partial(laboratory.method, seed, strength, method)
            for query in ("question", "last"):
                found[f"attention/{at}/{query}"] = functools.partial(laboratory.attended, seed, strength, query)
            found[f"contributions/{at}"] = functools.partial(laboratory.contribution, seed, strength)
            for recipe in RECIPES:
                found[f"policy/{at}/{recipe}"] = functools.partial(laboratory.policy, seed, strength, recipe)
            found[f"teacher/{at}"] = functools.partial(laboratory.teacher, seed, strength)
            for choice in (*RIVALS, BEST):
                found[f"larger/{at}/{choice}"] = functools.partial(laboratory.larger, seed, strength, choice)
            for rival in RIVALS:
                found[f"mechanism/{at}/{rival}"] = functools.partial(laboratory.mechanism, seed, strength, BEST, rival)
    return {laboratory.prefix + name: job for name, job in found.items()}


def waits_for(name: str) -> str | None:
    """The cell that must be there before another: the reader that it is about, of a reader the one before it, of a comparison its policy."""
    kind, seed, strength, *rest = name.split("/")
    if kind.startswith(HardLaboratory.prefix):
        if kind in ("hard-reader", "hard-untrained"):
            return f"reader/{seed}/{strength}"
        return HardLaboratory.prefix + str(waits_for(name.removeprefix(HardLaboratory.prefix)))
    if kind == "larger":
        return f"reader/{seed}/{strength}" if rest == ["attention"] else f"policy/{seed}/{strength}/{rest[0]}"
    if kind == "teacher":
        return f"policy/{seed}/{strength}/{TEACHERS[-1]}"
    if kind in ("mechanism", "picture"):
        return f"policy/{seed}/{strength}/{BEST if rest in ([], ['attention']) else rest[0]}"
    if kind != "reader":
        return f"reader/{seed}/{strength}"
    before = [one for one in STRENGTHS if one < int(strength)]
    return f"reader/{seed}/{before[-1]}" if before else None


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="cells, as a pattern; may come several times")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "laboratory", help="folder of the weights")
    parser.add_argument("--list", action="store_true", help="print the names of the cells")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted = chosen(jobs(Laboratory(options.work)), options.only)
    if options.list:
        print("\n".join(wanted))
    else:
        Cells("laboratory", RESULTS / "laboratory").run(wanted, waits_for)


if __name__ == "__main__":
    main()
