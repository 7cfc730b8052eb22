"""Benchmarks: the embedded one, and local copies of public ones in their published layouts."""

from pathlib import Path

from .base import Benchmark, Clip, Estimate, FileBenchmark, Sample, clustered_mean
from .egoschema import EgoSchema, EgoSchemaFull
from .longvideobench import LongVideoBench, LongVideoBenchTest, LongVideoBenchWithSubtitles
from .mlvu import MLVUDev, MLVUTest
from .mvbench import MVBench
from .ssv2 import SomethingSomething
from .tiny import Tiny
from .videomme import VideoMME, VideoMMEWithSubtitles

FILE_BENCHMARKS: dict[str, type[FileBenchmark]] = {
    kind.name: kind
    for kind in (
        VideoMME,
        VideoMMEWithSubtitles,
        MLVUDev,
        MLVUTest,
        LongVideoBench,
        LongVideoBenchWithSubtitles,
        LongVideoBenchTest,
        MVBench,
        EgoSchema,
        EgoSchemaFull,
        SomethingSomething,
    )
}
TINY_QUESTIONS = 1000


def load_benchmark(spec: str, limit: int | None = None, seed: int = 0) -> Benchmark:
    """Return a benchmark from `"tiny"`, `"tiny_mp4"`, or `"NAME=FOLDER"` for a local copy.

    Args:
        spec: see above.
        limit: at most so many samples, the first ones; of the tiny benchmark how many there are, 1,000 if None.
        seed: of the tiny benchmark's clips and questions.

    Raises:
        ValueError: an unknown name, a missing folder, or files of another layout.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no question: give at least 1.")
    name, _, folder = spec.partition("=")
    if name in ("tiny", "tiny_mp4"):
        if folder:
            raise ValueError(f"{name} is made, not read: leave out ={folder}.")
        return Tiny(limit or TINY_QUESTIONS, seed, through_mp4=name == "tiny_mp4")
    if name not in FILE_BENCHMARKS:
        raise ValueError(
            f"Benchmark {name!r} is unknown: choose tiny, tiny_mp4, or NAME=FOLDER with one of {', '.join(FILE_BENCHMARKS)}."
        )
    if not folder:
        raise ValueError(f"{name} is read from a local copy: give its folder, as {name}=FOLDER.")
    return FILE_BENCHMARKS[name](Path(folder).expanduser(), limit)


__all__ = ["FILE_BENCHMARKS", "Benchmark", "Clip", "Estimate", "Sample", "clustered_mean", "load_benchmark"]
