"""What a stream is asked to do, checked once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import torch

from ...compressors.base import Compressor
from ...compressors.cacovid import CaCoVid
from ...compressors.registry import resolve_compressor
from ...ratio import check_retention_ratio, token_budget
from .quantised import BITS
from .questions import check_choice

MEMORIES = ("features", "kv")
# What becomes of groups when the memory is full, by kind of memory; the first is the default.
RULES = {"features": ("alike", "oldest", "contribution"), "kv": ("alike", "oldest")}


@dataclass(frozen=True)
class StreamSettings:
    """Settings of a stream; those of the two kinds of memory stand together.

    Args:
        tokens_per_frame: tokens kept of every frame (Qwen: of every temporal step of two), at most all of them; published: 50. Not with `retention_ratio`.
        retention_ratio: the same as a fraction of a frame's tokens.
        memory: `"features"`, embeddings that every question scores (ours), or `"kv"`, quantised keys and values (StreamingTOM).
        max_memory: bytes that the memory may take, at least those of one frame.
        when_full: what happens to make room. `"alike"`: the two neighbouring groups most alike become one. `"oldest"`: the oldest group leaves.
            `"contribution"`, of features alone: the two neighbours whose merger drops least become one, and keep their most worthy tokens. None is `"alike"`.
        reducer: how tokens of a frame are chosen as it comes: a method's name or instance, blind to questions, or `"cacovid"` with `standing`.
        standing: questions of the kind that will be asked. With `reducer="cacovid"` a token's worth is the largest score that the policy gives it for
            one of them.
        bits: of a stored number: 2, 4, 8, 16 or 32 (as it is). None is 16 of features and 4 of keys and values.
        fps: frames a second, of files that are read, and of frames without timestamps. Positions are those of a video sampled so.
        tokens_per_question: video tokens that the language model reads for a question.
        window: of `"kv"`, tokens before a frame that it attends to as it comes in; published: 4800.
        frames_per_window: of `"features"`, groups that a question scores at a time, as if they were a video.
        compressor: of `"features"`, how a question chooses; None is the policy.
        device: where the memory lies, such as `"cpu"`; None: where it is made.
    """

    tokens_per_frame: int | None = None
    retention_ratio: float | None = None
    memory: str = "features"
    max_memory: int = 2**30
    when_full: str | None = None
    reducer: "str | Compressor" = "streamingtom"
    standing: tuple[str, ...] = ()
    bits: int | None = None
    fps: float = 1.0
    tokens_per_question: int = 2048
    window: int = 4800
    frames_per_window: int = 32
    compressor: "str | Compressor | None" = None
    device: Any = None

    def __post_init__(self):
        if self.memory not in MEMORIES:
            raise ValueError(f"memory={self.memory!r} is unknown: choose 'features' or 'kv'.")
        if self.tokens_per_frame is not None and self.retention_ratio is not None:
            raise ValueError("tokens_per_frame and retention_ratio both say what stays of a frame: give one of them.")
        if self.retention_ratio is not None:
            object.__setattr__(self, "retention_ratio", check_retention_ratio(self.retention_ratio))
        elif self.tokens_per_frame is None:
            object.__setattr__(self, "tokens_per_frame", 50)
        names = ("tokens_per_frame", "max_memory", "tokens_per_question", "window", "frames_per_window")
        for name in names:
            value = getattr(self, name)
            if value is None and name == "tokens_per_frame":
                continue
            if not is_count(value):
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1.")
            # Numbers of NumPy are none of JSON's.
            object.__setattr__(self, name, int(value))
        if self.when_full is None:
            object.__setattr__(self, "when_full", RULES[self.memory][0])
        if self.when_full not in RULES[self.memory]:
            choices = ", ".join(map(repr, RULES[self.memory]))
            raise ValueError(f"when_full={self.when_full!r} is not a rule of memory={self.memory!r}: choose {choices}.")
        if self.bits is None:
            object.__setattr__(self, "bits", 16 if self.memory == "features" else 4)
        if not is_count(self.bits) or self.bits not in BITS:
            raise ValueError(f"bits={self.bits!r}: choose one of {', '.join(map(str, BITS))}.")
        object.__setattr__(self, "bits", int(self.bits))
        is_number = isinstance(self.fps, Real) and not isinstance(self.fps, bool)
        if not is_number or not 0 < _float(self.fps) < math.inf:
            raise ValueError(f"fps={self.fps!r}: give frames per second, a number over 0.")
        object.__setattr__(self, "fps", float(self.fps))
        _check_device(self.device)
        self._check_methods()

    def _check_methods(self) -> None:
        object.__setattr__(self, "standing", _texts(self.standing))
        method = resolve_compressor(self.reducer)
        if method.inside_llm:
            raise ValueError(
                f"reducer={method.name!r} drops tokens inside the language model, which a stream's frames have not reached. Choose another, such as "
                "'streamingtom'."
            )
        if isinstance(method, CaCoVid) != bool(self.standing):
            raise ValueError(
                "reducer='cacovid' scores frames by questions that are known beforehand, and standing holds them: give both or neither."
            )
        if not method.is_blind and not isinstance(method, CaCoVid):
            raise ValueError(f"reducer={method.name!r} reads the question, which comes later: choose a blind one.")
        if self.memory == "kv" and self.compressor is not None:
            raise ValueError("compressor chooses among features, and memory='kv' retrieves by keys: leave it out.")
        if self.memory == "features":
            check_choice(resolve_compressor(self.compressor))

    def tokens_of(self, size: int) -> int:
        """How many of a frame's `size` tokens stay."""
        if self.retention_ratio is not None:
            return token_budget(size, self.retention_ratio)
        return min(self.tokens_per_frame or size, size)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings that JSON can hold, to be saved: methods by name, if they have one with default settings."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("reducer", "compressor"):
            if isinstance(values[name], Compressor):
                raise ValueError(f"{name} is an instance, whose settings a saved stream cannot hold: give its name.")
        return values | {"device": None if self.device is None else str(self.device), "standing": list(self.standing)}


def is_count(value: Any) -> bool:
    """Whether it is a whole number of at least 1, NumPy's among them."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _check_device(device: Any) -> None:
    """Refuse one that cannot hold a memory."""
    if device is None:
        return
    try:
        is_there = torch.empty(0, device=device).device.type != "meta"
    # A number beyond the last GPU, a name that is none, PyTorch built without CUDA.
    except (RuntimeError, AssertionError, TypeError):
        is_there = False
    if not is_there:
        raise ValueError(f"device={device!r} cannot hold a stream's memory here: choose another, such as device='cpu'.")


def _texts(words: "str | Sequence[str]") -> tuple[str, ...]:
    texts = (words,) if isinstance(words, str) else tuple(words)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("A standing question is empty: give texts such as 'Is there a person?'.")
    return texts
