"""How near samplers come to the best subset: beam search over the tokens of one frame against the best of so many draws.

python -m studies.search_study

Of every question, the frame that shows its evidence (36 tokens); all other frames are dropped, and 1 to 3 tokens of this one are kept.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import command, write_result
from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny import model_path
from cacovid_hf.training.sampling import SAMPLERS
from studies import miniature
from studies.cells import RESULTS, environment
from studies.questions import EmbeddedQuestions
from studies.search import beam_search

COUNT, WIDTH = 3, 36  # so wide that pairs are tried exhaustively
DRAWS = (1, 12, 24, 115)
ARMS: dict[str, dict[str, Any]] = {
    "ocss": {"sampler": "ocss"},
    "ocss, cap 9": {"sampler": "ocss", "group_cap": 9.0},
    "multinomial": {"sampler": "multinomial"},
    "random": {"sampler": "random"},
}
NOTES = [
    "Reward: probability of the right answer. Best of M: the highest reward among the first M draws of 3 tokens; the first draw is the greedy one. The "
    "bound is the highest reward that a beam of 36 found with 1, 2 or 3 tokens (1 and 2 exhaustive).",
    "24 rollouts are what the published recipe draws in an iteration, 115 what it draws in five.",
]


def frame_rewards(model: CaCoVidForConditionalGeneration, asked: EmbeddedQuestions, row: int, frame: int):
    """The reward of subsets `(M, 36)` of one frame of one question."""
    rest = torch.zeros(asked.evidence.shape[1], dtype=torch.bool)
    tokens = miniature.TOKENS_PER_FRAME

    def rewards(masks: Tensor) -> Tensor:
        keep = rest.expand(len(masks), -1).clone()
        keep[:, frame * tokens : (frame + 1) * tokens] = masks
        none = rest.expand(0, -1)
        keeps = [keep if other == row else none for other in range(len(asked.questions))]
        return miniature.answered(model, asked, keeps).probability

    return rewards


@torch.no_grad()
def main() -> Path:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-questions", type=int, default=24)
    parser.add_argument("--seed", type=int, default=6006)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = environment()
    trained: Any = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    policies = {"untrained": miniature.untrained(0), "trained": trained}
    (asked,) = miniature.ask(trained, options.num_questions, options.seed, batch_size=options.num_questions)
    scores = {name: miniature.token_scores(model, asked) for name, model in policies.items()}

    bound: dict[int, list[float]] = {size: [] for size in range(1, COUNT + 1)}
    evaluated: list[float] = []
    found: dict[tuple[str, str, int], list[float]] = {
        (policy, arm, draws): [] for policy in policies for arm in ARMS for draws in DRAWS
    }
    for row, evidence in enumerate(asked.evidence):
        frame = int(evidence.view(-1, miniature.TOKENS_PER_FRAME).any(1).nonzero()[0])
        rewards = frame_rewards(trained, asked, row, frame)
        best = beam_search(rewards, miniature.TOKENS_PER_FRAME, COUNT, width=WIDTH)
        for size in bound:
            bound[size].append(max(some.reward for some in best[:size]))
        evaluated.append(best[-1].evaluated)
        for policy in policies:
            for arm, settings in ARMS.items():
                extra = {name: value for name, value in settings.items() if name != "sampler"}
                masks = SAMPLERS[settings["sampler"]](
                    scores[policy][row][frame][None],
                    COUNT / miniature.TOKENS_PER_FRAME,
                    max(DRAWS),
                    generator=torch.Generator().manual_seed(row),
                    **extra,
                )
                values = rewards(masks.flatten(1))
                for draws in DRAWS:
                    found[policy, arm, draws].append(values[:draws].max().item())

    def row_of(values: list[float]) -> dict[str, float]:
        return {"mean": round(mean(values), 4), "standard_error": round(stdev(values) / len(values) ** 0.5, 4)}

    results: list[dict[str, Any]] = [
        {"method": "beam search", "tokens_at_most": size, **row_of(values)} for size, values in bound.items()
    ]
    for (policy, arm, draws), values in found.items():
        share = [value / limit for value, limit in zip(values, bound[COUNT], strict=True)]
        results.append(
            {
                "method": arm,
                "policy": policy,
                "best_of": draws,
                **row_of(values),
                "share_of_bound": round(mean(share), 4),
            }
        )
    for result in results:
        print(result)
    record |= {
        "benchmark": "search_study",
        "command": command(),
        "config": {"num_questions": options.num_questions, "seed": options.seed, "count": COUNT, "width": WIDTH},
        "subsets_searched_per_question": mean(evaluated),
        "notes": NOTES,
        "results": results,
    }
    return write_result(options.output, "search_study", record)


if __name__ == "__main__":
    print(main())
