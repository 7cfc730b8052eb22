"""Streams of the laboratory: every question has one answer, and it was visible when the question says."""

import numpy as np
import pytest

from cacovid_hf.tiny.streams import LONGEST_SCENE, make_stream
from cacovid_hf.tiny.synthetic import DIGITS, SHAPES


def test_the_same_seed_is_the_same_stream():
    one, two, other = make_stream(60, 3), make_stream(60, 3), make_stream(60, 4)
    assert np.array_equal(one.frames, two.frames)
    assert one.questions == two.questions or [vars(q) for q in one.questions] == [vars(q) for q in two.questions]
    assert not np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("seed", range(4))
def test_questions(seed):
    stream = make_stream(90, seed)
    assert stream.frames.shape == (90, 84, 84, 3)
    assert stream.frames.dtype == np.uint8
    assert len({question.text for question in stream.questions}) == len(stream.questions) == 34
    colors = {q.text.split()[-1].rstrip("?"): q.answer for q in stream.questions if q.kind == "color"}
    assert set(colors) == set(SHAPES)
    assert len(set(colors.values())) == len(SHAPES)
    for question in stream.questions:
        assert 0 <= question.age < 90
        if question.kind == "shape":
            assert question.text == f"What shape is colored {colors[question.answer]}?"
    assert {q.text for q in stream.questions if q.kind == "scene_of_digit"} == {
        f"Which scene has the {digit}?" for digit in DIGITS
    }


def test_an_answer_is_visible_at_its_age_alone():
    """Where a shape comes and goes, its frame differs from those around it by more than the noise."""
    stream = make_stream(90, 1)
    changes = np.abs(np.diff(stream.frames.astype(int), axis=0)).max(axis=(1, 2, 3)) > 40
    for question in stream.questions:
        last = 89 - question.age
        if last < 89:
            assert changes[last], question
    # Within a scene nothing else moves.
    assert changes.sum() < 2 * len(SHAPES) + 2 * len(DIGITS) + 90 / 4
    assert LONGEST_SCENE < 90
