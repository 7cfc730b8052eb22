"""Cells of the laboratory, what they tell, and the picture that is made of them."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.laboratory import CLIPS
from PIL import Image

from cacovid_hf.tiny.synthetic import make_clip
from studies.laboratory.__main__ import METHODS, RIVALS, jobs, waits_for
from studies.laboratory.laboratory import SEEDS, STRENGTHS, Laboratory
from studies.laboratory.mechanism import GROUPS, exchanged, groups
from studies.laboratory.packing import answer_logits
from studies.laboratory.picture import draw, example
from studies.laboratory.policies import RECIPES
from studies.laboratory.questions import KINDS
from studies.laboratory.scores import highest, right_from


def test_cells_wait_for_their_reader(tmp_path):
    names = list(jobs(Laboratory(tmp_path)))
    assert len(names) == len(SEEDS) * len(STRENGTHS) * (2 * (12 + len(METHODS) + len(RECIPES)) + 2)
    assert waits_for("reader/0/80") is None
    assert waits_for("reader/1/97") == "reader/1/90"
    assert all(waits_for(name) in names for name in names if waits_for(name))
    assert waits_for("hard-reader/1/90") == "reader/1/90"
    assert waits_for("hard-headroom/1/90") == "hard-reader/1/90"
    assert waits_for("larger/0/80/attention") == "reader/0/80"
    assert waits_for("hard-teacher/0/80") == "hard-policy/0/80/imitation of the last token"
    assert waits_for(f"larger/0/80/{RIVALS[1]}") == f"policy/0/80/{RIVALS[1]}"
    assert waits_for("picture/0/80") == "policy/0/80/imitation, then contributions"
    assert waits_for(f"mechanism/0/80/{RIVALS[1]}") == f"policy/0/80/{RIVALS[1]}"


def test_exchanged_tokens_change_the_answer_as_asking_anew_says(laboratory):
    model, _, asked = laboratory
    generator = torch.Generator().manual_seed(4)
    one, other = (torch.rand(asked.evidence.shape, generator=generator) for _ in range(2))
    group = groups(asked, one)
    lines = exchanged(model, asked, one, other, group, 2)
    kept, dropped = highest(one, 2), highest(other, 2)
    expected = []
    for clip in range(CLIPS):
        for number in range(asked.answers.shape[1]):
            single = asked.alone(torch.tensor([clip * asked.answers.shape[1] + number]))
            mine, theirs = set(kept[clip, number].tolist()), set(dropped[clip, number].tolist())
            for token in mine - theirs:
                sets = [mine, mine - {token}, theirs, theirs | {token}]
                expected.append([right_from(model, single, torch.tensor([[sorted(some)]]))[1].item() for some in sets])
    before, without, theirs, joined = torch.tensor(expected).T
    assert lines[0]["tokens"] == "all"
    assert lines[0]["count"] == len(expected)
    assert lines[0]["taken_away"]["mean"] == pytest.approx((without - before).mean().item(), abs=1e-3)
    assert lines[0]["added"]["mean"] == pytest.approx((joined - theirs).mean().item(), abs=1e-3)
    assert sum(line["count"] for line in lines[1:]) == lines[0]["count"]


def test_tokens_are_told_apart_by_what_they_are_to_a_question(laboratory):
    _, _, asked = laboratory
    group = groups(asked, torch.rand(asked.evidence.shape, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(group == GROUPS.index("evidence"), asked.evidence)
    near = group == GROUPS.index("near match")
    about_digits = asked.kinds >= KINDS.index("digit")
    assert (near[about_digits].sum(1) == 3).all()  # four scenes, a digit each
    assert (near & asked.digits[:, None])[~about_digits].sum() == 0
    assert (group == GROUPS.index("sink")).any(2).sum(1).min() >= 1


# ---------------------------------------------------------------- a picture


def test_the_example_is_one_that_ours_alone_answers_and_its_tokens_are_taken_away_one_by_one(laboratory):
    model, _, asked = laboratory
    rival, ours = (torch.rand(asked.evidence.shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    rival, ours = rival + asked.evidence, ours + asked.evidence
    kept = highest(ours, 5)
    said = [
        answer_logits(model, asked.alone(number), torch.tensor([0]), kept.flatten(0, 1)[number])[0, 0].argmax()
        for number in torch.arange(asked.answers.numel()).split(1)
    ]
    asked = dataclasses.replace(asked, answers=torch.stack(said).view_as(asked.answers))  # ours is always right
    shown = example(model, asked, rival, ours, groups(asked, rival), 5)
    theirs, mine = shown["choices"]
    assert mine["said"] == shown["answer"] == asked.answers[shown["clip"], shown["place"]]
    assert theirs["said"] != shown["answer"]
    tokens = [one["token"] for one in mine["tokens"]]
    assert tokens == kept[shown["clip"], shown["place"]].tolist()
    number = torch.tensor([shown["clip"] * asked.answers.shape[1] + shown["place"]])
    for one in mine["tokens"]:
        fewer = torch.tensor([[[token for token in tokens if token != one["token"]]]])
        without = right_from(model, asked.alone(number), fewer)[1].item()
        assert one["taken_away"] == pytest.approx(without - mine["probability"], abs=2e-4)
        assert one["is"] in GROUPS


def test_a_choice_is_drawn_over_its_clip(tmp_path):
    shown = {"text": "What color is the circle?", "answer": 7, "word": "red", "choices": []}
    for name, said, place in (("attention", 3, 40), ("ours", 7, 287)):
        tokens = [{"token": place, "is": "evidence", "taken_away": -0.5}, {"token": 3, "is": "sink", "taken_away": 0}]
        shown["choices"].append({"name": name, "said": said, "word": "blue", "probability": 0.4, "tokens": tokens})
    frames = make_clip(0).frames
    draw(shown, frames, tmp_path / "one.png")
    (shown["choices"][1]["tokens"][0]) |= {"token": 100}
    draw(shown, frames, tmp_path / "other.png")
    one, other = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "other"))
    assert one.shape[1] > 1000
    assert (one[: one.shape[0] // 2] == other[: one.shape[0] // 2]).all()  # the rival's row
    assert (one != other).any()
