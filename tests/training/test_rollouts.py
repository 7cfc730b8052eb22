"""Rollouts run as one batch: each equals the oracle run alone, and one prefill scores what generation would have answered."""

import pytest
import torch
from helpers.cut_oracle import CutPrompts
from helpers.models import FAMILIES, RAGGED, TWO_VIDEOS, masked_inputs, prompt_inputs, stock_model

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.training.rollouts import generate_answers, score_answers, select_subsets


def embedded(family, rows=RAGGED):
    stock = stock_model(family)
    stock.generation_config.suppress_tokens = None  # a forward alone knows of no such rule
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, rows)
    layout = model.family.layout(stock.config, inputs["input_ids"], inputs["attention_mask"], inputs)
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        prompt = model.family.embed(stock, layout, inputs["input_ids"], inputs["attention_mask"], rest)
    return stock, inputs, prompt


def subsets(prompt, counts):
    """Different numbers of rollouts and of tokens for every prompt."""
    keeps = []
    for span, count in zip(prompt.layout.videos, counts, strict=True):
        scores = torch.rand(count, span.num_tokens)
        keeps.append(scores <= scores.kthvalue(2 + span.row, dim=1, keepdim=True).values)
    return keeps


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rollout_equals_the_oracle(family):
    stock, inputs, prompt = embedded(family)
    prompts, rows = select_subsets(prompt, subsets(prompt, (3, 2, 4)))
    assert rows.tolist() == [0] * 3 + [1] * 2 + [2] * 4
    answers = [torch.randint(5, 100, (1 + number % 3,)) for number in range(9)]
    # The likeliest answers of some, so that exact answers occur.
    greedy = generate_answers(stock, prompts, max_new_tokens=3, batch_size=4)
    for number in (0, 4, 8):
        answers[number] = greedy[number, : 1 + number % 3]
    for batch_size in (4, 100):
        scores = score_answers(stock, prompts, answers, batch_size=batch_size)
        for number, answer in enumerate(answers):
            row = int(rows[number])
            places = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
            places = places.masked_fill(inputs["attention_mask"] == 0, -1)
            kept = prompts.kept_indices[number]
            places[row] = -1
            places[row, : (kept >= 0).sum()] = kept[kept >= 0]
            reference = masked_inputs(stock, inputs, places)
            tokens = stock.generate(
                **reference,
                max_new_tokens=len(answer),
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            assert greedy[number, : len(answer)].tolist() == tokens.sequences[row, -len(answer) :].tolist()
            begun = [token for token in scores.likeliest[number].tolist() if token >= 0]
            assert begun == greedy[number, : len(begun)].tolist()
            assert len(begun) == len(answer) or begun[-1] != answer[len(begun) - 1]
            assert begun[:-1] == answer[: len(begun) - 1].tolist()
            assert bool(scores.exact[number]) == (tokens.sequences[row, -len(answer) :].tolist() == answer.tolist())
            if number in (0, 4, 8):
                steps = [logits[row].softmax(-1)[token] for logits, token in zip(tokens.logits, answer, strict=True)]
                torch.testing.assert_close(scores.probability[number], torch.stack(steps).prod(), atol=1e-4, rtol=1e-3)
        assert {bool(exact) for exact in scores.exact} == {True, False}
        assert ((scores.probability >= 0) & (scores.probability <= 1)).all()


@pytest.mark.spread(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_rollout_equals_the_cut_prompt(family):
    """Where some layers do not attend, too: one forward of the stock language model on the cut prompt and its answer, without a cache."""
    stock, inputs, prompt = embedded(family)
    stock.generation_config.suppress_tokens = []
    prompts, rows = select_subsets(prompt, subsets(prompt, (2, 1, 2)))
    answers = [torch.randint(5, 100, (2,)) for _ in rows]
    scores = score_answers(stock, prompts, answers, batch_size=4)
    greedy = generate_answers(stock, prompts, max_new_tokens=3, batch_size=4)
    for number, row in enumerate(rows.tolist()):
        cut = CutPrompts(stock, inputs, prompts.kept_indices[number].expand(len(RAGGED), -1))
        likely = cut.logits(row, answers[number][:-1]).softmax(-1).gather(1, answers[number][:, None])
        torch.testing.assert_close(scores.probability[number], likely.prod(), atol=0, rtol=1e-2)
        assert cut.logits(row, greedy[number, :-1]).argmax(-1).tolist() == greedy[number].tolist()


def test_a_sample_has_one_video():
    _, _, prompt = embedded("llava_onevision", TWO_VIDEOS)
    with pytest.raises(ValueError, match=r"2 video\(s\) in 1 prompt\(s\): a training sample has exactly one video"):
        select_subsets(prompt, subsets(prompt, (1, 1)))
