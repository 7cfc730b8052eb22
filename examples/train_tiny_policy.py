"""Train the policy of the embedded tiny model by reinforcement learning: minutes on one core.

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

from cacovid_hf import CaCoVidForConditionalGeneration, __version__
from cacovid_hf.policies.settings import POLICY_TYPES
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.policy_training import PRESETS, train_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained checkpoint")
    parser.add_argument(
        "--backbone", type=Path, default=model_path(), help="a stock tiny model, or a checkpoint around one"
    )
    parser.add_argument("--preset", choices=PRESETS, default="ours")
    parser.add_argument("--policy-type", choices=POLICY_TYPES, help="instead of the preset's")
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="instead of the preset's")
    parser.add_argument("--kl-weight", type=float, help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=Path, help="JSON file for settings and log")
    options = parser.parse_args()
    if options.policy_type == "light" and options.preset == "published":
        parser.error(
            "--policy-type light reads the question alone, and the published preset is causal: use --preset ours"
        )
    if options.report is not None and options.report.exists():
        parser.error(f"{options.report} exists: results are added, never overwritten")

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    loaded = AutoModelForImageTextToText.from_pretrained(options.backbone, dtype=torch.float32)
    backbone = loaded.backbone if isinstance(loaded, CaCoVidForConditionalGeneration) else loaded
    processor = AutoProcessor.from_pretrained(options.backbone)
    changes = {"learning_rate": options.learning_rate, "kl_weight": options.kl_weight}
    start = time.perf_counter()
    model, trainer = train_policy(
        backbone,
        processor,
        options.out / "trainer",
        preset=options.preset,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        settings={name: value for name, value in changes.items() if value is not None},
        selection={"policy_type": options.policy_type} if options.policy_type else {},
    )
    seconds = time.perf_counter() - start
    model.save_pretrained(options.out, include_backbone=True)
    processor.save_pretrained(options.out)
    if options.report is not None:
        report = {
            "preset": options.preset,
            "settings": PRESETS[options.preset] | {k: str(v) for k, v in vars(options).items()},
            "policy_attention": model.config.policy_attention,
            "contribution_share": model.config.contribution_share,
            "scope": model.config.scope,
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
