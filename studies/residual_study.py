"""The policies side by side in miniature: full, light and residual, with split advantages, a curriculum of pictures and the retention reward.

python -m studies.residual_study

All rows are trained in one run, on the same number of questions and rollouts, with one seed, and answer the same questions with their last weights.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import GrowingResult, command
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.dataset import QuestionDataset
from cacovid_hf.tiny.policy_training import train_policy
from studies.cells import RESULTS, environment
from studies.evidence import RATIOS, REPORTED_SEED, Laboratory
from studies.questions import EmbeddedQuestions, answered_right

BLIND = {"policy_type": "residual", "policy_attention": "none"}
AWARE = {"policy_type": "residual"}
# Tokens are drawn one by one, and cost a little: what split advantages need. Scores begin where 5 % are kept.
FREE = {"sampler": "bernoulli", "token_price": 1.0, "kl_weight": 0.0, "dynamic_ratio": False}
# What differs from our recipe, as (settings of the trainer, settings of the model).
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "light": ({}, {"policy_type": "light"}),
    "residual": ({}, AWARE),
    "residual, blind": ({}, BLIND),
    "residual, pictures first": ({"curriculum": "images"}, AWARE),
    "residual, blind, pictures first": ({"curriculum": "images"}, BLIND),
    "light, retention reward": ({"retention_weight": 0.5}, {"policy_type": "light"}),
    "residual, free count": (FREE, AWARE),
    "residual, free count, by_token": (FREE | {"advantage": "by_token"}, AWARE),
    "residual, free count, by_reward": (FREE | {"advantage": "by_reward"}, AWARE),
}
NOTES = [
    "One seed: differences between rows have no error of their own. Standard errors are binomial, over the questions.",
    "Rows with pictures first see a third of their questions as pictures, each repeated as a video of 8 frames.",
    "seconds: CPU time of the training.",
]


def measured(row: str, lab: Laboratory, questions: list[EmbeddedQuestions], options: argparse.Namespace) -> dict:
    """One row: a training, and its accuracy."""
    settings, selection = ROWS[row]
    samples = options.steps // 2 * options.batch
    pictures = samples // 3 if settings.get("curriculum") else 0
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model, trainer = train_policy(
            lab.backbone(),
            lab.processor,
            folder,
            steps=options.steps,
            batch_size=options.batch,
            seed=options.seed,
            settings=settings,
            selection=selection,
            dataset=QuestionDataset(samples, seed=options.seed, num_pictures=pictures),
        )
    seconds = time.process_time() - begun
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    ratios = {}
    for ratio in RATIOS:
        right = answered_right(model, questions, ratio).float()
        rate = right.mean().item()
        error = math.sqrt(rate * (1 - rate) / len(right))
        ratios[str(ratio)] = {"accuracy": round(rate, 4), "standard_error": round(error, 4)}
    return {
        "changed_settings": settings,
        "changed_selection": selection,
        "parameters": sum(weight.numel() for weight in model.policy.parameters()),
        "pictures": pictures,
        "seconds": round(seconds, 1),
        "ratios": ratios,
        "last_log": log[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="rows")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lab = Laboratory(model_path(), Path(), options.questions)
    questions = lab.embedded(REPORTED_SEED, options.questions)
    record: dict[str, Any] = {
        "benchmark": "residual_study",
        "command": command(),
        **environment(),
        "notes": NOTES,
        "config": {
            "steps": options.steps,
            "batch_size": options.batch,
            "iterations": 2,
            "seed": options.seed,
            "questions": options.questions,
            "question_seed": REPORTED_SEED,
        },
        "rows": {},
    }
    result = GrowingResult(options.output, "residual_study", record)
    for row in options.only or ROWS:
        record["rows"][row] = measured(row, lab, questions, options)
        told = ", ".join(f"{100 * part['accuracy']:.1f}" for part in record["rows"][row]["ratios"].values())
        print(f"{row}: {told} ({record['rows'][row]['seconds']} s)", flush=True)
        print(result.save(), flush=True)


if __name__ == "__main__":
    main()
