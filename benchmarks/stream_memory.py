"""Memory of a stream of hours: resident memory of one process against the bound, and what of it is in use.

The embedded model, whose frames are small: what grows with the number of frames shows, and nothing else does.

python benchmarks/stream_memory.py                                           # an hour at 1 frame a second
python benchmarks/stream_memory.py --minutes 480 --fps 0.5 --ask-every 10    # eight hours at 0.5
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from heap import give_back, in_use, resident
from record import RESULTS, command, environment, write_result
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.evaluation.peak_memory import PeakMemory
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.streams import make_stream

NOTES = [
    "rss: resident memory of the process at the end of a minute of the stream, weights and libraries included. peak_rss: the largest at any time.",
    "memory_bytes: what the stream says that its memory takes; max_memory: its bound.",
    "in_use: bytes that the C library has handed out and not got back; null where it does not tell (glibc 2.33 or newer does).",
    "rss has more: libraries, and pages that are free and not given back to the system. rss_trimmed: rss at the end, when they were given back.",
    "feed_seconds and ask_seconds: wall time, a frame and a question. cpu_seconds: of the whole run. video_seconds: of the stream.",
    "Frames are synthetic, 84 x 84 pixels, rendered a minute at a time in the same process.",
]


def minutes_of(stream: Any, minutes: int, fps: float, ask_every: int) -> list[dict[str, Any]]:
    """Feed so many minutes, and ask once every so many."""
    rows = []
    for minute in range(1, minutes + 1):
        shown = make_stream(round(60 * fps), minute)
        begun = time.perf_counter()
        stream.feed(shown.frames)
        fed = time.perf_counter() - begun
        if minute % ask_every and minute > 1:
            continue
        stream.ask(shown.questions[minute % len(shown.questions)].text, max_new_tokens=1, do_sample=False)
        rows.append(
            {
                "minute": minute,
                "rss": resident(),
                "in_use": in_use(),
                "memory_bytes": stream.memory_bytes(),
                "groups": stream.num_groups,
                "feed_seconds": fed / len(shown.frames),
                "ask_seconds": time.perf_counter() - begun - fed,
            }
        )
        if minute == 1 or minute % (10 * ask_every) == 0:
            print(f"minute {minute:4}: {rows[-1]['rss'] / 2**20:.1f} MiB, stream {rows[-1]['memory_bytes']} bytes")
    return rows


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", default="features")
    parser.add_argument("--max-memory", type=int, default=4_000_000)
    parser.add_argument("--tokens-per-frame", type=int, default=36)
    parser.add_argument("--bits", type=int)
    parser.add_argument("--when-full")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--ask-every", type=int, default=1, help="minutes; a row each")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--commit")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    settings = {
        name: getattr(options, name)
        for name in ("memory", "max_memory", "tokens_per_frame", "bits", "when_full", "fps")
    }
    stream = model.stream(
        AutoProcessor.from_pretrained(model_path()), **settings, window=288, tokens_per_question=72, frames_per_window=8
    )
    peak = PeakMemory(torch.device("cpu"))
    peak.reset()
    begun = time.process_time()
    rows = minutes_of(stream, options.minutes, options.fps, options.ask_every)
    spent, largest = time.process_time() - begun, peak.read()
    tenth = next((row for row in rows if row["minute"] >= 10), rows[-1])
    give_back()
    record = {
        "benchmark": "stream_memory",
        "command": command(),
        **environment(options.commit, torch.device("cpu")),
        "notes": NOTES,
        "config": settings,
        "num_frames": stream.num_frames,
        "state_bytes": stream.state_bytes(),
        "video_seconds": stream.held()[-1][1],
        "cpu_seconds": round(spent, 1),
        "peak_rss": largest,
        "growth_from_minute_10": rows[-1]["rss"] - tenth["rss"],
        "growth_in_use_from_minute_10": None if tenth["in_use"] is None else rows[-1]["in_use"] - tenth["in_use"],
        "rss_trimmed": resident(),
        "largest_memory_bytes": max(row["memory_bytes"] for row in rows),
        "feed_seconds": statistics.median(row["feed_seconds"] for row in rows),
        "ask_seconds": statistics.median(row["ask_seconds"] for row in rows),
        "minutes": rows,
    }
    path = write_result(options.output, f"stream_memory_{options.memory}_{options.minutes}min", record)
    print(path)
    return path


if __name__ == "__main__":
    main()
