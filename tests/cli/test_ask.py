"""Asking: the answer is plain generation's, whatever is measured beside it, and the loaders find model and processor."""

import threading
import time

import numpy as np
import pytest
import torch
from helpers.chats import chat_inputs
from helpers.media import numbers_of, write_video
from helpers.models import FIRST, stock_model, tower
from helpers.processors import tiny_processor

from cacovid_cli.ask import UNTRAINED, Answer, ask
from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.auto import load_config, load_model, load_processor
from cacovid_hf.processing import sample_video
from cacovid_hf.ratio import token_budget

QUESTION = "what color is the circle"
STAGES = ["decode", "prepare", "vision", "policy", "prefill", "generation"]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twelve seconds, twenty frames a second."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 240, fps=20)


@pytest.fixture(params=FIRST)
def wrapped(request):
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(request.param))
    return model, with_video_reader(tiny_processor(request.param))


def plain_generate(model, processor, video, num_frames=None, **options):
    """What a user of transformers writes: the path in the message, and `generate`."""
    inputs = chat_inputs(processor, QUESTION, video, **({} if num_frames is None else {"num_frames": num_frames}))
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("compressor", [None, "cacovid", "uniform", "random"])
@pytest.mark.parametrize("ratio", [None, 1.0, 0.5, 0.1])
def test_the_answer_is_that_of_plain_generation(wrapped, video, ratio, compressor):
    model, processor = wrapped
    options = dict(retention_ratio=ratio, compressor=compressor)
    answer = ask(model, processor, video, QUESTION, max_new_tokens=6, **options)
    assert answer.text == plain_generate(model, processor, video, **options)
    assert answer.total == np.prod(answer.selection.grid)
    assert answer.kept == token_budget(answer.total, ratio or 1.0) == int(answer.selection.keep.sum())
    assert answer.selection.keep.shape == (answer.selection.grid[0], answer.total // answer.selection.grid[0])
    untrained_policy_chose = ratio not in (None, 1.0) and compressor in (None, "cacovid")
    assert answer.notice == (UNTRAINED if untrained_policy_chose else None)
    assert (answer.selection.token_scores is not None) == untrained_policy_chose


def test_answers_differ(wrapped, video):
    """Or the test above could not fail."""
    model, processor = wrapped
    assert len({ask(model, processor, video, QUESTION, retention_ratio=ratio).text for ratio in (1.0, 0.5, 0.1)}) > 1


def test_num_frames(wrapped, video):
    model, processor = wrapped
    answer = ask(model, processor, video, QUESTION, num_frames=5, retention_ratio=0.5, max_new_tokens=6)
    assert len(answer.video.frames) == 5
    assert answer.text == plain_generate(model, processor, video, num_frames=5, retention_ratio=0.5)
    assert len(ask(model, processor, video, QUESTION).video.frames) == 12  # one a second


def test_sampled_video(wrapped, video):
    sampled = sample_video(wrapped[1], video, 5)
    assert numbers_of(sampled.frames) == [0, 59, 119, 179, 239]
    assert sampled.timestamps == pytest.approx([0, 2.95, 5.95, 8.95, 11.95])
    assert sampled.seconds > 0


def test_times_add_up(wrapped, video):
    model, processor = wrapped
    for ratio in (1.0, 0.5):
        sampled = sample_video(processor, video)
        started = time.perf_counter()
        answer = ask(model, processor, sampled, QUESTION, retention_ratio=ratio, max_new_tokens=6)
        seconds = time.perf_counter() - started
        assert list(answer.times) == STAGES
        assert answer.times["decode"] == sampled.seconds
        assert (answer.times["policy"] > 0) == (ratio < 1)
        assert all(answer.times[stage] > 0 for stage in STAGES if stage != "policy")
        assert 0.3 * seconds < sum(answer.times.values()) - sampled.seconds <= seconds


def slowed(module, seconds, calls=None):
    def wait(*_):
        if calls is None or len(calls) < 1:
            time.sleep(seconds)
        if calls is not None:
            calls.append(1)

    return module.register_forward_pre_hook(wait)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_each_stage_is_charged_for_its_own_time(wrapped, video, ratio):
    """A stage that is made half a second slower is the one that shows it."""
    model, processor = wrapped
    head = model.backbone.lm_head
    modules = {"vision": (tower(model.backbone), None), "policy": (model.policy, None), "prefill": (head, [])}
    for stage, (module, calls) in modules.items():
        for attempt in range(3):  # another process may hold up another stage as long, but hardly three times
            if calls is not None:
                calls.clear()
            handle = slowed(module, 0.5, calls)
            try:
                times = ask(model, processor, video, QUESTION, retention_ratio=ratio, max_new_tokens=2).times
            finally:
                handle.remove()
            if stage == "policy" and ratio == 1.0:
                assert times["policy"] == 0
                break
            assert times[stage] >= 0.5
            if max(times, key=times.get) == stage:
                break
            assert attempt < 2


def test_nothing_is_left_on_the_model(wrapped, video):
    model, processor = wrapped

    def state():
        hooks = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
        attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
        return hooks, attributes, model.config.to_dict(), model.generation_config.to_dict(), sorted(vars(processor))

    plain_generate(model, processor, video)  # stock generation makes itself at home the first time
    before = state()
    ask(model, processor, video, QUESTION, retention_ratio=0.5, max_new_tokens=2)
    with pytest.raises(ValueError, match="retention_ratio"):
        ask(model, processor, video, QUESTION, retention_ratio=2)
    assert state() == before


def test_threads_share_a_model(wrapped, video):
    model, processor = wrapped
    sampled = sample_video(processor, video)
    expected = {ratio: ask(model, processor, sampled, QUESTION, retention_ratio=ratio) for ratio in (1.0, 0.5, 0.1)}
    answers: list[tuple[float, Answer]] = []

    def work(ratio):
        for _ in range(3):
            answers.append((ratio, ask(model, processor, sampled, QUESTION, retention_ratio=ratio)))

    threads = [threading.Thread(target=work, args=(ratio,)) for ratio in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 9
    for ratio, answer in answers:
        assert (answer.text, answer.kept) == (expected[ratio].text, expected[ratio].kept)
        assert torch.equal(answer.selection.keep, expected[ratio].selection.keep)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(question="  "), "The question is empty"),
        (dict(max_new_tokens=0), "max_new_tokens=0 leaves no room"),
        (dict(retention_ratio=0), r"retention_ratio=0\.0 is outside"),
        (dict(compressor="nothing"), "compressor='nothing' is unknown"),
        (dict(num_frames=0), "num_frames=0"),
    ],
)
def test_bad_settings(wrapped, video, settings, message):
    arguments = {"question": QUESTION, "retention_ratio": 0.5, **settings}
    with pytest.raises(ValueError, match=message):
        ask(*wrapped, video, **arguments)


# ---------------------------------------------------------------- loading


@pytest.fixture(params=FIRST)
def stock_folder(request, tmp_path):
    stock_model(request.param).save_pretrained(tmp_path / "stock")
    tiny_processor(request.param).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def test_a_stock_model_gets_the_same_untrained_policy_each_time(stock_folder, video):
    random_state = torch.random.get_rng_state()
    models = [load_model(stock_folder), load_model(stock_folder)]
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not models[0].config.policy_trained
    first, second = (ask(model, load_processor(stock_folder), video, QUESTION, retention_ratio=0.3) for model in models)
    assert torch.equal(first.selection.keep, second.selection.keep)
    assert first.text == second.text


def test_a_policy_only_checkpoint_takes_its_backbone_s_processor(stock_folder, tmp_path, video):
    model = load_model(stock_folder)
    model.save_pretrained(tmp_path / "policy")
    processor = load_processor(tmp_path / "policy")
    assert type(processor) is type(load_processor(stock_folder))
    loaded = load_model(tmp_path / "policy")
    answers = [ask(m, processor, video, QUESTION, retention_ratio=0.3) for m in (model, loaded)]
    assert answers[0].text == answers[1].text


def test_a_checkpoint_s_own_processor_comes_first(stock_folder, tmp_path):
    load_model(stock_folder).save_pretrained(tmp_path / "policy")
    processor = load_processor(stock_folder)
    processor.video_processor.num_frames = 7
    processor.save_pretrained(tmp_path / "policy")
    assert load_processor(tmp_path / "policy").video_processor.num_frames == 7


def test_a_trained_policy_needs_no_notice(stock_folder, video):
    model = load_model(stock_folder)
    model.config.policy_trained = True
    assert ask(model, load_processor(stock_folder), video, QUESTION, retention_ratio=0.3).notice is None


def test_no_processor(tmp_path):
    stock_model("llava_onevision").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"processor_config.json or preprocessor_config.json is missing in .*: copy it there"
    ):
        load_processor(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "missing cannot be loaded"),
        ("{}", r"model cannot be loaded \(config.json: Unrecognized model"),
        ('{"model_type": "bert"}', "Backbone family 'bert' is not supported"),
        ('{"model_type": "new"}', "model type `new`"),
        ("{", "model cannot be loaded"),
    ],
)
def test_bad_models(tmp_path, config, message):
    folder = tmp_path / ("missing" if config is None else "model")
    if config is not None:
        folder.mkdir()
        (folder / "config.json").write_text(config)
    for load in (load_config, load_processor, load_model):
        with pytest.raises(ValueError, match=message):
            load(folder)
