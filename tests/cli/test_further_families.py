"""A stock checkpoint of every further family with its processor: the four commands that take a model, and a pipeline."""

import json

import pytest
import torch
import yaml
from helpers import benchmark_copies as copies
from helpers.chats import chat_inputs, user
from helpers.media import write_video
from helpers.models import FAMILIES, FIRST, stock_model
from helpers.processors import tiny_processor
from transformers import pipeline

from cacovid_cli.ask import UNTRAINED
from cacovid_cli.main import main
from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.auto import load_model, load_processor
from cacovid_hf.ratio import token_budget

pytestmark = pytest.mark.spread(7)
QUESTION = "what color is the circle"
RATIO, WORDS = 0.5, 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve seconds."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 24, fps=2)


@pytest.fixture(scope="module", params=FAMILIES[len(FIRST) :])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "stock"
    stock_model(request.param).save_pretrained(folder)
    tiny_processor(request.param).save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys):
    """Runs the command line; stdout."""

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        return captured.out

    return call


def plain(checkpoint, clip, **settings):
    """The answer, and the number of video tokens, as a user of transformers has them."""
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    inputs = chat_inputs(processor, QUESTION, clip, num_frames=4)
    ids = model.generate(**inputs, max_new_tokens=WORDS, do_sample=False, **settings)
    (video,) = model.compress(**inputs, **settings).videos
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True), video.keep.numel()


def test_ask(run, checkpoint, clip):
    out = run(
        *("ask", clip, QUESTION, "--model", checkpoint, "--retention-ratio", RATIO),
        *("--num-frames", 4, "--max-new-tokens", WORDS),
    )
    text, total = plain(checkpoint, clip, retention_ratio=RATIO)
    assert out.splitlines()[0] == text
    assert f"{token_budget(total, RATIO)} of {total} kept" in out
    assert UNTRAINED in out


def test_evaluate(run, checkpoint, tmp_path):
    """Four questions, one about a video that is not there."""
    folder = copies.mlvu_dev(tmp_path / "mlvu")
    run(
        *("evaluate", "--output", tmp_path / "run.json", "--model", checkpoint, "--dataset", f"mlvu_dev={folder}"),
        *("--method", "uniform,cacovid", "--ratio", "1.0,0.5", "--num-frames", 2, "--max-new-tokens", 2),
        *("--batch-size", 2),
    )
    cells = json.loads((tmp_path / "run.json").read_text())["cells"]
    assert len(cells) == 3  # all tokens are those of every method
    assert [(cell["answered"], cell["broken"]["count"]) for cell in cells] == [(3, 1)] * 3


def test_train(run, checkpoint, clip, tmp_path):
    """Two steps; the policy that comes of it answers through its checkpoint."""
    sample = dict(problem=QUESTION, problem_type="free-form", solution="red", path=clip.name)
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(sample) for _ in range(4)))
    config = {
        "model": {"name": str(checkpoint)},
        "data": {"train": str(tmp_path / "samples.jsonl"), "root": str(clip.parent), "num_frames": 4},
        "training": {
            "preset": "ours",
            "reward": "probability",  # a random model is never right
            "scored_types": ["free-form"],
            "output_dir": str(tmp_path / "run"),
            "num_token_rollouts": 4,
            "num_frame_rollouts": 0,
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "use_cpu": True,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert f"The policy of step 2 is in {tmp_path / 'run'}" in run("train", tmp_path / "config.yaml")
    before = CaCoVidForConditionalGeneration.from_backbone(load_model(checkpoint).backbone).policy.state_dict()
    after = CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "run").policy.state_dict()
    assert set(before) == set(after)
    assert any(not torch.equal(before[name], after[name]) for name in after)
    out = run("ask", clip, QUESTION, "--model", tmp_path / "run", "--retention-ratio", RATIO, "--num-frames", 4)
    assert UNTRAINED not in out


def test_serve(checkpoint, clip):
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(module)
    from helpers.serving import content, post, running

    part = {"type": "video_url", "video_url": {"url": str(clip)}, "nframes": 4}
    body = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]}
    settings = {"retention_ratio": RATIO, "max_tokens": WORDS, "temperature": 0}
    text, _ = plain(checkpoint, clip, retention_ratio=RATIO)
    model = load_model(checkpoint), load_processor(checkpoint)
    with running(model, media_folders=(str(clip.parent),)) as address:
        for stream in (False, True):
            status, answer = post(address, {**body, **settings, "stream": stream})
            assert status == 200, answer
            assert content(answer).split() == text.split()


def test_pipeline(checkpoint, clip):
    ask = pipeline("image-text-to-text", model=load_model(checkpoint), processor=load_processor(checkpoint))
    (answer,) = ask(
        text=[user(QUESTION, clip)],
        generate_kwargs={"retention_ratio": RATIO, "do_sample": False},
        max_new_tokens=WORDS,
        return_full_text=False,
        processor_kwargs={"num_frames": 4},
    )
    assert answer["generated_text"].split() == plain(checkpoint, clip, retention_ratio=RATIO)[0].split()
