"""The embedded model, its synthetic clips and questions, and its training."""

import hashlib
from collections import Counter

import av
import numpy as np
import pytest
import torch
from helpers.chats import CHAT, chat_inputs
from transformers import AutoModelForImageTextToText, AutoProcessor

import cacovid_hf  # noqa: F401  (registers what the embedded checkpoint may be)
from cacovid_hf import tiny
from cacovid_hf.tiny import synthetic
from cacovid_hf.tiny.accuracy import Accuracy, answer_accuracy, first_words
from cacovid_hf.tiny.mp4 import write_mp4
from cacovid_hf.tiny.pretrain import pretrain


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(tiny.model_path())


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(tiny.model_path())


@pytest.fixture(scope="module")
def clips():
    return [synthetic.make_clip(seed) for seed in range(20)]


def words_of(question: synthetic.Question) -> list[str]:
    return question.text.lower().rstrip("?").split()


def cell(frame: np.ndarray, index: tuple[int, int]) -> np.ndarray:
    """The pixels (CELL, CELL, 3) of a cell of a frame, as signed integers."""
    top, left = (synthetic.CELL * i for i in index)
    return frame[top : top + synthetic.CELL, left : left + synthetic.CELL].astype(int)


def shows_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Which pixels have a color, up to the noise."""
    return (np.abs(pixels - color) <= 12).all(axis=-1)


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_seed_gives_the_same_bytes_everywhere():
    clip = synthetic.make_clip(0)
    assert (
        hashlib.sha256(clip.frames.tobytes()).hexdigest()
        == "3c4fc426257b81f0e214b6da435ddba1198176ff7b4333f6d0b091ff56c10a9e"
    )
    said = "\n".join(f"{question.text}: {question.answer}" for question in clip.questions)
    assert (
        hashlib.sha256(said.encode()).hexdigest() == "319442dead67bf2433785b2d2e4b3dd3fda16028c3178b2fee4bdfcdce78be2e"
    )
    assert not np.array_equal(clip.frames, synthetic.make_clip(1).frames)


def test_a_clip_is_what_it_says(clips):
    for clip in clips:
        assert clip.frames.shape == (8, 84, 84, 3)
        assert clip.frames.dtype == np.uint8
        assert Counter(question.kind for question in clip.questions) == {
            "color": 8,
            "shape": 8,
            "scene_of_shape": 8,
            "digit": 4,
            "scene_of_digit": 4,
            "order": 2,
        }
        words = {word for question in clip.questions for word in (*words_of(question), question.answer)}
        assert words <= set(synthetic.WORDS)
        assert {len(words_of(question)) for question in clip.questions} == {5}


def test_evidence_shows_the_object_in_its_color_on_its_tint(clips):
    for clip in clips:
        tint_of = {}  # by the cells of the object
        for question in clip.questions:
            if question.kind in ("scene_of_shape", "scene_of_digit"):
                tint_of[question.evidence.tobytes()] = question.answer
        for question in clip.questions:
            if question.kind not in ("color", "digit"):
                continue
            name = question.answer if question.kind == "digit" else words_of(question)[-1]
            color = "white" if question.kind == "digit" else question.answer
            assert 1 <= question.evidence.sum() <= 2
            for t, y, x in np.argwhere(question.evidence):
                pixels = cell(clip.frames[t], (y, x))
                drawn = shows_color(pixels, synthetic.COLORS[color])
                tint = shows_color(pixels, synthetic.TINTS[tint_of[question.evidence.tobytes()]])
                assert (drawn | tint).all()
                rows, columns = np.nonzero(drawn)
                box = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                bitmap = synthetic.BITMAPS[name]
                bitmap = bitmap[bitmap.any(axis=1)][:, bitmap.any(axis=0)]
                assert np.array_equal(box, bitmap), name


def test_an_object_is_nowhere_but_in_its_evidence(clips):
    """Else the known evidence would be no upper bound, and random tokens could answer."""
    for clip in clips:
        for question in clip.questions:
            if question.kind != "color":
                continue
            for t, y, x in np.argwhere(~question.evidence):
                drawn = shows_color(cell(clip.frames[t], (y, x)), synthetic.COLORS[question.answer])
                assert drawn.sum() <= synthetic.CELL**2 / 4, (question.text, t, y, x)


def test_order_questions_name_the_tints_of_the_ends(clips):
    for clip in clips:
        first, last = (question for question in clip.questions if question.kind == "order")
        assert first.text.endswith("first?")
        for question, end in ((first, 0), (last, -1)):
            corner = clip.frames[end].reshape(-1, 3).astype(int)
            assert shows_color(corner, synthetic.TINTS[question.answer]).mean() > 0.3
            assert question.evidence[end].all()
            per_frame = question.evidence.reshape(8, -1)
            assert (per_frame.all(axis=1) == per_frame.any(axis=1)).all()


def test_questions_are_balanced_and_fresh():
    pairs = list(synthetic.sample_questions(31, seed=3))
    counts = Counter(question.kind for _, question in pairs)
    assert set(counts) == set(synthetic.QUESTION_KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({clip.frames.tobytes() for clip, _ in pairs}) == 31
    again = list(synthetic.sample_questions(31, seed=3))
    assert [question.text for _, question in again] == [question.text for _, question in pairs]
    other = list(synthetic.sample_questions(31, seed=4))
    assert {clip.frames.tobytes() for clip, _ in other}.isdisjoint(clip.frames.tobytes() for clip, _ in pairs)


def test_tokenizer_knows_every_word_and_ignores_case_and_punctuation(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids(list(synthetic.WORDS))
    assert tokenizer.unk_token_id not in ids
    assert len(set(ids)) == len(synthetic.WORDS)
    assert tokenizer("What COLOR, is the circle?!").input_ids == tokenizer("what color is the circle").input_ids
    assert tokenizer.decode(tokenizer("what color is the circle").input_ids) == "what color is the circle"
    assert tokenizer("what zebra").input_ids[1] == tokenizer.unk_token_id


def test_chat_template_makes_the_prompt_of_the_training(processor, clips):
    inputs = chat_inputs(processor, "What color is the circle?", clips[0].frames)
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens == ["<bos>", *["<video>"] * 289, "what", "color", "is", "the", "circle", "<ans>"]
    assert inputs["attention_mask"].all()
    assert inputs["pixel_values_videos"].shape == (1, 8, 3, 84, 84)


def test_chat_template_takes_images_and_turns(model, processor, clips):
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": clips[0].frames[0]},
                {"type": "text", "text": "what digit is on navy"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "7"}]},
        {"role": "user", "content": "what color is the ring"},
    ]
    inputs = processor.apply_chat_template(messages, **CHAT)
    text = processor.decode(inputs["input_ids"][0]).replace("<image>", "").split()
    assert " ".join(text) == "<bos> what digit is on navy <ans> 7 <eos> what color is the ring <ans>"
    assert model.generate(**inputs, max_new_tokens=1).shape[1] == inputs["input_ids"].shape[1] + 1


def test_embedded_model_answers_fresh_questions(model, processor):
    measured = answer_accuracy(model, processor, num_questions=120, seed=17)
    assert measured.accuracy > 0.93
    assert set(measured.by_kind) == set(synthetic.QUESTION_KINDS)
    assert min(measured.by_kind.values()) > 0.8


def test_accuracy_needs_the_video(model, processor):
    """Blind, each question can only be guessed: the clips decide the answers."""
    pairs = list(synthetic.sample_questions(60, seed=17))
    grey = [np.full_like(clip.frames, 90) for clip, _ in pairs]
    words = first_words(model, processor, grey, [question.text for _, question in pairs])
    assert np.mean([word == question.answer for word, (_, question) in zip(words, pairs, strict=True)]) < 0.45


def test_accuracy_hands_the_ratio_on_and_counts(model, processor):
    class Spy:
        def __init__(self):
            self.device = model.device
            self.options = []

        def generate(self, **inputs):
            self.options.append({key: value for key, value in inputs.items() if not isinstance(value, torch.Tensor)})
            inputs.pop("retention_ratio", None)
            return model.generate(**inputs)

    spy = Spy()
    measured = answer_accuracy(spy, processor, num_questions=7, seed=1, retention_ratio=0.5, batch_size=4)
    assert [options["retention_ratio"] for options in spy.options] == [0.5, 0.5]
    assert answer_accuracy(spy, processor, num_questions=7, seed=1, batch_size=7) == measured
    assert "retention_ratio" not in spy.options[-1]
    assert measured.total == 7
    with pytest.raises(ValueError, match="num_questions is 0"):
        answer_accuracy(model, processor, num_questions=0)


def test_standard_error_is_binomial():
    assert Accuracy(correct=90, total=100, by_kind={}).standard_error == pytest.approx(0.03)


def test_answer_ends_by_itself(model, processor, clips):
    inputs = chat_inputs(processor, "What color is the circle?", clips[0].frames)
    new = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(new, skip_special_tokens=True) == clips[0].questions[0].answer
    assert new.tolist()[1:] == [processor.tokenizer.eos_token_id]


def test_example_clips_are_answered_rightly_from_the_files(model, processor):
    examples = tiny.clips()
    assert 4 <= len(examples) <= 5
    for example in examples:
        frames = decode(example.path)
        assert frames.shape == (80, 84, 84, 3)
        sampled = frames[np.linspace(0, 79, 8).astype(int)]
        question = example.questions[0]
        assert first_words(model, processor, [sampled], [question.text]) == [question.answer]
        assert len({question.text for question in example.questions}) == len(synthetic.QUESTION_KINDS)


def test_write_mp4_holds_each_frame(tmp_path, clips):
    path = tmp_path / "clip.mp4"
    write_mp4(path, clips[0].frames)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(container.duration / av.time_base) == pytest.approx(8.0, abs=0.01)
    frames = decode(path)
    assert len(frames) == 80
    error = np.abs(frames.astype(int) - clips[0].frames.repeat(10, axis=0)).mean()
    assert error < 16
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_write_mp4_leaves_nothing_behind_when_it_fails(tmp_path):
    with pytest.raises(ValueError):
        write_mp4(tmp_path / "clip.mp4", np.zeros((2, 84, 84, 5), dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_from_nothing_reaches_its_accuracy(tmp_path):
    torch.set_num_threads(2)
    model, processor, record = pretrain(seed=1)
    measured = answer_accuracy(model, processor, num_questions=600, seed=23)
    assert measured.accuracy > 0.95, record
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert answer_accuracy(loaded, processor, num_questions=60, seed=23).accuracy > 0.9
