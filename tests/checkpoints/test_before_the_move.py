"""A checkpoint that an earlier version of this package wrote, taken from the history of the repository."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from helpers.chats import chat_inputs
from helpers.fresh import run_fresh
from transformers import AutoModelForImageTextToText, AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny import clips

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "8a28545"  # the last one before files moved into rooms
MODEL = "src/cacovid_hf/tiny/assets/model"


@pytest.fixture(scope="module")
def written_before(tmp_path_factory):
    """The folder of the checkpoint, as that commit holds it."""
    archive = subprocess.run(["git", "archive", COMMIT, MODEL], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"this clone has no history back to {COMMIT}")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder / MODEL


def answers(model, processor) -> list[str]:
    clip = clips()[0]
    inputs = chat_inputs(processor, clip.questions[0].text, clip.path)
    found = []
    for ratio in (1.0, 0.25, 0.02):
        ids = model.generate(**inputs, retention_ratio=ratio, max_new_tokens=4, do_sample=False)
        found.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return found


def test_it_loads_and_answers(written_before):
    model = CaCoVidForConditionalGeneration.from_pretrained(written_before)
    assert answers(model, AutoProcessor.from_pretrained(written_before)) == [clips()[0].questions[0].answer] * 3
    assert model.config.policy_trained


def test_it_loads_by_the_auto_classes_and_saves_the_same_weights(written_before, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(written_before)
    assert type(model) is CaCoVidForConditionalGeneration
    model.save_pretrained(tmp_path, include_backbone=True)
    again = CaCoVidForConditionalGeneration.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_the_code_beside_it_finds_the_package(written_before, tmp_path):
    """With `trust_remote_code=True`, where the package is installed and not imported."""
    program = f"""
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor
assert "cacovid_hf" not in sys.modules
model = AutoModelForImageTextToText.from_pretrained({str(written_before)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(written_before)!r}, trust_remote_code=True)
print(type(model).__module__, type(processor.video_processor).__module__)
"""
    done = run_fresh(program, tmp_path, {"HF_HOME": str(tmp_path / "home")})
    assert done.stdout.split()[-2:] == ["cacovid_hf.modeling", "cacovid_hf.video_processing"]
