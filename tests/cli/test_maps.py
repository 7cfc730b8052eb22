"""The picture of kept and dropped tokens: real PNG files, read back."""

import os
import sys

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from cacovid_cli.maps import check_map_target, draw_map, save_map
from cacovid_hf.prompt import VideoSelection, VideoSpan

COLOR = (200, 30, 60)  # of a frame in the tests; no score's and no label's


def selection(grid, keep=None, scored=True, seed=0):
    steps, rows, columns = grid
    generator = torch.Generator().manual_seed(seed)
    if keep is None:
        keep = torch.rand(steps, rows * columns, generator=generator) < 0.25
    token_scores = torch.randn(steps, rows * columns, generator=generator) if scored else None
    frame_scores = torch.randn(steps, generator=generator) if scored else None
    span = VideoSpan(0, grid, torch.arange(steps * rows * columns))
    return VideoSelection(span, keep.view(steps, rows * columns), token_scores, frame_scores)


def frames_of(number, height, width):
    return np.broadcast_to(np.array(COLOR, dtype=np.uint8), (number, height, width, 3)).copy()


def drawn(tmp_path, frames, selected, **options):
    save_map(tmp_path / "map.png", frames, selected, **options)
    assert os.listdir(tmp_path) == ["map.png"]
    with Image.open(tmp_path / "map.png") as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def colored(picture):
    """The pixels that are a kept token's."""
    return (picture == COLOR).all(axis=2)


SHAPES = {
    "8 small frames": ((8, 84, 84), (8, 6, 6)),
    "32 frames": ((32, 384, 384), (32, 14, 14)),
    "two frames a step": ((32, 120, 200), (16, 6, 10)),
    "odd number of frames": ((9, 120, 200), (5, 6, 10)),
    "one frame": ((1, 84, 84), (1, 6, 6)),
    "many wide frames": ((64, 90, 640), (64, 2, 13)),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scored", [True, False])
def test_sizes(tmp_path, name, scored):
    (number, height, width), grid = SHAPES[name]
    picture = drawn(tmp_path, frames_of(number, height, width), selection(grid, scored=scored), caption="who? me")
    assert 500 <= picture.shape[1] <= 1500
    assert 300 <= picture.shape[0] <= 2000


@pytest.mark.parametrize("name", SHAPES)
def test_kept_tokens_are_clear_and_dropped_ones_are_not(tmp_path, name):
    (number, height, width), grid = SHAPES[name]
    frames = frames_of(number, height, width)
    everything = torch.ones(grid[0], grid[1] * grid[2], dtype=torch.bool)
    full = colored(drawn(tmp_path, frames, selection(grid, everything))).sum()
    assert full > 2000 * number
    assert colored(drawn(tmp_path, frames, selection(grid, ~everything))).sum() == 0
    half = everything.view(grid).clone()
    half[:, grid[1] // 2 :] = False
    assert colored(drawn(tmp_path, frames, selection(grid, half))).sum() == pytest.approx(full / 2, rel=0.05)


def test_tokens_are_clear_where_they_are(tmp_path):
    """One token kept: its cell, and no other, shows the frame."""
    frames, grid = frames_of(2, 84, 84), (2, 6, 6)
    tile = np.argwhere(colored(drawn(tmp_path, frames[:1], selection((1, 6, 6), torch.ones(36, dtype=torch.bool)))))
    (top, left), (bottom, right) = tile.min(axis=0), tile.max(axis=0) + 1
    for token in (0, 5, 14, 35):
        keep = torch.zeros(2, 36, dtype=torch.bool)
        keep[0, token] = True
        pixels = np.argwhere(colored(drawn(tmp_path, frames, selection(grid, keep))))
        row, column = divmod(token, 6)
        center = (top + (row + 0.5) / 6 * (bottom - top), left + (column + 0.5) / 6 * (right - left))
        np.testing.assert_allclose((pixels.min(axis=0) + pixels.max(axis=0) + 1) / 2, center, atol=1.5)
        assert len(pixels) == pytest.approx((bottom - top) * (right - left) / 36, rel=0.1)


def test_scores_are_drawn(tmp_path):
    frames, keep = frames_of(8, 84, 84), torch.zeros(8, 36, dtype=torch.bool)
    pictures = [drawn(tmp_path, frames, selection((8, 6, 6), keep, seed=seed)) for seed in (0, 0, 1)]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()
    without = drawn(tmp_path, frames, selection((8, 6, 6), keep, scored=False))
    assert without.shape[0] < pictures[0].shape[0] - 100
    # The highest score of the video has the last colour of the map, the lowest the first.
    span, scores = selection((8, 6, 6)).span, torch.zeros(8, 36)
    scores[3, 7], scores[5, 1] = 4.0, -4.0
    picture = drawn(tmp_path, frames, VideoSelection(span, keep, scores, torch.zeros(8)))
    for value in (0.0, 1.0):
        color = np.array(matplotlib.colormaps["magma"](value)[:3]) * 255
        assert (np.abs(picture - color) < 2).all(axis=2).sum() > 400


def test_constant_scores_and_frames_of_both_extremes(tmp_path):
    span = selection((2, 6, 6)).span
    keep = torch.ones(2, 36, dtype=torch.bool)
    for value in (0, 255):
        frames = np.full((2, 84, 84, 3), value, dtype=np.uint8)
        drawn(tmp_path, frames, VideoSelection(span, keep, torch.zeros(2, 36), torch.zeros(2)))


def test_words_are_taken_as_they_are(tmp_path):
    frames, selected = frames_of(2, 84, 84), selection((2, 6, 6))
    plain = drawn(tmp_path, frames, selected)
    caption = "does $x_{ cost 5$ \\frac{1}{ or <b>6$</b>?\n" + "word " * 200
    captioned = drawn(tmp_path, frames, selected, caption=caption, seconds=[0.0, 12.5])
    assert captioned.shape[1] == plain.shape[1]


def test_nothing_global_of_matplotlib_changes(tmp_path):
    settings = dict(matplotlib.rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    drawn(tmp_path, frames_of(2, 84, 84), selection((2, 6, 6)))
    assert dict(matplotlib.rcParams) == settings
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_a_figure_for_notebooks():
    figure = draw_map(frames_of(2, 84, 84), selection((2, 6, 6)))
    assert figure.get_dpi() == 100
    assert figure.axes


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((8, 84, 84), dtype=np.uint8), r"frames are uint8 \(8, 84, 84\)"),
        (np.zeros((8, 84, 84, 3), dtype=np.float32), "frames are float32"),
        (np.zeros((7, 84, 84, 3), dtype=np.uint8), "There are 7 frames for 8 temporal steps"),
    ],
)
def test_wrong_frames(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        save_map(tmp_path / "map.png", frames, selection((8, 6, 6)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("map.jpg", ValueError, "give a name that ends in .png"),
        ("map", ValueError, "give a name that ends in .png"),
        ("folder.png", IsADirectoryError, "is a folder"),
        ("missing/map.png", OSError, r"No map can be written to .*missing/map\.png \(No such file or directory\)"),
        ("file/map.png", OSError, r"\(Not a directory\)"),
    ],
)
def test_wrong_targets(tmp_path, name, kind, message):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for write in (check_map_target, lambda path: save_map(path, frames_of(8, 84, 84), selection((8, 6, 6)))):
        with pytest.raises(kind, match=message):
            write(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_an_earlier_map_is_replaced_only_by_a_whole_one(tmp_path):
    drawn(tmp_path, frames_of(8, 84, 84), selection((8, 6, 6)))
    before = (tmp_path / "map.png").read_bytes()
    with pytest.raises(ValueError, match="There are 1 frames"):
        save_map(tmp_path / "map.png", frames_of(1, 84, 84), selection((8, 6, 6)))
    assert (tmp_path / "map.png").read_bytes() == before


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="needs matplotlib: pip install"):
        check_map_target(tmp_path / "map.png")
