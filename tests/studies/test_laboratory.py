"""The laboratory, with a small untrained language model in the place of SmolLM2."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers.laboratory import write_language_model
from PIL import Image

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import FastV
from cacovid_hf.compressors.attention import video_attention
from cacovid_hf.evaluation.methods import make_method
from cacovid_hf.tiny.synthetic import dense_frames, make_clip
from studies.laboratory import policies, table
from studies.laboratory.__main__ import METHODS, RECIPES, RIVALS, Laboratory, jobs, waits_for
from studies.laboratory.contributions import DRAWS, SIZE, measure
from studies.laboratory.headroom import headroom
from studies.laboratory.mechanism import GROUPS, exchanged, groups
from studies.laboratory.packing import BEGIN, QUESTION, answer_logits, answered_right, everything
from studies.laboratory.picture import draw, example
from studies.laboratory.policies import Recipe, policy_scores, train
from studies.laboratory.prompts import Prompts
from studies.laboratory.questions import KINDS, NUM_TOKENS, READING, REPORTED, VALIDATION, ask, balanced, clips_of
from studies.laboratory.reading import Reader
from studies.laboratory.scores import Attended, attended, fillers, highest, right_from
from studies.laboratory.sizes import MOST, by_size, right_of_sets, within
from studies.laboratory.table import BEST, answers, difference, mean_and_error
from studies.laboratory.video_model import VIDEO_TOKEN, ProjectorTraining, build, pixels, tower_attention, video_tokens
from studies.laboratory.words import Vocabulary
from studies.questions import answered_right as right_by_method

CLIPS = 2


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of the laboratory with a language model in it."""
    folder = tmp_path_factory.mktemp("laboratory")
    write_language_model(folder)
    return folder


@pytest.fixture(scope="module")
def laboratory(work):
    """Its model, vocabulary, and some clips with two questions of each kind."""
    model, tokenizer = build(work, 0)
    vocabulary = Vocabulary(tokenizer)
    asked = balanced(ask(model, vocabulary, CLIPS, REPORTED, 0), 2, torch.Generator().manual_seed(0))
    return model, vocabulary, asked


@pytest.fixture(scope="module")
def wrapped(laboratory):
    """The model with a light policy."""
    torch.manual_seed(0)
    return CaCoVidForConditionalGeneration.from_backbone(
        laboratory[0], policy_type="light", contribution_share=1.0, scope="tokens"
    ).eval()


def test_questions_are_spelt_and_balanced(laboratory):
    _model, vocabulary, asked = laboratory
    assert [(asked.kinds == kind).sum(1).tolist() for kind in range(len(KINDS))] == [[2] * CLIPS] * len(KINDS)
    assert asked.evidence.any(2).all()
    assert (asked.evidence.sum(2) <= 2).all()
    assert (asked.evidence & asked.objects[:, None]).sum() == asked.evidence.sum()
    assert vocabulary.answer("maroon") == vocabulary.answer("wine") != vocabulary.answer("red")
    with pytest.raises(ValueError, match="'two words' has 2 tokens"):
        vocabulary.answer("two words")


def test_packed_questions_are_answered_as_each_alone_by_the_stock_model(laboratory):
    model, _, asked = laboratory
    kept = torch.stack([torch.arange(3, 200, 7), torch.arange(0, 197, 7)])
    packed = answer_logits(model, asked, torch.arange(CLIPS), kept)
    embed = model.get_input_embeddings()
    for clip in range(CLIPS):
        for number in range(asked.ids.shape[1]):
            ids = asked.ids[clip, number, : asked.lengths[clip, number]]
            parts = [
                embed.weight[BEGIN][None],
                asked.tokens[clip, kept[clip]].float(),
                model.model.image_newline[None],
                embed(ids),
            ]
            positions = torch.cat([torch.tensor([0]), kept[clip] + 1, torch.arange(QUESTION - 1, QUESTION + len(ids))])
            embeds = torch.cat(parts)[None]
            alone = model(
                inputs_embeds=embeds,
                position_ids=positions[None],
                attention_mask=torch.ones(embeds.shape[:2]).long(),
                use_cache=False,
            ).logits[0, -1]
            torch.testing.assert_close(packed[clip, number], alone, rtol=1e-4, atol=1e-4)


def test_clips_enter_as_through_the_stock_model(laboratory):
    """Tokens that are kept for the laboratory stand where the stock model puts a video's, the newline behind them."""
    model, _, asked = laboratory

    frames = pixels([make_clip((REPORTED, 0, 0)).frames])
    ids = torch.cat(
        [torch.tensor([BEGIN]), torch.full((NUM_TOKENS + 1,), VIDEO_TOKEN), asked.ids[0, 0, : asked.lengths[0, 0]]]
    )
    with torch.no_grad():
        stock = model(input_ids=ids[None], pixel_values_videos=frames).logits[0, -1]
    ours = answer_logits(model, asked, torch.tensor([0]), everything(1))[0, 0]
    torch.testing.assert_close(ours, stock, rtol=2e-2, atol=2e-2)  # tokens are kept in half precision
    assert ours.argmax() == stock.argmax()


def test_attention_is_that_of_the_library(laboratory, wrapped):
    model, _, asked = laboratory
    found = attended(model, asked)
    (batch,) = Prompts(wrapped, asked, asked.answers.numel())
    for query, rows in (("question", found.question), ("last", found.last)):
        for layer, videos in video_attention(wrapped, batch.prompt, [0, 1], query).items():
            expected = torch.stack([video.flatten() for video in videos]).view(*asked.answers.shape, NUM_TOKENS)
            if query == "last":
                torch.testing.assert_close(rows[:, :, layer].float(), expected, rtol=5e-3, atol=1e-6)
            else:  # the library counts the newline behind the video to the question
                assert (rows[:, :, layer].float() - expected).abs().max() < 0.2 * expected.abs().max()


def test_subsets_are_answered_as_by_the_library(laboratory, wrapped):
    model, _, asked = laboratory
    kept = highest(policy_scores(wrapped, asked), 14)
    right, probability = right_from(model, asked, kept)
    assert (probability > 0).all()
    assert torch.equal(right_by_method(wrapped, list(Prompts(wrapped, asked, 7)), 14 / NUM_TOKENS), right.flatten())
    assert torch.equal(
        answered_right(model, asked, everything(CLIPS)),
        right_from(model, asked, everything(CLIPS)[:, None].expand(-1, 10, -1))[0],
    )


def test_every_method_chooses_among_the_tokens_of_its_own_clips(laboratory, wrapped):
    _, _, asked = laboratory
    frames = [clip.frames for clip in clips_of(CLIPS, REPORTED, 0)]
    tower = tower_attention(wrapped, frames)
    for clip, encoded in enumerate(wrapped.encode_videos(pixel_values_videos=pixels(frames)).features):
        torch.testing.assert_close(encoded[:NUM_TOKENS].half(), asked.tokens[clip])
    prompts = Prompts(wrapped, asked, 7, tower=tower)
    for name in METHODS:
        if name.startswith("fastv"):  # begins behind the second layer, and there is none
            continue
        assert right_by_method(wrapped, prompts, 14 / NUM_TOKENS, make_method(name, wrapped)).shape == (20,)
    prompt = prompts[1].prompt
    assert prompt.tower_attention(prompt.layout.videos[2]) is tower[0]
    assert prompt.tower_attention(prompt.layout.videos[3]) is tower[1]  # question 10, the second clip's first


def test_a_method_inside_the_language_model_answers_as_in_forward(laboratory, wrapped):
    _, _, asked = laboratory
    ratio, method = 14 / NUM_TOKENS, FastV(layer=1, ratio_of="kept")
    answers, is_clear = asked.answers.clone(), []
    for clip, shown in enumerate(clips_of(CLIPS, REPORTED, 0)):
        for number in range(asked.answers.shape[1]):
            words = asked.ids[clip, number, : asked.lengths[clip, number]]
            ids = torch.cat([torch.tensor([BEGIN]), torch.full((NUM_TOKENS + 1,), VIDEO_TOKEN), words])[None]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            inputs |= {"pixel_values_videos": pixels([shown.frames]), "retention_ratio": ratio, "compressor": method}
            with torch.no_grad():
                best = wrapped(**inputs).logits[0, -1].topk(2)
            answers[clip, number] = best.indices[0]
            is_clear.append(best.values[0] - best.values[1] > 0.02)  # tokens are kept in half precision
    prompts = Prompts(wrapped, dataclasses.replace(asked, answers=answers), 7)
    clear = torch.stack(is_clear)
    assert clear.sum() > 10
    assert right_by_method(wrapped, prompts, ratio, method)[clear].all()
    assert not right_by_method(wrapped, prompts, ratio, "random")[clear].all()


def test_fillers_hold_one_token_of_evidence_and_what_they_say(laboratory):
    _, _, asked = laboratory
    attention = torch.rand(asked.evidence.shape, generator=torch.Generator().manual_seed(1))
    choices = fillers(asked, attention, seed=0)
    objects = asked.objects[:, None].expand_as(asked.evidence) & ~asked.evidence
    for name, scores in choices.items():
        kept = highest(scores, 5)
        assert asked.evidence.gather(2, kept).any(2).all(), name
    assert objects.gather(2, highest(choices["other objects"], 5)).sum(2).min() >= 3
    assert objects.gather(2, highest(choices["cells without objects"], 5)).sum() == 0
    liked = highest(attention.masked_fill(asked.evidence, 0), 3)
    kept = highest(choices["attention's next choices"], 5)
    assert all(
        set(some) <= set(all_)
        for some, all_ in zip(liked.flatten(0, 1).tolist(), kept.flatten(0, 1).tolist(), strict=True)
    )


def test_highest_takes_the_earlier_of_equals():
    assert highest(torch.tensor([1.0, 3.0, 1.0, 1.0]), 2).tolist() == [0, 1]


def test_the_projector_learns_what_cells_show(work, monkeypatch):
    monkeypatch.setattr("studies.laboratory.video_model.STEPS", 8)
    model, tokenizer = build(work, 0)
    training = ProjectorTraining(model, Vocabulary(tokenizer), 0)
    quality = training.run()
    assert quality["tint"] > 0.9  # chance: 1 in 6
    assert quality["color"] > 0.5  # 1 in 13
    assert quality["object"] > 0.3  # 1 in 29
    (cells,) = training._batches(1, 8, first=0)
    frames, _ = dense_frames(8, (21, 0, 0))
    with torch.no_grad():
        torch.testing.assert_close(video_tokens(model, frames[None])[0].view(8, 36, -1), training._tokens(cells))


def test_a_reader_goes_on_where_it_was_stopped(work):
    def reader():
        model, tokenizer = build(work, 0)
        vocabulary = Vocabulary(tokenizer)
        asked = ask(model, vocabulary, 4, READING, 0)
        validation = balanced(ask(model, vocabulary, 2, VALIDATION, 0), 1, torch.Generator().manual_seed(0))
        return Reader(model, asked, validation, seed=0)

    def after(some, steps):
        for _ in range(steps):
            some._step()
        return {name: weight.detach().clone() for name, weight in some.weights.items()}

    whole = reader()
    first = reader()
    after(first, 2)
    second = reader()
    second.load_state_dict(first.state_dict())
    expected, found = after(whole, 4), after(second, 2)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert second.progress.step == 4
    assert second.progress.questions == whole.progress.questions
    with pytest.raises(RuntimeError, match=r"not 0\.9"):
        second.run_to(0.9, max_seconds=0.0)


@pytest.mark.parametrize("teacher", ["question", "last", "evidence"])
def test_recipes_train_a_policy(laboratory, teacher):
    model, _, asked = laboratory
    torch.manual_seed(0)
    wrapped = CaCoVidForConditionalGeneration.from_backbone(
        model, policy_type="light", contribution_share=1.0, scope="tokens"
    )
    before = {name: weight.clone() for name, weight in wrapped.policy.named_parameters()}
    logs = train(
        wrapped, asked, attended(model, asked), Recipe(teacher, steps=12, rollout_questions=32, tokens=(2, 5)), seed=0
    )
    assert len(logs["imitation"]) == 12
    assert logs["imitation"][-1] < logs["imitation"][0]
    assert logs["rollouts"] == 32 * 12 * 2
    assert len(logs["rollouts_log"]) == 2
    moved = {name for name, weight in wrapped.policy.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert not any(name.startswith("frame_head") for name in moved)


def test_headroom_is_zero_where_nothing_harms(laboratory):
    model, _, asked = laboratory
    flat = torch.zeros(*asked.answers.shape, 2, NUM_TOKENS)
    found = headroom(model, asked, Attended(flat, flat))
    assert {row["tokens"] for row in found["headroom"]} == {5, 14}
    assert 0 <= found["all"]["mean"] <= 1
    assert set(found["by_kind"]) == set(KINDS)
    assert all(row["evidence_kept"] == 1 for row in found["fillers"])


def test_cells_wait_for_their_reader(tmp_path):
    names = list(jobs(Laboratory(tmp_path)))
    assert len(names) == 9 * (2 * (12 + len(METHODS) + len(RECIPES)) + 2)
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


def test_measured_subsets_are_answered_and_hold_what_they_say(laboratory):
    model, _, asked = laboratory
    scores, questions = torch.rand(2, NUM_TOKENS), torch.tensor([3, 17])
    found = measure(model, asked, scores, questions, torch.Generator().manual_seed(0))
    assert (found.masks.sum(2) == SIZE).all()
    assert torch.equal(found.likely, scores.topk(2 * SIZE, dim=1).indices)
    kept = found.masks.nonzero()[:, 2].view(2, DRAWS, SIZE)
    for one in (0, DRAWS - 1):
        alone = asked.alone(questions)
        logits = answer_logits(model, alone, torch.arange(2), kept[:, one])[:, 0]
        expected = logits.softmax(-1).gather(1, alone.answers)[:, 0]
        torch.testing.assert_close(found.probability[:, one], expected, rtol=1e-4, atol=1e-6)


def test_a_policy_learns_measured_contributions(laboratory):
    model, _, asked = laboratory
    torch.manual_seed(0)
    wrapped = CaCoVidForConditionalGeneration.from_backbone(
        model, policy_type="light", contribution_share=1.0, scope="tokens"
    )
    measured = measure(
        model, asked, torch.rand(7, NUM_TOKENS), torch.arange(0, 20, 3), torch.Generator().manual_seed(0)
    )
    logs = train(wrapped, asked, attended(model, asked), Recipe(contribution_steps=20), seed=0, contributions=measured)
    assert len(logs["contributions"]) == 20
    assert sum(logs["contributions"][-5:]) < sum(logs["contributions"][:5])
    assert "imitation" not in logs


def test_what_a_policy_finds_likely_is_measured_and_learnt_in_passes(laboratory, monkeypatch):
    model, _, asked = laboratory
    monkeypatch.setattr(policies, "CONTRIBUTION_QUESTIONS", 40)
    torch.manual_seed(0)
    wrapped = CaCoVidForConditionalGeneration.from_backbone(
        model, policy_type="light", contribution_share=1.0, scope="tokens"
    )
    likely = policy_scores(wrapped, asked).flatten(0, 1)
    found = policies._measured_by_policy(wrapped, asked, torch.Generator().manual_seed(0))
    assert len(found.questions) == 40
    assert torch.equal(found.likely, likely[found.questions].topk(2 * SIZE, dim=1).indices)
    logs = train(wrapped, asked, attended(model, asked), Recipe(contribution_steps=6, by_policy=True), seed=0)
    assert len(logs["contributions"]) == 6


def test_each_batch_is_measured_once_and_learnt_in_a_row(laboratory):
    model, _, asked = laboratory
    torch.manual_seed(0)
    wrapped = CaCoVidForConditionalGeneration.from_backbone(
        model, policy_type="light", contribution_share=1.0, scope="tokens"
    )
    logs = train(wrapped, asked, attended(model, asked), Recipe(contribution_steps=10, in_a_row=5), seed=0)
    first, second = logs["contributions"][:5], logs["contributions"][5:]
    assert len(second) == 5
    assert first[-1] < first[0]


def test_sets_of_any_size_are_answered_as_those_of_one(laboratory):
    model, _, asked = laboratory
    scores = torch.rand(asked.evidence.shape, generator=torch.Generator().manual_seed(2))
    counts = torch.randint(1, 4, asked.answers.shape, generator=torch.Generator().manual_seed(3))
    keep = torch.stack([scores >= scores.topk(count).values[..., -1:] for count in (1, 2, 3)])
    mixed = keep.gather(0, (counts - 1)[None, ..., None].expand(1, *scores.shape))[0]
    right, probability = right_of_sets(model, asked, mixed)
    for count in (1, 2, 3):
        expected = right_from(model, asked, highest(scores, count))
        assert torch.equal(right[counts == count], expected[0][counts == count])
        torch.testing.assert_close(probability[counts == count], expected[1][counts == count])


def test_margins_keep_at_least_one_token_and_at_most_so_many():
    scores = torch.tensor([[3.0, 1.0, 2.5, 3.0], [0.0, -9.0, -1.0, -1.5]])
    assert within(scores, 0.0).tolist() == [[True, False, False, True], [True, False, False, False]]
    assert within(scores, 1.0).sum(1).tolist() == [3, 2]
    many = torch.zeros(1, 100)
    assert within(many, 0.0).sum() == MOST


def test_sizes_are_chosen_by_other_questions(laboratory):
    model, _, asked = laboratory
    known = asked.evidence.float()
    found = by_size(model, asked, known, asked, known, "known")
    assert found["best"]["mean"] == max(row["mean"] for row in found["results"])
    assert found["auto"]["mean"] >= found["best"]["mean"] - 0.3
    assert [row["tokens"] for row in found["results"]] == [1, 2, 3, 5, 14, 28]
    assert [len(clip) for clip in found["right"]["auto"]] == [10] * CLIPS


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


def test_the_table_pools_seeds_and_pairs_by_clip(tmp_path, capsys):
    def cell(name, choice, kind="policy", took=None, **right):
        written = {"results": [{"choice": choice}], "right": right, "seconds": 1800, **(took or {})}
        (tmp_path / f"{kind}__{name}.json").write_text(json.dumps(written))

    cell("0__80__best", BEST, **{"5": ["11", "10"], "14": ["11", "11"]})
    cell("1__80__best", BEST, **{"5": ["11", "11"], "14": ["11", "11"]})
    cell("0__80__other", "other", **{"5": ["10", "10"], "14": ["00", "00"]})
    cell("0__90__other", "other", took={"processor_seconds": 3600}, **{"5": ["11", "11"], "14": ["11", "11"]})
    cell("0__80__other", "other", kind="larger", took={"core_seconds": 900}, **{"72": ["10", "11"]})
    found = answers(tmp_path, 80)
    assert mean_and_error([*found[BEST]["5"].values()]) == pytest.approx((87.5, 12.5))
    assert difference(found[BEST]["5"], found["other"]["5"]) == pytest.approx((25.0, 25.0))
    table.main(["--folder", str(tmp_path)])
    first, second, _, hours = capsys.readouterr().out.splitlines()[2:]
    assert first.startswith(f"| {BEST} | 0, 1 |  |  | 87.5 ± 12.5 | 100.0 ± 0.0 |")
    assert "| 75.0 ± 25.0 |" in second
    assert second.endswith("| +25.0 ± 25.0 | +100.0 ± 0.0 |")
    assert (
        hours == "5 cells of the laboratory, 2.8 core hours, or of the clock where no more is known."
    )  # 3 x 0.5, 1 and 0.25


def test_the_committed_cells_make_the_table():
    found = answers(table.FOLDER, 80)
    assert {(seed, clip) for seed in (0, 1, 2) for clip in range(48)} == set(found[BEST]["5"])
    gain, error = difference(found[BEST]["5"], found["imitation of the last token"]["5"])
    assert gain > 2 * error > 0


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
