"""Parts of clips and folders of pictures."""

import numpy as np
import pytest
from helpers.media import numbers_of, write_video
from helpers.processors import tiny_processor
from PIL import Image

from cacovid_hf.evaluation.clips import read_clip
from cacovid_hf.evaluation.datasets import Clip


@pytest.mark.parametrize(
    ("start", "end", "shown"),
    [(0, 2, [0, 1]), (5, 10, [5, 6, 7, 8, 9]), (15, 20, [15, 16, 17, 18, 19]), (4.5, 4.9, [4])],
)
def test_a_part_of_a_clip_with_a_variable_rate(tmp_path, start, end, shown):
    """Ten pictures in the first second, then one a second: the pictures of the part, at the times at which they are shown."""
    path = write_video(tmp_path / "a.mp4", 30, pts=[*range(10), *range(10, 201, 10)], b_frames=0, gop=5)
    clip = read_clip(tiny_processor("llava_onevision"), Clip(path, start=float(start), end=float(end)), 8)
    seconds = [number / 10 if number < 10 else number - 9 for number in numbers_of(clip.frames)]
    assert seconds == shown
    assert clip.timestamps == pytest.approx(seconds, abs=0.01)
    assert clip.metadata.sampled_fps == pytest.approx(len(shown) / (end - start))


def test_pictures_of_a_folder_are_bounded_before_decoding(tmp_path):
    Image.fromarray(np.zeros((8000, 8000), np.uint8)).convert("1").save(tmp_path / "0.png")
    for number in range(1, 9):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"9 sampled frames of 8000x8000 pixels are over the limit"):
        read_clip(tiny_processor("llava_onevision"), Clip(tmp_path, fps=1.0), 9)
