"""What is known of an answer when it has ended."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Attributes:
        text: all of it.
        reason: `"stop"` (it has ended) or `"length"` (it was as long as allowed).
        prompt_tokens: of the prompt as it was sent, dropped tokens included.
        new_tokens: generated, the end token included.
        first_token_seconds: from the beginning of the work to the first new token.
    """

    text: str
    reason: str
    prompt_tokens: int
    new_tokens: int
    first_token_seconds: float
