"""The laboratory, with a small untrained language model in the place of SmolLM2."""

import dataclasses

import pytest
import torch
from helpers.laboratory import CLIPS

from cacovid_hf.compressors import FastV
from cacovid_hf.compressors.attention import video_attention
from cacovid_hf.evaluation.methods import make_method
from cacovid_hf.tiny.synthetic import dense_frames, make_clip
from studies.laboratory.__main__ import METHODS
from studies.laboratory.headroom import headroom
from studies.laboratory.packing import BEGIN, QUESTION, answer_logits, answered_right, everything
from studies.laboratory.policies import policy_scores
from studies.laboratory.prompts import Prompts
from studies.laboratory.questions import KINDS, NUM_TOKENS, READING, REPORTED, VALIDATION, ask, balanced, clips_of
from studies.laboratory.reading import Reader
from studies.laboratory.scores import Attended, attended, fillers, highest, right_from
from studies.laboratory.sizes import MOST, by_size, right_of_sets, within
from studies.laboratory.video_model import VIDEO_TOKEN, ProjectorTraining, build, pixels, tower_attention, video_tokens
from studies.laboratory.words import Vocabulary
from studies.questions import answered_right as right_by_method


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


def test_headroom_is_zero_where_nothing_harms(laboratory):
    model, _, asked = laboratory
    flat = torch.zeros(*asked.answers.shape, 2, NUM_TOKENS)
    found = headroom(model, asked, Attended(flat, flat))
    assert {row["tokens"] for row in found["headroom"]} == {5, 14}
    assert 0 <= found["all"]["mean"] <= 1
    assert set(found["by_kind"]) == set(KINDS)
    assert all(row["evidence_kept"] == 1 for row in found["fillers"])


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
