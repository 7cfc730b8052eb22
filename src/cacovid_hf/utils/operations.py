"""Floating-point operations and bytes of a language model and its policy, by formula.

Counted are the matrix products (2 operations a multiply-add) and attention; bytes are the weights that a stage reads once, what it is given and what it
leaves behind. Norms, activations and intermediate results are not: a limit is a lower bound of the time.
"""

from dataclasses import dataclass
from typing import Any

# Of the residual policy: how wide its trunk is.
RESIDUAL_WIDTH = 256


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of a stage."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


class Shape:
    """Sizes of a language model, in the letters of the formulas."""

    def __init__(self, text: Any, element_bytes: int):
        self.hidden, self.inner = text.hidden_size, text.intermediate_size
        self.layers, self.vocabulary = text.num_hidden_layers, text.vocab_size
        self.head = getattr(text, "head_dim", None) or self.hidden // text.num_attention_heads
        self.query = text.num_attention_heads * self.head
        self.key = text.num_key_value_heads * self.head
        self.element = element_bytes

    @property
    def layer_weights(self) -> int:
        """Of one decoder layer."""
        return self.hidden * (2 * self.query + 2 * self.key + 3 * self.inner)

    def kv_bytes(self, batch: int, length: int) -> int:
        """Of a cache of `length` positions."""
        return 2 * batch * self.layers * length * self.key * self.element

    def prefill(self, batch: int, length: int) -> Work:
        """Language model over `length` positions, output head at the last."""
        products = 2 * batch * (length * self.layers * self.layer_weights + self.hidden * self.vocabulary)
        attention = 2 * batch * length**2 * self.query * self.layers  # causal: half of 4 L^2
        weights = self.layers * self.layer_weights + self.hidden * self.vocabulary
        moved = weights * self.element + self.kv_bytes(batch, length) + batch * length * self.hidden * self.element
        return Work(products + attention, moved)

    def decode_step(self, batch: int, length: int) -> Work:
        """One more token behind a cache of `length` positions."""
        weights = self.layers * self.layer_weights + self.hidden * self.vocabulary
        attention = 4 * batch * length * self.query * self.layers
        return Work(2 * batch * weights + attention, weights * self.element + self.kv_bytes(batch, length))

    def full_policy(self, batch: int, video: int, text: int, attention: str) -> Work:
        """Return the published policy over `video` tokens beside `text` ones."""
        everything = video + text
        context = text if attention == "question" else everything
        head = self.hidden**2 * sum(1 / (d * 2 * d) for d in (1, 2, 4, 8)) + self.hidden / 8
        weights = self.layer_weights + 2 * head
        per_video = self.hidden * (2 * self.query + 3 * self.inner) + head
        products = 2 * batch * (video * per_video + context * self.hidden * 2 * self.key)
        mixing = 4 * batch * video * context * self.query
        if attention == "causal":  # every token asks, and sees half of them
            products += 2 * batch * text * self.hidden * self.query
            mixing = 2 * batch * everything**2 * self.query
        return Work(products + mixing, (weights + batch * everything * self.hidden) * self.element)

    def light_policy(self, batch: int, video: int, text: int) -> Work:
        """Return the light policy."""
        width = self.key
        weights = 3 * self.hidden * width + 3 * width**2 + 3 * width * width // 4
        per_video = 2 * self.hidden * width + 3 * width**2 + width**2 // 4
        products = 2 * batch * (video * per_video + text * 2 * self.hidden * width)
        mixing = 4 * batch * video * text * width
        return Work(products + mixing, (weights + batch * (video + text) * self.hidden) * self.element)

    def residual_policy(self, batch: int, video: int, text: int, attention: str) -> Work:
        """Return the residual policy."""
        read = self.key if attention == "question" else 0
        trunk = (2 * self.hidden + 2 + 2 * read) * RESIDUAL_WIDTH
        head = 2 * RESIDUAL_WIDTH
        weights = 3 * self.hidden * read + trunk + 3 * head
        products = 2 * batch * (video * (2 * self.hidden * read + trunk + head) + text * 2 * self.hidden * read)
        mixing = 4 * batch * video * text * read
        return Work(products + mixing, (weights + batch * (video + text) * self.hidden) * self.element)

    def policy(self, kind: str, attention: str, batch: int, video: int, text: int) -> Work:
        """Return the policy of a kind, as a config names it."""
        if kind == "light":
            return self.light_policy(batch, video, text)
        work = self.full_policy if kind == "full" else self.residual_policy
        return work(batch, video, text, attention)

    def selection(self, batch: int, video: int) -> Work:
        """Scores in, mask out."""
        return Work(0, batch * video * 5)

    def gather(self, batch: int, length: int) -> Work:
        """Embeddings of the kept tokens, read and written."""
        return Work(0, 2 * batch * length * self.hidden * self.element)
