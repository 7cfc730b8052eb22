"""Train the policy of the embedded tiny model by reinforcement learning, and measure it: minutes on two cores.

python examples/train_tiny_policy.py --out policy
"""

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration, __version__, with_video_reader
from cacovid_hf.policy_settings import POLICY_TYPES
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.dataset import QuestionDataset
from cacovid_hf.training.arguments import OURS, PUBLISHED, ContributionTrainingArguments
from cacovid_hf.training.trainer import ContributionTrainer

PRESETS = {
    # One token a frame to begin with, four at the most; the heads and the small layer learn fast.
    "ours": OURS
    | {
        "sampling_ratio": 1 / 36,
        "ratio_ceiling": 4 / 36,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.1,
        "adam_beta2": 0.99,
    },
    "published": PUBLISHED | {"sampling_ratio": 1 / 36, "ratio_ceiling": 4 / 36, "learning_rate": 1.5e-3},
}
ATTENTIONS = {"ours": "question", "published": "causal"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained checkpoint")
    parser.add_argument(
        "--backbone", type=Path, default=model_path(), help="a stock tiny model, or a checkpoint around one"
    )
    parser.add_argument("--preset", choices=PRESETS, default="ours")
    parser.add_argument("--policy-type", choices=POLICY_TYPES, default="full")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="instead of the preset's")
    parser.add_argument("--kl-weight", type=float, help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=Path, help="JSON file for settings and log")
    options = parser.parse_args()
    if options.policy_type == "light" and ATTENTIONS[options.preset] != "question":
        parser.error(
            "--policy-type light reads the question alone, and the published preset is causal: use --preset ours"
        )
    if options.report is not None and options.report.exists():
        parser.error(f"{options.report} exists: results are added, never overwritten")

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    loaded = AutoModelForImageTextToText.from_pretrained(options.backbone, dtype=torch.float32)
    backbone = loaded.backbone if isinstance(loaded, CaCoVidForConditionalGeneration) else loaded
    processor = with_video_reader(AutoProcessor.from_pretrained(options.backbone))
    model = CaCoVidForConditionalGeneration.from_backbone(
        backbone,
        policy_type=options.policy_type,
        policy_attention=ATTENTIONS[options.preset],
        contribution_share=1.0 if options.preset == "ours" else 0.5,
        base_model_name_or_path=None,  # the checkpoint carries its backbone
    )
    changes = {"learning_rate": options.learning_rate, "kl_weight": options.kl_weight}
    settings = PRESETS[options.preset] | {name: value for name, value in changes.items() if value is not None}
    iterations = settings.get("num_iterations", 5)
    args = ContributionTrainingArguments(
        output_dir=str(options.out / "trainer"),
        per_device_train_batch_size=options.batch_size,
        max_steps=options.steps,
        warmup_steps=20,
        lr_scheduler_type="cosine",
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
        **settings,
    )
    samples = -(-options.steps // iterations) * options.batch_size
    trainer = ContributionTrainer(model, args, processor, QuestionDataset(samples, seed=options.seed))
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start

    model.policy.eval()
    model.config.policy_trained = True
    model.save_pretrained(options.out, include_backbone=True)
    processor.save_pretrained(options.out)
    if options.report is not None:
        report = {
            "preset": options.preset,
            "settings": settings | {"steps": options.steps, "batch_size": options.batch_size, "seed": options.seed},
            "policy_type": model.config.policy_type,
            "policy_attention": model.config.policy_attention,
            "contribution_share": model.config.contribution_share,
            "seconds": seconds,
            "log": trainer.state.log_history,
            "versions": {
                "cacovid_hf": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
            "commit": subprocess.run(
                ["git", "describe", "--always", "--dirty", "--abbrev=40"],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
            ).stdout.strip(),
            "hardware": f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} thread(s), CPU, float32",
        }
        temporary = options.report.with_name(f".{options.report.name}")
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        temporary.replace(options.report)


if __name__ == "__main__":
    main()
