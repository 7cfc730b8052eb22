"""Samples to batches of prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import ProcessorMixin


class AnswerCollator:
    """Turns samples into one batch of prompts with their answers' tokens.

    A sample is a dict: `video` (whatever the processor's chat template takes: frames `(T, H, W, 3)` or a path), `problem` (the question) and
    `solution` (the answer). Each sample is a prompt with one video.
    """

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The processor's inputs of the prompts, and `answers`, one int64 `(A,)` a sample."""
        messages: Any = [
            [
                {
                    "role": "user",
                    "content": [{"type": "video", "video": s["video"]}, {"type": "text", "text": s["problem"]}],
                }
            ]
            for s in samples
        ]
        inputs: Any = self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True},
        )
        tokenizer = self.processor.tokenizer
        answers = [
            torch.tensor(tokenizer(str(s["solution"]), add_special_tokens=False)["input_ids"], dtype=torch.long)
            for s in samples
        ]
        for sample, answer in zip(samples, answers, strict=True):
            if len(answer) == 0:
                raise ValueError(f"solution={sample['solution']!r} has no tokens: leave samples without an answer out.")
        return {"inputs": dict(inputs), "answers": answers}
