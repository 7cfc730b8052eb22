"""OCSS against multinomial and random sampling: the rollouts that a policy needs to reach a given greedy reward, and why.

python -m studies.sampler_study            # every cell that is not there yet, then the summary and the plot
python -m studies.sampler_study --only 'video_*'

A cell is one training run of the tiny model's policy, or (`draws`) what the samplers draw from the same scores; one JSON each under
studies/results/sampler_study.
"""

import argparse
import functools
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny import model_path
from cacovid_hf.training.sampling import SAMPLERS
from cacovid_hf.utils.files import replaced
from studies import miniature
from studies.cells import RESULTS, Cells, Job, chosen
from studies.questions import EmbeddedQuestions

FOLDER = RESULTS / "sampler_study"
# One token a frame is the least that drawing by frames can do: so many in every cell, and no schedule to confuse it.
RATIO = 1 / miniature.TOKENS_PER_FRAME
NO_CAP = 1e9  # in effect 0.9, the most that OCSS lets a group have
ARMS: dict[str, dict[str, Any]] = {
    "multinomial": {"sampler": "multinomial"},
    "ocss cap 2": {"sampler": "ocss", "group_cap": 2.0},
    "ocss cap 4": {"sampler": "ocss", "group_cap": 4.0},
    "ocss cap 9": {"sampler": "ocss", "group_cap": 9.0},
    "ocss no cap": {"sampler": "ocss", "group_cap": NO_CAP},
    "random": {"sampler": "random"},
}
SCOPES = ("video", "frame")
SEEDS = (0, 1)
STEPS, BATCH, ROLLOUTS, EVERY = 100, 16, 12, 10
QUESTIONS, QUESTION_SEED = 120, 3003
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NOTES = [
    "Greedy reward: mean probability of the right answer from the 5 tokens (2 %) with the highest scores, on questions that no training sees.",
    "A rollout keeps 8 tokens in every arm: one a frame, or 8 of the whole video, without a ratio schedule. 16 questions a step, 12 rollouts of each, the "
    "first one greedy, two iterations on each; the learning rate falls to 0 over the run. Every arm sees the same questions.",
]


def sampling(scope: str, settings: dict[str, Any], num_rollouts: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Draws of one arm."""
    options = {name: value for name, value in settings.items() if name != "sampler"}

    def draw(scores: Tensor, generator: torch.Generator) -> Tensor:
        return SAMPLERS[settings["sampler"]](scores, RATIO, num_rollouts, scope=scope, generator=generator, **options)

    return draw


def train_cell(
    scope: str, settings: dict[str, Any], seed: int, train: list[EmbeddedQuestions], asked: list[EmbeddedQuestions]
) -> dict[str, Any]:
    """One run: the greedy reward by rollouts so far, and what happened at each step."""
    model = miniature.untrained(seed)
    curve: list[dict[str, float]] = []

    def watch(step: int) -> None:
        found = miniature.at_ratio(model, asked, 0.02)
        curve.append(
            {
                "step": step,
                "rollouts": step * BATCH * ROLLOUTS,
                "greedy_reward": round(found["probability"].mean().item(), 4),
                "accuracy": round(found["exact"].mean().item(), 4),
            }
        )

    draw = sampling(scope, settings, ROLLOUTS)
    log = miniature.learn(model, train, draw, seed=seed, watch=watch, every=EVERY)
    return {"scope": scope, "settings": settings, "seed": seed, "curve": curve, "log": log}


@torch.no_grad()
def draws_cell(model: CaCoVidForConditionalGeneration, asked: list[EmbeddedQuestions]) -> dict[str, Any]:
    """What every sampler draws from one policy's scores, 48 rollouts a question.

    Of each: mean reward, its standard deviation over a question's rollouts (what advantages are made of), the probability that a rollout holds a token of
    the evidence, and the number of tokens that the draws are in effect spread over (exponential of the entropy of the keep frequencies, of 288).
    """
    results = []
    for scope in SCOPES:
        for name, settings in ARMS.items():
            draw = sampling(scope, settings, 49)
            generator = torch.Generator().manual_seed(0)
            found: dict[str, list[float]] = {"reward": [], "reward_std": [], "evidence": [], "effective_tokens": []}
            for batch in asked:
                keeps: list[Tensor] = [
                    draw(scores, generator)[1:].flatten(1) for scores in miniature.token_scores(model, batch)
                ]
                rewards = miniature.answered(model, batch, keeps).probability.view(len(keeps), -1)
                for keep, reward, evidence in zip(keeps, rewards, batch.evidence, strict=True):
                    frequency = keep.float().mean(0)
                    frequency = frequency / frequency.sum()
                    found["reward"].append(reward.mean().item())
                    found["reward_std"].append(reward.std().item())
                    found["evidence"].append((keep & evidence).any(1).float().mean().item())
                    found["effective_tokens"].append(torch.special.entr(frequency).sum().exp().item())
            results.append({"scope": scope, "arm": name, **{key: round(mean(v), 4) for key, v in found.items()}})
    return {"questions": sum(len(batch.questions) for batch in asked), "draws": results}


def rollouts_to(curve: list[dict[str, float]], target: float) -> float | None:
    """Rollouts until the greedy reward first reaches `target`, between two points by a line; None: not in this run."""
    for before, after in pairwise(curve):
        if after["greedy_reward"] >= target:
            low, high = before["greedy_reward"], after["greedy_reward"]
            part = (target - low) / (high - low) if high > low else 1.0
            return round(before["rollouts"] + max(part, 0.0) * (after["rollouts"] - before["rollouts"]))
    return None


def summarise(folder: Path) -> dict[str, Any]:
    """Means over the seeds of every arm whose cells are there."""
    rows = []
    for scope in SCOPES:
        for arm in ARMS:
            cells = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{_stem(scope, arm)}_*.json"))]
            if not cells:
                continue
            reached: dict[str, float | None] = {}
            for target in TARGETS:
                found = [rollouts_to(cell["curve"], target) for cell in cells]
                reached[str(target)] = None if None in found else mean(x for x in found if x is not None)
            rows.append(
                {
                    "scope": scope,
                    "arm": arm,
                    "seeds": [cell["seed"] for cell in cells],
                    "rollouts_to_greedy_reward": reached,
                    "final_greedy_reward": [cell["curve"][-1]["greedy_reward"] for cell in cells],
                    "final_accuracy": [cell["curve"][-1]["accuracy"] for cell in cells],
                }
            )
    return {"benchmark": "sampler_study", "notes": NOTES, "targets": TARGETS, "arms": rows}


def draw(folder: Path) -> None:
    """Greedy reward by rollouts, one panel a scope, mean over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SCOPES), figsize=(11, 4), sharey=True, constrained_layout=True)
    for axis, scope in zip(axes, SCOPES, strict=True):
        for arm in ARMS:
            cells = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{_stem(scope, arm)}_*.json"))]
            if cells:
                points = zip(*(cell["curve"] for cell in cells), strict=True)
                values = [(step[0]["rollouts"] / 1000, mean(p["greedy_reward"] for p in step)) for step in points]
                axis.plot(*zip(*values, strict=True), label=f"{arm} ({len(cells)} seeds)")
        axis.set(
            title=f"drawn in the {'whole video' if scope == 'video' else 'single frames'}",
            xlabel="rollouts (thousands)",
        )
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("greedy reward at 2 %")
    figure.savefig(folder / "plot.png", dpi=120)


def _stem(scope: str, arm: str) -> str:
    return f"{scope}_{arm.replace(' ', '-')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", default=[], help="cells like this: SCOPE_ARM_SEED, draws_untrained, draws_trained"
    )
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, default=Cells.work, help="folder of lock files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = miniature.ask(miniature.untrained(0), QUESTIONS, QUESTION_SEED)

    @functools.cache
    def train(seed: int) -> list[EmbeddedQuestions]:
        return miniature.training_questions(miniature.untrained(0), STEPS // miniature.ITERATIONS * BATCH, BATCH, seed)

    jobs: dict[str, Job] = {
        "draws_untrained": lambda: draws_cell(miniature.untrained(0), asked[:1]),
        "draws_trained": lambda: draws_cell(CaCoVidForConditionalGeneration.from_pretrained(model_path()), asked[:1]),
    }
    for seed in SEEDS:
        for arm, settings in ARMS.items():
            for scope in SCOPES:
                jobs[f"{_stem(scope, arm)}_{seed}"] = lambda scope=scope, settings=settings, seed=seed: train_cell(
                    scope, settings, seed, train(seed), asked
                )
    Cells("sampler_study", options.output, options.work).run(chosen(jobs, options.only))
    summary = summarise(options.output)
    with replaced(options.output / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n")
    draw(options.output)
    for row in summary["arms"]:
        print(row["scope"], row["arm"], row["rollouts_to_greedy_reward"], row["final_accuracy"])


if __name__ == "__main__":
    main()
