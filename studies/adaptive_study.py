"""Accuracy against mean tokens: fixed ratios, budgets by a calibrated threshold, and policies trained with a price per token.

python -m studies.adaptive_study           # every cell that is not there yet, then the summary and the plot

All start from the policy of the embedded model. One JSON a cell under studies/results/adaptive_study.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacovid_hf import AutoBudget, CaCoVidForConditionalGeneration
from cacovid_hf.ratio import calibrated_threshold
from cacovid_hf.tiny import model_path
from cacovid_hf.training.sampling import sample_bernoulli
from cacovid_hf.utils.files import replaced
from studies import miniature
from studies.cells import RESULTS, Cells, Job, chosen
from studies.questions import EmbeddedQuestions

FOLDER = RESULTS / "adaptive_study"
FIXED = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
MEANS = (0.01, 0.015, 0.02, 0.03, 0.05)
PRICES = (0.3, 1.0, 3.0, 10.0)
SEEDS = (0, 1)
# One token at the least: whoever is sure may spend no more.
FLOOR, CAP = 1 / 288, 0.25
STEPS, BATCH, ROLLOUTS = 60, 8, 12
QUESTIONS, QUESTION_SEED, CALIBRATION, CALIBRATION_SEED = 300, 4004, 100, 5005
# Where priced training begins: the shift of all scores at which this fraction scores above 0.
START = 0.02
NOTES = [
    "Every budget is spent on the highest token scores of the whole video. Accuracy is that of the first answer word; questions balanced by kind; standard "
    "errors are binomial.",
    "Prices are what keeping all 288 tokens would cost, in units of the reward (probability of the right answer). The threshold of priced policies is 0; "
    "those of the unpriced one are calibrated on other questions to a mean ratio.",
]


def measured(model: CaCoVidForConditionalGeneration, asked: list[EmbeddedQuestions], ratio: Any) -> dict[str, Any]:
    """Accuracy and tokens, in all and by kind of question."""
    found = miniature.at_ratio(model, asked, ratio)
    kinds = [kind for batch in asked for kind in batch.kinds]
    exact, kept = found["exact"], found["kept"]
    accuracy = exact.mean().item()
    by_kind = {}
    for kind in sorted(set(kinds)):
        rows = torch.tensor([other == kind for other in kinds])
        by_kind[kind] = {
            "accuracy": round(exact[rows].mean().item(), 4),
            "mean_tokens": round(kept[rows].mean().item(), 2),
        }
    return {
        "accuracy": round(accuracy, 4),
        "standard_error": round(math.sqrt(accuracy * (1 - accuracy) / len(exact)), 4),
        "mean_tokens": round(kept.mean().item(), 3),
        "tokens_5_50_95_percent": torch.quantile(kept, torch.tensor([0.05, 0.5, 0.95])).tolist(),
        "by_kind": by_kind,
    }


def embedded_policy() -> CaCoVidForConditionalGeneration:
    """The model of the package, its budget spent by token scores alone."""
    model: Any = CaCoVidForConditionalGeneration.from_pretrained(model_path(), contribution_share=1.0, scope="tokens")
    return model


def priced_cell(
    price: float, seed: int, start: float, train: list[EmbeddedQuestions], asked: list[EmbeddedQuestions]
) -> dict[str, Any]:
    """Train on with a price per token, all scores less `start` at first, then let the policy decide."""
    model = embedded_policy()
    with torch.no_grad():
        model.policy.token_head[-1].bias[1] -= start

    def draw(scores: Tensor, generator: torch.Generator) -> Tensor:
        return sample_bernoulli(scores, ROLLOUTS, generator=generator)

    log = miniature.learn(
        model, train, draw, seed=seed, token_price=price, learning_rate=5e-4, kl_weight=0.0, balanced=False
    )
    found = measured(model, asked, AutoBudget(FLOOR, CAP))
    return {"price": price, "seed": seed, "start": start, "steps": STEPS, **found, "log": log[::5]}


def summarise(folder: Path) -> dict[str, Any]:
    """All cells without what they share."""
    names: tuple[str, ...] = ("price", "seed", "start", "ratio", "target_mean_ratio", "threshold")
    names += ("accuracy", "standard_error", "mean_tokens", "tokens_5_50_95_percent", "by_kind")
    rows = {}
    for path in sorted(folder.glob("*_*.json")):
        cell = json.loads(path.read_text())
        rows[cell["cell"]] = {name: cell[name] for name in names if name in cell}
    return {"benchmark": "adaptive_study", "notes": NOTES, "questions": QUESTIONS, "cells": rows}


def draw_plot(cells: dict[str, Any], target: Path) -> None:
    """Accuracy against mean tokens, and what each kind of question costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for label, prefix in (
        ("fixed ratio", "fixed"),
        ("auto, calibrated threshold", "calibrated"),
        ("auto, trained with a price", "priced"),
    ):
        points = sorted(
            (cell["mean_tokens"], 100 * cell["accuracy"], 100 * cell["standard_error"])
            for name, cell in cells.items()
            if name.startswith(prefix)
        )
        if points:
            tokens, accuracy, error = zip(*points, strict=True)
            left.errorbar(tokens, accuracy, error, marker="o", capsize=2, label=label)
    left.set(xscale="log", xlabel="mean tokens of 288", ylabel="accuracy, %")
    left.legend(frameon=False)
    shown = [name for name in cells if name.startswith("priced") and name.endswith("_0")]
    for place, name in enumerate(sorted(shown, key=lambda name: cells[name]["price"])):
        by_kind = cells[name]["by_kind"]
        places = [number + 0.2 * place for number in range(len(by_kind))]
        right.bar(
            places, [kind["mean_tokens"] for kind in by_kind.values()], 0.18, label=f"price {cells[name]['price']:g}"
        )
        right.set_xticks(range(len(by_kind)), by_kind, rotation=20)
    right.set_ylabel("mean tokens")
    right.legend(frameon=False)
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="cells like this: fixed_*, calibrated_*, priced_*")
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, default=Cells.work, help="folder of lock files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = embedded_policy()
    asked = miniature.ask(base, QUESTIONS, QUESTION_SEED)

    @functools.cache
    def calibration() -> list[Tensor]:
        batches = miniature.ask(base, CALIBRATION, CALIBRATION_SEED)
        return [scores for batch in batches for scores in miniature.token_scores(base, batch)]

    @functools.cache
    def train(seed: int) -> list[EmbeddedQuestions]:
        # Another stream than the embedded policy was trained on.
        return miniature.training_questions(base, STEPS // miniature.ITERATIONS * BATCH, BATCH, 100 + seed)

    def threshold(mean_ratio: float) -> float:
        return calibrated_threshold(calibration(), mean_ratio, floor=FLOOR, cap=CAP)

    def calibrated_cell(mean_ratio: float) -> dict[str, Any]:
        found = measured(base, asked, AutoBudget(FLOOR, CAP, threshold(mean_ratio)))
        return {"target_mean_ratio": mean_ratio, "threshold": threshold(mean_ratio), **found}

    jobs: dict[str, Job] = {}
    for ratio in FIXED:
        jobs[f"fixed_{ratio}"] = lambda ratio=ratio: {"ratio": ratio, **measured(base, asked, ratio)}
    for ratio in MEANS:
        jobs[f"calibrated_{ratio}"] = lambda ratio=ratio: calibrated_cell(ratio)
    for seed in SEEDS:
        for price in PRICES:
            jobs[f"priced_{price}_{seed}"] = lambda price=price, seed=seed: priced_cell(
                price, seed, threshold(START), train(seed), asked
            )
    Cells("adaptive_study", options.output, options.work).run(chosen(jobs, options.only))
    summary = summarise(options.output)
    with replaced(options.output / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n")
    draw_plot(summary["cells"], options.output / "plot.png")
    for name, cell in summary["cells"].items():
        print(f"{name:18} {cell['accuracy']:6.1%} ± {cell['standard_error']:.1%}  {cell['mean_tokens']:6.2f} tokens")


if __name__ == "__main__":
    main()
