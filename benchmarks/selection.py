"""`select_tokens` against a loop that moves one token at a time, single-threaded on a CPU, in one run: one JSON.

python benchmarks/selection.py
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, command, environment, summarise, write_result
from torch import Tensor

from cacovid_hf.compressors.tools.selection import select_tokens

NOTES = [
    "One thread, CPU time: what other processes took of a shared core is left out. Both take turns on the same scores, and every pair of masks is compared.",
    "loop: the steps of the method one after the other, frame budgets corrected by single tokens, frames ranked one by one.",
    "scores: normal random numbers, new ones in every repeat; tokens_moved is how many single tokens the loop moved.",
]


def select_by_loop(
    token_scores: Tensor, frame_scores: Tensor, retention_ratio: float, share: float = 0.5, cap: float = 1.5
) -> tuple[Tensor, int]:
    """The selection step by step for budgets of at least one token a frame; returns the mask and the tokens moved."""
    num_frames, per_frame = token_scores.shape
    num_tokens = num_frames * per_frame
    budget = max(1, int(retention_ratio * num_tokens + 1e-9))
    by_contribution = min(budget, int(share * retention_ratio * num_tokens + 1e-9))

    scores = frame_scores.double()
    weights = torch.softmax(3 * scores / scores.abs().max(), dim=0)
    weights = weights.clamp(1 / (2 * num_frames), cap / num_frames)
    weights = weights / weights.sum()

    most = min(per_frame, int(share * per_frame * cap * retention_ratio + 1e-9))
    counts = torch.round(weights * round(share * retention_ratio * num_tokens)).long().clamp(min=1).clamp(max=most)
    moved = 0
    while counts.sum() > by_contribution:
        counts[counts.argmax()] -= 1
        moved += 1
    while counts.sum() < by_contribution:
        counts[counts.argmin()] += 1
        moved += 1

    keep = torch.zeros(num_frames, per_frame, dtype=torch.bool)
    for frame in range(num_frames):
        order = torch.sort(token_scores[frame], descending=True, stable=True).indices
        keep[frame, order[: counts[frame]]] = True
    keep = keep.flatten()
    free = (~keep).nonzero()[:, 0]
    if budget > by_contribution:
        keep[free[torch.linspace(0, len(free) - 1, budget - by_contribution).round().long()]] = True
    return keep.view(num_frames, per_frame), moved


def measure(grid: tuple[int, int, int], ratio: float, repeats: int) -> dict[str, Any]:
    """Times of both at one grid `(T, h, w)`."""
    frames, height, width = grid
    generator = torch.Generator().manual_seed(0)
    vectorised, loop, moves = [], [], []
    for repeat in range(-3, repeats):  # the first three to warm up
        token_scores = torch.randn(frames, height * width, generator=generator)
        frame_scores = torch.randn(frames, generator=generator)
        start = time.process_time()
        keep = select_tokens(token_scores, frame_scores, ratio)
        middle = time.process_time()
        expected, moved = select_by_loop(token_scores, frame_scores, ratio)
        end = time.process_time()
        if not torch.equal(keep, expected):
            raise RuntimeError(f"select_tokens and the loop keep different tokens at grid {grid}: nothing measured.")
        if repeat >= 0:
            vectorised.append(1000 * (middle - start))
            loop.append(1000 * (end - middle))
            moves.append(moved)
    times = {"select_tokens": summarise(vectorised), "loop": summarise(loop)}
    for time_ms in times.values():
        del time_ms["samples"]  # hundreds of them
    return {
        "grid": list(grid),
        "tokens": frames * height * width,
        "kept": int(keep.sum()),
        "times_ms": times,
        "tokens_moved": summarise(moves)["median"],
        "speedup": times["loop"]["median"] / times["select_tokens"]["median"],
    }


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> Path:
    """Run the benchmark and return the path of its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--side", type=int, default=14, help="tokens a frame are side x side")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
        record: dict[str, Any] = {"benchmark": "selection", "command": command(), "config": config}
        record |= environment(options.commit, torch.device("cpu"))
        record["notes"] = NOTES
        sizes = [
            measure((frames, options.side, options.side), options.ratio, options.repeats) for frames in options.frames
        ]
    finally:
        torch.set_num_threads(threads)
    record["sizes"] = sizes
    path = write_result(options.output, "selection", record)
    for size in sizes:
        times = size["times_ms"]
        report(
            f"{size['grid']} {size['tokens']} tokens, {size['kept']} kept: select_tokens {times['select_tokens']['median']:.3f} ms, "
            f"loop {times['loop']['median']:.3f} ms ({size['tokens_moved']:g} tokens moved), {size['speedup']:.1f}x"
        )
    report(str(path))
    return path


if __name__ == "__main__":
    main()
