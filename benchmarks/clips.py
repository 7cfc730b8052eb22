"""What stands before the model: a clip written at run time, decoded, and prepared by the family's video processor."""

import importlib.util
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from architectures import Architecture
from record import summarise
from transformers.video_utils import VideoMetadata

from cacovid_hf.video.reader import VideoFileMixin
from cacovid_hf.video_processing import CaCoVidLlavaOnevisionVideoProcessor, CaCoVidQwen2VLVideoProcessor

RATE = 30


def picture(number: int, height: int, width: int) -> np.ndarray:
    """Frame `number` of a moving pattern, uint8 `(height, width, 3)`."""
    y, x = np.mgrid[:height, :width]
    return (np.stack([x + 3 * number, y + 2 * number, (x + y) // 2 - number], axis=-1) % 256).astype(np.uint8)


def write_clip(path: Path, frames: int, height: int, width: int) -> None:
    """The moving pattern, H.264 with B-frames."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "veryfast"}
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def video_reader(architecture: Architecture) -> VideoFileMixin:
    """A video processor that makes squares of the architecture's side, of every frame of a file."""
    side = architecture.side
    if architecture.model_type == "llava_onevision":
        return CaCoVidLlavaOnevisionVideoProcessor(size={"height": side, "width": side}, max_fps=1e9)
    # Sides are rounded down to whole cells of 28 pixels.
    area = {"shortest_edge": 28 * 28, "longest_edge": side * side + side}
    return CaCoVidQwen2VLVideoProcessor(size=area, max_fps=1e9, cap_pixels_per_frame=False)


def media_stages(
    architecture: Architecture, frames: int, size: int, repeats: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Milliseconds of decode (file to frames) and preprocess (frames to pixel values), and what they were measured on.

    Args:
        architecture: whose video processor.
        frames: of the clip, all of which are read.
        size: pixels of its sides.
        repeats: after one to warm up.
        clock: in seconds.
    """
    reader = video_reader(architecture)
    shapes: dict[str, list[int]] = {}

    def preprocess(videos: np.ndarray, metadata: VideoMetadata) -> None:
        made = reader(videos=[videos], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
        shapes.update({name: list(np.shape(value)) for name, value in made.items() if name == "pixel_values_videos"})

    times: dict[str, list[float]] = {"decode": [], "preprocess": []}
    decodes = importlib.util.find_spec("av") is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        if decodes:
            write_clip(path, frames, size, size)
        else:
            drawn = np.stack([picture(number, size, size) for number in range(frames)])
            metadata = VideoMetadata(
                total_num_frames=frames, fps=RATE, duration=frames / RATE, frames_indices=list(range(frames))
            )
        for _ in range(repeats + 1):
            started = clock()
            if decodes:
                drawn, metadata = reader.fetch_videos(  # type: ignore[assignment]
                    str(path), lambda metadata: reader.sample_frames(metadata, num_frames=frames)
                )
            decoded = clock()
            preprocess(drawn, metadata)
            times["decode"].append(1000 * (decoded - started))
            times["preprocess"].append(1000 * (clock() - decoded))
    if len(drawn) != frames:
        raise RuntimeError(f"{len(drawn)} of the clip's {frames} frames were read: nothing measured.")
    return {
        "clip": {"frames": frames, "height": size, "width": size, "codec": "h264" if decodes else None},
        "pixels": shapes,
        "decode_ms": summarise(times["decode"][1:]) if decodes else None,
        "decode_skipped": None if decodes else "PyAV (av) is not installed",
        "preprocess_ms": summarise(times["preprocess"][1:]),
    }
