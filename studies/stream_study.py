"""What a stream remembers: accuracy of the embedded tiny model about something that was visible for a moment, by memory, age and method.

python -m studies.stream_study

Every method gets the same bytes. Each cell is one method with one memory, all streams one after the other. A run that was stopped goes on where it was.
"""

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoProcessor

from benchmarks.record import command
from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.streams import make_stream
from cacovid_hf.tiny.synthetic import DIGITS, SHAPE_COLORS, SHAPES
from studies.cells import RESULTS, Cells, Job, chosen

# Upper bounds of the ages that are told apart, in seconds.
AGES = (15, 60, 120, 10**9)
READS = 288  # tokens of a clip that the model was trained with
MEMORIES = (76_800, 307_200, 38_400)
STANDING = (
    *(f"What color is the {shape}?" for shape in SHAPES),
    *(f"What shape is colored {color}?" for color in SHAPE_COLORS),
    *(f"Which scene has the {digit}?" for digit in DIGITS),
)


@dataclass(frozen=True)
class Method:
    """Settings of a stream, and which tokens a question reads."""

    settings: dict[str, Any]
    asking: dict[str, Any]


WHOLE = dict(tokens_per_frame=36, reducer="uniform")
READ_ALL = dict(num_tokens=READS, compressor="uniform")
OURS = dict(num_tokens=29, compressor="cacovid")
METHODS = {
    # The newest frames as they are.
    "sliding window": Method(dict(WHOLE, when_full="oldest"), READ_ALL),
    # A few tokens of every frame at fixed places, so many that all frames fit if they can.
    "uniform": Method(dict(reducer="uniform", when_full="oldest"), READ_ALL),
    # Neighbouring frames averaged, the most alike first.
    "marc": Method(dict(WHOLE, when_full="alike"), READ_ALL),
    # A quarter of the tokens, as published, and four bits.
    "streamingtom": Method(
        dict(memory="kv", tokens_per_frame=9, bits=4, window=READS, when_full="oldest"), dict(num_tokens=READS)
    ),
    # The same reduction, features in four bits, and the policy's choice.
    "ours": Method(dict(tokens_per_frame=9, bits=4, when_full="alike"), OURS),
    "ours, divprune": Method(dict(tokens_per_frame=9, bits=4, reducer="divprune", when_full="alike"), OURS),
    # What will be asked is known in kind.
    "ours, standing": Method(
        dict(tokens_per_frame=2, bits=4, reducer="cacovid", standing=STANDING, when_full="contribution"), OURS
    ),
    # What the parts are worth.
    "window, policy": Method(dict(WHOLE, when_full="oldest"), OURS),
    "marc, policy": Method(dict(WHOLE, when_full="alike"), OURS),
    "ours, 16 bits": Method(dict(tokens_per_frame=9, bits=16, when_full="alike"), OURS),
    # Our rule in its memory.
    "streamingtom, alike": Method(
        dict(memory="kv", tokens_per_frame=9, bits=4, window=READS, when_full="alike"), dict(num_tokens=READS)
    ),
    "ours, no policy": Method(dict(tokens_per_frame=9, bits=4, when_full="alike"), READ_ALL),
}
# With every memory; the others with the first alone.
COMPARED = ("sliding window", "uniform", "marc", "streamingtom", "ours", "ours, divprune", "ours, standing")
UNBOUNDED = {
    "everything": Method(WHOLE, dict(num_tokens=10**6, compressor="uniform")),
    "everything, policy": Method(WHOLE, OURS),
}


def measured(model, processor, method: Method, memory: int, options: argparse.Namespace) -> dict[str, Any]:
    """One method with one memory."""
    rows: list[tuple[int, bool]] = []
    feeds, asks, sizes, groups = [], [], [], []
    for seed in range(options.first_stream, options.first_stream + options.num_streams):
        shown = make_stream(options.num_frames, seed)
        settings = {"tokens_per_frame": fitting(memory, options.num_frames), **method.settings}
        stream = model.stream(processor, max_memory=memory, frames_per_window=8, **settings)
        begun = time.perf_counter()
        stream.feed(shown.frames)
        feeds.append((time.perf_counter() - begun) / options.num_frames)
        sizes.append(stream.memory_bytes())
        groups.append(stream.num_groups)
        generator = torch.Generator().manual_seed(seed)
        for number in torch.randperm(len(shown.questions), generator=generator)[: options.num_questions].tolist():
            question = shown.questions[number]
            begun = time.perf_counter()
            answer = stream.ask(question.text, max_new_tokens=1, do_sample=False, **method.asking)
            asks.append(time.perf_counter() - begun)
            rows.append((question.age, answer == question.answer))
    return {
        "accuracy": accuracy(rows),
        "by_age": {
            f"up to {upper} s" if upper < 10**9 else "older": accuracy([row for row in rows if lower < row[0] <= upper])
            for lower, upper in zip((-1, *AGES), AGES, strict=False)
        },
        "rows": [[age, int(right)] for age, right in rows],
        "memory_bytes": max(sizes),
        "groups": statistics.mean(groups),
        "feed_seconds": statistics.median(feeds),
        "ask_seconds": statistics.median(asks),
        "max_memory": memory,
        "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in method.settings.items()},
        "asking": method.asking,
        "num_streams": options.num_streams,
        "first_stream": options.first_stream,
        "num_frames": options.num_frames,
    }


def times(model, processor, options: argparse.Namespace) -> dict[str, Any]:
    """What a frame and a question cost every method, in one run: CPU seconds of one thread. Other processes still slow it down through shared caches."""
    shown = make_stream(options.num_frames, 0)
    rows = {}
    for name, method in METHODS.items():
        settings = {"tokens_per_frame": fitting(MEMORIES[0], options.num_frames), **method.settings}
        stream = model.stream(processor, max_memory=MEMORIES[0], frames_per_window=8, **settings)
        stream.feed(shown.frames[:8])  # first calls are slow
        stream.ask(shown.questions[0].text, max_new_tokens=1, do_sample=False, **method.asking)
        stream.reset()
        begun = time.process_time()
        stream.feed(shown.frames)
        fed = time.process_time()
        for question in shown.questions[: options.num_questions]:
            stream.ask(question.text, max_new_tokens=1, do_sample=False, **method.asking)
        asked = time.process_time()
        rows[name] = {
            "feed_cpu_ms": round(1000 * (fed - begun) / options.num_frames, 2),
            "ask_cpu_ms": round(1000 * (asked - fed) / options.num_questions, 2),
        }
    return {"times": rows, "max_memory": MEMORIES[0], "num_frames": options.num_frames}


def fitting(memory: int, num_frames: int) -> int:
    """Tokens a frame in 16 bits, with which all frames fit; at least one."""
    return max(1, (memory // num_frames - 16) // (2 * 128 + 8))


def accuracy(rows: list[tuple[int, bool]]) -> dict[str, float]:
    """Fraction of right answers, with its binomial standard error."""
    if not rows:
        return {"accuracy": math.nan, "standard_error": math.nan, "questions": 0}
    mean = sum(right for _, right in rows) / len(rows)
    return {
        "accuracy": round(mean, 4),
        "standard_error": round(math.sqrt(mean * (1 - mean) / len(rows)), 4),
        "questions": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-streams", type=int, default=20)
    parser.add_argument("--first-stream", type=int, default=0, help="further cells of other streams, such as 20 and 40")
    parser.add_argument("--num-frames", type=int, default=180)
    parser.add_argument("--num-questions", type=int, default=17, help="of each stream")
    parser.add_argument("--only", action="append", default=[], help="cells whose names fit")
    parser.add_argument("--folder", default="stream_study")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    processor = AutoProcessor.from_pretrained(model_path())
    cells = Cells("stream_study", RESULTS / options.folder)

    def job(method: Method, memory: int) -> Job:
        return lambda: measured(model, processor, method, memory, options)

    jobs = {f"{name}/{memory}": job(METHODS[name], memory) for memory in MEMORIES for name in COMPARED}
    jobs |= {f"{name}/all": job(method, 2**30) for name, method in UNBOUNDED.items()}
    jobs |= {f"{name}/{MEMORIES[0]}": job(method, MEMORIES[0]) for name, method in METHODS.items()}
    if options.first_stream:
        jobs = {f"{name}/from {options.first_stream}": one for name, one in jobs.items()}
    jobs["times"] = lambda: times(model, processor, options)
    print(command())
    cells.run(chosen(jobs, options.only))


if __name__ == "__main__":
    main()
