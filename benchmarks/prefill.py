"""Time to first token of a compressed prompt against the stock model's, side by side in one run: one JSON.

    python benchmarks/prefill.py --arch llava-onevision-7b --frames 32 --device cuda

Published shapes, random weights. Everything is warm; the variants take turns (in a rotating order) in every repeat; a time ends when
its result is there (the device is waited for, the first token is read back). Stages of one variant are waited for one by one, which the stock
model's single stage is not: the comparison leans towards stock.
"""

import argparse
import gc
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, build_backbone, build_inputs
from clips import media_stages
from record import RESULTS, GrowingResult, command, environment, summarise
from roofline import Peaks, measured_peaks
from roofline import vision as vision_work
from torch import Tensor
from transformers import StaticCache

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf._compat import CACHE, cache_of
from cacovid_hf.compressors import COMPRESSORS, Compressor, Scores
from cacovid_hf.policies.settings import POLICY_TYPES
from cacovid_hf.prompt import CompressedPrompt, Prompt, PromptLayout, VideoSpan, gather, kept_indices
from cacovid_hf.utils.operations import Shape, Work

NOTES = [
    "Random weights in the published shape: times and memory mean something, answers do not.",
    "decode, preprocess: a synthetic H.264 clip from file to frames, all of which are read, and from frames to pixel values by the family's video "
    "processor, both on the CPU and on as many threads as their libraries take; a longer clip costs more for the same frames.",
    "decode_step: one more token behind the cache that the prefill left, the median of a few; kv_cache_bytes: that cache.",
    "limit: operations and bytes by formula (roofline.py) against a matrix product and a copy measured in the same run; of_limit: time over limit.",
    "vision: the stock forward up to its language model (tower, projector, prompt embedding, positions); the same for every variant.",
    "prefill: language model, output head at the last position, first token read back, from the embedded prompt.",
    "compression: layout + policy + selection + gather; with_compression: those and the prefill of the shorter prompt.",
    "time_to_first_token: generate(max_new_tokens=1) from pixels and ids, vision included, as a user calls it.",
    "clock: wall, or the CPU time of the process (one thread): what other processes took of a shared core is left out.",
    "speedup: stock median over variant median; compression_and_prefill sets with_compression against stock prefill.",
]

FEWER_LAYERS = (
    "language-model layers: prefill is cheaper than the whole model's by about that, and compression pays off less."
)


@dataclass(frozen=True)
class ScoredBefore(Compressor):
    """A method whose scores are already there: its `compress` is the selection alone."""

    method: Compressor
    scores: list[Scores | None]

    name = "scored_before"

    def score(self, prompt: Prompt, model: CaCoVidForConditionalGeneration) -> list[Scores | None]:
        return self.scores

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Tensor:
        return self.method.select_at(prompt, span, scores, retention_ratio, budget)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Stopwatch:
    """Milliseconds of consecutive stages, the device waited for after each."""

    def __init__(self, device: torch.device, clock: str):
        self.device = device
        self.clock = CLOCKS[clock]
        self.milliseconds: dict[str, float] = {}
        self._last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def lap(self, stage: str) -> None:
        """End the stage that ran since the last call."""
        now = self._now()
        self.milliseconds[stage] = 1000 * (now - self._last)
        self._last = now


@dataclass(frozen=True)
class Variant:
    """The stock model (no method), or a method at a ratio, by one kind of policy."""

    method: Compressor | None = None
    ratio: float = 1.0
    policy: str = "full"

    @property
    def name(self) -> str:
        if self.method is None:
            return "stock"
        return f"{self.method.name}{', light' if self.policy == 'light' else ''} {self.ratio:g}"


class Benchmark:
    """A model, a prompt, and the ways to get from one to the other's first token."""

    def __init__(self, options: argparse.Namespace):
        self.device, self.clock = torch.device(options.device), options.clock
        architecture = ARCHITECTURES[options.arch]
        dtype = getattr(torch, options.dtype)
        self.backbone: Any = build_backbone(architecture, options.layers, dtype, self.device, options.attn)
        self.models: dict[str, CaCoVidForConditionalGeneration] = {}
        for policy in options.policies:
            attention = options.policy_attention if policy == "full" else "question"
            with self.device:
                self.models[policy] = CaCoVidForConditionalGeneration.from_backbone(
                    self.backbone, policy_type=policy, policy_attention=attention
                )
            if options.compile:
                self.models[policy].policy.compile(fullgraph=True)
        if options.compile:
            self.backbone.get_decoder().compile()
        self.model = next(iter(self.models.values()))
        self.decode_steps = options.decode_steps
        self.static_cache = options.static_cache
        self.inputs: dict[str, Any] = dict(
            build_inputs(
                self.backbone, architecture, options.frames, options.text_before, options.question_tokens, options.batch
            )
        )
        self.ids, self.mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        self.rows: int | None = None
        self.cache_bytes: dict[str, int] = {}
        self.others = {n: v for n, v in self.inputs.items() if n not in ("input_ids", "attention_mask")}

    def layout(self) -> PromptLayout:
        """Find the video in the prompt."""
        return self.model.family.layout(self.backbone.config, self.ids, self.mask, self.others)

    def embed(self) -> Prompt:
        """The vision stage."""
        return self.model.family.embed(self.backbone, self.layout(), self.ids, self.mask, self.others)

    def prefill(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> tuple[Tensor, Any]:
        """First tokens `(B, 1)` from an embedded prompt, and the cache."""
        cache: Any = None
        if self.static_cache:
            size = embeds.shape[1] + self.decode_steps
            cache = StaticCache(config=self.backbone.config.get_text_config(decoder=True), max_cache_len=size)
        outputs = self.backbone(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache},
        )
        tokens = outputs.logits[:, -1:].argmax(dim=-1)
        tokens.tolist()
        return tokens, cache_of(outputs)

    def decode(self, watch: "Stopwatch", tokens: Tensor, cache: Any, mask: Tensor) -> None:
        """A few more tokens, greedily, from the uncompressed length on; the stage is one of them."""
        position = torch.tensor([[self.ids.shape[1]]] * len(tokens), device=tokens.device)
        steps = []
        for _ in range(self.decode_steps):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            outputs = self.backbone(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=position if self.rows is None else position.expand(self.rows, -1, -1),
                use_cache=True,
                logits_to_keep=1,
                **{CACHE: cache},
            )
            tokens, position = outputs.logits[:, -1:].argmax(dim=-1), position + 1
            tokens.tolist()
            watch.lap("decode_step")
            steps.append(watch.milliseconds["decode_step"])
        watch.milliseconds["decode_step"] = statistics.median(steps)

    def stages(self, prompt: Prompt, variant: Variant) -> tuple[dict[str, float], CompressedPrompt | None]:
        """Times of every stage behind vision, and the shorter prompt (None of the stock model)."""
        watch = Stopwatch(self.device, self.clock)
        self.rows = None if prompt.position_ids.ndim == 2 else prompt.position_ids.shape[0]
        if variant.method is None:
            tokens, cache = self.prefill(prompt.inputs_embeds, self.mask, prompt.position_ids)
            watch.lap("prefill")
            self.decode(watch, tokens, cache, self.mask)
            self.cache_bytes[variant.name] = kv_bytes(cache)
            return watch.milliseconds, None
        layout, model = self.layout(), self.models[variant.policy]
        watch.lap("layout")
        scores = variant.method.score(prompt, model)
        watch.lap("policy")
        select = ScoredBefore(variant.method, scores)
        found = select.compress(prompt, model, [variant.ratio] * len(layout.videos))
        watch.lap("selection")
        indices = kept_indices(layout, [video.keep for video in found.videos], found.budgets).to(self.device)
        shorter = gather(found.prompt, indices, found.videos, pad_token_id=0)
        watch.lap("gather")
        tokens, cache = self.prefill(shorter.inputs_embeds, shorter.attention_mask, shorter.position_ids)
        watch.lap("prefill")
        times = watch.milliseconds
        times["with_compression"] = sum(times.values())
        times["compression"] = times["with_compression"] - times["prefill"]
        self.decode(watch, tokens, cache, shorter.attention_mask)
        self.cache_bytes[variant.name] = kv_bytes(cache)
        return times, shorter

    def first_token(self, variant: Variant) -> float:
        """Milliseconds from pixels and ids to the first token by `generate`."""
        arguments: dict[str, Any] = {**self.inputs, "max_new_tokens": 1, "do_sample": False}
        watch = Stopwatch(self.device, self.clock)
        if variant.method is None:
            self.backbone.generate(**arguments).tolist()
        else:
            model = self.models[variant.policy]
            model.generate(**arguments, retention_ratio=variant.ratio, compressor=variant.method).tolist()
        watch.lap("first_token")
        return watch.milliseconds["first_token"]

    def check(self, variant: Variant, shorter: CompressedPrompt | None) -> None:
        """The stages that are timed must make what `model.compress` makes."""
        model = self.models[variant.policy]
        expected = model.compress(**self.inputs, retention_ratio=variant.ratio, compressor=variant.method)
        names = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "kept_indices")
        different = [name for name in names if not torch.equal(getattr(expected, name), getattr(shorter, name))]
        if different:
            raise RuntimeError(
                f"Stage by stage, {', '.join(different)} came out different from model.compress: nothing measured."
            )


@torch.no_grad()
def run(options: argparse.Namespace) -> GrowingResult:
    """Measure, and write the record after every repeat."""
    started = time.monotonic()
    methods = [COMPRESSORS[name]() for name in options.compressors]
    kinds = {method: options.policies if method.name == "cacovid" else options.policies[:1] for method in methods}
    variants = [Variant()]
    variants += [Variant(m, ratio, policy) for m in methods for policy in kinds[m] for ratio in options.ratios]
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    record = described(options, device)
    result = GrowingResult(options.output, result_name(options), record)
    memory: dict[str, dict[str, Any] | None] = {}
    if options.peak_memory and not on_gpu:
        memory = {variant.name: peak_rss(options, variant) for variant in variants}

    bench = Benchmark(options)
    prompt = bench.embed()
    # Warm-up and check. On a CPU, where one vision pass may take a minute, one variant is checked, and `generate` is warmed up on text alone.
    shorter = {variant.name: bench.stages(prompt, variant)[1] for variant in variants}
    for variant in variants[1:] if on_gpu else variants[1:2]:
        bench.check(variant, shorter[variant.name])
    bench.backbone.generate(input_ids=bench.ids[:, : options.text_before], max_new_tokens=1)
    for variant in variants if on_gpu else []:
        bench.first_token(variant)
    peaks = measured_peaks(device, getattr(torch, options.dtype))
    record |= limits_of_the_model(options, bench, prompt, peaks)

    def time_is_up() -> bool:
        return options.budget_seconds is not None and time.monotonic() - started > options.budget_seconds

    times: dict[str, dict[str, list[float]]] = {variant.name: defaultdict(list) for variant in variants}
    vision: list[float] = []
    gc.collect()
    for repeat in range(max(options.repeats, options.vision_repeats)):
        turn = repeat % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            samples = times[variant.name]
            if repeat < options.repeats:
                for stage, milliseconds in bench.stages(prompt, variant)[0].items():
                    samples[stage].append(milliseconds)
            if repeat < options.vision_repeats:
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats(device)
                    before = torch.cuda.memory_allocated(device)
                samples["time_to_first_token"].append(bench.first_token(variant))
                if on_gpu:
                    memory[variant.name] = {
                        "before_bytes": before,
                        "peak_bytes": torch.cuda.max_memory_allocated(device),
                        "of": "torch.cuda.max_memory_allocated during generate; before: weights and inputs",
                    }
        if repeat < options.vision_repeats:
            watch = Stopwatch(device, options.clock)
            bench.embed()
            watch.lap("vision")
            vision.append(watch.milliseconds["vision"])
        record["vision_ms"] = summarise(vision)
        record["variants"] = [
            measured(options, bench, prompt, variant, shorter[variant.name], times, peaks, memory)
            for variant in variants
        ]
        result.save()
        if time_is_up():
            record["stopped"] = f"after {repeat + 1} repeats: the budget of {options.budget_seconds:.0f} s was spent"
            break
    if not time_is_up():
        record["media"] = media_stages(
            ARCHITECTURES[options.arch],
            options.frames,
            options.clip_side,
            options.vision_repeats,
            CLOCKS[options.clock],
        )
    result.save()
    return result


def described(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What a record says before anything is measured."""
    architecture = ARCHITECTURES[options.arch]
    published = architecture.text["num_hidden_layers"]
    config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
    config |= {
        "checkpoint_shape": architecture.checkpoint,
        "layers": options.layers or published,
        "all_layers": published,
        "frame_side_pixels": architecture.side,
    }
    fewer = [] if options.layers is None else [f"{options.layers} of {published} {FEWER_LAYERS}"]
    start = {"benchmark": "prefill", "command": command(), "config": config}
    return {**start, **environment(options.commit, device), "notes": [*fewer, *NOTES]}


def result_name(options: argparse.Namespace) -> str:
    """The first part of the name of a run's file."""
    layers = "" if options.layers is None else f"_{options.layers}layers"
    extras = f"_batch{options.batch}" * (options.batch > 1) + "_static" * options.static_cache
    extras += "_compiled" * options.compile
    device = options.device.replace(":", "")
    return f"prefill_{options.arch}{layers}_{options.frames}frames{extras}_{options.dtype}_{device}"


def limits_of_the_model(options: argparse.Namespace, bench: Benchmark, prompt: Prompt, peaks: Peaks) -> dict[str, Any]:
    """Sizes of the model and the prompt, and what the hardware could do at most."""
    backbone = bench.backbone
    side = ARCHITECTURES[options.arch].side
    work = vision_work(backbone.config, options.frames, side, backbone.dtype.itemsize)
    video = prompt.layout.videos[0]
    return {
        "peaks": {"flops_per_second": peaks.flops, "bytes_per_second": peaks.bytes},
        "vision_limit_ms": options.batch * peaks.milliseconds(work),
        "model": {
            "backbone_parameters": sum(p.numel() for p in backbone.parameters()),
            "language_model_parameters": sum(p.numel() for p in backbone.get_decoder().parameters()),
            "policy_parameters": {
                name: sum(p.numel() for p in model.policy.parameters()) for name, model in bench.models.items()
            },
        },
        "prompt": {
            "tokens": prompt.inputs_embeds.shape[1],
            "rows": len(prompt.inputs_embeds),
            "video_tokens": video.num_tokens,
            "video_grid": list(video.grid),
        },
    }


def measured(
    options: argparse.Namespace,
    bench: Benchmark,
    prompt: Prompt,
    variant: Variant,
    short: CompressedPrompt | None,
    times: dict[str, dict[str, list[float]]],
    peaks: Peaks,
    memory: dict[str, dict[str, Any] | None],
) -> dict[str, Any]:
    """What a record says of one variant, from the samples so far."""
    tokens, video_tokens = prompt.inputs_embeds.shape[1], prompt.layout.videos[0].num_tokens
    kept = tokens if short is None else short.inputs_embeds.shape[1]
    shape = Shape(bench.backbone.config.get_text_config(), bench.backbone.dtype.itemsize)
    works = stage_works(shape, options, tokens, video_tokens, kept, variant)
    summary = {stage: summarise(values) for stage, values in times[variant.name].items()}
    stock = {stage: summarise(values) for stage, values in times["stock"].items()}
    return {
        "name": variant.name,
        "compressor": variant.method.name if variant.method else None,
        "policy": variant.policy if variant.method and variant.method.name == "cacovid" else None,
        "kv_cache_bytes": bench.cache_bytes[variant.name],
        "limits": {
            stage: {
                "flops": work.flops,
                "bytes": work.bytes,
                "limit_ms": peaks.milliseconds(work),
                "of_limit": summary[stage]["median"] / peaks.milliseconds(work),
            }
            for stage, work in works.items()
        },
        "retention_ratio": variant.ratio,
        "prompt_tokens": kept,
        "video_tokens": video_tokens - (tokens - kept),
        "times_ms": summary,
        "speedup": speedup(stock, summary) if variant.method else None,
        "peak_memory": memory.get(variant.name),
    }


def stage_works(
    shape: Shape, options: argparse.Namespace, tokens: int, video: int, kept: int, variant: Variant
) -> dict[str, Work]:
    """Operations and bytes of a variant's stages."""
    batch = options.batch
    works = {"prefill": shape.prefill(batch, kept), "decode_step": shape.decode_step(batch, kept)}
    if variant.method is not None:
        works |= {"selection": shape.selection(batch, video), "gather": shape.gather(batch, kept)}
    if variant.method is not None and variant.method.name == "cacovid":
        text = tokens - video
        full = shape.full_policy(batch, video, text, options.policy_attention)
        works["policy"] = full if variant.policy == "full" else shape.light_policy(batch, video, text)
    return works


def kv_bytes(cache: Any) -> int:
    """Bytes of a cache's keys and values."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def speedup(stock: dict[str, Any], variant: dict[str, Any]) -> dict[str, float]:
    """Stock median over the variant's; more than 1 is faster than stock."""
    pairs = {
        "prefill": ("prefill", "prefill"),
        "compression_and_prefill": ("prefill", "with_compression"),
        "time_to_first_token": ("time_to_first_token", "time_to_first_token"),
    }
    return {name: stock[whole]["median"] / variant[short]["median"] for name, (whole, short) in pairs.items()}


def peak_rss(options: argparse.Namespace, variant: Variant) -> dict[str, Any] | None:
    """Peak resident memory of one `generate` in a process of its own; None where the system does not tell."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_rss, (options, variant))


def _peak_rss(options: argparse.Namespace, variant: Variant) -> dict[str, Any] | None:
    torch.set_num_threads(options.threads)
    bench = Benchmark(options)
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building
        before = _status("VmRSS")
    except OSError:
        return None
    with torch.no_grad():
        bench.first_token(variant)
    return {
        "before_bytes": before,
        "peak_bytes": _status("VmHWM"),
        "of": "resident memory during the first generate of a process of its own; before: interpreter, weights and inputs",
    }


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of a run, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=list(ARCHITECTURES), default="llava-onevision-0.5b")
    parser.add_argument(
        "--layers", type=int, help="fewer language-model layers than published (recorded in name and file)"
    )
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.1])
    before = [name for name, method in COMPRESSORS.items() if not method.inside_llm]
    parser.add_argument("--compressors", choices=before, nargs="+", default=["cacovid"], help="those before the LLM")
    parser.add_argument("--policies", choices=POLICY_TYPES, nargs="+", default=["full"])
    parser.add_argument("--batch", type=int, default=1, help="rows, each with a video of its own")
    parser.add_argument("--decode-steps", type=int, default=4)
    parser.add_argument("--static-cache", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the policy and the language model")
    parser.add_argument("--policy-attention", choices=["causal", "bidirectional", "question"], default="question")
    parser.add_argument("--attn", default="sdpa", help="the backbone's attention: sdpa, eager, flash_attention_2, ...")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: CPU time of one thread, for a machine whose cores are shared with other processes",
    )
    parser.add_argument("--repeats", type=int, default=5, help="of what follows vision")
    parser.add_argument("--vision-repeats", type=int, help="of what runs the vision tower (default: --repeats)")
    parser.add_argument("--budget-seconds", type=float, help="start no repeat after them (default: no limit)")
    parser.add_argument("--clip-side", type=int, default=720, help="pixels, of the clip that is decoded and prepared")
    parser.add_argument("--text-before", type=int, default=14, help="text tokens before the video")
    parser.add_argument("--question-tokens", type=int, default=32, help="text tokens after the video")
    parser.add_argument(
        "--peak-memory",
        action="store_true",
        help="on a CPU: measure it too, each variant in a process of its own (CUDA: always)",
    )
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    if options.vision_repeats is None:
        options.vision_repeats = options.repeats
    counts = (
        "batch",
        "decode_steps",
        "frames",
        "threads",
        "repeats",
        "vision_repeats",
        "clip_side",
        "text_before",
        "question_tokens",
    )
    for name in counts:
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1.")
    if options.clock == "cpu" and (options.threads != 1 or torch.device(options.device).type != "cpu"):
        parser.error(
            "--clock cpu tells how long something takes only on a CPU and one thread: add --device cpu --threads 1."
        )
    published = ARCHITECTURES[options.arch].text["num_hidden_layers"]
    if options.layers is not None and not 1 <= options.layers < published:
        parser.error(
            f"--layers {options.layers}: give 1 to {published - 1}, or leave it out for all {published} layers."
        )
    if not all(0 < ratio <= 1 for ratio in options.ratios):
        parser.error(f"--ratios {options.ratios}: give fractions of the video tokens to keep, in (0, 1].")
    return options


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> Path:
    """Run the benchmark and return the path of its JSON."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    result = run(options)
    path, record = result.save(), result.record
    if "stopped" in record:
        report(f"stopped {record['stopped']}")
    if "media" in record:
        media = record["media"]
        decode = media["decode_skipped"] or f"{media['decode_ms']['median']:.1f} ms"
        report(f"decode {decode}, preprocess {media['preprocess_ms']['median']:.1f} ms")
    report(f"vision {record['vision_ms']['median']:.1f} ms, prompt {record['prompt']['tokens']} tokens")
    for variant in record["variants"]:
        parts = [f"{stage} {sample['median']:.2f}" for stage, sample in variant["times_ms"].items()]
        report(f"{variant['name']:>16}: {variant['video_tokens']} video tokens; ms: " + ", ".join(parts))
        if variant["speedup"]:
            report(" " * 18 + ", ".join(f"{what} {factor:.2f}x" for what, factor in variant["speedup"].items()))
    report(str(path))
    return path


if __name__ == "__main__":
    main()
