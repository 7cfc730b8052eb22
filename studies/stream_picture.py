"""Draw what the memory of a stream holds as time goes on, by the rule that makes room: `python -m studies.stream_picture`."""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from transformers import AutoProcessor

from benchmarks.record import ROOT
from cacovid_hf import CaCoVidForConditionalGeneration, VideoStream
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.streams import make_stream
from studies.stream_study import STANDING

FRAMES, TOKENS = 180, 6
RULES = {
    '"oldest"\nthe oldest group leaves': dict(when_full="oldest"),
    '"alike"\nthe two neighbours most alike become one': dict(when_full="alike"),
    '"contribution"\nthe most worthy tokens of neighbours stay': dict(
        when_full="contribution", reducer="cacovid", standing=STANDING
    ),
}


def held_over_time(stream: VideoStream, frames: np.ndarray) -> np.ndarray:
    """Tokens held of every frame (row) after every frame (column), `(T, T)`."""
    counts = np.zeros((len(frames), len(frames)))
    for now, picture in enumerate(frames):
        stream.feed(picture)
        counts[:, now] = np.bincount(stream.frame_numbers(), minlength=len(frames))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "stream_memory.png")
    parser.add_argument("--groups", type=int, default=32)
    options = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    processor = AutoProcessor.from_pretrained(model_path())
    shown = make_stream(FRAMES, 0)
    moments = sorted({FRAMES - 1 - question.age for question in shown.questions})
    figure, axes = pyplot.subplots(1, len(RULES), figsize=(12, 4.4), sharey=True, layout="constrained")
    for axis, (title, rule) in zip(axes, RULES.items(), strict=True):
        probe = model.stream(processor, tokens_per_frame=TOKENS, **rule)
        probe.feed(shown.frames[:1])
        memory = options.groups * probe.memory_bytes()
        stream = model.stream(processor, tokens_per_frame=TOKENS, max_memory=memory, **rule)
        counts = held_over_time(stream, shown.frames)
        drawn = axis.imshow(counts, origin="lower", cmap="Greys", vmin=0, vmax=TOKENS, interpolation="nearest")
        axis.plot([FRAMES + 3] * len(moments), moments, "<", color="#d1495b", markersize=4, clip_on=False)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("seconds of the stream so far")
    axes[0].set_ylabel("second that the tokens show")
    figure.colorbar(drawn, ax=axes, label="tokens held of a frame", shrink=0.8)
    figure.suptitle(f"A memory of {options.groups} groups of {TOKENS} tokens (red: something was visible for a moment)")
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
