"""What a light policy of the tiny model learns from: rollouts, or contributions of single tokens behind an attention teacher.

python -m studies.objective_study

Every seed draws other questions to learn from; all rows answer the same fresh questions with their last weights.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import GrowingResult, command
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.policy_training import train_policy
from studies.cells import RESULTS, environment
from studies.evidence import RATIOS, REPORTED_SEED, Laboratory
from studies.questions import EmbeddedQuestions, answered_right

ONE_TOKEN = 1 / 288
# Preset, optimiser steps, questions a step, and what differs from the preset.
ROWS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "rollouts": ("ours", 300, 32, {}),
    "contributions, half as long": ("contributions", 400, 16, {"teacher_steps": 160}),
    "contributions": ("contributions", 800, 16, {"teacher_steps": 250}),
}
NOTES = [
    "Light policies. Rollouts are the light row of the evidence, without its choice of the best step.",
    "accuracy: mean over the seeds; standard_error: of that mean, over the questions, each the mean over the seeds.",
    "seconds: CPU time of the training of each seed.",
]


def measured(row: str, seeds: int, lab: Laboratory, questions: list[EmbeddedQuestions]) -> dict[str, Any]:
    """One row: a training a seed, and what the policies answer."""
    preset, steps, batch, settings = ROWS[row]
    right: dict[str, list[torch.Tensor]] = {}
    seconds = []
    for seed in range(seeds):
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            model, _ = train_policy(
                lab.backbone(),
                lab.processor,
                folder,
                preset=preset,
                steps=steps,
                batch_size=batch,
                seed=seed,
                settings=settings,
                selection={"policy_type": "light"},
            )
        seconds.append(round(time.process_time() - begun, 1))
        for ratio in (*RATIOS, ONE_TOKEN, "auto"):
            right.setdefault(str(ratio), []).append(answered_right(model, questions, ratio).float())
    return {
        "preset": preset,
        "steps": steps,
        "batch_size": batch,
        "changed_settings": settings,
        "seconds": seconds,
        "ratios": {ratio: _summary(answers) for ratio, answers in right.items()},
    }


def _summary(answers: list[torch.Tensor]) -> dict[str, Any]:
    means = torch.stack(answers).mean(0)
    return {
        "accuracy": round(means.mean().item(), 4),
        "standard_error": round(means.std().item() / len(means) ** 0.5, 4),
        "by_seed": [round(statistics.mean(one.tolist()), 4) for one in answers],
    }


def main() -> None:
    """Run every row, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="rows")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lab = Laboratory(model_path(), Path(), options.questions)
    questions = lab.embedded(REPORTED_SEED, options.questions)
    record: dict[str, Any] = {
        "benchmark": "objective_study",
        "command": command(),
        **environment(),
        "notes": NOTES,
        "config": {"questions": options.questions, "seeds": options.seeds, "question_seed": REPORTED_SEED},
        "rows": {},
    }
    result = GrowingResult(options.output, "objective_study", record)
    for row in options.only or ROWS:
        record["rows"][row] = measured(row, options.seeds, lab, questions)
        told = ", ".join(f"{100 * part['accuracy']:.1f}" for part in record["rows"][row]["ratios"].values())
        print(f"{row}: {told} ({record['rows'][row]['seconds']} s)", flush=True)
        print(result.save(), flush=True)


if __name__ == "__main__":
    main()
