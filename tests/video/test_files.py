"""Video files to frames: which frames, exactly those, from any file that a user may give, and a clear word about those that cannot be read."""

import gc
import io
import math
import re
import resource
import struct
import sys
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.media import (
    HEIGHT,
    WIDTH,
    decode_all,
    numbered_picture,
    numbers_of,
    set_display_matrix,
    write_audio,
    write_video,
)
from PIL import Image

from cacovid_hf.video import decoding
from cacovid_hf.video.files import iter_chosen_frames, read_chosen_frames, read_video, uniform_indices
from cacovid_hf.video.limits import ReadingLimits

OPEN_GOP = {"x264-params": "open-gop=1:scenecut=0:b-adapt=0:keyint=12"}
CLIPS = {
    "one keyframe": ("a.mp4", dict(gop=1000, b_frames=0)),
    "B-frames": ("a.mp4", dict(b_frames=3)),
    "open groups of pictures": ("a.mp4", dict(b_frames=3, options=OPEN_GOP)),
    "every frame a keyframe": ("a.mp4", dict(gop=1)),
    "variable frame rate": ("a.mp4", dict(pts=[i + i * i // 8 for i in range(120)])),
    "fragmented mp4, no frame count": ("a.mp4", dict(container_options={"movflags": "frag_keyframe+empty_moov"})),
    "quicktime": ("a.mov", {}),
    "matroska, no frame count": ("a.mkv", {}),
    "webm": ("a.webm", dict(codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"})),
    "live matroska, no duration": ("a.mkv", dict(container_options={"live": "1"})),
    "transport stream, no index": ("a.ts", {}),
    "flash": ("a.flv", {}),
    "avi, decoding order only": ("a.avi", dict(b_frames=2)),
    "avi mpeg4": ("a.avi", dict(codec="mpeg4", b_frames=0)),
    "program stream": ("a.mpg", dict(codec="mpeg2video", fps=25)),
    "with sound": ("a.mp4", dict(audio=True)),
    "ntsc rate": ("a.mp4", dict(fps=Fraction(30000, 1001))),
}


@pytest.mark.parametrize("case", CLIPS)
@pytest.mark.parametrize("num_frames", [1, 7, 120])
def test_frames_are_those_of_a_full_decode(tmp_path, case, num_frames):
    name, options = CLIPS[case]
    path = write_video(tmp_path / name, 120, **options)

    frames, metadata = read_video(path, num_frames, max_fps=math.inf)

    expected = np.linspace(0, 119, num_frames, dtype=int).tolist()
    assert metadata.frames_indices == expected
    assert metadata.total_num_frames == 120
    assert frames.shape == (num_frames, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert numbers_of(frames) == expected
    np.testing.assert_array_equal(frames, decode_all(path)[expected])


def test_hevc_with_open_groups_is_frame_exact(tmp_path):
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no HEVC encoder")
    path = write_video(
        tmp_path / "a.mp4", 60, codec="libx265", options={"x265-params": "open-gop=1:keyint=12:log-level=none"}
    )

    frames, _ = read_video(path, 9, max_fps=math.inf)

    np.testing.assert_array_equal(frames, decode_all(path)[np.linspace(0, 59, 9, dtype=int)])


def test_an_edit_list_trims_the_clip(tmp_path):
    path = write_video(tmp_path / "a.mp4", 100)
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12
    duration, start = struct.unpack_from(">II", data, entry)
    struct.pack_into(">II", data, entry, duration // 2, start + 20 * 1024)
    path.write_bytes(data)
    assert numbers_of(decode_all(path)) == list(range(20, 70))

    frames, metadata = read_video(path, 6, max_fps=math.inf)

    assert numbers_of(frames) == [20 + i for i in metadata.frames_indices] == [20, 29, 39, 49, 59, 69]
    assert (metadata.total_num_frames, metadata.duration) == (50, 5.0)
    # The end alone: nothing that is decoded tells where the clip begins.
    late, _ = read_chosen_frames(path, lambda metadata: np.array([40, 49]))
    assert numbers_of(late) == [60, 69]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov"])
@pytest.mark.parametrize("b_frames", [0, 1, 2, 3])
def test_pauses_of_a_screen_recording(tmp_path, name, b_frames):
    """Pauses of 3 s lie within groups of pictures, so that a picture from behind one is decoded before it."""
    pts = [i + 30 * (i // 7) for i in range(30)]
    path = write_video(tmp_path / name, 30, pts=pts, b_frames=b_frames, options={"sc_threshold": "0"})
    frames, metadata = read_video(path, 30, max_fps=math.inf)
    assert numbers_of(frames) == list(range(30))
    assert metadata.timestamps == pytest.approx([time / 10 for time in pts], abs=1e-3)


class WatchedContainer:
    """A real container that notes whether it was closed."""

    def __init__(self, container):
        self.container, self.is_closed = container, False

    def __getattr__(self, name):
        return getattr(self.container, name)

    def close(self):
        self.is_closed = True
        self.container.close()


@pytest.fixture
def opened(monkeypatch):
    """The containers that were opened for reading."""
    containers = []
    av_open = av.open

    def counting_open(*args, **kwargs):
        containers.append(WatchedContainer(av_open(*args, **kwargs)))
        return containers[-1]

    return lambda: (monkeypatch.setattr(av, "open", counting_open), containers)[1]


@pytest.fixture
def decoded(monkeypatch):
    """The frames that were decoded."""
    frames = []
    decode = decoding._decoded

    def noting(*args, **kwargs):
        for frame in decode(*args, **kwargs):
            frames.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding, "_decoded", noting)
    return frames


def test_a_long_clip_is_sought_not_decoded(tmp_path, opened, decoded):
    path = write_video(tmp_path / "a.mp4", 2000, fps=30, gop=30, options={"preset": "ultrafast"})
    containers = opened()

    frames, metadata = read_video(path, 8)

    assert numbers_of(frames) == np.linspace(0, 1999, 8, dtype=int).tolist()
    assert metadata.total_num_frames == 2000
    # At most one group of pictures a frame, far from the 2,000 of the clip.
    assert len(containers) == 1
    assert len(decoded) <= 8 * 30


def test_a_short_clip_is_decoded_once(tmp_path, decoded):
    path = write_video(tmp_path / "a.mp4", 100, gop=20)

    frames, _ = read_video(path, 50, max_fps=math.inf)

    assert len(frames) == 50
    assert len(decoded) <= 100


@pytest.mark.parametrize("broken", [False, True])
def test_containers_are_closed(tmp_path, opened, broken):
    path = write_video(tmp_path / "a.mp4", 30, container_options={"movflags": "faststart"})
    if broken:
        path.write_bytes(path.read_bytes()[:-100])
    containers = opened()
    with pytest.raises(ZeroDivisionError):
        read_chosen_frames(path, lambda clip: 1 / 0)
    read_video(path)
    # A damaged clip is opened again to count its frames, and again to take some.
    assert len(containers) == (5 if broken else 2)
    assert all(container.is_closed for container in containers)


# --- sampling and metadata -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "duration", "num_frames", "max_fps", "expected"),
    [
        (300, 10.0, 32, 1.0, 10),
        (300, 10.0, 4, 1.0, 4),
        (300, 10.0, 32, 2.0, 20),
        (300, 10.0, 32, math.inf, 32),
        (300, 9.9999, 32, 1.0, 10),
        (300, 9.5, 32, 1.0, 9),
        (5, 10.0, 32, 1.0, 5),
        (10, 0.4, 32, 1.0, 1),
        (108_000, 3600.0, 32, 1.0, 32),
        (100, None, 32, 1.0, 32),
        (1, 0.04, 32, 1.0, 1),
    ],
)
def test_number_and_places_of_sampled_frames(total, duration, num_frames, max_fps, expected):
    indices = uniform_indices(total, duration, num_frames, max_fps)
    assert len(indices) == expected
    assert indices[0] == 0
    assert expected == 1 or indices[-1] == total - 1
    assert (np.diff(indices) > 0).all()


def test_metadata_of_a_constant_rate(tmp_path):
    _, metadata = read_video(write_video(tmp_path / "a.mp4", 75, fps=25))
    assert metadata.total_num_frames == 75
    assert metadata.fps == pytest.approx(25)
    assert metadata.duration == pytest.approx(3.0)
    assert metadata.frames_indices == [0, 37, 74]
    assert (metadata.width, metadata.height, metadata.video_backend) == (WIDTH, HEIGHT, "pyav")
    assert metadata.timestamps == pytest.approx([0, 37 / 25, 74 / 25])


def test_metadata_of_a_variable_rate_is_the_mean(tmp_path):
    # 11 frames, the last one 10 seconds after the first.
    _, metadata = read_video(write_video(tmp_path / "a.mp4", 11, fps=10, pts=[i * i for i in range(11)]))
    assert metadata.duration == pytest.approx(10, abs=2)
    assert metadata.fps * metadata.duration == pytest.approx(11)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_times_count_from_the_first_picture(tmp_path, suffix):
    """Sound begins at 0, and the pictures at 3 seconds."""
    path = write_video(tmp_path / f"a.{suffix}", 40, pts=range(30, 70), audio=True)
    frames, metadata = read_video(path)
    assert numbers_of(frames) == [0, 13, 26, 39]
    assert metadata.timestamps == pytest.approx([0, 1.3, 2.6, 3.9], abs=2e-3)
    assert metadata.duration == pytest.approx(4.0, abs=2e-3)


def test_one_frame_is_a_video(tmp_path):
    frames, metadata = read_video(write_video(tmp_path / "a.mp4", 1, fps=10))
    assert frames.shape == (1, HEIGHT, WIDTH, 3)
    assert (metadata.total_num_frames, metadata.frames_indices) == (1, [0])
    assert metadata.duration == pytest.approx(0.1)


def test_chosen_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40)
    frames, metadata = read_chosen_frames(path, lambda clip: [3, clip.total_num_frames - 1])
    assert numbers_of(frames) == [3, 39] == metadata.frames_indices
    with pytest.raises(ValueError, match="No frame was chosen of the 40"):
        read_chosen_frames(path, lambda clip: [])


# --- orientation -----------------------------------------------------------------------------------------------------------------


def copied(path, target):
    """The packets of a file in another container, with what its track says."""
    if not hasattr(av.container.OutputContainer, "add_stream_from_template"):
        pytest.skip("PyAV before 14 copies tracks otherwise")
    with av.open(str(path)) as old, av.open(str(target), "w") as new:
        track = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = track
                new.mux(packet)
    return target


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # a phone held upright: shown turned clockwise
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_display_matrix_is_honoured(tmp_path, matrix, turned, suffix):
    picture = numbered_picture(0b000_000_000_011)  # white in one corner, and longer that way
    path = set_display_matrix(write_video(tmp_path / "a.mp4", [picture] * 3), *matrix)
    if suffix != "mp4":
        path = copied(path, tmp_path / f"a.{suffix}")

    frames, metadata = read_video(path)

    np.testing.assert_allclose(frames[0].astype(int), turned(picture), atol=60)
    assert (metadata.height, metadata.width) == frames.shape[1:3]


# --- what may be given -----------------------------------------------------------------------------------------------------------


def test_paths_and_file_objects_give_the_same(tmp_path):
    path = write_video(tmp_path / "a clip: 100%.mp4", 30)
    expected, _ = read_video(path)
    with open(path, "rb") as file:
        file.seek(100)
        for source in (str(path), file, io.BytesIO(path.read_bytes())):
            frames, metadata = read_video(source)
            np.testing.assert_array_equal(frames, expected)
            assert metadata.total_num_frames == 30
        assert not file.closed


class Pipe(io.RawIOBase):
    """A file that cannot seek."""

    def readable(self):
        return True

    def readinto(self, buffer):
        return 0


@pytest.mark.parametrize("source", [io.StringIO("text"), Pipe(), b"bytes", 7, None])
def test_unreadable_sources_are_refused(source):
    with pytest.raises(
        ValueError, match=rf"type {type(source).__name__} cannot be read: give a path, or an open binary file"
    ):
        read_video(source)


def truncated(path, fraction, **options):
    write_video(path, 100, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def truncated_within_index(path):
    """The index is at the end, and what describes its track is cut off."""
    write_video(path, 100)
    data = path.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    path.write_bytes(data[: data.index(b"stsd")])


def write(path, text):
    path.write_text(text)


def zero_duration(path):
    """Frames whose table of times says that none lasts any time."""
    write_video(path, 30, b_frames=0)
    data = bytearray(path.read_bytes())
    entry = data.index(b"stts") + 12
    struct.pack_into(">II", data, entry, 30, 0)
    path.write_bytes(data)


def no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()


def playlist(path):
    other = write_video(path.with_name("other.ts"), 30)
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{other}\n#EXT-X-ENDLIST\n")


def picture(suffix, **options):
    def make(path):
        image = Image.new("RGB", (WIDTH, HEIGHT), "red")
        image.save(path.with_suffix(f".{suffix}"), **options)
        path.with_suffix(f".{suffix}").rename(path)

    return make


def sound(format, codec):
    """A second of sound in a container that holds nothing else."""

    def make(path):
        with av.open(str(path), "w", format=format) as container:
            stream = container.add_stream(codec, rate=16000 if codec.startswith("pcm") else 48000)
            samples = np.zeros((1, stream.rate), np.int16 if codec.startswith("pcm") else np.float32)
            frame = av.AudioFrame.from_ndarray(
                samples, format="s16" if codec.startswith("pcm") else "fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = stream.rate, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    return make


def sound_with_cover(path):
    """Its only pictures are a track of one JPEG, which no flag marks as a cover."""
    with av.open(str(path), "w", format="matroska") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        tone = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 48000, 0
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered_picture(0), format="rgb24")))
        container.mux([*cover.encode(None), *tone.encode(silence), *tone.encode(None)])


def still_avif(path):
    """A file of one frame, whose brand says that it is a picture."""
    write_video(path, 1)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"ftypisom", b"ftypavif", 1))


def encrypted(path):
    key = "00112233445566778899aabbccddeeff"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    write_video(path, 60, gop=12, container_options=options)


ANIMATED = dict(save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), "blue")], duration=100)
BAD_FILES = {
    "missing": (lambda path: None, FileNotFoundError, "does not exist: check the path"),
    "directory": (lambda path: path.mkdir(), ValueError, "is not a file: give the path of one video file"),
    "empty": (lambda path: path.touch(), ValueError, r"is empty \(0 bytes\): copy or download it again"),
    "cut before its index": (
        lambda path: truncated(path, 0.5),
        ValueError,
        "is not a readable video .* may be truncated",
    ),
    "cut within its index": (
        truncated_within_index,
        ValueError,
        r"is truncated: it has \d+ of the \d+ bytes that it announces\. Copy or download it again",
    ),
    "text": (lambda path: write(path, "no video\n" * 500), ValueError, "is not a readable video .* of another type"),
    "playlist": (playlist, ValueError, "is not a readable video"),
    "sound alone": (write_audio, ValueError, r"has no video track \(audio alone\?\)"),
    "sound alone, ac3": (sound("ac3", "ac3"), ValueError, r"has no video track \(audio alone\?\)"),
    "sound alone, aiff": (sound("aiff", "pcm_s16be"), ValueError, r"has no video track \(audio alone\?\)"),
    "sound alone, au": (sound("au", "pcm_s16be"), ValueError, r"has no video track \(audio alone\?\)"),
    "sound alone, caf": (sound("caf", "pcm_s16be"), ValueError, r"has no video track \(audio alone\?\)"),
    "sound alone, w64": (sound("w64", "pcm_s16le"), ValueError, r"has no video track \(audio alone\?\)"),
    "a jpeg": (picture("jpg"), ValueError, r"is a picture \(JPEG\), not a video: give it as an image"),
    "a png": (picture("png"), ValueError, r"is a picture \(PNG\), not a video: give it as an image"),
    "a webp": (picture("webp"), ValueError, r"is a picture \(WEBP\), not a video: give it as an image"),
    "a bmp": (picture("bmp"), ValueError, r"is a picture \(BMP\), not a video: give it as an image"),
    "a tiff": (picture("tiff"), ValueError, r"is a picture \(TIFF\), not a video: give it as an image"),
    "a gif": (picture("gif"), ValueError, r"is a picture \(GIF\), not a video: give it as an image"),
    "an avif": (still_avif, ValueError, r"is a picture \(AVIF\), not a video: give it as an image"),
    "sound with a cover, matroska": (sound_with_cover, ValueError, r"has no video track \(audio alone\?\)"),
    "encrypted": (encrypted, ValueError, r"is encrypted: give a file without protection"),
    "an animated webp": (
        picture("webp", **ANIMATED),
        ValueError,
        "is an animated WebP picture, .* convert it to gif or mp4",
    ),
    "no frames": (no_frames, ValueError, "is not a readable video|no video track|without frames"),
    "zero duration": (
        zero_duration,
        ValueError,
        r"has \d+ frames but lasts 0 seconds: export it again with timestamps",
    ),
    "absurd resolution": (
        lambda path: write_video(path, [np.zeros((4400, 7600, 3), np.uint8)], codec="mpeg4", b_frames=0),
        ValueError,
        "has frames of 7600x4400 pixels, over the limit max_pixels=33177600: scale it down, or raise the limit",
    ),
    "absurd duration": (
        lambda path: write_video(path, 2, fps=1, pts=[0, 100_000]),
        ValueError,
        "lasts 100001 seconds, over the limit max_duration=86400: cut it, or raise the limit",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_get_one_clear_error(tmp_path, case):
    make, kind, message = BAD_FILES[case]
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(kind, match=f"^{re.escape(str(path))} .*({message})") as error:
        read_video(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_frames", [0, -1, 2.0, "8", None, True])
def test_wrong_num_frames(num_frames):
    with pytest.raises(ValueError, match=rf"num_frames={num_frames!r}: give the largest number of frames"):
        read_video("never opened.mp4", num_frames)


@pytest.mark.parametrize("max_fps", [0, -1.0, math.nan, "1", None, True])
def test_wrong_max_fps(max_fps):
    with pytest.raises(ValueError, match=rf"max_fps={max_fps!r}: give the largest number of frames a second"):
        read_video("never opened.mp4", max_fps=max_fps)


def test_limits_may_be_set(tmp_path):
    path = write_video(tmp_path / "a.mp4", 30, fps=10)
    with pytest.raises(ValueError, match=f"frames of 64x48 pixels, over the limit max_pixels={WIDTH * HEIGHT - 1}"):
        read_video(path, max_pixels=WIDTH * HEIGHT - 1)
    with pytest.raises(ValueError, match=r"lasts 3 seconds, over the limit max_duration=2\.5"):
        read_video(path, max_duration=2.5)
    assert len(read_video(path, max_pixels=WIDTH * HEIGHT, max_duration=3)[0]) == 3


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="needs PyAV: pip install av"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_metadata_in_another_encoding(tmp_path, suffix):
    """A title that is not UTF-8 is nobody's problem."""
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "CAFEZZ"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert b"CAFEZZ" in data
    path.write_bytes(data.replace(b"CAFEZZ", b"CAF\xe9ZZ"))
    assert read_video(path, max_fps=10)[0].shape == (20, 32, 32, 3)


CUT_FILES = {
    "mp4": dict(container_options={"movflags": "faststart"}),
    "mov": dict(container_options={"movflags": "faststart"}),
    "mkv": {},
    "webm": dict(codec="libvpx"),
    "avi": dict(b_frames=0),
    "ts": {},
    "flv": {},
    "gif": dict(codec="gif"),
}


@pytest.mark.parametrize("suffix", CUT_FILES)
def test_a_cut_file_gives_what_it_holds_and_one_warning(tmp_path, caplog, suffix):
    path = write_video(tmp_path / f"clip.{suffix}", 100, fps=25, **{"gop": 2, **CUT_FILES[suffix]})
    read_video(path)
    assert not caplog.records

    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.8)])
    frames, metadata = read_video(path, 100, max_fps=math.inf)

    assert f"{path} is truncated or damaged" in caplog.text
    assert 20 <= metadata.total_num_frames < 97
    assert numbers_of(frames)[:20] == list(range(20))
    assert metadata.duration == pytest.approx(metadata.total_num_frames / 25, abs=0.13)


def gif_of(path, pictures, side):
    """A GIF of a few bytes with a large canvas, drawn upon by one pixel a picture, each for a tenth of a second."""
    size = struct.pack("<HH", side, side)
    picture = b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"
    path.write_bytes(b"GIF89a" + size + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff" + picture * pictures + b";")
    return path


def test_held_frames_are_bounded_before_decoding(tmp_path, decoded):
    path = gif_of(tmp_path / "a.gif", 40, 5760)
    assert path.stat().st_size == 940
    with pytest.raises(
        ValueError, match=r"32 sampled frames of 5760x5760 pixels are over the limit max_sampled_pixels"
    ):
        read_video(path, 32, max_fps=math.inf)
    assert not decoded
    small = gif_of(tmp_path / "b.gif", 40, 64)
    with pytest.raises(
        ValueError, match="8 sampled frames of 64x64 pixels are over the limit max_sampled_pixels=32767"
    ):
        read_video(small, 8, max_fps=math.inf, max_sampled_pixels=32767)
    assert read_video(small, 8, max_fps=math.inf, max_sampled_pixels=32768)[0].shape == (8, 64, 64, 3)


def test_chunks_are_bounded_each(tmp_path):
    path = gif_of(tmp_path / "a.gif", 40, 64)
    choose = lambda clip: range(8)  # noqa: E731
    chunks = list(iter_chosen_frames(path, choose, 2, ReadingLimits(max_sampled_pixels=2 * 64 * 64)))
    assert [len(frames) for frames, _ in chunks] == [2] * 4


def test_frames_do_not_stay_in_memory(tmp_path):
    """Each frame that was converted is free at once: none waits for a search for cycles."""
    path = gif_of(tmp_path / "a.gif", 40, 2048)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gc.disable()
    try:
        for frames, _ in iter_chosen_frames(path, lambda clip: range(40), 1):
            assert len(frames) == 1
    finally:
        gc.enable()
    # 40 frames of 16 MiB are decoded, a few of them held at a time.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250 * 1024


def damage(path, number):
    """Overwrite a packet of a file."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    start, size = packets[number]
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    return path


def test_a_damaged_packet_costs_its_own_frame_and_a_warning(tmp_path, caplog):
    path = damage(write_video(tmp_path / "a.mp4", 60, gop=1), 20)

    frames, metadata = read_video(path, 59, max_fps=math.inf)

    assert numbers_of(frames) == [i for i in range(60) if i != 20]
    assert metadata.timestamps == pytest.approx([i / 10 for i in range(60) if i != 20])
    assert f"{path} is damaged: 1 of its 60 packets do not decode" in caplog.text


def copied_track(container, source):
    """A track for packets that are copied; PyAV before 14 has one function for it and for encoders."""
    add = getattr(container, "add_stream_from_template", None)
    return add(source) if add else container.add_stream(template=source)


def test_the_cover_of_a_film_may_be_its_first_and_largest_track(tmp_path):
    film = write_video(tmp_path / "film.mkv", 20)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as made, av.open(str(film)) as source:
        cover = made.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = 4 * HEIGHT, 4 * WIDTH, "yuvj420p"
        track = copied_track(made, source.streams.video[0])
        large = np.repeat(np.repeat(numbered_picture(0), 4, 0), 4, 1)
        made.mux([*cover.encode(av.VideoFrame.from_ndarray(large, format="rgb24")), *cover.encode(None)])
        for packet in (p for p in source.demux(video=0) if p.size):
            packet.stream = track
            made.mux(packet)

    assert numbers_of(read_video(path, 20, max_fps=math.inf)[0]) == list(range(20))


def test_packets_in_a_row_that_show_nothing_are_told(tmp_path, caplog):
    """The second part of a joined file, whose header names the size of the first part alone."""
    options = {"x265-params": "log-level=none:bframes=0:pools=1"}
    wide = [np.tile(numbered_picture(number), (1, 2, 1)) for number in range(30)]
    parts = [
        write_video(tmp_path / "1.mp4", wide, codec="libx265", options=options),
        write_video(tmp_path / "2.mp4", 30, codec="libx265", options=options),
    ]
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as joined, av.open(str(parts[0])) as first, av.open(str(parts[1])) as second:
        track = copied_track(joined, first.streams.video[0])
        for number, packet in enumerate(p for part in (first, second) for p in part.demux(video=0) if p.size):
            packet.pts = packet.dts = number * (packet.time_base.denominator // 10)
            packet.stream = track
            joined.mux(packet)

    _, metadata = read_video(path, 9, max_fps=math.inf)

    if metadata.total_num_frames == 60:
        pytest.skip("this FFmpeg decodes the second size, too")
    assert metadata.total_num_frames == 30
    assert f"{path} is damaged: 30 packets in a row, of 60, show nothing and are left out" in caplog.text


def test_a_mostly_damaged_file_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", 9, gop=1)
    for number in range(4, 9):
        damage(path, number)
    with pytest.raises(ValueError, match=r"is damaged: 5 of its 9 packets do not decode"):
        read_video(path)


def test_what_is_noticed_between_chunks(tmp_path, monkeypatch):
    """Chunks that went out stay as they are, and those behind them show the same times."""
    path = write_video(tmp_path / "a.mp4", 60, gop=10)
    start = decoding._Groups.start

    def failing(groups, group):
        if group == 3:
            raise decoding.Unexpected("as if a packet were another one")
        return start(groups, group)

    monkeypatch.setattr(decoding._Groups, "start", failing)
    chunks = list(iter_chosen_frames(path, lambda clip: [0, 12, 25, 38, 55], 2))
    assert [numbers_of(frames) for frames, _ in chunks] == [[0, 12], [25, 38], [55]]


def test_keyframe_flags_that_lie(tmp_path):
    """Every sample of an mp4 without a table of keyframes passes for one."""
    path = write_video(tmp_path / "a.mp4", 100, codec="mpeg4", b_frames=0, gop=20)
    expected = decode_all(path)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    frames, metadata = read_video(path, 13, max_fps=math.inf)
    np.testing.assert_array_equal(frames, expected[metadata.frames_indices])


def test_a_codec_that_is_not_known(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(ValueError, match="has a video track of an unknown codec: convert it"):
        read_video(path)


def test_a_picture_is_refused_before_it_is_decoded(tmp_path):
    """A PNG of 160 kilobytes that takes 169 MB."""
    side = 13_000
    packer = zlib.compressobj()
    rows = b"".join([packer.compress(bytes(side + 1)) for _ in range(side)]) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    data = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"is a picture \(PNG\)"):
        read_video(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_pictures_one_behind_the_other_are_a_video(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "one.jpg")
    (tmp_path / "a.mjpeg").write_bytes((tmp_path / "one.jpg").read_bytes() * 25)
    frames, metadata = read_video(tmp_path / "a.mjpeg", 3, max_fps=math.inf)
    assert (frames.shape, metadata.total_num_frames) == ((3, HEIGHT, WIDTH, 3), 25)


def test_elementary_streams_have_the_rate_that_they_state(tmp_path):
    path = write_video(tmp_path / "a.h264", 60, fps=30)
    frames, metadata = read_video(path, 7, max_fps=math.inf)
    assert numbers_of(frames) == metadata.frames_indices == np.linspace(0, 59, 7, dtype=int).tolist()
    assert metadata.fps == pytest.approx(30)
    assert metadata.timestamps == pytest.approx([i / 30 for i in metadata.frames_indices])


def test_a_joined_recording_in_a_file_object(tmp_path):
    """A file object is read again from its beginning where its clock cannot be sought by."""
    first = write_video(tmp_path / "a.ts", 40).read_bytes()
    second = write_video(tmp_path / "b.ts", [numbered_picture(i) for i in range(40, 80)]).read_bytes()
    frames, metadata = read_video(io.BytesIO(first + second), 80, max_fps=math.inf)
    assert numbers_of(frames) == list(range(80))
    assert metadata.timestamps == pytest.approx([i / 10 for i in range(80)])


def test_a_table_that_no_file_could_hold_is_refused_before_it_is_made(tmp_path):
    """Of 80 million samples of one byte, announced in some thousand bytes, FFmpeg would make a table of gigabytes."""
    path = write_video(tmp_path / "a.mp4", 10)
    data = bytearray(path.read_bytes())
    entry = data.index(b"stsz") + 8
    struct.pack_into(">II", data, entry, 1, 80_000_000)
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"announces 80000000 samples in {len(data)} bytes: it is damaged"):
        read_video(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_damage_between_the_sampled_frames_is_counted(tmp_path):
    """The packet is not decoded for its own sake: its first bytes tell."""
    path = damage(write_video(tmp_path / "a.mp4", 60, gop=1), 20)
    frames, metadata = read_video(path, 3, max_fps=math.inf)
    assert metadata.total_num_frames == 59
    assert numbers_of(frames) == [0, 30, 59]


@pytest.mark.skipif(
    not hasattr(av.container.OutputContainer, "add_stream_from_template"),
    reason="PyAV before 14 copies tracks otherwise",
)
def test_times_in_decoding_order(tmp_path):
    """Some writers give each packet the time at which it is decoded; the frames come in the order of the decoder."""
    source = write_video(tmp_path / "a.mkv", 60, b_frames=3)
    path = tmp_path / "b.mkv"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        track = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            packet.pts = packet.dts = 100 * number
            packet.stream = track
            new.mux(packet)
    frames, metadata = read_video(path, 60, max_fps=math.inf)
    assert numbers_of(frames) == list(range(60))
    assert metadata.timestamps == pytest.approx([i / 10 for i in range(60)])
