"""Answers a second of a ragged batch against its prompts one by one, in one run: one JSON.

    python benchmarks/throughput.py --arch qwen2.5-vl-3b --batches 4 16 --device cuda

Every prompt has a video and a question of its own; questions differ in length, and so do videos where the family can batch that (Qwen2.5-VL). Padding
waste is the part of the compressed batches' positions that holds nothing, rows being left-padded to the longest: for batches in the order given, and for
batches of like kept length.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, build_backbone, build_inputs
from prefill import CLOCKS, Stopwatch
from record import RESULTS, GrowingResult, command, environment, summarise

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.policies.settings import POLICY_TYPES
from cacovid_hf.prompt import batches_by_length

NOTES = [
    "Random weights in the published shape; generate from pixels and ids, vision included, as a user calls it.",
    "batch: batches of prompts in the order given; by_length: batches of like kept length; one_by_one: a call a prompt; they take turns, and give the same "
    "number of new tokens.",
    "padding_waste: positions of the compressed batches that are padding, of all their positions; padding_waste_by_length: with batches of like kept length, "
    "known before vision; padding_waste_uncompressed: of the prompts given.",
]


def prompts(backbone: Any, architecture: Any, options: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    """One prompt each, of questions and (Qwen2.5-VL) videos of different lengths."""
    rows = []
    for number in range(batch):
        question = 8 + (options.question_tokens * (number * 7 % 11)) // 5
        frames = options.frames
        if architecture.model_type == "qwen2_5_vl":
            frames = max(2, options.frames - 2 * (number * 5 % 7 * options.frames // 16))
        rows.append(build_inputs(backbone, architecture, frames, 14, question))
    return rows


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows as one left-padded batch, as a processor makes it."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch: dict[str, Any] = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            parts = [torch.nn.functional.pad(part, (longest - part.shape[1], 0)) for part in parts]
        batch[name] = torch.cat(parts)
    return batch


def waste(lengths: list[int], batches: list[list[int]]) -> float:
    """Part of all positions of the batches that is padding, rows being padded to the longest of their batch."""
    positions = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    return 1 - sum(lengths) / positions


@torch.no_grad()
def measure(options: argparse.Namespace, model: Any, architecture: Any, size: int) -> dict[str, Any]:
    """Times and waste at one batch size."""
    rows = prompts(model.backbone, architecture, options, size * options.pool)
    kept = [model.kept_lengths(**row, retention_ratio=options.ratio)[0] for row in rows]
    given = [row["input_ids"].shape[1] for row in rows]
    numbers = list(range(len(rows)))
    batchings = {
        "one_by_one": [[number] for number in numbers],
        "batch": [numbers[start : start + size] for start in range(0, len(rows), size)],
        "by_length": batches_by_length(kept, size),
    }
    device = torch.device(options.device)
    arguments = dict(max_new_tokens=options.new_tokens, do_sample=False, retention_ratio=options.ratio)
    made = {way: [together([rows[n] for n in batch]) for batch in batches] for way, batches in batchings.items()}
    for batch, inputs in zip(batchings["batch"], made["batch"], strict=True):
        found = model.compress(**inputs, retention_ratio=options.ratio).attention_mask.sum(dim=1).tolist()
        if found != [kept[number] for number in batch]:
            raise RuntimeError(
                f"Compressed prompts have lengths {found}, other than computed before: nothing measured."
            )

    times: dict[str, list[float]] = {way: [] for way in batchings}
    for repeat in range(-1, options.repeats):  # the first to warm up
        turn = repeat % len(batchings)
        for way in [*batchings][turn:] + [*batchings][:turn]:
            watch = Stopwatch(device, options.clock)
            for inputs in made[way]:
                model.generate(**inputs, **arguments).tolist()
            watch.lap(way)
            if repeat >= 0:
                times[way].append(watch.milliseconds[way])
    summaries = {way: summarise(values) for way, values in times.items()}
    return {
        "batch": size,
        "prompts": len(rows),
        "prompt_lengths": given,
        "kept_lengths": kept,
        "padding_waste": waste(kept, batchings["batch"]),
        "padding_waste_by_length": waste(kept, batchings["by_length"]),
        "padding_waste_uncompressed": waste(given, batchings["batch"]),
        "times_ms": summaries,
        "answers_per_second": {way: 1000 * len(rows) / times["median"] for way, times in summaries.items()},
        "speedup": summaries["one_by_one"]["median"] / summaries["batch"]["median"],
        "speedup_by_length": summaries["one_by_one"]["median"] / summaries["by_length"]["median"],
    }


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> Path:
    """Run the benchmark and return the path of its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=list(ARCHITECTURES), default="llava-onevision-0.5b")
    parser.add_argument("--layers", type=int, help="fewer language-model layers than published")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--pool", type=int, default=3, help="batches of each size")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--policy", choices=POLICY_TYPES, default="light")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--question-tokens", type=int, default=32, help="of the longest about twice as many")
    parser.add_argument("--attn", default="sdpa")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: CPU time of one thread")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
    record: dict[str, Any] = {"benchmark": "throughput", "command": command(), "config": config}
    record |= environment(options.commit, device)
    record["notes"] = NOTES
    architecture = ARCHITECTURES[options.arch]
    backbone = build_backbone(architecture, options.layers, getattr(torch, options.dtype), device, options.attn)
    with device:
        model = CaCoVidForConditionalGeneration.from_backbone(backbone, policy_type=options.policy)
    layers = "" if options.layers is None else f"_{options.layers}layers"
    name = f"throughput_{options.arch}{layers}_{options.frames}frames_{options.dtype}_{device.type}"
    result = GrowingResult(options.output, name, record)
    record["batches"] = []
    for batch in options.batches:
        record["batches"].append(measure(options, model, architecture, batch))
        path = result.save()
        row = record["batches"][-1]
        rates = row["answers_per_second"]
        report(
            f"batch {row['batch']}: {rates['batch']:.2f} answers/s against {rates['one_by_one']:.2f} one by one ({row['speedup']:.2f}x), "
            f"padding {row['padding_waste']:.1%} (uncompressed {row['padding_waste_uncompressed']:.1%}); "
            f"by length {rates['by_length']:.2f} answers/s, padding {row['padding_waste_by_length']:.1%}"
        )
    report(str(path))
    return path


if __name__ == "__main__":
    main()
