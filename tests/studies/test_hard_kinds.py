"""The kinds of the laboratory that make a difference visible on purpose: what their clips show, and what their evidence means."""

import numpy as np
import pytest
import torch
from helpers.laboratory import write_language_model

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny.synthetic import BITMAPS, CELL, COLORS, GRID, SHAPES, TINTS
from studies.laboratory.hard_clips import HARD_KINDS, NONE, make_hard_clip, plural
from studies.laboratory.hard_reading import HardReader
from studies.laboratory.headroom import headroom, line
from studies.laboratory.packing import answered_right, everything
from studies.laboratory.policies import Recipe, policy_scores, train
from studies.laboratory.questions import ALL_KINDS, KINDS, NUM_TOKENS, ask, balanced
from studies.laboratory.scores import attended, fillers, highest, right_of_sets
from studies.laboratory.sizes import by_size
from studies.laboratory.video_model import build
from studies.laboratory.words import Vocabulary

CLIPS = 3


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    """A small model, and all questions about some clips."""
    folder = tmp_path_factory.mktemp("laboratory")
    write_language_model(folder)
    model, tokenizer = build(folder, 0)
    return model, ask(model, Vocabulary(tokenizer), CLIPS, 44, 0, make_hard_clip, ALL_KINDS)


@pytest.fixture(scope="module")
def hard(laboratory):
    """Two questions of every hard kind about each clip."""
    return balanced(laboratory[1], 2, torch.Generator().manual_seed(0), HARD_KINDS)


def seen_in(frames, token):
    """(shape, color, tint) that the pixels of a token show: the shape whose bitmap is there in one flat color, up to noise."""
    frame, cell = divmod(token, GRID * GRID)
    top, left = (CELL * part for part in divmod(cell, GRID))
    pixels = frames[frame, top : top + CELL, left : left + CELL].astype(int)
    ground = np.median(np.concatenate([pixels[0], pixels[-1]]), axis=0)
    tint = min(TINTS, key=lambda name: np.abs(ground - TINTS[name]).max())
    drawn = np.abs(pixels - ground).max(-1) > 30
    if not drawn.any() or np.abs(pixels[drawn] - np.median(pixels[drawn], axis=0)).max() > 30:
        return None  # nothing, or stripes and checks
    color = min(COLORS, key=lambda name: np.abs(np.median(pixels[drawn], axis=0) - COLORS[name]).max())
    for shape in SHAPES:
        size = BITMAPS[shape].shape[0]
        for y in range(CELL - size + 1):
            for x in range(CELL - size + 1):
                expected = np.zeros_like(drawn)
                expected[y : y + size, x : x + size] = BITMAPS[shape]
                if (expected != drawn).mean() < 0.02:
                    return shape, color, tint
    return None


def tokens_of(question):
    """Tokens of each group of a question."""
    groups = question.groups.ravel()
    return [np.flatnonzero(groups == number).tolist() for number in range(1, groups.max() + 1)]


def words(question):
    return question.text.rstrip("?").split()


@pytest.mark.parametrize("number", range(4))
def test_pixels_show_what_the_questions_say(number):
    clip = make_hard_clip((44, 0, number))
    shown = [seen for token in range(NUM_TOKENS) if (seen := seen_in(clip.frames, token))]
    colors = {shape: [color for one, color, _ in shown if one == shape] for shape in SHAPES}
    for question in clip.questions:
        groups, text = tokens_of(question), words(question)
        if question.kind == "near_match":
            ((token,),) = groups
            assert seen_in(clip.frames, token) == (text[4], question.answer, text[6])
            assert len(set(colors[text[4]])) == 3
        elif question.kind == "two_hops":
            (digit,), (token,) = groups
            (about,) = [one for one in clip.questions if one.kind == "digit" and one.answer == text[6]]
            assert tokens_of(about) == [[digit]]
            shape, color, tint = seen_in(clip.frames, token)
            assert (shape, color, tint) == (text[4], question.answer, words(about)[-1])
        elif question.kind == "order":
            ((token,),) = groups
            assert seen_in(clip.frames, token)[:2] == (text[5], question.answer)
            others = [one for one in range(NUM_TOKENS) if (seen_in(clip.frames, one) or " ")[0] == text[5]]
            assert token == (min if text[4] == "first" else max)(others)
        elif question.kind == "counting":
            (shape,) = [one for one in SHAPES if plural(one) == text[2]]
            assert len(colors[shape]) == len(groups) == int(question.answer)
        elif question.kind == "redundancy":
            (copies,) = groups
            assert len(copies) >= 3
            assert len({seen_in(clip.frames, token) and seen_in(clip.frames, token)[:2] for token in copies}) == 1
            assert question.answer in seen_in(clip.frames, copies[0])[:2]
        elif question.kind == "nothing":
            assert groups == []
            assert question.answer == NONE
            assert not any(seen[0] == text[4] and text[-1] in (seen[0], seen[2]) for seen in shown)


def test_a_seed_gives_the_same_clip_and_order_of_kinds():
    one, again, other = make_hard_clip((1, 2)), make_hard_clip((1, 2)), make_hard_clip((1, 3))
    assert np.array_equal(one.frames, again.frames)
    assert [question.text for question in one.questions] == [question.text for question in again.questions]
    assert not np.array_equal(one.frames, other.frames)
    kinds = [question.kind for question in one.questions]
    assert kinds == [question.kind for question in other.questions]
    assert set(kinds) == set(ALL_KINDS)


def test_evidence_is_found_group_by_group(hard):
    kinds = hard.kinds
    needed = hard.groups.amax(2)
    assert (needed[kinds == ALL_KINDS.index("nothing")] == 0).all()
    assert (needed[kinds == ALL_KINDS.index("two_hops")] == 2).all()
    found = hard.found(hard.groups == 1)
    hops = found[kinds == ALL_KINDS.index("two_hops")]
    assert (hops == 0.5).all()
    assert found[kinds == ALL_KINDS.index("nothing")].isnan().all()
    assert (hard.found(hard.evidence).nan_to_num(1.0) == 1).all()
    copies = kinds == ALL_KINDS.index("redundancy")
    first = torch.zeros_like(hard.evidence).scatter(2, highest(hard.evidence.float(), 1), True)
    assert (hard.found(first)[copies] == 1).all()  # any copy will do


def test_old_questions_have_one_group(laboratory):
    _, asked = laboratory
    old = balanced(asked, 2, torch.Generator().manual_seed(0), KINDS)
    assert (old.groups.amax(2) == 1).all()
    assert torch.equal(old.found(old.evidence), torch.ones(old.answers.shape))


def test_fillers_hold_a_token_of_every_group(hard):
    attention = torch.rand(hard.groups.shape, generator=torch.Generator().manual_seed(1))
    for name, scores in fillers(hard, attention, seed=0).items():
        alone = scores > 100
        assert torch.equal(alone.sum(2), hard.groups.amax(2).long()), name
        assert (hard.found(alone).nan_to_num(1.0) == 1).all(), name


def test_a_question_may_be_asked_without_a_token_of_the_video(laboratory, hard):
    model, _ = laboratory
    keep = torch.zeros_like(hard.evidence)
    right, probability = right_of_sets(model, hard, keep)
    assert (probability > 0).all()
    found = line(hard, "none", keep, right, probability)
    assert found["tokens"] == 0
    assert found["evidence_kept"] == 0
    assert "nothing" in found["by_kind"]
    assert "nothing" not in found["evidence_kept_by_kind"]


def test_lines_are_told_by_kind(laboratory, hard):
    model, _ = laboratory
    found = headroom(model, hard, attended(model, hard))
    right = answered_right(model, hard, everything(CLIPS))
    for number, kind in enumerate(ALL_KINDS):
        if kind in HARD_KINDS:
            assert found["by_kind"][kind]["mean"] == pytest.approx(
                right[hard.kinds == number].float().mean().item(), abs=1e-4
            )
    whole = found["headroom"][0]
    assert np.mean([one["mean"] for one in whole["by_kind"].values()]) == pytest.approx(whole["mean"], abs=1e-3)


def test_a_hard_reader_asks_what_its_tokens_can_answer_and_goes_on_where_it_was_stopped(laboratory, monkeypatch):
    monkeypatch.setattr("studies.laboratory.hard_reading.STEPS", 30)
    model, asked = laboratory
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    try:
        reader = HardReader(model, asked, asked, seed=0)
        start = reader.state_dict()
        start = {**start, "weights": {name: weight.clone() for name, weight in start["weights"].items()}}
        clips = torch.tensor([0, 2])
        kept = reader._kept(clips, 6)
        some = reader._questions(clips, kept, 40)
        keep = torch.zeros(2, 1, NUM_TOKENS).bool().scatter(2, kept[:, None], True)
        assert (some.found(keep).nan_to_num(1.0) == 1).all()
        assert len(some.kinds.unique()) >= 3
        saved = []
        reader.load_state_dict(start)
        reader.run(keep=lambda: saved.append(reader.progress.step))
        assert reader.progress.step == 30
        assert reader.progress.by_kind[ALL_KINDS.index("nothing")] > 0.2
        assert reader._rate() == 0
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters() if "mlp" in name)
    finally:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(before[name]).requires_grad_(False)


def test_policies_learn_from_questions_that_need_no_token(laboratory, hard):
    model, _ = laboratory
    torch.manual_seed(0)
    wrapped = CaCoVidForConditionalGeneration.from_backbone(
        model, policy_type="light", contribution_share=1.0, scope="tokens"
    )
    losses = train(wrapped, hard, attended(model, hard), Recipe("evidence", steps=8), seed=0)["imitation"]
    assert losses[-1] < losses[0]
    found = by_size(model, hard, policy_scores(wrapped, hard), hard, policy_scores(wrapped, hard), "labels")
    assert set(found["best"]["by_kind"]) == set(HARD_KINDS)
