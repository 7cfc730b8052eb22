"""SmolLM2 learns to answer about clips, and is stopped at named accuracies: a reader that is never misled shows nothing.

Its attention and norms learn, 26.6 million weights; the rest stays. First few tokens stand in front of the questions, objects among them, then more.
Each kind of question weighs the more the worse it is answered. Once 80 tokens are read well, whole clips and small subsets come in turn.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studies.laboratory.packing import answer_logits, answered_right, everything
from studies.laboratory.questions import ALL_KINDS, KINDS, NUM_TOKENS, Asked

LEARNING_RATE, BETAS, WARM_UP = 3e-4, (0.9, 0.98), 10
LEVELS = ((1, 3), (2, 6), (4, 12), (8, 30), (16, 80))  # tokens in front of the questions, from and to
MASTERED = 0.8  # running accuracy, mean over the kinds, from which on the next level comes
SUBSETS, SHARES = (5, 14, 28, 72, NUM_TOKENS), (2.0, 2.0, 3.0, 3.0, 2.0)  # after the last level, and how often each
CLIPS, QUESTIONS, MANY = 4, 8, 16  # in one step; so many questions where the prefix is long
LONG = 60
CHECK_EVERY = 25  # steps
KEEP_EVERY = 120.0  # seconds of the processor


@dataclass
class Progress:
    """Where the training of a reader stands.

    Attributes:
        step: steps taken.
        level: of `LEVELS`; their number: all of them are mastered.
        by_kind: running accuracy of each kind.
        tokens: that went through the language model.
        questions: that were answered.
        seconds: of the processor, on all its cores.
    """

    step: int = 0
    level: int = 0
    by_kind: Tensor = field(default_factory=lambda: torch.zeros(len(KINDS)))
    tokens: int = 0
    questions: int = 0
    seconds: float = 0.0


class Reader:
    """Trains the language model of a video model on questions about clips.

    Args:
        model: its attention and norms are trained in place.
        asked: what it learns from.
        validation: what its accuracy is told by; all tokens are in front of these questions.
        seed: of the batches.
    """

    def __init__(self, model: Any, asked: Asked, validation: Asked, seed: int):
        self.model, self.asked, self.validation = model, asked, validation
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = trained_weights(model)
        for weight in self.weights.values():
            weight.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
        self.progress = Progress()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run goes on from."""
        return {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "progress": self.progress,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another run stood."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.progress = state["progress"]

    def run_to(self, accuracy: float, max_seconds: float, keep: Callable[[], None] | None = None) -> float:
        """Train until the validation questions are answered so well; their accuracy then.

        Args:
            accuracy: in (0, 1), with all tokens.
            max_seconds: of the processor.
            keep: called every few minutes, to save what has been learnt so far.

        Raises:
            RuntimeError: it took longer.
        """
        reached, kept_at = 0.0, self.progress.seconds
        while True:
            if keep is not None and self.progress.seconds - kept_at > KEEP_EVERY:
                keep()
                kept_at = self.progress.seconds
            if self.progress.level == len(LEVELS) and self.progress.step % CHECK_EVERY == 0:
                reached = (
                    answered_right(self.model, self.validation, everything(len(self.validation))).float().mean().item()
                )
                print(f"step {self.progress.step}: {100 * reached:.1f} % with all tokens", flush=True)
                if reached >= accuracy:
                    return reached
            if self.progress.seconds > max_seconds:
                raise RuntimeError(f"{reached} after {self.progress.seconds:.0f} s, not {accuracy}. Give it more time.")
            self._step()

    def _step(self) -> None:
        begun, progress = time.process_time(), self.progress
        size = self._size()
        clips = torch.randint(
            len(self.asked), (CLIPS if size < LONG else 2 if size < NUM_TOKENS else 1,), generator=self.generator
        )
        kept = self._kept(clips, size)
        some = self._questions(clips, kept, QUESTIONS if size < LONG else MANY)
        logits = answer_logits(self.model, some, torch.arange(len(some)), kept)
        self.optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), some.answers.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self._note(logits.argmax(-1) == some.answers, some.kinds)
        progress.step += 1
        progress.tokens += len(clips) * (size + 2 + some.ids[0].numel())
        progress.questions += some.answers.numel()
        progress.seconds += time.process_time() - begun
        if progress.step % CHECK_EVERY == 0:
            kinds = " ".join(
                f"{kind} {value:.2f}" for kind, value in zip(ALL_KINDS, progress.by_kind.tolist(), strict=False)
            )
            print(f"step {progress.step}, level {progress.level}, {progress.seconds:.0f} s: {kinds}", flush=True)

    def _rate(self) -> float:
        return LEARNING_RATE * min(1, (self.progress.step + 1) / WARM_UP)

    def _size(self) -> int:
        """Tokens in front of the questions of this step."""
        if self.progress.level == len(LEVELS):
            return SUBSETS[int(torch.multinomial(torch.tensor(SHARES), 1, generator=self.generator))]
        low, high = LEVELS[self.progress.level]
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def _kept(self, clips: Tensor, size: int) -> Tensor:
        """Some tokens of each clip, up to 16 objects among them, all of them objects at first: int64 `(B, size)`, ascending."""
        if size == NUM_TOKENS:
            return everything(len(clips))
        order = torch.rand(len(clips), NUM_TOKENS, generator=self.generator)
        share = 1.0 if self.progress.level < 2 else 0.3 + 0.7 * float(torch.rand((), generator=self.generator))
        first = (order + 2 * self.asked.objects[clips]).topk(max(1, int(min(size, 16) * share)), dim=1).indices
        return order.scatter_add(1, first, torch.full(first.shape, 4.0)).topk(size, dim=1).indices.sort(1).values

    def _questions(self, clips: Tensor, kept: Tensor, count: int) -> Asked:
        """Questions about the clips whose evidence is among the tokens, weak kinds more often; the clips become those of the batch."""
        evidence = self.asked.evidence[clips]
        can = evidence.gather(2, kept[:, None].expand(-1, evidence.shape[1], -1)).any(2)
        weight = (1.15 - self.progress.by_kind)[self.asked.kinds[clips]] * can + 1e-9
        picks = torch.multinomial(weight, count, replacement=True, generator=self.generator)
        return self.asked.of(clips).chosen(picks)

    def _note(self, right: Tensor, kinds: Tensor) -> None:
        for kind in kinds.unique().tolist():
            now = right[kinds == kind].float().mean()
            self.progress.by_kind[kind] += 0.08 * (now - self.progress.by_kind[kind])
        if self.progress.level < len(LEVELS) and self.progress.by_kind.mean() > MASTERED:
            self.progress.level += 1
            print(f"step {self.progress.step}: level {self.progress.level}", flush=True)


def trained_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The weights of a video model that a reader learns, by name: of attention and norms."""
    return {
        name: weight
        for name, weight in model.model.language_model.named_parameters()
        if "self_attn" in name or "norm" in name
    }
