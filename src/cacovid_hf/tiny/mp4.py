"""Clips as real video files: H.264 in mp4, written with PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..utils.files import replaced


def write_mp4(path: str | Path, frames: np.ndarray, fps: int = 10, hold: int = 10) -> None:
    """Write frames uint8 `(T, H, W, 3)` as an H.264 mp4 that shows each of them for `hold` video frames, `fps` a second.

    H and W must be even (yuv420p). With the defaults a clip of 8 frames lasts 8 seconds, and 8 video frames sampled
    uniformly from it are the 8 frames. The file appears under its name only when it is complete.
    """
    with replaced(Path(path)) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in np.repeat(frames, hold, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
