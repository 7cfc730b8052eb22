"""Pictures shown as videos, and the curriculum that begins with them."""

import io
import json

import numpy as np
import pytest
import torch
from helpers.small_training import Collator, trainer
from PIL import Image
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.dataset import QuestionDataset
from cacovid_hf.training.batches import SampleBatches
from cacovid_hf.training.config import read_config
from cacovid_hf.training.data import AnswerCollator
from cacovid_hf.training.from_yaml import make_trainer
from cacovid_hf.training.stills import BRIGHTNESS, are_images, picture_of, still_video

PICTURE = np.random.default_rng(0).integers(0, 200, (64, 96, 3)).astype(np.uint8)


def encoded(picture, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def test_a_still_video_is_copies_that_move_and_flicker_a_little():
    frames = still_video(PICTURE, 6)
    assert (frames.shape, frames.dtype) == ((6, *PICTURE.shape), np.uint8)
    assert np.array_equal(frames[0], PICTURE)
    assert np.array_equal(frames, still_video(PICTURE, 6))
    assert not np.array_equal(frames[1:], still_video(PICTURE // 2, 6)[1:])
    for frame in frames[1:]:
        # Of one of the few shifts the frame is a lighter or darker copy, to rounding.
        errors = []
        for down in range(-2, 3):
            for right in range(-3, 4):
                moved = np.roll(PICTURE, (-down, -right), (0, 1))[4:-4, 4:-4].astype(float)
                light = (frame[4:-4, 4:-4] * moved).sum() / (moved**2).sum()
                errors.append((np.abs(frame[4:-4, 4:-4] - light * moved).max(), abs(light - 1)))
        error, change = min(errors)
        assert error <= 1
        assert change <= BRIGHTNESS + 0.01
    assert len({frame.tobytes() for frame in frames}) == 6


def test_pictures_from_everywhere(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PICTURE))
    for sample in (
        {"path": "a.png"},
        {"image": str(tmp_path / "a.png")},
        {"image": encoded(PICTURE)},
        {"image": {"bytes": encoded(PICTURE), "path": None}},
        {"image": {"bytes": None, "path": "a.png"}},
        {"image": Image.fromarray(PICTURE)},
        {"image": PICTURE, "path": "not looked at"},
    ):
        assert np.array_equal(picture_of(sample, tmp_path), PICTURE)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_pictures_of_other_modes_are_their_colours(mode):
    """As `datasets` decodes files of grey, with a palette or with transparency."""
    picture = Image.fromarray(PICTURE).convert(mode)
    assert np.array_equal(picture_of({"image": picture}), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({}, "neither image nor path"),
        ({"path": "https://example.org/a.png"}, "the image is an address"),
        ({"path": "../a.png"}, "leads out of"),
        ({"image": b"no picture"}, "cannot identify image"),
        ({"image": np.zeros((4, 4))}, r"of shape \(4, 4\)"),
    ],
)
def test_what_is_no_picture(sample, message, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        picture_of(sample, tmp_path)


def test_a_picture_of_too_many_pixels_is_a_sample_that_is_skipped(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="the image is too large"):
        picture_of({"image": encoded(PICTURE)})


def test_images_of_tables_and_of_samples():
    datasets = pytest.importorskip("datasets")
    rows = [{"data_type": "video"}, {"data_type": "image"}, {"data_type": None}]
    assert are_images(rows) == are_images(datasets.Dataset.from_list(rows)) == [False, True, False]
    assert are_images(datasets.Dataset.from_list([{"problem": "?"}])) == [False]


def test_the_collator_shows_them_as_videos():
    processor = with_video_reader(AutoProcessor.from_pretrained(model_path()))
    sample = {"problem": "What color is the cross?", "solution": "red", "data_type": "image", "image": encoded(PICTURE)}
    batch = AnswerCollator(processor, still_frames=3)([sample])
    assert not batch["skipped"]
    assert batch["inputs"][0]["pixel_values_videos"].shape[1] == 3
    assert AnswerCollator(processor)([sample])["skipped"] == ["sample 0: data_type='image' is not a video"]


@pytest.mark.parametrize("shuffle_seed", [None, 0])
def test_every_pass_begins_with_them(shuffle_seed):
    early = [index % 3 == 0 for index in range(20)]
    batches = SampleBatches(list(range(20)), batch_size=3, repeats=2, shuffle_seed=shuffle_seed, early=early)
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        seen = [number for batch in batches for number in batch[1:]]
        assert sorted(seen) == list(range(20))
        assert [early[number] for number in seen] == [True] * 7 + [False] * 13
        plain = SampleBatches(list(range(20)), batch_size=3, repeats=2, shuffle_seed=shuffle_seed)
        plain.set_epoch(epoch)
        # Within each kind the order is that of the seed.
        order = [number for batch in plain for number in batch[1:]]
        assert [number for number in order if early[number]] == seen[:7]


class Numbered(list):
    """Samples of which some are about pictures; the collator of the small models takes their numbers."""

    column_names = ("data_type",)

    def __getitem__(self, index):
        return (
            [("image" if number % 4 == 0 else "video") for number in self]
            if index == "data_type"
            else super().__getitem__(index)
        )


def test_training_begins_with_them_and_goes_on_there(tmp_path):
    """Also a run that was stopped among them and resumed."""
    settings = dict(curriculum="images", samples=Numbered(range(16)), num_iterations=1, steps=8)
    read = []

    class Watching(Collator):
        def __call__(self, samples):
            read.extend(samples)
            return super().__call__(samples)

    weights = []
    for saving, resumed in ((dict(save_strategy="steps", save_steps=1), None), ({}, "checkpoint-1")):
        model, _, engine = trainer(tmp_path, **settings, **saving)
        engine.data_collator = Watching(model.backbone)
        read.clear()
        engine.train(resume_from_checkpoint=resumed and f"{tmp_path}/{resumed}")
        weights.append(model.policy.state_dict())
        kinds = [number % 4 == 0 for number in read]
        assert kinds == ([True] * 4 + [False] * 12)[2 * bool(resumed) :]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    _, _, engine = trainer(tmp_path, **settings | {"curriculum": None})
    with pytest.raises(ValueError, match="was made with curriculum=images, now it is None"):
        engine.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-1")


def test_a_curriculum_without_images_or_without_an_order_is_refused(tmp_path):
    with pytest.raises(ValueError, match="curriculum='images' finds no sample with data_type 'image'"):
        trainer(tmp_path, curriculum="images")
    with pytest.raises(
        ValueError, match="curriculum='images' orders the samples, and a stream has an order of its own"
    ):
        trainer(tmp_path, curriculum="images", samples=iter(range(4)))


def test_a_residual_policy_is_trained_from_a_config(tmp_path):
    """The tiny model from the command line's config: pictures first, then clips; the checkpoint is of its kind."""
    dataset = QuestionDataset(4, seed=3)
    with open(tmp_path / "samples.jsonl", "w") as lines:
        for number in range(4):
            sample = dataset[number]
            (tmp_path / f"{number}.png").write_bytes(encoded(sample["video"][0]))
            row = {name: sample[name] for name in ("problem", "solution", "problem_type")}
            lines.write(json.dumps(row | {"path": f"{number}.png", "data_type": "image"}) + "\n")
    config = {
        "data": {"train": str(tmp_path / "samples.jsonl"), "root": str(tmp_path)},
        "training": {
            "preset": "ours",
            "output_dir": str(tmp_path / "run"),
            "policy_type": "residual",
            "policy_attention": "none",
            "curriculum": "images",
            "curriculum_frames": 4,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    engine = make_trainer(read_config(tmp_path / "config.yaml", model_path()))
    engine.train()
    engine.save_model(str(tmp_path / "run"))
    loaded = CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "run", backbone=engine.backbone)
    assert (loaded.config.policy_type, loaded.config.policy_attention) == ("residual", "none")
    assert loaded.config.policy_trained
    (memory,) = engine._memories.values()
    assert [span.num_frames for span in memory.prompt.layout.videos] == [4] * 4
