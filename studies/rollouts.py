"""Samples an hour of training rollouts: ours against the published way, on the tiny model, with the same subsets and the same rewards.

python -m studies.rollouts

The published way encodes the video again in every iteration, generates the answer of every rollout on its own, and runs the answer through the
model a second time. The ways between the two take one step each.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import command, summarise, write_result
from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny.dataset import QuestionDataset
from cacovid_hf.training.data import AnswerCollator
from cacovid_hf.training.rollouts import generate_answers, score_answers, select_subsets
from cacovid_hf.training.sampling import sample_frames, sample_ocss
from studies import miniature
from studies.cells import RESULTS, environment

NOTES = [
    "A sample is 5 iterations of 23 token and 8 frame rollouts at 2 %, from reading its frames to its rewards; the optimiser's step, alike for all, is left out.",
    "Seconds of the processor on one thread, which other processes on the machine lengthen less than those of the clock; those are recorded too.",
    "Asserted in every repetition: generation and prefill call the same rollouts right, and the probabilities agree within 1e-4.",
]


@dataclass(frozen=True)
class Way:
    """How rollouts are run.

    Attributes:
        encode_once: one pass through the vision tower a sample, or one an iteration.
        batched: all rollouts of the samples as one batch, or one at a time.
        generate: whether answers are generated.
        score: whether a forward scores the given answer.
        samples: how many at once.
    """

    encode_once: bool = True
    batched: bool = True
    generate: bool = False
    score: bool = True
    samples: int = 1


WAYS = {
    "published": Way(encode_once=False, batched=False, generate=True),
    "published, without the second forward": Way(encode_once=False, batched=False, generate=True, score=False),
    "encoded once": Way(batched=False, generate=True, score=False),
    "encoded once, rollouts batched": Way(generate=True, score=False),
    "ours: and scored by one prefill": Way(),
    "ours, 8 samples at once": Way(samples=8),
}


def roll_out(
    model: CaCoVidForConditionalGeneration, samples: list[dict[str, Any]], way: Way, options: argparse.Namespace
) -> tuple[Tensor | None, Tensor | None]:
    """All iterations on some samples: which rollouts' generated answers are right, and the right answers' probabilities; None if not asked for."""
    backbone, collate = model.backbone, AnswerCollator(miniature.processor())
    right: list[Tensor] = []
    probable: list[Tensor] = []
    prompt: Any = None
    answers: list[Tensor] = []
    for iteration in range(options.iterations):
        if prompt is None or not way.encode_once:
            batch = collate(samples)
            prompt = model.embed(**batch["inputs"][0])
            answers = [question.answer for question in batch["questions"]]
        outputs = model.policy(prompt.inputs_embeds, prompt.position_ids, prompt.layout)
        keeps = []
        for span, output in zip(prompt.layout.videos, outputs, strict=True):
            generator = torch.Generator().manual_seed(iteration)
            tokens = sample_ocss(output.token_scores, 0.02, options.token_rollouts, generator=generator)
            features = prompt.video_features(span)
            _, frames = sample_frames(output.frame_scores, features, 0.02, options.frame_rollouts, generator)
            keeps.append(torch.cat([tokens, frames]).flatten(1))
        if way.batched:
            parts = [keeps]
        else:
            assert len(keeps) == 1, "one rollout at a time is of one sample"
            parts = [[keep[None]] for keep in keeps[0]]
        for part in parts:
            prompts, rows = select_subsets(prompt, part)
            given = [answers[row] for row in rows.tolist()]
            longest = max(map(len, given))
            if way.generate:
                # One more than the answer: as in training, generation ends by itself.
                found = generate_answers(backbone, prompts, max_new_tokens=longest + 1, batch_size=512)
                right += [
                    (tokens[: len(answer)] == answer).all()[None] for tokens, answer in zip(found, given, strict=True)
                ]
            if way.score:
                scores = score_answers(backbone, prompts, given)
                probable.append(scores.probability)
                if not way.generate:
                    right.append(scores.exact)
    return torch.cat(right) if right else None, torch.cat(probable) if probable else None


def by_sample(values: Tensor, way: Way, options: argparse.Namespace) -> Tensor:
    """`(iterations * samples * rollouts,)` to `(samples, iterations * rollouts)`."""
    return values.view(options.iterations, way.samples, -1).transpose(0, 1).flatten(1)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> Path:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--token-rollouts", type=int, default=23)
    parser.add_argument("--frame-rollouts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = environment()
    model = miniature.untrained(0)
    questions = QuestionDataset(max(way.samples for way in WAYS.values()), seed=7)
    samples = [questions[number] for number in range(len(questions))]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    clock: dict[str, list[float]] = {name: [] for name in WAYS}
    roll_out(model, samples[:1], Way(), options)  # warm-up
    for _ in range(options.repeats):
        reference: tuple[Tensor, Tensor] | None = None
        for name, way in WAYS.items():  # interleaved: what else the machine does meets all ways alike
            begun, begun_clock = time.process_time(), time.perf_counter()
            right, probable = roll_out(model, samples[: way.samples], way, options)
            seconds[name].append((time.process_time() - begun) / way.samples)
            clock[name].append((time.perf_counter() - begun_clock) / way.samples)
            assert right is not None
            found = by_sample(right, way, options)[0]
            if reference is None:
                assert probable is not None
                reference = found, by_sample(probable, way, options)[0]
            assert torch.equal(found, reference[0]), f"{name}: other answers than the published way's"
            if probable is not None:
                torch.testing.assert_close(by_sample(probable, way, options)[0], reference[1], atol=1e-4, rtol=1e-3)
    base = median(seconds["published"])
    results = [
        {
            "way": name,
            **vars(way),
            "processor_seconds_per_sample": summarise(seconds[name]),
            "clock_seconds_per_sample": summarise(clock[name]),
            "samples_per_hour": round(3600 / median(seconds[name]), 1),
            "times_the_published": round(base / median(seconds[name]), 2),
        }
        for name, way in WAYS.items()
    ]
    for row in results:
        print(f"{row['way']:40} {row['samples_per_hour']:10.0f} samples/h  x{row['times_the_published']}")
    record |= {
        "benchmark": "rollouts",
        "command": command(),
        "config": {name: value for name, value in vars(options).items() if name != "output"},
        "notes": NOTES,
        "results": results,
    }
    return write_result(options.output, "rollouts_tiny", record)


if __name__ == "__main__":
    print(main())
