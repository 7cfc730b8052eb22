"""What policy and selection cost beside the language model's prefill, at the shape of each family's language model, in one run: one JSON.

    python benchmarks/policy_cost.py

Random weights, few layers, embedded prompts: neither a vision tower nor an output head takes part. `--only NAME` measures some; `--tiny` tries the script in seconds.
"""

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, GrowingResult, command, environment, summarise
from torch import Tensor
from transformers import AutoConfig, AutoModel

from cacovid_hf.compressors.tools.selection import select_tokens
from cacovid_hf.policies.base import Policy
from cacovid_hf.policies.factory import make_policy
from cacovid_hf.policies.settings import PolicySettings, Selection
from cacovid_hf.prompt import CompressedPrompt, Prompt, PromptLayout, VideoSpan, gather, kept_indices
from cacovid_hf.ratio import token_budget

NOTES = [
    "Random weights in the published shape of the language model, at the number of layers that is given: times mean something, answers do not.",
    "prefill: the language model's layers on the embedded prompt, without its output head; the vision tower takes no part.",
    "policy: scores of all video tokens (attention 'question'); selection: the kept places and the shorter prompt.",
    "clock: CPU time of the process on `threads` threads (one, unless it is said); what other processes took of a shared core is left out.",
    "scaled: stock prefill and prefill of the shorter prompt times all_layers / layers, which leaves policy and selection as they are; computed, not "
    "measured. speedup: stock prefill over policy + selection + prefill of the shorter prompt.",
    "Linear attention (Qwen3.5) runs in the reference code of transformers, slower than the kernels of flash-linear-attention, and one layer of each kind is "
    "measured where the model has three to one: a policy's share is larger in practice.",
    "GLM-4.5V: its first layer, which has no experts and which the policies start from, and one with experts; of the model's 46 layers 45 have.",
    "full: null where policy_type='full' does not imitate the layer; the reason stands beside it.",
]


@dataclass(frozen=True)
class Shape:
    """A published language model, of one or more families.

    Attributes:
        families: `model_type` of the models around it. Other families may have one of the same kind.
        source: where the sizes are from.
        text: its `model_type` and sizes.
        layers: of the published model.
        measured_layers: kinds of those that are measured, or how many.
    """

    families: tuple[str, ...]
    source: str
    text: dict[str, Any]
    layers: int
    measured_layers: int | tuple[str, ...] = 2


def _sizes(model_type: str, hidden: int, intermediate: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return dict(
        model_type=model_type,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        **more,
    )


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    found = {"rope_type": "default", "rope_theta": 1e6, **more}
    return {"rope_parameters": found | ({"mrope_section": list(sections)} if sections else {})}


HYBRID = ("linear_attention", "full_attention")
KNOWN = "sizes of the published model"
DEFAULT = "defaults of the config class in transformers 5.24"
QWEN3_5 = _rope(11, 11, 10, partial_rotary_factor=0.25)
LLAMA3 = _rope(
    rope_type="llama3",
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
# At least one for every kind of language model (`model_type`), which a test holds against the families.
SHAPES = {
    "qwen2-7b": Shape(
        ("llava_onevision", "video_llama_3", "internvl"), KNOWN, _sizes("qwen2", 3584, 18944, 28, 4, **_rope()), 28
    ),
    "qwen2-vl-7b": Shape(
        ("qwen2_vl", "qwen2_5_vl"), KNOWN, _sizes("qwen2_vl_text", 3584, 18944, 28, 4, **_rope(16, 24, 24)), 28
    ),
    "llama-7b": Shape(("llava_next_video", "video_llava"), KNOWN, _sizes("llama", 4096, 11008, 32, 32, **_rope()), 32),
    "llama3.1-8b": Shape(
        ("perception_lm",), KNOWN, _sizes("llama", 4096, 14336, 32, 8, max_position_embeddings=131072, **LLAMA3), 32
    ),
    "smollm2-1.7b": Shape(("smolvlm",), KNOWN, _sizes("llama", 2048, 8192, 32, 32, **_rope()), 24),
    "qwen3-8b": Shape(("internvl",), KNOWN, _sizes("qwen3", 4096, 12288, 32, 8, head_dim=128, **_rope()), 36),
    "qwen3-vl-4b": Shape(
        ("qwen3_vl",), KNOWN, _sizes("qwen3_vl_text", 2560, 9728, 32, 8, head_dim=128, **_rope(24, 20, 20)), 36
    ),
    "qwen3-vl-30b-a3b": Shape(
        ("qwen3_vl_moe",),
        KNOWN,
        _sizes(
            "qwen3_vl_moe_text",
            2048,
            6144,
            32,
            4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            **_rope(24, 20, 20),
        ),
        48,
        1,
    ),
    "qwen3.5-9b": Shape(
        ("qwen3_5",), DEFAULT, _sizes("qwen3_5_text", 4096, 12288, 16, 4, head_dim=256, **QWEN3_5), 32, HYBRID
    ),
    "qwen3.5-35b-a3b": Shape(
        ("qwen3_5_moe",),
        DEFAULT,
        _sizes(
            "qwen3_5_moe_text",
            2048,
            512,
            16,
            2,
            head_dim=256,
            num_experts=256,
            num_experts_per_tok=8,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
            **QWEN3_5,
        ),
        40,
        HYBRID,
    ),
    "glm-4.1v-9b": Shape(
        ("glm4v", "glm46v"),
        DEFAULT,
        _sizes("glm4v_text", 4096, 13696, 32, 2, **_rope(8, 12, 12, partial_rotary_factor=0.5)),
        40,
    ),
    "glm-4.5v": Shape(
        ("glm4v_moe",),
        DEFAULT,
        _sizes(
            "glm4v_moe_text",
            4096,
            10944,
            96,
            8,
            head_dim=128,
            n_routed_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=1408,
            n_shared_experts=1,
            first_k_dense_replace=1,
            attention_bias=True,
            **_rope(8, 12, 12, partial_rotary_factor=0.5),
        ),
        46,
    ),
    "gemma4-31b": Shape(
        ("gemma4",),
        KNOWN,
        _sizes("gemma4_text", 5376, 21504, 32, 16, head_dim=256, hidden_size_per_layer_input=0),
        60,
        ("sliding_attention", "full_attention"),
    ),
    "gemma4-26b-a4b": Shape(
        ("gemma4",),
        KNOWN,
        _sizes(
            "gemma4_text",
            2816,
            2112,
            16,
            8,
            head_dim=256,
            global_head_dim=512,
            num_global_key_value_heads=2,
            attention_k_eq_v=True,
            hidden_size_per_layer_input=0,
            enable_moe_block=True,
            num_experts=128,
            top_k_experts=8,
            moe_intermediate_size=704,
        ),
        30,
        ("sliding_attention", "full_attention"),
    ),
    "gemma4-small": Shape(
        ("gemma4",),
        DEFAULT,
        _sizes("gemma4_text", 2304, 9216, 8, 4, head_dim=256, hidden_size_per_layer_input=256),
        30,
        ("sliding_attention", "full_attention"),
    ),
}
KINDS = ("full", "light")


def config_of(shape: Shape, tiny: bool) -> Any:
    """The language model's config at the depth that is measured, with a vocabulary of no consequence."""
    values = dict(shape.text)
    if tiny:
        values |= {"hidden_size": 512, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
        values |= {name: 4 for name in ("num_experts", "n_routed_experts") if name in values}
        values |= {name: 2 for name in ("num_experts_per_tok", "top_k_experts") if name in values}
    kinds = shape.measured_layers
    values |= (
        {"num_hidden_layers": kinds}
        if isinstance(kinds, int)
        else {
            "num_hidden_layers": len(kinds),
            "layer_types": list(kinds),
        }
    )
    return AutoConfig.for_model(**values, vocab_size=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def prompt_of(config: Any, grid: tuple[int, int, int], before: int, behind: int, dtype: torch.dtype) -> Prompt:
    """Noise as the embeddings of one video between texts, at the positions of its kind of model."""
    frames, height, width = grid
    number = frames * height * width
    length = before + number + behind
    places = torch.arange(length)
    span = VideoSpan(0, grid, torch.arange(before, before + number))
    text = torch.ones(1, length, dtype=torch.bool)
    text[0, span.positions] = False
    positions = places[None]
    if "mrope_section" in config.rope_parameters:
        rows = places.repeat(4, 1)  # text, time, height, width
        index = torch.arange(number)
        rows[1, span.positions] = before + index // (height * width)
        rows[2, span.positions] = before + index // width % height
        rows[3, span.positions] = before + index % width
        positions = rows[:, None]
    return Prompt(
        layout=PromptLayout(valid=torch.ones(1, length, dtype=torch.bool), text=text, videos=(span,)),
        input_ids=torch.zeros(1, length, dtype=torch.long),
        inputs_embeds=torch.randn(1, length, config.hidden_size).to(dtype),
        position_ids=positions,
    )


def prefill(decoder: Any, embeds: Tensor, positions: Tensor) -> None:
    """The layers over a prompt without padding, their cache kept."""
    width = decoder.config.to_dict().get("hidden_size_per_layer_input")
    beside = {"per_layer_inputs": embeds.new_zeros(*embeds.shape[:2], len(decoder.layers), width)} if width else {}
    decoder(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        position_ids=positions,
        use_cache=True,
        **beside,
    )


def shorter(prompt: Prompt, token_scores: Tensor, frame_scores: Tensor, ratio: float) -> CompressedPrompt:
    """The prompt with the tokens that the default selection keeps."""
    (span,), spent = prompt.layout.videos, Selection()
    keep = select_tokens(
        token_scores,
        frame_scores,
        ratio,
        contribution_share=spent.contribution_share,
        frame_cap=spent.frame_cap,
        scope=spent.scope,
    )
    return gather(prompt, kept_indices(prompt.layout, [keep], [token_budget(span.num_tokens, ratio)]))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of CPU time, and what came of it."""
    start = time.process_time()
    result = work()
    return 1000 * (time.process_time() - start), result


def made_in(dtype: torch.dtype, make: Callable[[], Policy]) -> Policy:
    """A policy whose weights never took the memory of float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def measure(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Times of one language model: stock, and each kind of policy at each ratio, which take turns."""
    torch.manual_seed(0)
    config, dtype = config_of(shape, options.tiny), getattr(torch, options.dtype)
    decoder: Any = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    policies: dict[str, Policy] = {}
    refused = None
    for kind in KINDS:
        try:
            policy = made_in(dtype, lambda kind=kind: make_policy(PolicySettings(policy_type=kind), config)).eval()
        except ValueError as error:
            refused = str(error)
            continue
        policy.init_from_layer(decoder.layers[policy.shape.layer], decoder)
        policies[kind] = policy
    prompt = prompt_of(config, tuple(options.grid), options.text_before, options.question_tokens, dtype)
    stock: list[float] = []
    samples = {
        kind: {"policy": [], "selection": {r: [] for r in options.ratios}, "prefill": {r: [] for r in options.ratios}}
        for kind in policies
    }
    for repeat in range(options.repeats + 1):  # the first one warms up
        taken, _ = timed(lambda: prefill(decoder, prompt.inputs_embeds, prompt.position_ids))
        if repeat:
            stock.append(taken)
        for kind, policy in policies.items():
            arguments = prompt.inputs_embeds, prompt.position_ids, prompt.layout
            scored, (output,) = timed(lambda policy=policy, arguments=arguments: policy(*arguments))
            scores = output.token_scores, output.frame_scores
            if repeat:
                samples[kind]["policy"].append(scored)
            for ratio in options.ratios:
                selected, short = timed(lambda scores=scores, ratio=ratio: shorter(prompt, *scores, ratio))
                filled, _ = timed(lambda short=short: prefill(decoder, short.inputs_embeds, short.position_ids))
                if repeat:
                    samples[kind]["selection"][ratio].append(selected)
                    samples[kind]["prefill"][ratio].append(filled)
    whole = summarise(stock)
    depth = shape.layers / config.num_hidden_layers
    return {
        "families": list(shape.families),
        "sizes": shape.text,
        "source_of_sizes": shape.source,
        "layers": shape.measured_layers,
        "all_layers": shape.layers,
        "prompt_tokens": prompt.inputs_embeds.shape[1],
        "video_grid": list(prompt.layout.videos[0].grid),
        "layer_parameters": sum(p.numel() for p in decoder.layers[-1].parameters()),
        "policy_parameters": {kind: sum(p.numel() for p in policy.parameters()) for kind, policy in policies.items()},
        "policy_layer": next(iter(policies.values())).shape.layer,
        "stock_prefill_ms": whole,
        "full_refused": refused,
        "policies": {
            kind: described(found, whole["median"], depth) if (found := samples.get(kind)) else None for kind in KINDS
        },
    }


def described(samples: dict[str, Any], stock: float, depth: float) -> dict[str, Any]:
    """Times of one kind of policy, set against the stock prefill."""
    policy = summarise(samples["policy"])
    ratios = {}
    for ratio, filled in samples["prefill"].items():
        selection, prefilled = summarise(samples["selection"][ratio]), summarise(filled)
        added = policy["median"] + selection["median"]
        ratios[f"{ratio:g}"] = {
            "selection_ms": selection,
            "prefill_ms": prefilled,
            "speedup": stock / (added + prefilled["median"]),
            "scaled_speedup": depth * stock / (added + depth * prefilled["median"]),
        }
    return {
        "policy_ms": policy,
        "of_stock_prefill": policy["median"] / stock,
        "scaled_of_stock_prefill": policy["median"] / (depth * stock),
        "ratios": ratios,
    }


def run(options: argparse.Namespace) -> GrowingResult:
    """Measure every shape, and write the record after each."""
    started = time.monotonic()
    config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
    record: dict[str, Any] = {"benchmark": "policy_cost", "command": command(), "config": config}
    record |= {**environment(options.commit, torch.device("cpu")), "notes": NOTES, "shapes": {}}
    name = f"policy_cost{'_tiny' * options.tiny}_{options.dtype}_cpu"
    result = GrowingResult(options.output, name, record)
    for name in options.only or SHAPES:
        if options.budget_seconds is not None and time.monotonic() - started > options.budget_seconds:
            record.setdefault("not_measured", []).append(name)
            continue
        record["shapes"][name] = measure(SHAPES[name], options)
        result.save()
        gc.collect()
    result.save()
    return result


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SHAPES, help="these alone; default: all")
    parser.add_argument(
        "--grid", nargs=3, type=int, default=[8, 7, 7], help="frames, height and width of the video in tokens"
    )
    parser.add_argument("--text-before", type=int, default=16)
    parser.add_argument("--question-tokens", type=int, default=32)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="four heads and 512 channels: to try the script")
    parser.add_argument("--budget-seconds", type=float, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--commit", default=None, help="of the code, where there is no git history")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Path | None:
    """Run; returns the file."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    return run(options).path


if __name__ == "__main__":
    print(main())
