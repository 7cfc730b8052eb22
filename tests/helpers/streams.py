"""What the tests of streams share: pictures, the stock prompt of the same frames, and what a memory holds."""

import numpy as np
import torch
from helpers.chats import chat_inputs
from transformers.video_utils import VideoMetadata

QUESTION = "what color is the circle"
STEP = dict(do_sample=False, max_new_tokens=5)
ALL = dict(tokens_per_frame=1000, bits=32)


def pictures(count, seed=0, size=(48, 64)):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def whole_prompt(processor, frames):
    """What the processor makes of the frames as one video, at a frame a second."""
    metadata = VideoMetadata(total_num_frames=len(frames), fps=1.0, frames_indices=list(range(len(frames))))
    return chat_inputs(processor, QUESTION, frames, video_metadata=[metadata], do_sample_frames=False)


def held(stream):
    """Everything that its memory holds."""
    return [{name: part.clone() for name, part in group.parts.items()} for group in stream._memory.groups.items]


def same(one, two):
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(one, two, strict=True)
    )


def never_repeats(positions):
    """Of `(1, L)`, or `(4, 1, L)` with text positions first."""
    rows = (positions if positions.ndim == 2 else positions[1:, 0]).T.tolist()
    return len({tuple(row) for row in rows}) == len(rows)
