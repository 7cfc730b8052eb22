"""Where a config's samples come from: files, folders, datasets, functions and streams."""

import json

import pytest
from helpers.configs import TINY, write

from cacovid_hf.auto import load_processor
from cacovid_hf.tiny import clips, model_path
from cacovid_hf.training.config import read_config
from cacovid_hf.training.data import AnswerCollator
from cacovid_hf.training.from_yaml import make_trainer
from cacovid_hf.training.sources import load_samples


def test_sources_of_samples(tmp_path):
    datasets = pytest.importorskip("datasets")
    file = read_config(write(tmp_path), model_path()).data.train
    assert len(load_samples(file, {}, "x")) == len(load_samples({"file": file}, {}, "x")) == 10
    assert len(load_samples(TINY, {}, "x")) == 8
    table = load_samples({"path": "json", "data_files": file}, {"problem": "question"}, "x")
    assert isinstance(table, datasets.Dataset)
    assert "question" in table.column_names
    stream = load_samples({"path": "json", "data_files": file, "streaming": True}, {}, "x")
    assert next(iter(stream))["solution"] == clips()[0].questions[0].answer


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_videos_is_a_source(tmp_path, streaming):
    """As `datasets` describes it: the videos, and a line about each in metadata.jsonl."""
    pytest.importorskip("datasets")
    names = [clip.path.name for clip in clips()[:2]]
    for clip, name in zip(clips(), names, strict=False):
        (tmp_path / name).write_bytes(clip.path.read_bytes())
    rows = [{"file_name": name, "problem": "What?", "solution": "red"} for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"path": "videofolder", "data_dir": str(tmp_path), "streaming": streaming}
    samples = list(load_samples(source, {}, "x"))
    batch = AnswerCollator(load_processor(model_path()))(samples)
    assert batch["places"] == [0, 1]
    assert batch["inputs"][0]["pixel_values_videos"].shape[:2] == (2, 8)


STREAM = {"function": "helpers.configs:stream"}
BAD_STREAMS = [
    ({"max_steps": -1}, {}, "training.max_steps=-1 with a stream as data.train, whose end nobody knows"),
    ({}, {"root": "/nowhere"}, "Of 3 videos of data.train none exists"),
    ({}, {"train": {**STREAM, "length": 0}}, "data.train has no samples"),
]


@pytest.mark.parametrize(("training", "data", "message"), BAD_STREAMS, ids=[message for *_, message in BAD_STREAMS])
def test_streams_that_are_refused(tmp_path, training, data, message):
    with pytest.raises((ValueError, OSError), match=message):
        make_trainer(read_config(write(tmp_path, training=training, data={"train": STREAM, **data}), model_path()))
