"""What the page computes: answers as `cacovid ask` gives them, choices that move without new scores, costs that are those of the real cache."""

import numpy as np
import pytest
import torch
from helpers.media import write_video
from helpers.models import FIRST, stock_model
from helpers.processors import tiny_processor

from cacovid_cli.app.line import Interrupt, Line, Stopped
from cacovid_cli.app.report import RATIOS, Form, Visitor, Visitors, ask, ask_at_all_ratios
from cacovid_cli.app.studio import ALL_TOKENS, Studio, warm_up
from cacovid_cli.ask import ask as ask_once
from cacovid_hf import CaCoVidForConditionalGeneration, auto, tiny, with_video_reader
from cacovid_hf._compat import cache_of
from cacovid_hf.compressors import COMPRESSORS

QUESTION = "what color is the circle"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 96, fps=12))


@pytest.fixture(params=FIRST)
def studio(request):
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(request.param))
    return Studio(model, with_video_reader(tiny_processor(request.param)))


@pytest.fixture(scope="module")
def embedded():
    return Studio(auto.load_model(tiny.model_path()), auto.load_processor(tiny.model_path()))


def answered(studio, video, method="cacovid", ratio=0.25, told=None):
    methods = [] if method == ALL_TOKENS else [method]
    clip = studio.read(video, None, methods, Interrupt(), lambda words: None)
    tell = (lambda answer: None) if told is None else told.append
    return clip, studio.answer(clip, QUESTION, method, ratio, 6, Interrupt(), tell)


@pytest.mark.parametrize(
    ("method", "ratio"), [("cacovid", 0.25), ("uniform", 0.5), ("visionzip", 0.25), ("fastv", 0.8)]
)
def test_an_answer_is_that_of_the_command(studio, video, method, ratio):
    _, answer = answered(studio, video, method, ratio)
    expected = ask_once(
        studio.model, studio.processor, video, QUESTION, retention_ratio=ratio, compressor=method, max_new_tokens=6
    )
    assert answer.text == expected.text
    assert answer.total == expected.total
    assert set(answer.times) == set(expected.times)
    assert min(answer.times.values()) >= 0
    assert answer.notice == expected.notice
    if not COMPRESSORS[method].inside_llm:
        assert answer.kept == expected.kept
        assert torch.equal(answer.choice.asked.keep, expected.selection.keep)


def test_all_tokens_are_the_stock_model(studio, video):
    _, answer = answered(studio, video, ALL_TOKENS, 1.0)
    expected = ask_once(studio.model, studio.processor, video, QUESTION, retention_ratio=1.0, max_new_tokens=6)
    assert (answer.text, answer.kept, answer.total) == (expected.text, expected.total, expected.total)
    assert answer.choice is None
    assert answer.notice is None


def test_an_answer_grows(studio, video):
    told = []
    _, answer = answered(studio, video, told=told)
    stages = [one.stage for one in told]
    assert list(dict.fromkeys(stages)) == ["prepare", "vision", "policy", "prefill", "generation", None]
    words = [one.text for one in told]
    assert len(set(words)) > 2
    assert words[-1] == answer.text


def test_the_choice_moves_without_new_scores(studio, video):
    calls = []
    hook = studio.model.policy.register_forward_hook(lambda *_: calls.append(1))
    try:
        clip, answer = answered(studio, video)
        assert len(calls) == 1
        kept = {ratio: answer.choice.at(ratio).keep for ratio in (0.05, 0.1, 0.25, 0.5, 1.0, "auto")}
        assert len(calls) == 1
    finally:
        hook.remove()
    assert torch.equal(kept[0.25], answer.choice.asked.keep)
    session = clip.session
    prompt = session.prompt([[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]])
    for ratio, keep in kept.items():
        fresh = studio.model.compress(**prompt, encoded_videos=session.encoded, retention_ratio=ratio)
        assert torch.equal(keep, fresh.videos[0].keep)


@pytest.mark.parametrize("method", sorted(name for name, kind in COMPRESSORS.items() if not kind.inside_llm))
def test_every_method_moves(embedded, method):
    """As the methods do it from nothing: nothing of them is in their scores alone."""
    clip, answer = answered(embedded, str(tiny.clips()[0].path), method)
    session = clip.session
    prompt = session.prompt([[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]])
    for ratio in (0.1, 0.4):
        fresh = embedded.model.compress(
            **prompt, encoded_videos=session.encoded, retention_ratio=ratio, compressor=method
        )
        assert torch.equal(answer.choice.at(ratio).keep, fresh.videos[0].keep)


def test_a_method_inside_the_model_shows_what_its_last_layer_saw(embedded):
    _, answer = answered(embedded, str(tiny.clips()[0].path), "fastv", 0.75)
    last = int(answer.choice.asked.keep.sum())
    assert 0 < last < answer.kept < answer.total
    assert answer.choice.at(0.1) is answer.choice.asked


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_the_cost_is_that_of_the_cache(studio, video, ratio):
    clip, answer = answered(studio, video, "cacovid", ratio)
    session = clip.session
    prompt = session.prompt([[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]])
    outputs = studio.model.generate(
        **prompt,
        encoded_videos=session.encoded,
        retention_ratio=ratio,
        max_new_tokens=1,
        do_sample=False,
        return_dict_in_generate=True,
    )
    layers = cache_of(outputs).layers
    assert answer.cost.cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert answer.cost.tokens == layers[0].keys.shape[2]
    _, everything = answered(studio, video, ALL_TOKENS, 1.0)
    assert everything.cost.operations > answer.cost.operations
    assert everything.cost.policy is None
    assert answer.cost.all_operations > answer.cost.operations


def test_stopping_between_words_and_stages(studio, video):
    clip = studio.read(video, None, ["cacovid"], Interrupt(), lambda words: None)
    for stage in ("policy", "generation"):
        interrupt, told = Interrupt(), []

        def tell(answer, stage=stage, interrupt=interrupt, told=told):
            told.append(answer)
            if answer.stage == stage:
                interrupt.set()

        with pytest.raises(Stopped):
            studio.answer(clip, QUESTION, "cacovid", 0.25, 6, interrupt, tell)
        assert told[-1].stage in ("policy", "prefill", "generation")
    assert answered(studio, video)[1].text  # nothing of it is left on the model


def test_a_clip_is_read_again_only_for_its_tower(embedded):
    words, path = [], str(tiny.clips()[0].path)
    clip = embedded.read(path, None, ["cacovid"], Interrupt(), words.append)
    assert embedded.read(path, None, ["uniform"], Interrupt(), words.append, clip) is clip
    again = embedded.read(path, None, ["visionzip"], Interrupt(), words.append, clip)
    assert words == ["Reading the video", "Encoding 8 frames", "Encoding 8 frames"]
    assert again.sampled is clip.sampled
    stopped = Interrupt()
    stopped.set()
    with pytest.raises(Stopped):
        embedded.read(path, None, [], stopped, words.append)


# ---------------------------------------------------------------- reports


def form(**changes):
    clip = tiny.clips()[0]
    return Form(
        **{"path": str(clip.path), "question": clip.questions[0].text, "ratio": 0.25, "methods": ("cacovid",)} | changes
    )


def test_a_report_grows_to_the_answers(embedded):
    visitor = Visitor()
    reports = list(ask(embedded, Line(), visitor, form(methods=("cacovid", "uniform"))))
    assert reports[0].running
    assert not reports[-1].running
    assert reports[-1] is visitor.report
    assert [answer.method for answer in visitor.report.answers] == ["cacovid", "uniform", ALL_TOKENS]
    assert visitor.report.answers[0].text == visitor.report.answers[2].text == tiny.clips()[0].questions[0].answer
    assert [name for name, _ in visitor.report.choices] == ["cacovid", "uniform"]
    assert "Reading the video" in {report.status for report in reports}
    # Again, the clip is not read.
    assert "Reading the video" not in {report.status for report in ask(embedded, Line(), visitor, form(ratio=0.1))}


def test_all_ratios(embedded):
    visitor = Visitor()
    list(ask(embedded, Line(), visitor, form()))
    before = visitor.report.answers
    reports = list(ask_at_all_ratios(embedded, Line(), visitor, form(methods=("cacovid", "fastv"))))
    rows = visitor.report.rows
    assert [row.ratio for row in rows if row.method == "cacovid"] == list(RATIOS[1:])
    assert [row.ratio for row in rows if row.method == ALL_TOKENS] == [1.0]
    refused = [row for row in rows if row.method == "fastv"]
    assert len(refused) == 6
    assert all("cannot be met" in row.notice for row in refused if row.ratio <= 0.5)
    assert visitor.report.answers == before
    assert sorted({len(report.rows) for report in reports}) == list(range(14))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": None}, "There is no video"),
        ({"question": " "}, "The question is empty"),
        ({"ratio": 0.0}, r"outside (0, 1]"),
        ({"path": "/nowhere/clip.mp4"}, "/nowhere/clip.mp4"),
        ({"num_frames": 0}, "num_frames"),
    ],
)
def test_errors_are_sentences_and_nothing_is_lost(embedded, changes, words):
    visitor = Visitor()
    list(ask(embedded, Line(), visitor, form()))
    before = visitor.report
    list(ask(embedded, Line(), visitor, form(**changes)))
    assert words in visitor.report.error
    assert "\n" not in visitor.report.error
    assert not visitor.report.running
    assert visitor.report.answers == before.answers
    assert visitor.report.clip is before.clip
    list(ask(embedded, Line(), visitor, form()))
    assert visitor.report.error == ""


def test_a_broken_file(embedded, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(np.random.default_rng(0).bytes(5000))
    visitor = Visitor()
    list(ask(embedded, Line(), visitor, form(path=str(broken))))
    assert "broken.mp4" in visitor.report.error


def test_what_one_method_refuses_is_not_lost_on_the_others(embedded):
    visitor = Visitor()
    list(ask(embedded, Line(), visitor, form(methods=("fastv", "cacovid"))))
    fastv, cacovid, everything = visitor.report.answers
    assert "cannot be met" in fastv.notice
    assert fastv.kept is None
    assert cacovid.text == everything.text != ""


def test_stopping_keeps_what_was_said(embedded):
    visitor = Visitor()
    for report in ask(embedded, Line(), visitor, form()):
        if report.answers and report.answers[0].stage is None:
            visitor.interrupt.set()
    assert visitor.report.status == "Stopped"
    assert visitor.report.answers[0].text
    assert visitor.report.answers[-1].stage in ("stopped", None)


def test_visitors_are_forgotten_in_the_order_of_their_use():
    visitors = Visitors(most=2)
    first, second = visitors.of("a"), visitors.of("b")
    assert visitors.of("a") is first
    visitors.of("c")
    assert visitors.of("a") is first
    with pytest.raises(Stopped):
        second.interrupt.check()
    visitors.leave("a")
    assert visitors.of("a") is not first


def test_warming_up(embedded):
    assert warm_up(embedded, tiny.clips()[0].path) > 0
