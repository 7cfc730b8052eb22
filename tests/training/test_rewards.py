"""One table a reward: completion, solution, reward; with what the published code gets wrong."""

import re
import sys

import pytest
import torch

from cacovid_hf.training.objective import advantages
from cacovid_hf.training.rewards import (
    REWARDS,
    SCORED_REWARDS,
    Completion,
    extract_answer,
    resolve_reward,
    retention_reward,
)
from cacovid_hf.utils.extras import pip_install


def reward(kind, completion, solution):
    (value,) = REWARDS[kind]([completion], [solution])
    assert type(value) is float
    return value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>B</answer>", "B"),
        ("<think>A? No.</think>\n<answer>\n B \n</answer> done", "B"),
        ("  B ", "B"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("<answer>cut off", "cut off"),
        ("<answer>a < b</answer>", "a < b"),
        ("<answer></answer>", ""),
        ("", ""),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("B", "<answer>B</answer>", 1),
        ("<answer>B</answer>", "B", 1),
        ("<answer>b</answer>", "B", 1),
        ("(B)", "B", 1),
        ("B.", "B", 1),
        ("**B**", "B", 1),
        ("B. a dog", "B", 1),
        ("B: a dog", "B", 1),
        ("(B) a dog", "B", 1),
        ("B) a dog", "B. a cat", 1),
        ("The answer is B because A is wrong.", "B", 1),
        ("Answer: (B)", "B", 1),
        ("Option B", "B", 1),
        ("b. a dog", "B", 1),
        ("b) a dog", "B", 1),
        ("**B. a dog**", "B", 1),
        ("B - a dog", "B", 1),
        ("answer: b", "B", 1),
        ("I choose option B", "B", 1),
        ("The answer is B. Option A is wrong.", "B", 1),
        ("The answer is a dog", "A", 0),
        ("a dog", "A", 0),
        ('A "stop" sign', "A", 0),
        ("A", "B", 0),
        ("A. B", "B", 0),
        ("A dog", "A", 0),
        ("The answer is A dog", "A", 0),
        ("Because", "B", 0),
        ("", "B", 0),
        ("nan", "N", 0),
        ("The dog", "the dog", 1),
        ("dog", "the dog", 0),
        ("AC", "AC", 1),
        ("A", "AC", 0),
    ],
)
def test_multiple_choice(completion, solution, expected):
    assert reward("multiple choice", completion, solution) == expected


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("3", "3", 1),
        ("<answer>3</answer>", "<answer>3</answer>", 1),
        ("0", "0", 1),  # published: never right
        ("0.0", "0.00", 1),
        ("-0", "0", 1),
        ("3", "4", 0),
        ("3.0", "3", 0),
        ("3", "3.0", 0),
        ("3.", "3", 1),  # the end of a sentence
        ("3.14159", "3.141", 1),
        ("3.15", "3.14", 0),
        ("-2.5", "2.5", 0),
        ("+7", "7", 1),
        (".5", "0.5", 1),
        ("1,234,567", "1234567", 1),
        ("1,234.5", "1234.50", 1),
        ("1,5", "15", 0),
        ("1e3", "1000", 1),
        ("nan", "3", 0),
        ("nan", "nan", 0),
        ("inf", "inf", 0),
        ("1e999", "1e999", 0),
        ("three", "3", 0),
        ("about 3", "3", 0),
        ("1_0", "10", 0),
        ("３", "3", 1),  # noqa: RUF001 (full-width digits are digits)
        ("", "0", 0),
        ("3", "three", 0),
    ],
)
def test_numerical(completion, solution, expected):
    assert reward("numerical", completion, solution) == expected


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("10", "10", 1.0),
        ("9", "10", 0.9),
        ("<answer>12.5</answer>", "10", 0.75),
        ("30", "10", 0.0),
        ("-10", "10", 0.0),
        ("-9", "-10", 0.9),
        ("0", "10", 0.0),
        ("0", "0", 1.0),  # published: never right
        ("0.001", "0", 0.0),
        ("1,000", "1000", 1.0),
        ("nan", "10", 0.0),  # published: 1
        ("-nan", "10", 0.0),
        ("inf", "10", 0.0),
        ("Infinity", "Infinity", 0.0),
        ("1e400", "10", 0.0),
        ("1e308", "-1e308", 0.0),
        ("1e-320", "1e-320", 1.0),
        ("ten", "10", 0.0),
        ("10", "nan", 0.0),
    ],
)
def test_regression(completion, solution, expected):
    assert reward("regression", completion, solution) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("one two three four", "one two three four", 1.0),
        ("<answer> one  two three four\n</answer>", "one two three four", 1.0),
        ("one two four", "one two three four", 0.75),
        ("one two 3 four", "one two three four", 0.75),
        ("one two three four five", "one two three four", 0.75),
        ("One two three four", "one two three four", 0.75),
        ("a b c d e f g h i", "one", 0.0),  # more errors than words
        ("", "one two", 0.0),
        ("one", "", 0.0),
        ("", "", 1.0),
        ("nan", "one", 0.0),
    ],
)
def test_ocr(completion, solution, expected):
    pytest.importorskip("jiwer")
    assert reward("OCR", completion, solution) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("completion", "solution", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("<answer>The cat SAT.</answer>", "the cat sat", 1.0),
        ("cats sat", "cat sat", 1.0),  # stemmed
        ("cat", "cat", 2 / 3),  # no bigram
        # Unigrams 2 of 3 both ways, bigrams 1 of 2, longest common subsequence 2 of 3.
        ("the cat ran", "the cat sat", (2 / 3 + 1 / 2 + 2 / 3) / 3),
        # All unigrams, no bigram, subsequence 1 of 2.
        ("sat cat", "cat sat", (1 + 0 + 1 / 2) / 3),
        # Precision 1/2, recall 1: F1 2/3; bigrams 1/3 and 1: 1/2; subsequence as unigrams.
        ("red fox big dog", "red fox", (2 / 3 + 1 / 2 + 2 / 3) / 3),
        ("a dog", "the cat", 0.0),
        ("", "the cat", 0.0),
        ("the cat", "", 0.0),
        ("nan", "the cat", 0.0),
    ],
)
def test_free_form(completion, solution, expected):
    pytest.importorskip("rouge_score")
    assert reward("free-form", completion, solution) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("completion", "solution", "accuracy", "probability"),
    [
        (Completion("B", 0.75), "B", 1, 0.75),
        (Completion("C", 0.25), "B", 0, 0.25),
        (Completion("b", 0.25), "B", 0, 0.25),  # another token
        (Completion("B)", 0.0), "B", 0, 0),
        (Completion("", 0.0), "B", 0, 0),
        (Completion("two dogs", 1.0), "two dogs", 1, 1),
        (Completion("two cats", 0.125), "two dogs", 0, 0.125),
    ],
)
def test_scored_answers(completion, solution, accuracy, probability):
    assert SCORED_REWARDS["accuracy"]([completion], [solution]) == [accuracy]
    assert SCORED_REWARDS["probability"]([completion], [solution]) == [probability]


def test_a_generated_answer_has_no_probability():
    assert Completion("B").probability is None
    with pytest.raises(ValueError, match=r"has no probability\. Add its problem type to scored_types"):
        SCORED_REWARDS["probability"]([Completion("B", 1.0), Completion("B")], ["B", "B"])


def test_problem_types_are_those_of_the_data():
    assert list(REWARDS) == ["multiple choice", "numerical", "OCR", "free-form", "regression"]


@pytest.mark.parametrize("kind", REWARDS)
def test_lists_in_order_and_of_one_length(kind):
    if kind in ("OCR", "free-form"):
        pytest.importorskip({"OCR": "jiwer", "free-form": "rouge_score"}[kind])
    right, wrong = {"multiple choice": ("B", "C"), "OCR": ("sign", "door"), "free-form": ("red sign", "blue door")}.get(
        kind, ("4", "9")
    )
    assert REWARDS[kind]([right, wrong, right], [right] * 3) == [1.0, 0.0, 1.0]
    assert REWARDS[kind]([], []) == []
    with pytest.raises(ValueError, match=r"2 completions came with 1 solutions\. Give one solution per completion"):
        REWARDS[kind]([right, right], [right])


@pytest.mark.parametrize(("kind", "module"), [("OCR", "jiwer"), ("free-form", "rouge_score")])
def test_a_missing_package_is_named_with_its_remedy(kind, module, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    remedy = re.escape(pip_install("train"))  # of a clone or of an installed package
    with pytest.raises(ImportError, match=f"needs {module}, which is not installed: {remedy}"):
        REWARDS[kind](["a"], ["a"])


def test_resolve_reward(tmp_path, monkeypatch):
    assert resolve_reward("numerical") is REWARDS["numerical"]
    assert resolve_reward("accuracy", SCORED_REWARDS) is SCORED_REWARDS["accuracy"]
    (tmp_path / "some_rewards.py").write_text(
        "def length(completions, solutions):\n    return [float(len(c)) for c in completions]\n\nnumber = 3\n"
    )
    (tmp_path / "my_broken_rewards.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_reward("some_rewards:length")(["ab", ""], ["x", "y"]) == [2.0, 0.0]
    for name, message in [
        ("numeric", "Reward 'numeric' is unknown. Give one of 'multiple choice', 'numerical'"),
        ("some_rewards:", "Reward 'some_rewards:' is unknown"),
        (":length", "Reward ':length' is unknown"),
        ("some_rewards:width", "some_rewards has no function 'width'"),
        ("some_rewards:number", "some_rewards has no function 'number'"),
        ("no_such_module:f", "the module 'no_such_module' cannot be imported"),
        ("my_broken_rewards:f", "'my_broken_rewards' cannot be imported .*no_such_package"),
    ]:
        with pytest.raises(ValueError, match=message):
            resolve_reward(name)


# ------------------------------------------------------------------ retention


@pytest.mark.parametrize(
    ("accuracies", "full", "expected"),
    [
        ([1, 1, 1, 1], 1, [0.2, 0.2, 0.2, 0.2]),  # eta 1: 0.5 * 0.4
        ([1, 1, 1, 0], 1, [0.075, 0.075, 0.075, 0]),  # eta 0.75: 0.5 * 0.15, and nothing for the wrong one
        ([1, 0, 1, 0], 1, [0, 0, 0, 0]),  # eta 0.5, under the floor
        ([1, 1, 1, 1], 0, [0, 0, 0, 0]),  # the uncompressed model is wrong: eta 0
        ([1, 0.5], 0.9375, [0.1, 0.05]),  # eta 0.8: 0.5 * 0.2, half of it for the answer that is half right
        ([1, 1], 0.5, [0.2, 0.2]),  # eta at most 1
        ([0.0], 1, [0.0]),
    ],
)
def test_retention_reward(accuracies, full, expected):
    assert retention_reward(accuracies, full, 0.5, 0.6) == pytest.approx(expected)


def test_retention_changes_no_advantage_of_answers_that_are_right_or_wrong_alone():
    """Right ones earn the same more: only the scale changes, which advantages are free of. Beside a graded reward it counts."""
    accuracies = [1.0, 1.0, 1.0, 0.0]
    more = torch.tensor(retention_reward(accuracies, 1.0, 0.5, 0.6))
    plain = torch.tensor(accuracies)
    torch.testing.assert_close(
        advantages(plain + more), advantages(plain), atol=1e-3, rtol=0
    )  # but for the 1e-4 at the spread
    graded = torch.tensor([0.9, 0.5, 0.6, 0.4])
    assert not torch.allclose(advantages(graded + more), advantages(graded), atol=0.01)
