"""Small video files of many kinds, made with FFmpeg: container x codec x clock x flaw, each with what FFmpeg itself shows of it.

`python tests/video/media_matrix.py` reads them all and writes the table of docs/reference/video_files.md.
"""

import hashlib
import logging
import math
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

RATE, SECONDS = 25, 2
WIDTH, HEIGHT = 96, 64
SOURCE = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={RATE}:duration={SECONDS}"
X264 = "-c:v libx264 -preset veryfast -g 12 -bf 2 -pix_fmt yuv420p"
X265 = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -x265-params log-level=error:keyint=12:bframes=2:pools=1"
VP8 = "-c:v libvpx -deadline realtime -cpu-used 8 -g 12 -b:v 300k"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 12 -b:v 300k"
AV1 = "-c:v libaom-av1 -usage realtime -cpu-used 8 -g 12 -b:v 300k"
MPEG2 = "-c:v mpeg2video -g 12 -bf 2 -b:v 800k"
MPEG4 = "-c:v mpeg4 -g 12 -b:v 800k"


@dataclass(frozen=True)
class Case:
    """A file and how it is made.

    Attributes:
        group: what it is a member of, a heading of the table.
        name: of the file, with the suffix that says its container.
        arguments: of FFmpeg, between the source and the file.
        flaw: what is done to the file afterwards.
        source: FFmpeg's filter graph of the pictures.
        times: the right times of the frames, where FFmpeg's are not: a function of their number.
        is_exact: whether count and pixels must be FFmpeg's; a damaged file may be mended otherwise by another version of a decoder.
        error: the message that is due instead of frames.
    """

    group: str
    name: str
    arguments: str
    flaw: Callable[[Path], None] | None = None
    source: str = SOURCE
    times: Callable[[int], float] | None = None
    is_exact: bool = True
    error: str | None = None


@dataclass(frozen=True)
class Reference:
    """Every frame that FFmpeg shows, RGB, and its time in seconds from the first."""

    frames: list[np.ndarray]
    times: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Ours against FFmpeg: numbers of frames, largest mean difference of a sampled frame (levels of 255), largest difference of a time (s)."""

    counted: int
    expected: int
    pixels: float
    time: float
    is_nearest: bool


def ffmpeg(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess:
    command = ["ffmpeg", "-y", "-hide_banner", "-nostdin", "-loglevel", "error", "-threads", "1", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    if check and done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace")[-800:])
    return done


# --- flaws -----------------------------------------------------------------------------------------------------------------------


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Position and size of each packet of the first video track."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size and p.pos is not None]


def damage(numbers: tuple[int, ...], how: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        noise = np.random.default_rng(0)
        places = packets_of(path)
        for number in numbers:
            start, size = places[number]
            if how == "zeros":
                data[start : start + size] = bytes(size)
            elif how == "noise":
                data[start : start + size] = noise.bytes(size)
            elif how == "tail":
                data[start + size // 2 : start + size] = noise.bytes(size - size // 2)
            elif how == "head":
                data[start : start + 8] = b"\xff" * 8
        path.write_bytes(data)

    return apply


def lose(packets: tuple[int, ...]) -> Callable[[Path], None]:
    """Drop transport packets."""

    def apply(path: Path) -> None:
        data = path.read_bytes()
        blocks = [data[i : i + 188] for i in range(0, len(data), 188)]
        path.write_bytes(b"".join(block for i, block in enumerate(blocks) if i not in packets))

    return apply


def times_at(is_kept: Callable[[int], bool]) -> Callable[[Path], None]:
    """Take the times out of the frames of a transport stream, but for those whose number is kept."""

    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        number = 0
        for block in range(0, len(data), 188):
            start = block + 4 + (data[block + 4] + 1 if data[block + 3] & 0x20 else 0)
            if data[block + 1] & 0x40 and data[start : start + 3] == b"\0\0\1" and data[start + 3] >> 4 == 0xE:
                if not is_kept(number):
                    data[start + 7] &= 0x3F
                    data[start + 9 : start + 9 + data[start + 8]] = b"\xff" * data[start + 8]
                number += 1
        path.write_bytes(data)

    return apply


def cut(fraction: float) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])

    return apply


def from_packet(number: int) -> Callable[[Path], None]:
    """Begin at the transport packet in which a frame begins, as a recording of a running broadcast does."""

    def apply(path: Path) -> None:
        start = packets_of(path)[number][0]
        data = path.read_bytes()
        path.write_bytes(data[: 188 * 3] + data[start - start % 188 :])

    return apply


def join(*others: str) -> Callable[[Path], None]:
    """Append other files, made with FFmpeg from these arguments, byte by byte."""

    def apply(path: Path) -> None:
        data = path.read_bytes()
        for number, arguments in enumerate(others):
            source, _, arguments = arguments.partition("|")
            part = path.with_name(f"part{number}_{path.name}")
            ffmpeg("-f", "lavfi", "-i", source or SOURCE, *shlex.split(arguments), part)
            data += part.read_bytes()
            part.unlink()
        path.write_bytes(data)

    return apply


def rename_box(old: bytes, new: bytes) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))

    return apply


def shift_sync_samples(by: int) -> Callable[[Path], None]:
    """Let the table of an mp4 name other samples as keyframes."""

    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        entry = data.index(b"stss") + 8
        (count,) = struct.unpack_from(">I", data, entry)
        for i in range(1, count):
            (number,) = struct.unpack_from(">I", data, entry + 4 + 4 * i)
            struct.pack_into(">I", data, entry + 4 + 4 * i, number + by)
        path.write_bytes(data)

    return apply


def rewrite(change: Callable, options: dict | None = None) -> Callable[[Path], None]:
    """Copy the packets into the same container, each one after `change(number, packet)`."""

    def apply(path: Path) -> None:
        old = path.rename(path.with_name("old_" + path.name))
        with av.open(str(old)) as source, av.open(str(path), "w", options=options or {}) as target:
            track = target.add_stream_from_template(source.streams.video[0])
            for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
                change(number, packet)
                packet.stream = track
                target.mux(packet)
        old.unlink()

    return apply


def mark_all(number, packet):
    packet.is_keyframe = True


def mark_first(number, packet):
    packet.is_keyframe = number == 0


def mark_others(number, packet):
    packet.is_keyframe = number == 0 or not packet.is_keyframe


def trim_by_edit_list(first: int, count: int) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        entry = data.index(b"elst") + 12
        duration, start = struct.unpack_from(">II", data, entry)
        ticks = 12800 // RATE
        struct.pack_into(">II", data, entry, duration * count // (RATE * SECONDS), start + first * ticks)
        path.write_bytes(data)

    return apply


def clear_extended_clock(path: Path) -> None:
    """Take the upper byte of the 32-bit clock out of all tags of an flv, as writers did before there was one."""
    data = bytearray(path.read_bytes())
    place = 13
    while place + 11 < len(data):
        data[place + 7] = 0
        place += 15 + int.from_bytes(data[place + 1 : place + 4], "big")
    path.write_bytes(data)


def wrap_fragments(width: int) -> Callable[[Path], None]:
    """Let the 32-bit clock of an mp4's fragments pass its end after the first one."""

    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        place = data.find(b"tfdt")
        base = None
        while place >= 0:
            version = data[place + 4]
            form = ">Q" if version else ">I"
            (time,) = struct.unpack_from(form, data, place + 8)
            base = (1 << width) - 12800 if base is None else base
            struct.pack_into(form, data, place + 8, (base + time) % (1 << width))
            place = data.find(b"tfdt", place + 4)
        path.write_bytes(data)

    return apply


def with_cover(first: bool = False, film: bool = True) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        old = path.rename(path.with_name("old_" + path.name))
        picture = path.with_name("cover_" + path.stem + ".jpg")
        ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64:rate=1:duration=1", "-frames:v", "1", picture)
        maps = ["-map", "1:v", "-map", "0"] if first else ["-map", "0", "-map", "1:v"]
        place = 0 if first or not film else 1
        ffmpeg("-i", old, "-i", picture, *maps, "-c", "copy", f"-disposition:v:{place}", "attached_pic", path)
        old.unlink()
        picture.unlink()

    return apply


def unknown_codec(old: bytes) -> Callable[[Path], None]:
    return rename_box(old, b"zzzz")


# --- cases -----------------------------------------------------------------------------------------------------------------------


def vfr(expression: str, base: str = "1/1000") -> str:
    expression = expression.replace(",", "\\,")
    return f"-vf setpts='{expression}' -fps_mode passthrough -enc_time_base {base}"


def _cases() -> list[Case]:
    cases: list[Case] = []

    def add(group: str, name: str, arguments: str, flaw=None, **more) -> None:
        cases.append(Case(group, name, arguments, flaw, **more))

    # Containers and codecs, nothing odd about them.
    for suffix in ("mp4", "mov", "mkv", "avi", "ts", "m2ts", "flv", "nut", "3gp", "mxf", "asf"):
        group = "container"
        frames = " -bf 0" if suffix == "avi" else ""
        size = " -s 128x96" if suffix in ("3gp",) else ""
        # FFmpeg's MXF reader names frames by their order in the file.
        add(group, f"h264.{suffix}", X264 + frames + size, times=(lambda i: i / RATE) if suffix == "mxf" else None)
    for suffix in ("mp4", "mov", "mkv", "ts"):
        add("container", f"hevc.{suffix}", X265)
    for suffix in ("webm", "mkv", "avi", "ivf", "nut"):
        add("container", f"vp8.{suffix}", VP8)
    for suffix in ("webm", "mkv", "mp4", "ivf"):
        add("container", f"vp9.{suffix}", VP9)
        add("container", f"av1.{suffix}", AV1)
    for suffix in ("mpg", "vob", "ts", "mkv", "mp4", "avi", "mxf", "nut"):
        add("container", f"mpeg2.{suffix}", MPEG2 + (" -bf 0" if suffix == "avi" else ""))
    for suffix in ("avi", "mp4", "mov", "mkv", "nut", "3gp", "ts"):
        add("container", f"mpeg4.{suffix}", MPEG4)
    add("container", "xvid.avi", "-c:v libxvid -g 12 -b:v 800k")
    add("container", "mpeg1.mpg", "-c:v mpeg1video -g 12 -bf 2 -b:v 800k")
    for suffix in ("avi", "mov", "mkv", "mp4"):
        add("container", f"mjpeg.{suffix}", "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p")
    for suffix in ("wmv", "asf", "avi"):
        add("container", f"wmv2.{suffix}", "-c:v wmv2 -g 12 -b:v 800k")
    add("container", "msmpeg4.avi", "-c:v msmpeg4 -g 12 -b:v 800k")
    add("container", "h263.3gp", "-c:v h263 -g 12 -b:v 800k", source=SOURCE.replace("96x64", "128x96"))
    add("container", "sorenson.flv", "-c:v flv -g 12 -b:v 800k")
    for suffix in ("ogv", "ogg", "mkv"):
        add("container", f"theora.{suffix}", "-c:v libtheora -g 12 -q:v 7")
    for suffix in ("mov", "mkv"):
        add("container", f"prores.{suffix}", "-c:v prores_ks -profile:v 2")
    add("container", "prores4444.mov", "-c:v prores_ks -profile:v 4 -pix_fmt yuva444p10le")
    add(
        "container",
        "dnxhr.mov",
        "-c:v dnxhd -profile:v dnxhr_lb -pix_fmt yuv422p",
        source=SOURCE.replace("96x64", "320x128"),
    )
    for codec in ("ffv1", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "rawvideo"):
        add("container", f"{codec}.avi", f"-c:v {codec} -pix_fmt yuv422p")
    add("container", "ffv1.mkv", "-c:v ffv1 -pix_fmt yuv420p")
    add("container", "rawvideo.mov", "-c:v rawvideo -pix_fmt yuyv422")
    add("container", "animation.mov", "-c:v qtrle -pix_fmt rgb24")
    add("container", "png.mov", "-c:v png -pix_fmt rgb24")
    add("container", "cinepak.avi", "-c:v cinepak -g 12", source=SOURCE.replace("duration=2", "duration=1"))
    add("container", "svq1.mov", "-c:v svq1 -g 12")
    add("container", "snow.avi", "-c:v snow -g 12 -strict -2")
    dv = "testsrc2=size=720x576:rate=25:duration=0.6"
    add("container", "dv.dv", "-c:v dvvideo -pix_fmt yuv420p", source=dv)
    add("container", "dv.avi", "-c:v dvvideo -pix_fmt yuv420p", source=dv)
    add("container", "gif.gif", "")
    add("container", "drawn_upon.gif", "-vf split[a][b];[a]palettegen[p];[b][p]paletteuse=diff_mode=rectangle")
    # Without a container.
    add("elementary", "raw.h264", X264)
    add("elementary", "raw.hevc", X265)
    add("elementary", "raw.m2v", MPEG2)
    add("elementary", "raw.m1v", "-c:v mpeg1video -g 12 -bf 2")
    add("elementary", "raw.m4v", MPEG4)
    add("elementary", "raw.mjpeg", "-c:v mjpeg -pix_fmt yuvj420p")
    add("elementary", "raw.h263", "-c:v h263 -g 12", source=SOURCE.replace("96x64", "128x96"))
    add("elementary", "raw.obu", AV1)
    add("elementary", "raw.y4m", "")
    add("elementary", "444.y4m", "-pix_fmt yuv444p")
    add("elementary", "anim.apng", "")
    add("elementary", "30fps.h264", X264, source=SOURCE.replace("rate=25", "rate=30"))
    # Order and references of frames.
    for name, arguments in {
        "no_b.mp4": "-bf 0",
        "pyramid.mp4": "-bf 8 -x264-params b-pyramid=normal:b-adapt=0",
        "open_gop.mp4": "-x264-params open-gop=1:scenecut=0:b-adapt=0:keyint=12",
        "open_gop.ts": "-x264-params open-gop=1:scenecut=0:b-adapt=0:keyint=12",
        "open_gop.mkv": "-x264-params open-gop=1:scenecut=0:b-adapt=0:keyint=12",
        "intra_refresh.mp4": "-bf 0 -x264-params intra-refresh=1:keyint=12",
        "intra_refresh.ts": "-bf 0 -x264-params intra-refresh=1:keyint=12",
        "intra_refresh.mkv": "-bf 0 -x264-params intra-refresh=1:keyint=12",
        "all_intra.mp4": "-g 1",
        "one_key.mp4": "-g 1000",
        "one_key.ts": "-g 1000",
        "slices.mp4": "-x264-params slices=4",
        "interlaced.mp4": "-flags +ildct+ilme -x264-params tff=1",
        "interlaced.ts": "-flags +ildct+ilme -x264-params tff=1",
        "b_frames.avi": "-bf 2",
        "fragmented.mp4": "-movflags frag_keyframe+empty_moov",
        "fragment_a_frame.mp4": "-movflags frag_every_frame+empty_moov",
        "faststart.mp4": "-movflags faststart",
        "negative_offsets.mp4": "-movflags negative_cts_offsets",
        "no_edit_list.mp4": "-use_editlist 0",
        "dash.mp4": "-movflags dash+frag_keyframe+empty_moov+default_base_moof",
    }.items():
        add("structure", name, f"{X264} {arguments}")
    for suffix in ("mp4", "mkv", "ts"):
        add("structure", f"open_gop_hevc.{suffix}", X265 + ":open-gop=1:scenecut=0")
    add("structure", "hidden_frames.webm", "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 12 -g 24 -b:v 200k")
    add("structure", "hidden_frames.ivf", "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 12 -g 24 -b:v 200k")
    add(
        "structure",
        "hidden_frames_vp9.webm",
        "-c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 12 -g 24 -b:v 200k -cpu-used 8",
    )
    add("structure", "hidden_frames_av1.mp4", "-c:v libaom-av1 -lag-in-frames 12 -g 24 -b:v 200k -cpu-used 8")
    add("structure", "interlaced_mpeg2.mpg", MPEG2 + " -flags +ildct+ilme -top 1")
    add("structure", "open_gop_mpeg2.ts", MPEG2 + " -flags -cgop")
    add("structure", "two_frames_a_packet.avi", "-c:v libxvid -bf 2 -g 12 -b:v 800k")
    add("structure", "b_frames_mpeg4.avi", MPEG4 + " -bf 2")
    add("structure", "b_frames_mpeg4.mp4", MPEG4 + " -bf 2")
    add("structure", "one_frame.mp4", X264 + " -frames:v 1")
    add("structure", "two_frames.mkv", X264 + " -frames:v 2")
    # Pictures.
    odd = SOURCE.replace("96x64", "97x63")
    add("picture", "odd.mp4", "-c:v libx264 -pix_fmt yuv444p -g 12", source=odd)
    add("picture", "odd.webm", VP9, source=odd)
    add("picture", "odd.gif", "", source=odd)
    add("picture", "odd_420.mkv", "-c:v ffv1 -pix_fmt yuv420p", source=odd)
    add("picture", "422.mp4", "-c:v libx264 -pix_fmt yuv422p -g 12")
    add("picture", "10_bit.mp4", "-c:v libx264 -pix_fmt yuv420p10le -g 12")
    add("picture", "10_bit.webm", VP9 + " -pix_fmt yuv420p10le -profile:v 2")
    add("picture", "12_bit.mkv", "-c:v ffv1 -pix_fmt yuv420p12le")
    add("picture", "gray.mp4", "-c:v libx264 -pix_fmt gray -g 12")
    add("picture", "gray.mkv", "-c:v ffv1 -pix_fmt gray")
    add("picture", "rgb.mkv", "-c:v libx264rgb -pix_fmt rgb24 -g 12")
    add("picture", "gbrp.mkv", "-c:v ffv1 -pix_fmt gbrp")
    add("picture", "palette.avi", "-c:v rawvideo -pix_fmt pal8")
    add("picture", "alpha.webm", VP9 + " -pix_fmt yuva420p")
    add("picture", "alpha.mov", "-c:v qtrle -pix_fmt argb")
    add("picture", "alpha.mkv", "-c:v ffv1 -pix_fmt bgra")
    for matrix, names in {
        "bt709": "bt709",
        "bt2020": "bt2020nc",
        "smpte170m": "smpte170m",
        "smpte240m": "smpte240m",
        "fcc": "fcc",
    }.items():
        scale = "smpte170m" if matrix == "fcc" else matrix
        for spread in ("tv", "pc"):
            filters = f"-vf scale=out_color_matrix={scale}:out_range={spread},format=yuv420p"
            add(
                "picture",
                f"{matrix}_{spread}.mp4",
                f"{filters} -c:v libx264 -g 12 -colorspace {names} -color_range {spread}",
            )
    # Matrices that FFmpeg 8 refuses, or that no YUV has: as earlier versions show them.
    for matrix in ("ycgco", "bt2020c", "rgb"):
        add("picture", f"{matrix}.mp4", f"-c:v libx264 -pix_fmt yuv420p -g 12 -colorspace {matrix}")
    add("picture", "chroma_derived.mkv", "-c:v ffv1 -pix_fmt yuv420p -colorspace chroma-derived-nc")
    add(
        "picture",
        "bt709.ts",
        "-vf scale=out_color_matrix=bt709,format=yuv420p -c:v mpeg2video -b:v 2M -colorspace bt709",
    )
    add("picture", "bt709.webm", "-vf scale=out_color_matrix=bt709,format=yuv420p -colorspace bt709 " + VP9)
    add("picture", "full.avi", "-c:v mjpeg -q:v 2 -pix_fmt yuvj444p")
    hdr = "-vf scale=out_color_matrix=bt2020,format=yuv420p10le -c:v libx265 -preset ultrafast -colorspace bt2020nc -color_trc smpte2084"
    add("picture", "hdr.mp4", hdr + " -color_primaries bt2020 -x265-params log-level=error:pools=1")
    for angle in (90, 180, 270):
        add("picture", f"rotated_{angle}.mp4", f"{X264} -metadata:s:v rotate={angle}")
    add("picture", "tag_of_a_turn.mkv", f"{X264} -metadata:s:v rotate=90")  # a tag alone turns nothing
    add("picture", "rotated.mov", f"{X264} -metadata:s:v rotate=90")
    add("picture", "wide_pixels.mp4", X264 + " -aspect 16:9")
    smaller = SOURCE.replace("96x64", "64x48")
    add(
        "picture",
        "size_changes.ts",
        X264,
        join(f"{smaller}|{X264} -output_ts_offset {SECONDS}"),
        times=lambda i: i / RATE,
    )
    add("picture", "size_changes.h264", X264, join(f"{smaller}|{X264}"))
    add("picture", "size_changes.m2v", MPEG2, join(f"{smaller}|{MPEG2}"))
    # Clocks.
    even: dict = dict(times=lambda i: i / RATE)
    squares = "N*N*0.004/TB"
    for suffix in ("mp4", "mov", "mkv", "ts", "flv", "nut"):
        add("clock", f"variable_rate.{suffix}", f"{X264} {vfr(squares)}")
    add("clock", "variable_rate.webm", f"{VP8} {vfr(squares)}")
    add("clock", "variable_rate_vp9.webm", f"{VP9} {vfr(squares)}")
    add("clock", "variable_rate.gif", f"{vfr('N*N*0.01/TB+N*0.03/TB', '1/100')}")
    add("clock", "screen_recording.mp4", f"{X264} {vfr('if(lt(N,25),N*0.04,1+(N-25)*0.5)/TB')}")
    add("clock", "screen_recording.mkv", f"{X264} {vfr('if(lt(N,25),N*0.04,1+(N-25)*0.5)/TB')}")
    add("clock", "pause.mp4", f"{X264} {vfr('if(lt(N,25),N*0.04,20+N*0.04)/TB')}")
    add("clock", "pause.mkv", f"{X264} {vfr('if(lt(N,25),N*0.04,20+N*0.04)/TB')}")
    add("clock", "pause.ts", f"{X264} -bf 0 {vfr('if(lt(N,25),N*0.04,20+N*0.04)/TB')}", times=lambda i: i / RATE)
    # Pictures that are decoded ahead have times from behind a stall before the clock of decoding stalls.
    stall = vfr("if(lt(N,25),N*0.04,40+N*0.04)/TB")
    for name, codec in {
        "stall_b2.ts": X264,
        "stall_b3.ts": X264 + " -bf 3",
        "stall_pyramid.ts": X264 + " -bf 8 -x264-params b-pyramid=normal:b-adapt=0",
        "stall_open_gop.ts": X264 + " -x264-params open-gop=1:scenecut=0:b-adapt=0:keyint=12",
        "stall_hevc.ts": X265,
        "stall_b3.m2ts": X264 + " -bf 3",
    }.items():
        add("clock", name, f"{codec} {stall}", **even)
    for suffix in ("ts", "mpg", "vob"):
        add("clock", f"stall_mpeg2.{suffix}", f"{MPEG2} {stall.replace('1/1000', '1/25')}", **even)
    two = vfr("if(lt(N,25),N*0.04,if(lt(N,37),40+N*0.04,95+N*0.04))/TB")
    add("clock", "two_stalls.ts", f"{X264} -bf 3 {two}", **even)
    for suffix in ("mp4", "mov", "mkv", "flv", "nut"):
        add("clock", f"pause_b3.{suffix}", f"{X264} -bf 3 {stall}")
    # A picture from behind the pause is decoded before it.
    for suffix in ("mp4", "mkv", "ts"):
        add(
            "clock",
            f"pause_ahead.{suffix}",
            f"{X264} -bf 3 -x264-params b-adapt=0:scenecut=0 {vfr('if(lt(N,27),N*0.04,5+N*0.04)/TB')}",
        )
    # As many seconds as a power of two has ticks: a pause all the same.
    add("clock", "pause_of_2_20_ticks.mp4", f"{X264} -bf 3 {stall.replace('40', '81.92')} -video_track_timescale 12800")
    for rate in ("30000/1001", "24000/1001", "60", "5", "1"):
        frames = SOURCE.replace("rate=25:duration=2", f"rate={rate}")
        name = rate.replace("/", "_")
        add("clock", f"{name}fps.mp4", X264 + " -frames:v 30", source=frames)
        add("clock", f"{name}fps.mkv", X264 + " -frames:v 30", source=frames)
    end = 2**33 / 90000
    for ahead in (0.5, 1.0, 30.0, 90.0):
        if ahead < SECONDS:
            add("clock", f"wraps_after_{ahead}.ts", f"{X264} -output_ts_offset {end - ahead} -muxdelay 0")
            add("clock", f"wraps_after_{ahead}.m2ts", f"{X264} -output_ts_offset {end - ahead} -muxdelay 0")
    # At each place among the pictures that are decoded ahead.
    for frames in range(5):
        place = end - 1 - frames / RATE
        add("clock", f"wraps_b3_{frames}.ts", f"{X264} -bf 3 -output_ts_offset {place} -muxdelay 0")
    add(
        "clock",
        "wraps_pyramid.ts",
        f"{X264} -bf 8 -x264-params b-pyramid=normal:b-adapt=0 -output_ts_offset {end - 1} -muxdelay 0",
    )
    for ahead in (0.06, 0.1, 1.94):  # at the first pictures and at the last ones
        add("clock", f"wraps_b3_after_{ahead}.ts", f"{X264} -bf 3 -output_ts_offset {end - ahead} -muxdelay 0")
    add("clock", "wraps_and_stalls.ts", f"{X264} -bf 3 {stall} -output_ts_offset {end - 0.5} -muxdelay 0", **even)
    add("clock", "stalls_over_its_end.ts", f"{X264} -bf 3 {stall} -output_ts_offset {end - 20} -muxdelay 0", **even)
    for suffix, codec in {"mpg": MPEG2, "vob": MPEG2}.items():
        add("clock", f"wraps_after_1.0.{suffix}", f"{codec} -output_ts_offset {end - 1} -muxdelay 0 -muxpreload 0")
    add(
        "clock",
        "wraps_with_sound.ts",
        f"-f lavfi -i sine=duration=2 {X264} -c:a aac -output_ts_offset {end - 1} -muxdelay 0",
    )
    add(
        "clock",
        "wraps_24_bits.flv",
        f"{X264} -output_ts_offset {2**24 / 1000 - 1}",
        clear_extended_clock,
        times=lambda i: i / RATE,
    )
    add("clock", "wraps_hevc.ts", f"{X265} -output_ts_offset {end - 1} -muxdelay 0")
    add("clock", "wraps_mpeg2.ts", f"{MPEG2} -output_ts_offset {end - 1} -muxdelay 0")
    add("clock", "wraps_variable.ts", f"{X264} {vfr(squares)} -output_ts_offset {end - 2} -muxdelay 0")
    slow = SOURCE.replace("rate=25:duration=2", "rate=1:duration=120")
    add("clock", "wraps_late.ts", f"{X264} -bf 0 -output_ts_offset {end - 90} -muxdelay 0", source=slow)
    # Broadcasts need not give the time of every picture.
    for name, codec in {"h264": X264, "h264_no_b": X264 + " -bf 0", "hevc": X265, "mpeg2": MPEG2}.items():
        add("clock", f"times_at_keys_{name}.ts", codec, times_at(lambda number: number % 12 == 0), **even)
        add("clock", f"first_time_alone_{name}.ts", codec, times_at(lambda number: number == 0), **even)
    add("clock", "every_second_time.ts", X264, times_at(lambda number: number % 2 == 0), **even)
    wrapping = f"{X264} -output_ts_offset {end - 1} -muxdelay 0"
    add("clock", "wraps_with_times_at_keys.ts", wrapping, times_at(lambda number: number % 12 == 0), **even)
    add("clock", "wraps_fragments.mp4", f"{X264} -movflags frag_keyframe+empty_moov", wrap_fragments(32))
    for name, offset in {
        "negative.mp4": "-1",
        "late.mp4": "7",
        "late.mkv": "7",
        "late.ts": "1000",
        "late.flv": "100",
    }.items():
        add("clock", f"starts_{name}", f"{X264} -output_ts_offset {offset}")
    for suffix, codec in {
        "mp4": X264,
        "mov": X264,
        "mkv": X264,
        "ts": X264,
        "flv": X264,
        "webm": VP9,
        "mpg": MPEG2,
    }.items():
        sound = "-c:a libopus" if suffix == "webm" else "-c:a mp2" if suffix == "mpg" else "-c:a aac"
        late = f"-f lavfi -i sine=duration=6 -vf setpts=PTS+3/TB -fps_mode passthrough {codec} {sound}"
        add("clock", f"late_pictures.{suffix}", late)
    negative = f"{X264} -output_ts_offset -0.5 -avoid_negative_ts disabled"
    add("clock", "negative_kept.mkv", negative, times=lambda i: i / RATE, is_exact=False)
    add("clock", "trimmed.mp4", X264 + " -bf 0", trim_by_edit_list(10, 25))
    add("clock", "trimmed_inside.mp4", X264, trim_by_edit_list(17, 25))
    add("clock", "no_duration.webm", VP8 + " -live 1")
    add("clock", "no_duration.mkv", X264 + " -live 1")
    add("clock", "no_duration.flv", X264 + " -flvflags no_duration_filesize")
    for name, arguments, *others in [
        ("same_clock.ts", X264, X264),
        ("same_clock_three.ts", X264, X264, X264),
        ("later_clock.ts", X264, f"{X264} -output_ts_offset 500"),
        ("earlier_clock.ts", f"{X264} -output_ts_offset 500", X264),
        ("close_clock.ts", X264, f"{X264} -output_ts_offset 1.2"),
        ("same_clock_b3.ts", X264 + " -bf 3", X264 + " -bf 3"),
        ("same_clock_pyramid.ts", X264 + " -bf 8", X264 + " -bf 8"),
        ("later_clock_b3.ts", X264 + " -bf 3", X264 + " -bf 3 -output_ts_offset 40"),
        ("close_clock_b3.ts", X264 + " -bf 3", X264 + " -bf 3 -output_ts_offset 1.5"),
        ("stall_then_other.ts", f"{X264} -bf 3 {stall}", X264 + " -bf 3"),
        ("short_parts.ts", X264 + " -bf 3 -frames:v 5", *[X264 + " -bf 3 -frames:v 5"] * 4),
        (
            "short_later_parts.ts",
            X264 + " -bf 3 -frames:v 5",
            *(f"{X264} -bf 3 -frames:v 5 -output_ts_offset {40 * i}" for i in (1, 2, 3)),
        ),
        ("b_then_none.ts", X264, f"{X264} -bf 0"),
        ("none_then_b.ts", f"{X264} -bf 0", X264),
        ("same_clock_mpeg2.ts", MPEG2, MPEG2),
        ("same_clock_hevc.ts", X265, X265),
        ("same_clock.mpg", MPEG2, MPEG2),
        ("same_clock.m2ts", X264, X264),
        ("wrap_then_other.ts", f"{X264} -output_ts_offset {end - 1} -muxdelay 0", f"{X264} -output_ts_offset 400"),
        ("same_clock.mkv", X264, X264),
        ("same_clock.webm", VP8, VP8),
        ("same_clock.flv", X264, X264),
        ("same_clock.ogv", "-c:v libtheora -g 12 -q:v 7", "-c:v libtheora -g 12 -q:v 7"),
        ("same_clock_three.ogv", *["-c:v libtheora -g 12 -q:v 7"] * 3),
        ("joined.h264", X264, X264),
        ("joined.mjpeg", "-c:v mjpeg -pix_fmt yuvj420p", "-c:v mjpeg -pix_fmt yuvj420p"),
    ]:
        add("joined", name, arguments, join(*("|" + other for other in others)), **even)
    add(
        "joined",
        "with_sound.ts",
        f"-f lavfi -i sine=duration=2 {X264} -c:a aac",
        join(f"{SOURCE}|-f lavfi -i sine=duration=2 {X264} -c:a aac"),
        **even,
    )
    # Flaws.
    for suffix, codec in {
        "mp4": X264,
        "mkv": X264,
        "flv": X264,
        "avi": MPEG4,
        "mov": X265,
        "webm": VP9,
        "nut": MPEG2,
    }.items():
        for how in ("zeros", "noise", "head"):
            add("damaged", f"{how}.{suffix}", codec, damage((20,), how), is_exact=False)
    add("damaged", "zeros_av1.mp4", AV1, damage((20, 31), "zeros"), is_exact=False)
    add("damaged", "noise_prores.mov", "-c:v prores_ks", damage((20,), "noise"), is_exact=False)
    add("damaged", "zeros_png.mov", "-c:v png -pix_fmt rgb24", damage((20,), "zeros"), is_exact=False)
    add("damaged", "tail.mp4", X264, damage((20, 33), "tail"), is_exact=False)
    add("damaged", "keyframe.mp4", X264, damage((12,), "noise"), is_exact=False)
    add("damaged", "first.mp4", X264, damage((0,), "noise"), is_exact=False)
    add("damaged", "last.mp4", X264, damage((49,), "noise"), is_exact=False)
    add("damaged", "every_fourth.mp4", X264, damage(tuple(range(2, 50, 4)), "noise"), is_exact=False)
    add("damaged", "most.mp4", X264, damage(tuple(range(5, 50)), "zeros"), error="is damaged: .* packets do not decode")
    add("damaged", "mjpeg.avi", "-c:v mjpeg -pix_fmt yuvj420p", damage((20,), "noise"), is_exact=False)
    add("damaged", "lossy.ts", X264, lose((20, 31, 55)), is_exact=False)
    add("damaged", "lossy_mpeg2.ts", MPEG2, lose((20, 31, 55)), is_exact=False)
    add("damaged", "starts_inside.ts", X264, from_packet(17), is_exact=False)
    add("damaged", "starts_inside_mpeg2.ts", MPEG2, from_packet(17), is_exact=False)
    add("flags", "all_keys.mp4", X264, rename_box(b"stss", b"free"))
    add("flags", "all_keys_mpeg4.mp4", MPEG4, rename_box(b"stss", b"free"))
    add("flags", "all_keys_hevc.mp4", X265, rename_box(b"stss", b"free"))
    add("flags", "all_keys_mpeg4.mov", MPEG4 + " -bf 2", rename_box(b"stss", b"free"))
    add("flags", "shifted.mp4", X264, shift_sync_samples(1))
    add("flags", "shifted_mpeg4.mp4", MPEG4, shift_sync_samples(3))
    for suffix, codec in {"mkv": X264, "avi": MPEG4, "flv": X264, "webm": VP8, "nut": MPEG2}.items():
        add("flags", f"all_keys.{suffix}", codec, rewrite(mark_all))
        add("flags", f"first_alone.{suffix}", codec, rewrite(mark_first))
        add("flags", f"others.{suffix}", codec, rewrite(mark_others))
    for suffix, codec in {
        "mkv": X264,
        "webm": VP8,
        "ts": X264,
        "flv": X264,
        "avi": MPEG4,
        "gif": "",
        "mpg": MPEG2,
        "ogv": "-c:v libtheora",
        "nut": X264,
        "wmv": "-c:v wmv2",
    }.items():
        add("cut", f"cut.{suffix}", codec, cut(0.75), is_exact=False)
    for suffix in ("mp4", "mov"):
        add("cut", f"cut.{suffix}", X264 + " -movflags faststart", cut(0.75), is_exact=False)
    add("cut", "cut_fragments.mp4", X264 + " -movflags frag_keyframe+empty_moov", cut(0.75), is_exact=False)
    add("cut", "cut_before_index.mp4", X264, cut(0.75), error="is not a readable video")
    # Tracks.
    sound = "-f lavfi -i sine=duration=2"
    for suffix, codec in {
        "mp4": X264 + " -c:a aac",
        "mkv": X264 + " -c:a aac",
        "ts": X264 + " -c:a aac",
        "flv": X264 + " -c:a aac",
        "avi": MPEG4 + " -c:a mp3",
        "webm": VP8 + " -c:a libopus",
    }.items():
        add("tracks", f"sound.{suffix}", f"{sound} {codec}")
    add("tracks", "long_sound.mp4", f"-f lavfi -i sine=duration=6 {X264} -c:a aac")
    add("tracks", "sound_first.mp4", f"{sound} -map 1:a -map 0:v {X264} -c:a aac")
    add("tracks", "cover.mp4", X264, with_cover())
    add("tracks", "cover_first.mp4", X264, with_cover(first=True))
    for suffix in ("mp3", "flac", "wav", "m4a"):
        add("tracks", f"sound_alone.{suffix}", f"{sound} -map 1:a", error="has no video track")
    for suffix in ("mp3", "flac", "m4a"):
        add(
            "tracks",
            f"sound_with_cover.{suffix}",
            f"{sound} -map 1:a",
            with_cover(film=False),
            error="has no video track",
        )
    add("tracks", "unknown_codec.mp4", X264, unknown_codec(b"avc1"), error="unknown codec")
    add("tracks", "unknown_codec.mkv", X264, rename_box(b"V_MPEG4/ISO/AVC", b"V_ZZZZ4/ISO/AVC"), error="unknown codec")
    return cases


CASES = {f"{case.group}/{case.name}": case for case in _cases()}

# Of each kind a few, for the quick suite.
SPREAD = [
    "container/vp9.webm",
    "container/gif.gif",
    "elementary/raw.h264",
    "structure/open_gop.ts",
    "structure/hidden_frames.webm",
    "structure/b_frames_mpeg4.avi",
    "picture/10_bit.mp4",
    "picture/bt709_pc.mp4",
    "picture/ycgco.mp4",
    "picture/size_changes.ts",
    "clock/variable_rate.mkv",
    "clock/wraps_after_1.0.ts",
    "clock/stall_b3.ts",
    "clock/times_at_keys_h264.ts",
    "clock/late_pictures.mkv",
    "joined/b_then_none.ts",
    "damaged/head.mp4",
    "flags/all_keys_mpeg4.mp4",
    "cut/cut.ts",
    "tracks/sound_with_cover.m4a",
]


# What is known not to agree, and why.
KNOWN_FAILURES = {
    "cut/cut.nut": "what stands in for the lost part of the last frame depends on the number of threads",
}


# --- making and comparing --------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where the files lie: made anew if this file changes."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"cacovid-media-{os.getuid()}-{version}"


def make(case: Case) -> Path:
    """Make a file, unless it is there."""
    path = cache_folder() / case.group / case.name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder) / path.name
        ffmpeg("-f", "lavfi", "-i", case.source, *shlex.split(case.arguments), new)
        if case.flaw:
            case.flaw(new)
        new.replace(path)
    return path


def reference(path: Path) -> Reference:
    """What FFmpeg's command line shows of a file, decoded from its beginning."""
    command = f"ffmpeg -hide_banner -nostdin -threads 1 -i {shlex.quote(str(path))} -map 0:V:0 -vf showinfo -fps_mode passthrough"
    command += " -pix_fmt rgb24 -f image2pipe -c:v ppm -threads 1 -"
    done = subprocess.run(shlex.split(command), capture_output=True, timeout=120)
    times = [float(t) for t in re.findall(rb"Parsed_showinfo.* n: *\d+ .*?pts_time:(\S+)", done.stderr)]
    frames, data, place = [], done.stdout, 0
    while place < len(data):
        header = re.compile(rb"P6\n(\d+) (\d+)\n255\n").match(data, place)
        assert header
        width, height = int(header[1]), int(header[2])
        pixels = np.frombuffer(data, np.uint8, width * height * 3, header.end())
        frames.append(pixels.reshape(height, width, 3))
        place = header.end() + width * height * 3
    return Reference(frames, np.array(times[: len(frames)]) - (times[0] if times else 0))


def decoded_in_turn(path: Path) -> list[np.ndarray]:
    """Every frame that the library shows, decoded from the beginning, with what does not decode left out.

    How lost parts are replaced differs between versions of FFmpeg, so that the command line is no reference for the pixels of damaged files.
    """
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        graph = av.filter.Graph()
        for packet in container.demux(stream):
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                continue
            for picture in pictures:
                if not frames:
                    ends = [
                        graph.add_buffer(template=stream, time_base=stream.time_base),
                        graph.add("scale", "flags=bicubic"),
                        graph.add("format", "rgb24"),
                        graph.add("buffersink"),
                    ]
                    graph.link_nodes(*ends).configure()
                graph.push(picture)
                frames.append(graph.pull().to_ndarray())
    return frames


def compare(case: Case, path: Path, num_frames: int = 9) -> Comparison:
    """Sample a file with `read_video` and hold each frame against FFmpeg's of that number."""
    from cacovid_hf.video.files import read_video

    frames, metadata = read_video(path, num_frames, max_fps=math.inf, max_duration=math.inf)
    expected = reference(path)
    times = np.array([case.times(i) for i in range(len(expected.frames))]) if case.times else expected.times
    references = [expected.frames] if case.is_exact else [expected.frames, decoded_in_turn(path)]
    worst, off, is_nearest = 0.0, 0.0, True
    for frame, index, seconds in zip(frames, metadata.frames_indices, metadata.timestamps, strict=True):
        own = [difference(frame, shown[index]) for shown in references if index < len(shown)]
        near = [difference(frame, expected.frames[i]) for i in (index - 1, index + 1) if 0 <= i < len(expected.frames)]
        worst = max(worst, min(own, default=255.0))
        is_nearest &= min(own, default=255.0) <= min(near, default=255.0) + 1e-3
        off = max(off, abs(seconds - times[min(index, len(times) - 1)]))
    return Comparison(metadata.total_num_frames, len(expected.frames), worst, off, is_nearest)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean difference of two pictures in levels of 255; the second is scaled to the first one's size."""
    if theirs.shape != ours.shape:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(theirs), format="rgb24")
        theirs = picture.reformat(ours.shape[1], ours.shape[0], interpolation="BICUBIC").to_ndarray()
    return float(np.abs(ours.astype(int) - theirs.astype(int)).mean())


def verdict(case: Case) -> str:
    """`exact`, `mended`, `refused`, or what is wrong."""
    path = make(case)
    if case.error:
        from cacovid_hf.video.files import read_video

        try:
            read_video(path)
        except ValueError as error:
            return "refused" if re.search(case.error, str(error)) else f"FAILED: {error}"
        return "FAILED: read, though it should be refused"
    try:
        got = compare(case, path)
    except ValueError as error:
        return f"FAILED: {error}"
    tolerance = 0.75 if case.is_exact else 2.0
    slack = 0 if case.is_exact else 3
    wrong = []
    if abs(got.counted - got.expected) > slack:
        wrong.append(f"{got.counted} frames of {got.expected}")
    if got.pixels > tolerance and not (case.name.startswith("size_changes") and got.is_nearest):
        wrong.append(f"pixels differ by {got.pixels:.2f}")
    if case.is_exact and not got.is_nearest:
        wrong.append("another frame")
    if got.time > (0.006 if case.is_exact else 0.5):
        wrong.append(f"times differ by {got.time:.3f} s")
    return f"FAILED: {', '.join(wrong)}" if wrong else ("exact" if case.is_exact else "mended")


GROUPS = {
    "container": "containers and codecs",
    "elementary": "without a container",
    "structure": "order and references of frames",
    "picture": "formats, colours, sizes, turns",
    "clock": "clocks and variable rates",
    "joined": "joined recordings",
    "damaged": "damaged packets",
    "flags": "wrong keyframe flags",
    "cut": "cut files",
    "tracks": "sound, covers, unknown codecs",
}


def table(ends: dict[str, str]) -> str:
    """The tables of docs/reference/video_files.md."""
    lines = ["| kind | files | exact | mended | refused | not so |", "|---|---|---|---|---|---|"]
    for group, words in GROUPS.items():
        own = {key: end for key, end in ends.items() if CASES[key].group == group}
        counts = [sum(end == word for end in own.values()) for word in ("exact", "mended", "refused")]
        failed = [
            f"`{CASES[key].name}`: {end.removeprefix('FAILED: ')}"
            for key, end in own.items()
            if end.startswith("FAILED")
        ]
        lines.append(
            f"| {words} | {len(own)} | {counts[0]} | {counts[1]} | {counts[2]} | {'; '.join(failed) or 'none'} |"
        )
    lines += ["", "| container | read exactly with |", "|---|---|"]
    codecs: dict[str, list[str]] = {}
    for key, end in ends.items():
        codec, _, suffix = CASES[key].name.rpartition(".")
        if CASES[key].group == "container" and end == "exact":
            codecs.setdefault(suffix, []).append(codec)
    lines += [f"| {suffix} | {', '.join(sorted(names))} |" for suffix, names in sorted(codecs.items())]
    return "\n".join(lines)


def main(words: list[str]) -> None:
    writes = "--write" in words
    chosen = [key for key in CASES if writes or all(word in key for word in words)]
    ends = {}
    for key in chosen:
        try:
            ends[key] = verdict(CASES[key])
        except RuntimeError as error:  # this FFmpeg cannot make it
            ends[key] = f"not made: {' '.join(str(error).split())[-200:]}"
        if ends[key] not in ("exact", "mended", "refused"):
            print(key, ends[key], flush=True)
    print(len(ends), "files")
    print(table(ends))
    if writes:
        page = Path(__file__).parents[2] / "docs" / "reference" / "video_files.md"
        head, _, tail = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
        tail = tail[tail.index("<!-- end of table -->") :]
        made = {key: end for key, end in ends.items() if not end.startswith("not made")}
        page.write_text(f"{head}<!-- table -->\n\n{table(made)}\n\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
    assert shutil.which("ffmpeg"), "FFmpeg is needed"
    logging.disable(logging.WARNING)
    av.logging.set_level(None)
    main(sys.argv[1:])
