"""What an answer is judged by."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Question:
    """What a prompt's answer is judged by.

    Attributes:
        solution: the right answer.
        problem_type: a key of the rewards, by which a generated answer is judged.
        answer: int64 `(A,)`, the tokens of the one right answer, which a prefill scores; None: an answer is generated.
    """

    solution: str
    problem_type: str = "multiple choice"
    answer: Tensor | None = None
