"""What every compression method costs besides the language model's own work, one video, in one run: one JSON.

python benchmarks/methods.py                        # 32 x 14 x 14 tokens of 3584 channels, minutes on a CPU
python benchmarks/methods.py --device cuda --dtype bfloat16
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, command, environment, summarise, write_result
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import COMPRESSORS, CaCoVid, Compressor, FramePrior
from cacovid_hf.prompt import Prompt, PromptLayout, TowerAttention, VideoSpan

PUBLISHED = {
    "source": "CaCoVID, arXiv 2602.01649: time of compression for one video of LLaVA-OneVision-7B (6272 tokens) at 25 %",
    "hardware": "the authors' GPU: not this run's hardware, and not to be compared with its milliseconds",
    "milliseconds": {"CaCoVID": 11.2, "PruneVID": 34.1, "DivPrune": 134.3},
}
NOTES = [
    "From the embedded prompt to the keep mask and the merged embeddings: scores, budget, selection, merging. Methods take turns.",
    "The video is synthetic: scenes that change slowly, a third of their places fast. Language-model and policy weights are random in the shape of "
    "Qwen2-7B's layers; no time of a fixed budget depends on them.",
    "Methods that read the vision tower's attention get queries and keys in the shape of SigLIP so400m (16 heads, 27 x 27 patches of 72); making them is "
    "the tower's own work, the attention map of the last layer is counted.",
    "Times on a CPU are the CPU time of one thread, so that other processes on its core count as little as possible; on a GPU wall time.",
    "once: methods whose first run took longer than --once seconds ran that one time, without a warm-up.",
    "frame_prior runs visionzip in every frame, with budgets by the light policy.",
    "attention runs the layers in front of the one that it reads on the whole prompt: that is most of its time.",
    "fastv and framefusion drop tokens between the layers of the language model: their time is that of their hooks in one prefill of --depth layers, and "
    "of what they do before it; kept is the mean over the layers. The layers have the published width and attention but a narrow MLP, which no hook runs.",
]


@dataclass(frozen=True)
class Named:
    """A method under the name of its row."""

    name: str
    method: Compressor
    model: CaCoVidForConditionalGeneration


def build_model(
    options: argparse.Namespace, policy_type: str, backbone: Any = None, layers: int = 0, mlp: int = 0
) -> CaCoVidForConditionalGeneration:
    """The language model's first layers in the published shape of a 7B model, or narrower, with a tower that is never run."""
    torch.manual_seed(0)
    width = options.width
    config = LlavaOnevisionConfig(
        vision_config=dict(
            model_type="siglip_vision_model",
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=28,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=dict(
            model_type="qwen2",
            hidden_size=width,
            intermediate_size=mlp or width * 37 // 7,
            num_hidden_layers=layers or options.layers,
            num_attention_heads=max(4, width // 128),
            num_key_value_heads=4,
            vocab_size=128,
        ),
        image_token_index=126,
        video_token_index=127,
    )
    if backbone is None:
        with torch.device(options.device):
            backbone = LlavaOnevisionForConditionalGeneration._from_config(config, dtype=getattr(torch, options.dtype))
        backbone.eval()
    attention = {"policy_attention": "question"}
    with torch.device(options.device):
        return CaCoVidForConditionalGeneration.from_backbone(backbone, policy_type=policy_type, **attention)


def video_tokens(frames: int, places: int, width: int) -> Tensor:
    """`(T, P, D)` float32: a new scene every eight frames, a third of its places changing fast."""
    generator = torch.Generator().manual_seed(0)
    scenes = torch.randn(-(-frames // 8), places, width, generator=generator)
    fast = torch.rand(places, 1, generator=generator) < 1 / 3
    noise = torch.randn(frames, places, width, generator=generator)
    return scenes.repeat_interleave(8, dim=0)[:frames] + torch.where(fast, 1.0, 0.2) * noise


def pooled(patches: Tensor, side: int) -> Tensor:
    """`(T, S, C)` patches to `(T, side * side, C)` tokens, bilinear as in LLaVA-OneVision."""
    old = int(patches.shape[1] ** 0.5)
    square = patches.mT.unflatten(2, (old, old))
    return interpolate(square, size=(side, side), mode="bilinear").flatten(2).mT


def build_prompt(options: argparse.Namespace) -> Prompt:
    """One video between 14 and 32 text tokens, with its tower's queries and keys."""
    frames, side, device, dtype = options.frames, options.side, options.device, getattr(torch, options.dtype)
    places = side * side
    count, before, after = frames * places, 14, 32
    tokens = video_tokens(frames, places, options.width).flatten(0, 1)
    text = torch.randn(before + after, options.width, generator=torch.Generator().manual_seed(1))
    embeds = torch.cat([text[:before], tokens, text[before:]])[None].to(device, dtype)
    length = embeds.shape[1]
    positions = torch.arange(length)
    is_text = (positions < before) | (positions >= before + count)
    span = VideoSpan(0, (frames, side, side), positions[before : before + count])
    layout = PromptLayout(torch.ones(1, length, dtype=torch.bool), is_text[None], (span,))
    heads, patches, channels = 16, (2 * side - 1) ** 2, 72
    queries, keys = (
        torch.randn(frames, heads, patches, channels, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
        for seed in (2, 3)
    )
    tower = TowerAttention(queries, keys, lambda values: pooled(values, side))
    ids = torch.where(is_text, 5, 127)[None].to(device)
    return Prompt(layout, ids, embeds, positions[None].to(device), (tower,))


def methods(options: argparse.Namespace) -> list[Named]:
    """Every method, the policy in both kinds."""
    full = build_model(options, "full")
    light = build_model(options, "light", full.backbone)
    deep = build_model(options, "light", layers=options.depth, mlp=options.width // 28)
    rows = [
        Named("cacovid, full policy", CaCoVid(), full),
        Named("cacovid, light policy", CaCoVid(), light),
        *(
            Named(name, kind(), deep if kind.inside_llm else full)
            for name, kind in COMPRESSORS.items()
            if name not in ("cacovid", "frame_prior")
        ),
        Named("frame_prior, light policy", FramePrior(), light),
    ]
    wanted = options.methods
    return [row for row in rows if wanted is None or row.method.name in wanted]


class Clock:
    """Seconds of this process's one thread on a CPU, of the wall behind all that was queued on a GPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.spent = 0.0

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self, *_: Any) -> None:
        self.begun = self.now()

    def stop(self, *_: Any) -> None:
        self.spent += self.now() - self.begun


@contextmanager
def around_hooks(decoder: Any, clock: Clock) -> Iterator[None]:
    """Let `clock` run during the hooks that the layers and their parts have now."""
    handles = []
    for module in decoder.layers.modules():
        if module._forward_pre_hooks:
            handles += [
                module.register_forward_pre_hook(clock.start, prepend=True),
                module.register_forward_pre_hook(clock.stop),
            ]
        if module._forward_hooks:
            handles += [
                module.register_forward_hook(clock.start, prepend=True),
                module.register_forward_hook(clock.stop),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def milliseconds(row: Named, prompt: Prompt, ratio: float) -> tuple[float, int]:
    """One compression, and how many tokens it kept."""
    clock = Clock(prompt.inputs_embeds.device)
    clock.start()
    if not row.method.inside_llm:
        kept = row.method.compress(prompt, row.model, [ratio]).videos[0].keep
        clock.stop()
        return 1000 * clock.spent, int(kept.sum())
    left = row.model.compress_prompt(prompt, retention_ratio=ratio, compressor=row.method)
    clock.stop()
    decoder = row.model.backbone.get_decoder()
    with row.method.inside(row.model, left, [ratio]) as record, around_hooks(decoder, clock):
        decoder(
            inputs_embeds=left.inputs_embeds,
            attention_mask=left.attention_mask,
            position_ids=left.position_ids,
            use_cache=False,
        )
    seen = [tokens[0] for tokens in record.layer_tokens]
    return 1000 * clock.spent, round(sum(seen) / len(seen))


def measure(options: argparse.Namespace, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """All methods, taking turns."""
    prompt, rows = build_prompt(options), methods(options)
    times: dict[str, list[float]] = {row.name: [] for row in rows}
    kept: dict[str, int] = {}
    slow = set()
    for repeat in range(options.repeats + 1):
        for row in rows:
            if row.name in slow:
                continue
            took, kept[row.name] = milliseconds(row, prompt, options.ratio)
            if repeat == 0 and took > 1000 * options.once:
                slow.add(row.name)
            if repeat > 0 or row.name in slow:
                times[row.name].append(took)
            report(f"{row.name}: {took:.1f} ms, {kept[row.name]} kept")
    return [
        {"name": row.name, "kept": kept[row.name], "once": row.name in slow, "times_ms": summarise(times[row.name])}
        for row in rows
    ]


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> Path:
    """Run the benchmark and return the path of its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--side", type=int, default=14, help="tokens a frame are side x side")
    parser.add_argument("--width", type=int, default=3584, help="channels of a token, a multiple of 28")
    parser.add_argument(
        "--layers", type=int, default=2, help="of the language model, enough for the methods that read one"
    )
    parser.add_argument("--depth", type=int, default=28, help="layers for the methods that work between them")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", type=float, default=10.0, help="seconds above which a method runs one time")
    parser.add_argument("--methods", nargs="+", choices=list(COMPRESSORS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
        record: dict[str, Any] = {"benchmark": "methods", "command": command(), "config": config}
        record |= environment(options.commit, torch.device(options.device))
        record |= {"notes": NOTES, "published": PUBLISHED, "methods": measure(options, report)}
    finally:
        torch.set_num_threads(threads)
    path = write_result(options.output, "methods", record)
    report(str(path))
    return path


if __name__ == "__main__":
    main()
