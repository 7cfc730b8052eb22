"""What stays of a frame, and what a stream knows of all frames before."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What stays of a frame (temporal step).

    Attributes:
        number: of the step in the stream.
        seconds: when its first frame was shown.
        features: `(n, D)`, in the order of places.
        places: int64 `(n,)` on the CPU, ascending.
        worth: float32 `(n,)`, larger = rather kept when the memory is full.
    """

    number: int
    seconds: float
    features: Tensor
    places: Tensor
    worth: Tensor


@dataclass(frozen=True)
class Before:
    """All that a stream knows of what went by, beside its memory.

    Attributes:
        num_frames: that came.
        num_steps: temporal steps that went through the tower.
        last: seconds of the last frame; None: there was none.
        size: height and width of the first frame, which all are brought to.
        resized: how many had another size.
        features: `(P, D)`, the step before, uncompressed.
        waiting: frames of a step that is not complete.
        seconds: when the first of those was shown.
    """

    num_frames: int = 0
    num_steps: int = 0
    last: float | None = None
    size: tuple[int, int] | None = None
    resized: int = 0
    features: Tensor | None = None
    waiting: tuple[np.ndarray, ...] = ()
    seconds: float = 0.0
