"""What training a policy costs, counted and not measured: memory of what stays, operations of one sample.

python benchmarks/training_cost.py

Operations are 2 a parameter and token in every linear layer, and the products of attention; of the policy three times those of a forward (its
backward costs two). `published` and `ours` train the full policy, `contributions` the light one. Decoding of videos, norms, rotary embeddings and sampling are not counted.
"""

import argparse

import torch
from architectures import ARCHITECTURES, Architecture
from record import RESULTS, command, environment, write_result
from transformers import AutoModelForImageTextToText

from cacovid_hf.policies.full import ContributionPolicy
from cacovid_hf.policies.light import LightPolicy
from cacovid_hf.training.presets import CONTRIBUTIONS, OURS, PUBLISHED

FRAMES, TEXT = 32, 60
GIB, TERA = 2**30, 1e12
MODELS = ("llava-onevision-7b", "qwen2.5-vl-3b", "qwen2.5-vl-7b")
# The published recipe's ratios: where a sample begins, and the largest.
RATIOS = (0.02, 0.12)
FEW = 0.002  # the share of tokens in a subset of `examples/configs`, by contributions
RECIPES = {
    "published": {"num_iterations": 5, "num_token_rollouts": 23, "num_frame_rollouts": 8} | PUBLISHED,
    "ours": OURS,
}


def linear_parameters(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.ndim >= 2)


def count(architecture: Architecture) -> dict[str, float]:
    """Gibibytes that stay in memory, and tera-operations of the parts of a sample."""
    config = architecture.config()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        policy = ContributionPolicy(config.get_text_config(), "question")
        light = LightPolicy(config.get_text_config())
    text, vision = config.get_text_config(), config.vision_config
    steps = FRAMES if architecture.model_type == "llava_onevision" else FRAMES // 2
    patches = (architecture.side // 14) ** 2
    tokens = 14 * 14 * steps
    decoder = model.get_decoder()
    size = text.num_attention_heads * (text.hidden_size // text.num_attention_heads)

    def prefill(length: int) -> float:
        # Causal attention: half of the products.
        return 2 * linear_parameters(decoder.layers) * length + text.num_hidden_layers * 2 * length * length * size

    tower = model.model.vision_tower if architecture.model_type == "llava_onevision" else model.model.visual
    depth = getattr(vision, "num_hidden_layers", None) or vision.depth
    # As if every layer saw the whole frame; Qwen2.5-VL's mostly see windows of it.
    encode = steps * (2 * linear_parameters(tower) * patches + depth * 4 * patches * patches * vision.hidden_size)

    def learn(trained: torch.nn.Module) -> float:
        return 3 * (2 * linear_parameters(trained) * tokens + 4 * tokens * TEXT * size)

    return {
        "tokens": tokens,
        "backbone": 2 * sum(weight.numel() for weight in model.parameters()) / GIB,
        # float32 weights, gradients, two moments
        "policy": 16 * sum(weight.numel() for weight in policy.parameters()) / GIB,
        "light policy": 16 * sum(weight.numel() for weight in light.parameters()) / GIB,
        "encode": encode / TERA,
        "learn": learn(policy.layer) / TERA,
        "learn light": learn(light) / TERA,
        "full": prefill(tokens + TEXT) / TERA,
        **{f"rollout at {ratio}": prefill(round(ratio * tokens) + TEXT) / TERA for ratio in (FEW, *RATIOS)},
    }


def sample_cost(counts: dict[str, float], recipe: dict[str, int], ratio: float) -> float:
    rollouts = recipe["num_token_rollouts"] + recipe["num_frame_rollouts"]
    return counts["encode"] + recipe["num_iterations"] * (counts["learn"] + rollouts * counts[f"rollout at {ratio}"])


def contributions_cost(counts: dict[str, float]) -> float:
    """Tera-operations of a sample in all passes: it is measured once, and the teacher reads its whole prompt once."""
    passes, rollouts = CONTRIBUTIONS["num_train_epochs"], CONTRIBUTIONS["num_token_rollouts"]
    return passes * (counts["encode"] + counts["learn light"]) + counts["full"] + rollouts * counts[f"rollout at {FEW}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=MODELS)
    options = parser.parse_args()
    config = {
        "models": options.models,
        "frames": FRAMES,
        "text_tokens": TEXT,
        "recipes": RECIPES | {"contributions": CONTRIBUTIONS},
    }
    record = {
        "benchmark": "training_cost",
        **environment(None, torch.device("cpu")),
        "command": command(),
        "config": config,
    }
    record["models"] = {}
    for name in options.models:
        counts = count(ARCHITECTURES[name])
        costs = {
            f"{recipe} at {ratio}": sample_cost(counts, RECIPES[recipe], ratio)
            for recipe in RECIPES
            for ratio in RATIOS
        } | {f"contributions at {FEW}": contributions_cost(counts)}
        record["models"][name] = {"counts": counts, "teraoperations_a_sample": costs}
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in counts.items()))
        print("  a sample: " + ", ".join(f"{key} {value:.0f}" for key, value in costs.items()))
    print(write_result(RESULTS, "training_cost", record))


if __name__ == "__main__":
    main()
