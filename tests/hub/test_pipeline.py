"""Pipelines, and what a server hands on: a ratio a call, and no ratio that silently does nothing."""

import pytest
import torch
from helpers.chats import CHAT, user
from helpers.fresh import run_fresh
from helpers.models import FAMILIES
from helpers.processors import tiny_processor
from transformers import AutoProcessor, AutoVideoProcessor, GenerationConfig, pipeline

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.hub.auto_file import AUTO_SOURCE
from cacovid_hf.tiny import clips, model_path


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The embedded model and its processor, saved as a push saves them."""
    folder = tmp_path_factory.mktemp("m") / "tiny"
    CaCoVidForConditionalGeneration.from_pretrained(model_path()).save_pretrained(folder, include_backbone=True)
    with_video_reader(AutoProcessor.from_pretrained(model_path())).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def messages():
    clip = clips()[0]
    return [user(clip.questions[0].text, clip.path)]


def counted(model, counts):
    """Note how many positions the language model is first given in each call of `generate`."""

    def note(module, arguments, settings):
        counts.append(settings["inputs_embeds"].shape[1])

    return model.backbone.get_decoder().register_forward_pre_hook(note, with_kwargs=True)


def test_pipeline(repository, messages):
    ask = pipeline("image-text-to-text", model=str(repository), device="cpu")
    assert isinstance(ask.model, CaCoVidForConditionalGeneration)
    widths = {}
    for ratio in (1.0, 0.25):
        counts = []
        handle = counted(ask.model, counts)
        (answer,) = ask(
            text=messages, generate_kwargs={"retention_ratio": ratio}, max_new_tokens=4, return_full_text=False
        )
        handle.remove()
        assert answer["generated_text"].split()[0] == "purple"
        widths[ratio] = counts[0]
    assert widths[1.0] - widths[0.25] == 288 - 72
    with pytest.raises(Exception, match="retention_ratio is an argument of generate: give generate_kwargs"):
        ask(text=messages, retention_ratio=0.25, max_new_tokens=4)


def test_the_embedded_processor_is_as_a_push_would_save_it(messages, tmp_path):
    """It refuses a ratio that would do nothing, too, and finds its video processor where the package is not imported."""
    processor = AutoProcessor.from_pretrained(model_path())
    with pytest.raises(Exception, match="retention_ratio is an argument of generate: give generate_kwargs"):
        processor.apply_chat_template(messages, retention_ratio=0.25)
    with_video_reader(processor).save_pretrained(tmp_path)
    for name in ("chat_template.jinja", "processor_config.json"):
        assert (tmp_path / name).read_text() == (model_path() / name).read_text(), name
    assert (model_path() / "cacovid_auto.py").read_text() == AUTO_SOURCE


@pytest.mark.spread(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_saved_alone(family, tmp_path):
    """It is found by those who have imported the package, and by those who trust the code beside it; a whole one, and its video processor."""
    whole = with_video_reader(tiny_processor(family))
    whole.save_pretrained(tmp_path / "whole")
    processor = whole.video_processor
    processor.num_frames = 7
    processor.save_pretrained(tmp_path)
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is type(processor)
    program = (
        "import sys\n"
        "from transformers import AutoProcessor, AutoVideoProcessor\n"
        "assert 'cacovid_hf' not in sys.modules\n"
        f"loaded = AutoVideoProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        "print(type(loaded).__module__, type(loaded).__name__, loaded.num_frames)\n"
        f"print(type(AutoProcessor.from_pretrained({str(tmp_path / 'whole')!r}, trust_remote_code=True)).__name__)\n"
    )
    told = run_fresh(program, tmp_path, {"HF_HOME": str(tmp_path / "home")}).stdout.split()
    assert told == ["cacovid_hf.video_processing", type(processor).__name__, "7", type(whole).__name__]
    AutoVideoProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "cacovid_auto.py").read_text() == AUTO_SOURCE


def test_ratio_in_a_generation_config(repository, messages):
    """What `transformers serve` makes of a request's `generation_config`."""
    model = CaCoVidForConditionalGeneration.from_pretrained(repository)
    inputs = AutoProcessor.from_pretrained(repository).apply_chat_template(messages, **CHAT)
    request = GenerationConfig(**{"max_new_tokens": 4, "retention_ratio": 0.1, "eos_token_id": 2})
    counts = []
    handle = counted(model, counts)
    served = model.generate(**inputs, generation_config=request)
    handle.remove()
    assert counts[0] == inputs["input_ids"].shape[1] - 288 + 28
    plain = model.generate(**inputs, retention_ratio=0.1, max_new_tokens=4, eos_token_id=2)
    assert torch.equal(served, plain)
    assert request.retention_ratio == 0.1
