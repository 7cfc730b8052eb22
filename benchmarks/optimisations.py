"""Every optimisation that is kept, before and after, side by side in one run: one JSON.

    python benchmarks/optimisations.py --clock cpu

"Before" is the plain way to the same result, and the two must agree before anything is timed. Shapes are of LLaVA-OneVision 0.5B, with few layers and
random weights. The tests that guard each result are named with it.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from architectures import ARCHITECTURES, build_backbone, build_inputs
from prefill import CLOCKS, Stopwatch
from record import RESULTS, GrowingResult, command, environment, summarise
from torch.nn import functional as F

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.backbones import backbone_family
from cacovid_hf.compressors.tools.selection import top_tokens
from cacovid_hf.generation.inputs import effective_settings
from cacovid_hf.generation.stock import generate_compressed
from cacovid_hf.policies.base import logits
from cacovid_hf.policies.layer import RMSNorm, split_heads
from cacovid_hf.utils.tensors import rotate


@dataclass(frozen=True)
class Case:
    """Two ways to one result.

    Attributes:
        name: what was done.
        guard: the test that holds the two together.
        before: the plain way.
        after: what is kept.
        agree: whether two results are the same, up to rounding; None where they are of different networks.
        stock: where the aim is to cost nothing, the model whose `generate` is left out to time what is ours of `after`.
    """

    name: str
    guard: str
    before: Callable[[], Any]
    after: Callable[[], Any]
    agree: Callable[[Any, Any], bool] | None
    stock: Any = None


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Up to the rounding of bfloat16."""
    return bool((one.float() - other.float()).abs().max() <= 0.05 * (1 + other.float().abs().max()))


def sorted_top(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """`top_tokens` by a stable sort of every row."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(scores.shape[-1]).expand_as(order))
    return rank < counts[:, None]


def dense_scores(policy: Any, prompt: Any) -> torch.Tensor:
    """Token scores the plain way: every position of the prompt through the layer and the head, a dense mask, a float32 copy in the norms."""
    (span,), embeds, layout = prompt.layout.videos, prompt.inputs_embeds[0], prompt.layout
    layer, rope = policy.layer, policy._rope(prompt.position_ids[..., 0, :])

    def norm(module: RMSNorm, states: torch.Tensor) -> torch.Tensor:
        return (F.rms_norm(states.float(), states.shape[-1:], eps=module.eps) * module.weight.float()).to(states.dtype)

    attention, states = layer.self_attn, norm(layer.input_layernorm, embeds)
    query = rotate(split_heads(attention.q_proj(states), policy.shape.head_dim), *rope)
    key, value = attention.read(states, rope)
    mask = layout.text[0].to(embeds.device).expand(len(embeds), -1)
    mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask)[0]
    states = embeds + attention.o_proj(mixed.transpose(0, 1).flatten(1))
    states = states + layer.mlp(norm(layer.post_attention_layernorm, states))
    scores = logits(policy.token_head, norm(policy.norm, states))
    return (scores[..., 1] - scores[..., 0])[span.positions].unflatten(0, (span.num_frames, -1))


def shared_prefill(backbone: Any, shorter: Any, settings: dict[str, Any]) -> torch.Tensor:
    """What `generate` does behind the compression."""
    effective = effective_settings(backbone, None, settings)
    family, ids = backbone_family(backbone.config), shorter.input_ids
    return generate_compressed(backbone, family, backbone.generate, shorter, ids, effective, None, settings)


@torch.no_grad()
def cases(options: argparse.Namespace) -> list[Case]:
    """All of them, built."""
    architecture = ARCHITECTURES[options.arch]
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    backbone: Any = build_backbone(architecture, options.layers, dtype, device, "sdpa")
    full, light, causal = (
        CaCoVidForConditionalGeneration.from_backbone(backbone, **settings)
        for settings in ({}, {"policy_type": "light"}, {"policy_attention": "causal"})
    )
    inputs = build_inputs(backbone, architecture, options.frames, 14, 32)
    prompt = full.embed(**inputs)
    shorter = full.compress_prompt(prompt, retention_ratio=0.25)
    given = prompt.inputs_embeds, prompt.position_ids, prompt.layout

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(128, 196, generator=generator)
    counts = torch.randint(1, 37, (128,), generator=generator)
    states, norm = prompt.inputs_embeds[0], full.policy.norm
    several = dict(max_new_tokens=2, num_beams=4, do_sample=False)
    text = {
        name: inputs[name][:, :14] for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in inputs
    }

    def token_scores(model: Any) -> torch.Tensor:
        return model.policy(*given)[0].token_scores

    return [
        Case(
            "top tokens of 128 x 196 scores: a threshold on distinct integer keys instead of a stable sort",
            "test_selection.py::test_top_tokens_are_those_of_a_stable_sort",
            lambda: sorted_top(scores, counts),
            lambda: top_tokens(scores, counts, 36),
            torch.equal,
        ),
        Case(
            "norm of the sequence: one kernel instead of a float32 copy",
            "test_policy.py::test_golden_logits",
            lambda: (F.rms_norm(states.float(), states.shape[-1:], eps=norm.eps) * norm.weight.float()).to(
                states.dtype
            ),
            lambda: norm(states),
            close,
        ),
        Case(
            "policy: queries, MLP and head on video tokens, keys on text alone, no mask, instead of the whole prompt through all",
            "test_policy.py::test_scores_equal_the_dense_computation",
            lambda: dense_scores(full.policy, prompt),
            lambda: token_scores(full),
            close,
        ),
        Case(
            "policy: video tokens read the question alone instead of everything before them",
            "none: two networks",
            lambda: token_scores(causal),
            lambda: token_scores(full),
            None,
        ),
        Case(
            "policy: the light one instead of the full one",
            "none: two networks; test_light.py::test_cost_against_the_full_policy",
            lambda: token_scores(full),
            lambda: token_scores(light),
            None,
        ),
        Case(
            "four beams: one prefill instead of four",
            "test_generate.py::test_one_prefill_for_all_beams_and_sequences",
            lambda: backbone.generate(**shorter.model_inputs(), **several)[:, -2:],
            lambda: shared_prefill(backbone, shorter, several)[:, -2:],
            torch.equal,
        ),
        Case(
            "no video in the prompt: through the wrapper instead of the stock model (1 is the aim)",
            "test_generate.py",
            lambda: backbone.generate(**text, max_new_tokens=4, do_sample=False),
            lambda: full.generate(**text, retention_ratio=0.25, max_new_tokens=4, do_sample=False),
            torch.equal,
            backbone,
        ),
        Case(
            "retention ratio 1.0: through the wrapper instead of the stock model (1 is the aim)",
            "test_oracle.py",
            lambda: backbone.generate(**inputs, max_new_tokens=1, do_sample=False),
            lambda: full.generate(**inputs, retention_ratio=1.0, max_new_tokens=1, do_sample=False),
            torch.equal,
            backbone,
        ),
    ]


@contextmanager
def short_collections() -> Iterator[None]:
    """What is there already is not looked at again by garbage collections inside."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> Path:
    """Run the benchmark and return the path of its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=[n for n in ARCHITECTURES if "llava" in n], default="llava-onevision-0.5b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: CPU time of one thread")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="the cases whose names hold one of these")
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(options.device)
    config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
    record: dict[str, Any] = {"benchmark": "optimisations", "command": command(), "config": config}
    record |= environment(options.commit, device)
    record["notes"] = [" ".join(__doc__.split("\n\n")[2].split())]
    record["cases"] = []
    result = GrowingResult(options.output, f"optimisations_{options.arch}_{options.dtype}_{device.type}", record)

    def timed(way: Callable[[], Any]) -> float:
        watch = Stopwatch(device, options.clock)
        way()
        watch.lap("way")
        return watch.milliseconds["way"]

    with torch.no_grad(), short_collections():
        for case in cases(options):
            if options.only and not any(word in case.name for word in options.only):
                continue
            if case.agree is not None and not case.agree(case.after(), case.before()):
                raise RuntimeError(f"{case.name}: the two ways disagree, nothing measured.")
            times: dict[str, list[float]] = {"before": [], "after": []}
            for repeat in range(-1, options.repeats):  # the first to warm up
                for name in ("before", "after") if repeat % 2 else ("after", "before"):
                    gc.collect()
                    milliseconds = timed(getattr(case, name))
                    if repeat >= 0:
                        times[name].append(milliseconds)
            if case.stock is not None:
                with mock.patch.object(case.stock, "generate", return_value=None):
                    times["ours_alone"] = [timed(case.after) for _ in range(options.repeats)]
            summaries = {name: summarise(values) for name, values in times.items()}
            factor = summaries["before"]["median"] / summaries["after"]["median"]
            record["cases"].append({"name": case.name, "guard": case.guard, "times_ms": summaries, "speedup": factor})
            result.save()
            medians = [summaries[name]["median"] for name in ("before", "after")]
            alone = f", {summaries['ours_alone']['median']:.3f} ms of it ours" if case.stock is not None else ""
            report(f"{case.name}: {medians[0]:.2f} -> {medians[1]:.2f} ms{alone}, {factor:.2f}x")
    path = result.save()
    report(str(path))
    return path


if __name__ == "__main__":
    main()
