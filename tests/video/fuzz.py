"""Damages small video files at random and reads them in a child process with limits of time and memory.

`python tests/video/fuzz.py FIRST LAST` prints one line for each file from number FIRST to before LAST, and the counts of each end.
"""

import collections
import contextlib
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SECONDS_A_FILE, MEGABYTES = 20, 900
BASES = {
    "h264.mp4": {},
    "faststart.mp4": dict(container_options={"movflags": "faststart"}),
    "fragmented.mp4": dict(container_options={"movflags": "frag_keyframe+empty_moov"}),
    "sound.mp4": dict(audio=True),
    "mpeg4.mov": dict(codec="mpeg4"),
    "h264.mkv": {},
    "vp8.webm": dict(codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "h264.avi": dict(b_frames=0),
    "b_frames.avi": dict(codec="mpeg4"),
    "h264.ts": {},
    "h264.flv": {},
    "a.gif": dict(codec="gif"),
    "mpeg2.mpg": dict(codec="mpeg2video", fps=25),
    "h264.nut": {},
    "raw.h264": {},
}
ENDS = ("frames", "error")  # the good ones: frames, or one ValueError of one line


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """A file with one to four kinds of damage."""
    out = bytearray(data)
    for _ in range(random.integers(1, 5)):
        if len(out) < 64:
            break
        kind = random.integers(8)
        place = int(random.integers(len(out) - 16))
        if random.random() < 0.5:  # headers matter most
            place = int(random.integers(min(1024, len(out) - 16)))
        size = int(random.integers(1, min(400, len(out) - place)))
        if kind == 0:
            out[place] ^= 1 << random.integers(8)
        elif kind == 1:
            out[place : place + size] = random.bytes(size)
        elif kind == 2:
            out[place : place + 4] = [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00" * 4, b"\x00\x00\xff\xff"][
                random.integers(4)
            ]
        elif kind == 3:
            del out[place : None if random.random() < 0.5 else place + size]
        elif kind == 4:
            out[place:place] = out[place : place + size]
        elif kind == 5:
            out[place : place + size] = bytes(size)
        elif kind == 6:
            other = int(random.integers(len(out) - 16))
            out[place : place + 16], out[other : other + 16] = out[other : other + 16], out[place : place + 16]
        else:
            letters = [i for i in range(len(out) - 4) if out[i : i + 4].isalpha()][:200]
            if letters:
                out[letters[random.integers(len(letters))]] ^= 1 << random.integers(5)
    return bytes(out)


def make_bases(folder: Path) -> None:
    from helpers.media import write_video

    for name, options in BASES.items():
        write_video(folder / name, 24, **{"gop": 6, **options})


def work(folder: Path, first: int, last: int) -> None:
    """Read files `first` to before `last`; each ends in one line."""
    import av

    from cacovid_hf.video.files import read_video

    av.logging.set_level(None)
    names = list(BASES)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(first, last):
        name = names[number % len(names)]
        data = mutated((folder / name).read_bytes(), np.random.default_rng(number))
        path = folder / f"{first}_{name}"
        path.write_bytes(data)
        signal.alarm(SECONDS_A_FILE)
        try:
            frames, metadata = read_video(path, 8, max_fps=1e9)
            end = "frames" if len(frames) == len(metadata.frames_indices) == len(metadata.timestamps) else "wrong count"
        except ValueError as error:
            end = "error" if "\n" not in str(error) and len(str(error)) < 400 else f"long error: {error}"
        except Exception as error:
            end = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        print(number, name, end.replace("\n", " ")[:200], flush=True)


def run(first: int, last: int) -> dict[int, str]:
    """How each file ends, by its number; a child that dies is followed by another."""
    ends: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_bases(Path(folder))
        at = first
        while at < last:
            child = subprocess.run(
                [sys.executable, __file__, "--child", folder, str(at), str(min(last, at + 200))],
                capture_output=True,
                text=True,
                errors="replace",
            )
            for line in child.stdout.splitlines():
                number, name, end = line.split(" ", 2)
                ends[int(number)] = end if end in ENDS else f"{name}: {end}"
            at = max(ends, default=at - 1) + 1
            if child.returncode:
                said = child.stderr.strip().splitlines()[-1:]
                kind = "hang" if child.returncode == -signal.SIGALRM else f"died ({child.returncode}): {said}"
                ends[at] = f"{list(BASES)[at % len(BASES)]}: {kind}"
                at += 1
    return ends


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]
    if sys.argv[1] == "--child":
        with contextlib.suppress(KeyboardInterrupt):
            work(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        result = run(int(sys.argv[1]), int(sys.argv[2]))
        for number, end in result.items():
            if end not in ENDS:
                print(number, end)
        print(len(result), dict(collections.Counter(end if end in ENDS else "bad" for end in result.values())))
