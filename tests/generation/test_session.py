"""Many questions about one video: what each call gives is what `generate` gives on its own, and what is not done again."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.chats import chat_inputs, user
from helpers.media import write_video
from helpers.models import (
    FAMILIES,
    Video,
    family_of,
    masked_inputs,
    prompt_inputs,
    skip_unless_a_cache_can_be_cut,
    skip_unless_served,
    stock_inputs,
    stock_model,
    tower,
    twice,
)
from helpers.processors import tiny_processor
from transformers import AutoProcessor, DynamicCache, GenerationConfig
from transformers.video_utils import VideoMetadata

from cacovid_cli.ask import ask
from cacovid_hf import AutoBudget, CaCoVidForConditionalGeneration, VideoSession, with_video_reader
from cacovid_hf.generation.session import KeptBefore
from cacovid_hf.tiny import clips, model_path

STEP = dict(do_sample=False, max_new_tokens=4)
ROWS = [[3, Video(), 2, Video(4, 3, 2, 2.5), 6]]


@pytest.fixture(params=FAMILIES)
def case(request):
    stock = stock_model(request.param)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    return stock, model, prompt_inputs(stock, ROWS)


def question(inputs, words, keep=6):
    """The prompt with other text behind its videos (its last `6 - keep` tokens and `words` instead)."""
    end = inputs["input_ids"].shape[1] - 6 + keep
    changed = {**inputs, "input_ids": torch.cat([inputs["input_ids"][:, :end], torch.tensor([words])], dim=1)}
    changed["attention_mask"] = torch.ones_like(changed["input_ids"])
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"][:, :end]
        changed["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, len(words)))
    return changed


QUESTIONS = ([20, 30, 40], [50, 60], [20, 30, 41, 42, 43])


class Calls:
    """Lengths of the embeddings that every forward of a module gets (not of the forwards that the seam stops)."""

    def __init__(self, module):
        self.lengths = []
        self.handle = module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        embeds = kwargs.get("inputs_embeds")
        self.lengths.append(None if embeds is None else embeds.shape[1])


def test_each_question_chooses_its_own_tokens(case):
    stock, model, inputs = case
    session = model.session(**inputs, retention_ratio=0.25)
    assert isinstance(session, VideoSession)
    calls = Calls(tower(stock))
    ours = [session.generate(**question(inputs, words), **STEP) for words in QUESTIONS]
    assert calls.lengths == []
    for words, ids in zip(QUESTIONS, ours, strict=True):
        assert torch.equal(ids, model.generate(**question(inputs, words), retention_ratio=0.25, **STEP))
    # A call's own settings, and everything that `generate` knows.
    one = question(inputs, QUESTIONS[0])
    whole = session.generate(**one, retention_ratio=1.0, return_dict_in_generate=True, **STEP)
    assert torch.equal(whole.sequences, stock.generate(**stock_inputs(stock, one), **STEP))
    beams = session.generate(**one, compressor="uniform", num_beams=2, **STEP)
    assert torch.equal(beams, model.generate(**one, retention_ratio=0.25, compressor="uniform", num_beams=2, **STEP))


def test_questions_in_a_batch(case):
    _, model, inputs = case
    session = model.session(**inputs, retention_ratio=0.25)
    rows = [question(inputs, words) for words in QUESTIONS]
    longest = max(row["input_ids"].shape[1] for row in rows)

    def padded(name):
        return torch.cat([torch.nn.functional.pad(row[name], (longest - row[name].shape[1], 0)) for row in rows])

    names = [name for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in inputs]
    batch = {name: padded(name) for name in names}
    pixels = family_of(model.backbone).stacked([{n: v for n, v in inputs.items() if n not in names}] * 3)
    ours = session.generate(**batch, **STEP)
    assert torch.equal(ours, model.generate(**batch, **pixels, retention_ratio=0.25, **STEP))


@pytest.mark.parametrize("decoding", ["greedy", "sampling"])
def test_a_kept_choice_in_a_conversation(case, decoding):
    """Every turn against the oracle, from a cache that holds the kept tokens; only what is new is prefilled."""
    stock, model, inputs = case
    skip_unless_a_cache_can_be_cut(model.backbone)
    session = model.session(**inputs, retention_ratio=[0.25, 0.25], keep_selection=True)
    settings = {**STEP, **(dict(do_sample=True, top_k=5) if decoding == "sampling" else {})}
    now = question(inputs, QUESTIONS[0])
    kept = model.compress(**now, retention_ratio=0.25).kept_indices
    decoder = Calls(stock.get_decoder())
    for turn in range(3):
        decoder.lengths.clear()
        torch.manual_seed(turn)
        ours = session.generate(**now, **settings)
        # The whole compressed prompt first, the new tokens later; then one by one.
        assert max(decoder.lengths) == (kept.shape[1] if turn == 0 else 4)
        length = now["input_ids"].shape[1]
        oracle = masked_inputs(stock, now, torch.cat([kept, torch.arange(kept.max() + 1, length)[None]], dim=1))
        torch.manual_seed(turn)
        assert torch.equal(ours, stock.generate(**oracle, **settings)), f"turn {turn}"
        now = {**now, "input_ids": torch.cat([ours, torch.tensor([[70 + turn, 80, 90]])], dim=1)}
        now["attention_mask"] = torch.ones_like(now["input_ids"])
        if "mm_token_type_ids" in now:
            types = inputs["mm_token_type_ids"]
            now["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, now["input_ids"].shape[1] - types.shape[1]))


def test_a_kept_choice_and_other_questions(case):
    """Questions that do not see each other: the cache is cut back to what they share, and the answers are those of a new prompt with that choice."""
    stock, model, inputs = case
    skip_unless_a_cache_can_be_cut(model.backbone)
    session = model.session(**inputs, retention_ratio=0.25, keep_selection=True)
    first = question(inputs, QUESTIONS[0])
    keeps = KeptBefore(tuple(video.keep for video in model.compress(**first, retention_ratio=0.25).videos))
    decoder = Calls(stock.get_decoder())
    for words in (*QUESTIONS, QUESTIONS[0]):
        decoder.lengths.clear()
        one = question(inputs, words)
        ours = session.generate(**one, **STEP)
        prefilled = max(decoder.lengths)
        assert torch.equal(ours, model.generate(**one, retention_ratio=0.25, compressor=keeps, **STEP))
        if words is not QUESTIONS[0]:  # the first time everything
            assert prefilled <= len(words)
    alone, kept = (
        [ask(**question(inputs, words), **STEP)[:, -4:].tolist() for words in QUESTIONS[1:]]
        for ask in (partial(model.generate, retention_ratio=0.25), session.generate)
    )
    assert alone != kept
    # Other words before the videos: nothing of the cache fits, the choice does.
    other = question(inputs, QUESTIONS[1])
    other["input_ids"] = other["input_ids"].clone()
    other["input_ids"][0, 0] += 1
    expected = model.generate(**other, retention_ratio=0.25, compressor=keeps, **STEP)
    assert torch.equal(session.generate(**other, **STEP), expected)
    # A new start chooses anew.
    session.reset()
    assert session.cache is None
    again = session.generate(**question(inputs, QUESTIONS[1]), **STEP)
    assert torch.equal(again, model.generate(**question(inputs, QUESTIONS[1]), retention_ratio=0.25, **STEP))


def test_a_failed_call_leaves_a_session_that_works(case):
    _, model, inputs = case
    skip_unless_a_cache_can_be_cut(model.backbone)
    session = model.session(**inputs, retention_ratio=0.25, keep_selection=True)
    one, other = question(inputs, QUESTIONS[0]), question(inputs, QUESTIONS[1])
    first = session.generate(**one, **STEP)

    def fail(ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.generate(**other, logits_processor=[fail], **STEP)
    assert torch.equal(session.generate(**one, **STEP), first)


def test_a_ratio_in_a_generation_config(case):
    """As `generate` takes it: for each of a list of prompts, and with a kept choice for that alone."""
    _, model, inputs = case
    config = GenerationConfig(**STEP)
    one, other = question(inputs, QUESTIONS[0]), question(inputs, QUESTIONS[1])
    session = model.session(**inputs)
    config.retention_ratio = [0.25] * len(session.encoded)
    assert torch.equal(
        session.generate(**one, generation_config=config), session.generate(**one, retention_ratio=0.25, **STEP)
    )
    twice = {
        name: torch.cat([values, values])
        for name, values in one.items()
        if name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    both = session.generate(**twice, generation_config=config)
    assert torch.equal(both, session.generate(**twice, retention_ratio=0.25, **STEP))
    skip_unless_a_cache_can_be_cut(model.backbone)
    kept, expected = model.session(**inputs, keep_selection=True), model.session(**inputs, keep_selection=True)
    for words in (one, other):
        given = kept.generate(**words, generation_config=config)
        assert torch.equal(given, expected.generate(**words, retention_ratio=0.25, **STEP))
    config.retention_ratio = 0.05
    with pytest.raises(ValueError, match=r"retention_ratio=0\.05 comes after the tokens were chosen"):
        kept.generate(**one, generation_config=config)


REFUSED = {
    "cache": (dict(past_key_values=DynamicCache()), "(cache|past_key_values)=.* does not go with keep_selection"),
    "static": (dict(cache_implementation="static"), "cache_implementation='static' does not go"),
    "beams": (dict(num_beams=2), "num_beams=2 does not go"),
    "sequences": (dict(num_return_sequences=2, do_sample=True), "num_return_sequences=2 does not go"),
    "beams in a config": (
        dict(generation_config=GenerationConfig(num_beams=2, max_new_tokens=3)),
        "num_beams=2 does not go",
    ),
    "sequences in a config": (
        dict(
            do_sample=True, generation_config=GenerationConfig(do_sample=True, num_return_sequences=2, max_new_tokens=3)
        ),
        "num_return_sequences=2 does not go",
    ),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_a_kept_cache_cannot_do(case, refused):
    _, model, inputs = case
    settings, message = REFUSED[refused]
    skip_unless_a_cache_can_be_cut(model.backbone)
    session = model.session(**inputs, retention_ratio=0.25, keep_selection=True)
    with pytest.raises(ValueError, match=message):
        session.generate(**inputs, **{**STEP, **settings})
    two = twice(model.backbone, inputs)
    with pytest.raises(ValueError, match="holds the cache of one prompt, and 2 are given"):
        session.generate(**two, **STEP)


@pytest.mark.parametrize("changed", [dict(retention_ratio=0.9), dict(compressor="uniform")], ids=str)
def test_a_kept_choice_does_not_change_in_silence(case, changed):
    _, model, inputs = case
    skip_unless_a_cache_can_be_cut(model.backbone)
    session = model.session(**inputs, retention_ratio=0.25, keep_selection=True)
    first = session.generate(**inputs, **STEP)
    (name,) = changed
    with pytest.raises(ValueError, match=f"{name}=.* comes after the tokens were chosen"):
        session.generate(**inputs, **STEP, **changed)
    assert torch.equal(session.generate(**inputs, **STEP, retention_ratio=0.25), first)
    session.reset()
    session.generate(**inputs, **STEP, **changed)


def test_a_choice_whose_size_the_scores_decide_is_kept_too(case):
    _, model, inputs = case
    skip_unless_a_cache_can_be_cut(model.backbone)
    session = model.session(**inputs, retention_ratio=AutoBudget(0.2, 0.6), keep_selection=True)
    session.generate(**inputs, **STEP)
    kept = session._kept
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, 0] += 1  # in front of the video, so that no cache fits
    found = session.generate(**other, **STEP)
    assert session._kept is kept
    assert torch.equal(found, model.generate(**other, **STEP, retention_ratio=kept.part, compressor=kept))


def test_one_ratio_a_video_for_every_question(case):
    _, model, inputs = case
    videos = len(model.session(**inputs).encoded)
    ratios = [0.25, 0.5][:videos]
    session = model.session(**inputs, retention_ratio=ratios)
    two = twice(model.backbone, inputs)
    assert torch.equal(session.generate(**two, **STEP)[1:], session.generate(**inputs, **STEP))


BEFORE_VISION = {
    "ratio": (dict(retention_ratio=25), "retention_ratio=25"),
    "list": (dict(retention_ratio=[0.1] * 9), "retention_ratio has 9 values"),
    "typo": (dict(compressor="unifrom"), "unifrom"),
    "unreachable": (dict(compressor="fastv", retention_ratio=0.01), "cannot be met"),
    "auto": (dict(compressor="uniform", retention_ratio="auto"), "no scores to decide a budget by"),
    "inside": (dict(compressor="fastv", retention_ratio=0.9, keep_selection=True), "drops tokens inside"),
}


@pytest.mark.parametrize(("settings", "message"), BEFORE_VISION.values(), ids=BEFORE_VISION)
def test_settings_are_refused_before_the_videos_are_encoded(case, settings, message):
    _, model, inputs = case
    if "fastv" in settings.values():
        skip_unless_served(model.backbone.config.model_type, "fastv")
    ran = []
    handle = tower(model.backbone).register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(ValueError, match=re.escape(message)):
            model.session(**inputs, **settings)
        if message != "drops tokens inside":
            with pytest.raises(ValueError, match=re.escape(message)):
                model.generate(**inputs, **STEP, **settings)
        assert not ran
        model.session(**inputs)
        assert ran
    finally:
        handle.remove()


def test_a_method_that_reads_the_tower_has_it_encoded_too(case):
    _, model, inputs = case
    for name in ("visionzip", "streamingtom"):
        session = model.session(**inputs, retention_ratio=0.3, compressor=name)
        expected = model.generate(**inputs, retention_ratio=0.3, compressor=name, **STEP)
        assert torch.equal(session.generate(**inputs, **STEP), expected)
    encoded = model.encode_videos(**inputs)
    with pytest.raises(ValueError, match="which these encoded videos do not hold: encode them with"):
        model.session(encoded, compressor="visionzip")


def test_arguments_are_checked(case):
    _, model, inputs = case
    with pytest.raises(ValueError, match="Give the videos once"):
        model.session()
    with pytest.raises(ValueError, match="Give the videos once"):
        model.session("film.mp4", **inputs)
    with pytest.raises(ValueError, match="needs a processor"):
        model.session("film.mp4")
    with pytest.raises(ValueError, match="There is no video"):
        model.session([], object())
    session = model.session(**inputs)
    with pytest.raises(ValueError, match="need a processor"):
        session.ask("what")
    with pytest.raises(ValueError, match="question is empty"):
        session.ask(["what", " "])
    for words in (None, 5, {"role": "user"}):
        with pytest.raises(ValueError, match=f"A question is a {type(words).__name__}: give a text"):
            session.ask(words)
    for video in (5, b"film.mp4", ["film.mp4", 5], {"video": "film.mp4"}):
        with pytest.raises(ValueError, match=f"A session cannot open a {type(video).__name__}: give paths"):
            model.session(video, object())
    for processor in (5, "processor"):
        with pytest.raises(ValueError, match=f"A {type(processor).__name__} is not a processor of videos: give what"):
            model.session("film.mp4", processor)
    one = prompt_inputs(model.backbone, [[3, Video(), 6]])
    with pytest.raises(ValueError, match="video placeholders"):
        session.generate(**one, **STEP)


# ------------------------------------------------------------------ words


def test_a_state_cannot_be_cut_back():
    stock = stock_model("qwen3_5")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    with pytest.raises(
        ValueError, match="the states of qwen3_5's linear attention cannot be cut: make a session without"
    ):
        model.session(**prompt_inputs(stock, ROWS), retention_ratio=0.25, keep_selection=True)


def test_times_that_are_not_known():
    """Pixels come without them; with the processor's metadata beside them the words are the processor's."""
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model("qwen3_vl"))
    processor = with_video_reader(tiny_processor("qwen3_vl"))
    metadata = VideoMetadata(total_num_frames=8, fps=2.0, duration=4.0, frames_indices=[0, 2, 4, 7])
    text = processor.apply_chat_template([user("what color", "x")], add_generation_prompt=True)
    frames = torch.zeros(4, 64, 96, 3, dtype=torch.uint8).numpy()
    inputs = processor(
        text=text, videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what color"}]}]
    with pytest.raises(ValueError, match="The times of the videos' frames are not known"):
        model.session(**inputs, processor=processor, retention_ratio=0.25).prompt([chat])
    session = model.session(**inputs, processor=processor, video_metadata=[metadata], retention_ratio=0.25)
    for _ in range(2):
        prompt = session.prompt([chat])
        assert all(torch.equal(value, inputs[name]) for name, value in prompt.items())
    assert metadata.frames_indices == [0, 2, 4, 7]


@pytest.mark.spread(2)
@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_the_processors(family, videos, tmp_path):
    """Ids, token types and answers are those of the processor's own prompt with the files."""
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(family))
    processor = with_video_reader(tiny_processor(family))
    processor.video_processor.max_fps = 100.0
    processor.video_processor.num_frames = 6
    paths = [str(write_video(tmp_path / f"{i}.mp4", 12 + 5 * i, fps=5)) for i in range(videos)]
    expected = chat_inputs(processor, "what color", *paths)
    session = model.session(paths if videos > 1 else paths[0], processor, retention_ratio=0.25, frames_per_chunk=2)
    content = [*({"type": "video"} for _ in paths), {"type": "text", "text": "what color"}]
    prompt = session.prompt([[{"role": "user", "content": content}]])
    assert prompt.keys() == family_of(model.backbone).without_videos(expected).keys()
    assert all(torch.equal(value, expected[name]) for name, value in prompt.items())
    whole = model.generate(**expected, retention_ratio=0.25, **STEP)
    words = processor.decode(whole[0, expected["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert session.ask("what color", **STEP) == words
    with pytest.raises(ValueError, match="The chat has 0 video placeholders"):
        session.prompt([[{"role": "user", "content": [{"type": "text", "text": "what"}]}]])


@pytest.fixture(scope="module")
def tiny():
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    return model, AutoProcessor.from_pretrained(model_path())


@pytest.mark.parametrize("at_once", [False, True])
def test_answers_of_the_embedded_model(tiny, at_once):
    """One encoding, every question of a clip: the answers of one call a question, and nearly all right."""
    model, processor = tiny
    right = total = 0
    for clip in clips()[:2]:
        session = model.session(clip.path, processor, retention_ratio=0.1, frames_per_chunk=3)
        texts = [q.text for q in clip.questions]
        settings = dict(max_new_tokens=8, do_sample=False)
        answers = session.ask(texts, **settings) if at_once else [session.ask(text, **settings) for text in texts]
        for given, answer in zip(clip.questions, answers, strict=True):
            alone = ask(model, processor, clip.path, given.text, retention_ratio=0.1, max_new_tokens=8).text
            assert answer == alone
            right, total = right + (answer == given.answer), total + 1
    assert right >= 0.8 * total


def test_a_file_in_one_chunk(tiny):
    model, processor = tiny
    clip = clips()[0]
    whole = model.session(clip.path, processor, frames_per_chunk=None).encoded
    parts = model.session(clip.path, processor, frames_per_chunk=8).encoded
    torch.testing.assert_close(whole.features, parts.features)


@pytest.mark.parametrize("keep", [False, True])
def test_a_conversation_in_words(tiny, keep):
    """Later prompts hold the earlier questions and answers; with a kept choice the cache goes on."""
    model, processor = tiny
    clip = clips()[0]
    session = model.session(clip.path, processor, retention_ratio=0.25, conversation=True, keep_selection=keep)
    first = session.ask(clip.questions[0].text, max_new_tokens=8, do_sample=False)
    length = session.cache.get_seq_length() if keep else None
    session.ask(clip.questions[1].text, max_new_tokens=8, do_sample=False)
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
    assert session.messages[1]["content"][0]["text"] == first
    assert [part["type"] for m in session.messages for part in m["content"]] == [
        "video",
        "text",
        "text",
        "text",
        "text",
    ]
    if keep:
        assert 0 < session.cache.get_seq_length() - length < 20
    with pytest.raises(ValueError, match="no order"):
        session.ask(["a", "b"])
    session.reset()
    assert session.messages == []
    assert session.ask(clip.questions[0].text, max_new_tokens=8, do_sample=False) == first


def test_several_answers_to_a_question(tiny):
    model, processor = tiny
    clip = clips()[0]
    session = model.session(clip.path, processor, retention_ratio=0.25)
    texts = [q.text for q in clip.questions[:2]]
    settings = dict(max_new_tokens=8, num_beams=2, num_return_sequences=2, do_sample=False)
    both = session.ask(texts, **settings)
    assert [len(answers) for answers in both] == [2, 2]
    assert both == [session.ask(text, **settings) for text in texts]
    config = GenerationConfig(max_new_tokens=8, return_dict_in_generate=True, do_sample=False)
    assert session.ask(texts[0], generation_config=config) == session.ask(texts[0], max_new_tokens=8, do_sample=False)


def test_the_documented_code_runs(capsys):
    """The blocks of docs/how_to/sessions.md, one after the other; the answers that it prints are right."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "how_to" / "sessions.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(block, names)
    expected = [f"{q.text} {q.answer}" for q in clips()[0].questions[:2]]
    assert capsys.readouterr().out.splitlines() == expected
    assert names["second"].shape[1] > names["first"].sequences.shape[1]
