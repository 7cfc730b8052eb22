"""Rewards: plain functions of completions and solutions, which give one number in [0, 1] per completion; larger = better.

`REWARDS` has one for each problem type of Video-R1's data, which the published training uses. `SCORED_REWARDS` has those of answers that a
prefill scores. Any `package.module:function` of the same signature is as good as either.

Completions and solutions may hold their answer in `<answer>...</answer>`. What cannot be read as an answer, NaN and infinity included,
earns 0.
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..utils.answer_tags import final_answer
from ..utils.extras import pip_install
from ..utils.option_letters import extract_choice, labelled_letter, named_letter, stated_text
from ..utils.options import comparable, split_label


class Completion(str):
    """An answer of the backbone: a text, and for a scored answer how likely the solution is.

    Attributes:
        probability: that the backbone gives the whole solution, in [0, 1]; None if the answer was generated.
    """

    probability: float | None

    def __new__(cls, text: str, probability: float | None = None):
        """Return a text with a probability."""
        completion = super().__new__(cls, text)
        completion.probability = probability
        return completion


class Solution(str):
    """The right answer, and the options that it is one of.

    Attributes:
        options: texts by letter; empty if there are none.
    """

    options: Mapping[str, str]

    def __new__(cls, text: str, options: Mapping[str, str] = MappingProxyType({})):
        """Return a text with options."""
        solution = super().__new__(cls, text)
        solution.options = dict(options)
        return solution


Reward = Callable[[Sequence[Completion], Sequence[str]], list[float]]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def extract_answer(text: str) -> str:
    """Return the answer of a completion or a solution: see `utils.answer_tags.final_answer`."""
    return final_answer(text)


def multiple_choice_reward(completions: Sequence[str], solutions: Sequence[str]) -> list[float]:
    """1 for the right option, else 0: for generated answers alone; by default multiple choice is scored, see `SCORED_REWARDS`.

    A solution may be a letter, a letter and its text (`B. a dog`), or a text. If it is a `Solution` with options, answers are read as in the
    evaluation (`extract_choice`). Of any other, the letter counts that `extract_choice` would find (`b`, `(b) a dog`, `the answer is B`,
    `\\boxed{B}`), or a text that is its text but for case, white space, quotes and a full stop at the end, maybe in a sentence ("the answer is a dog").
    """

    def judge(completion: str, solution: str) -> float:
        if isinstance(solution, Solution) and solution.options:
            return float(
                extract_choice(completion, solution.options) == extract_choice(solution, solution.options) != ""
            )
        answer, solution = extract_answer(completion), extract_answer(solution)
        letter, text = split_label(solution)
        if comparable(answer) in (comparable(solution), comparable(text)):
            return float(bool(answer) or not solution)
        letter = letter or labelled_letter(solution)
        if named := named_letter(answer):
            return float(named == letter)
        return float(stated_text(answer) == comparable(text) != "")

    _check_counts(completions, solutions)
    return [judge(completion, solution) for completion, solution in zip(completions, solutions, strict=True)]


def numerical_reward(completions: Sequence[str], solutions: Sequence[str]) -> list[float]:
    """1 for the right number, else 0: equal after rounding to 2 decimals, and both or neither with a decimal point."""

    def judge(answer: str, solution: str) -> float:
        found, expected = _number(answer), _number(solution)
        if found is None or expected is None or ("." in _sentence(answer)) != ("." in _sentence(solution)):
            return 0.0
        return float(round(found, 2) == round(expected, 2))

    return _judge_each(judge, completions, solutions)


def ocr_reward(completions: Sequence[str], solutions: Sequence[str]) -> list[float]:
    """1 minus the word error rate, not under 0; words compared with their case. An empty solution is met by an empty answer alone."""
    jiwer = _training_package("jiwer")

    def judge(answer: str, solution: str) -> float:
        if not answer or not solution:
            return float(answer == solution)
        return max(0.0, 1.0 - jiwer.wer(solution, answer))

    return _judge_each(judge, completions, solutions)


def free_form_reward(completions: Sequence[str], solutions: Sequence[str]) -> list[float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, words stemmed.

    A single right word earns 2/3, having no bigram. Made for English: other scripts have no words to it.
    """
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = _training_package("rouge_score.rouge_scorer").RougeScorer(names, use_stemmer=True)

    def judge(answer: str, solution: str) -> float:
        scores = scorer.score(solution, answer)
        return sum(scores[name].fmeasure for name in names) / len(names)

    return _judge_each(judge, completions, solutions)


def regression_reward(completions: Sequence[str], solutions: Sequence[str]) -> list[float]:
    """1 minus the error relative to the solution, not under 0. A solution of 0 is met by 0 alone."""

    def judge(answer: str, solution: str) -> float:
        found, expected = _number(answer), _number(solution)
        if found is None or expected is None:
            return 0.0
        if expected == 0:
            return float(found == 0)
        return max(0.0, 1.0 - abs(found - expected) / abs(expected))

    return _judge_each(judge, completions, solutions)


REWARDS: dict[str, Reward] = {
    "multiple choice": multiple_choice_reward,
    "numerical": numerical_reward,
    "OCR": ocr_reward,
    "free-form": free_form_reward,
    "regression": regression_reward,
}


def accuracy_reward(completions: Sequence[str], solutions: Sequence[str]) -> list[float]:
    """1 for the solution itself, else 0."""
    return [float(completion == solution) for completion, solution in zip(completions, solutions, strict=True)]


def probability_reward(completions: Sequence[Completion], solutions: Sequence[str]) -> list[float]:
    """How likely the solution is: dense, so that wrong answers differ too (ours).

    Raises:
        ValueError: an answer that was generated, and so has no probability.
    """
    if any(completion.probability is None for completion in completions):
        raise ValueError("A generated answer has no probability. Add its problem type to scored_types.")
    return [completion.probability for completion in completions]  # type: ignore[misc]


SCORED_REWARDS: dict[str, Reward] = {"accuracy": accuracy_reward, "probability": probability_reward}


def retention_reward(accuracies: Sequence[float], full: float, weight: float, floor: float) -> list[float]:
    """Return what the answers of a group earn on top for what compression leaves of the uncompressed model's accuracy on the same question.

    MARC (arXiv 2510.07915): `weight * max(0, eta - floor)` for every right answer, `eta` the group's mean accuracy over `full`, and 0 where `full` is 0.
    Departures: `eta` is at most 1; an answer that is right in part earns its part; the teacher is the frozen model itself, by its one greedy answer.

    Args:
        accuracies: of a group of answers to one question from compressed prompts, each in [0, 1].
        full: of the answer from the uncompressed prompt, in [0, 1].
        weight: published alpha; its value is not known to us.
        floor: published tau, 0.6; what is left above it is rewarded.

    Returns:
        One number per answer, in [0, weight * (1 - floor)].
    """
    eta = min(1.0, sum(accuracies) / len(accuracies) / full) if full > 0 else 0.0
    return [accuracy * weight * max(0.0, eta - floor) for accuracy in accuracies]


def resolve_reward(name: str, known: Mapping[str, Reward] = REWARDS) -> Reward:
    """Find a reward by its name among those `known`, or as `package.module:function`.

    Raises:
        ValueError: no such name, module or function.
    """
    if name in known:
        return known[name]
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(
            f"Reward {name!r} is unknown. Give one of {', '.join(map(repr, known))}, or a function as 'package.module:function'."
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"Reward {name!r}: the module {module_name!r} cannot be imported ({error}). Install it, or put its folder on PYTHONPATH."
        ) from error
    function = vars(module).get(attribute)
    if not callable(function):
        raise ValueError(
            f"Reward {name!r}: {module_name} has no function {attribute!r}. Define it there at the top level."
        )
    return function


def _judge_each(
    judge: Callable[[str, str], float], completions: Sequence[str], solutions: Sequence[str]
) -> list[float]:
    _check_counts(completions, solutions)
    return [judge(extract_answer(c), extract_answer(s)) for c, s in zip(completions, solutions, strict=True)]


def _check_counts(completions: Sequence[str], solutions: Sequence[str]) -> None:
    if len(completions) != len(solutions):
        raise ValueError(
            f"{len(completions)} completions came with {len(solutions)} solutions. Give one solution per completion."
        )


def _sentence(text: str) -> str:
    """`text` without the full stop that ends it."""
    return text.removesuffix(".")


def _number(text: str) -> float | None:
    """Return the finite number that `text` is, or None. Commas may part thousands."""
    text = _THOUSANDS.sub("", _sentence(text))
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _training_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This reward needs {name.partition('.')[0]}, which is not installed: {pip_install('train')}."
        ) from error
