"""The blind-test filter: questions that the model answers rightly without the video teach nothing about its tokens, and are left out.

From the published training (arXiv 2602.01649); its exact prompt is not published. A multiple-choice question is also guessed rightly by
chance, so that some that need the video go too.
"""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from ..modeling import CaCoVidForConditionalGeneration
from ..utils.files import replaced
from .batches import HeaderCollator, SampleBatches, SampleReader, is_stream
from .data import AnswerCollator
from .judge import answer_questions, judge
from .rewards import REWARDS


@dataclass
class FilterSummary:
    """What a filter did; counts of samples.

    Attributes:
        total: read.
        kept: written, because their answer was wrong without the video.
        answered: left out, by problem type, because it was right.
        kept_by_type: kept, by problem type.
        skipped: left out because they are no question about a video, by reason.
        threshold: reward from which on an answer counts as right.
    """

    total: int = 0
    kept: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    kept_by_type: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    threshold: float = 0.5


@torch.no_grad()
def blind_filter(
    model: CaCoVidForConditionalGeneration,
    processor: Any,
    dataset: Any,
    out: str | os.PathLike,
    *,
    threshold: float = 0.5,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    limit: int | None = None,
) -> FilterSummary:
    """Ask every question without its video, and write those that are answered wrongly to `out`, one JSON object a line.

    `out` with the suffix `.summary.json` gets the summary. No video is opened. Both files are written under temporary names first.

    Args:
        model: its backbone answers; the policy plays no part.
        processor: its processor.
        dataset: samples of JSON values, see `data`.
        out: file to write; it must not exist yet.
        threshold: reward in (0, 1] from which on an answer counts as right.
        batch_size: questions in one forward.
        max_new_tokens: of an answer.
        limit: read only so many samples.

    Returns:
        The summary.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a setting out of range.
    """
    out = Path(out)
    summary_file = check_filter(out, threshold, limit)
    if limit is not None:
        dataset = islice(dataset, limit) if is_stream(dataset) else Subset(dataset, range(min(limit, len(dataset))))
    model.eval()
    collator = _KeepingCollator(AnswerCollator(processor, blind=True))
    loader = DataLoader(
        SampleReader(dataset),
        batch_sampler=SampleBatches(dataset, batch_size=batch_size),
        collate_fn=HeaderCollator(collator),
    )
    summary = FilterSummary(threshold=threshold)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Half a character of a column that nobody reads is written as JSON's own escape, which looks like Python's.
    with replaced(out) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as lines:
        for batch in loader:
            samples = batch["samples"]
            summary.total += len(samples)
            summary.skipped.update(reason.partition(": ")[2] for reason in batch["skipped"])
            rewards: list[float] = []
            for inputs in batch["inputs"]:
                inputs = {name: value.to(model.device) for name, value in inputs.items()}
                prompt = model.compress_prompt(model.embed(**inputs), retention_ratio=1.0)
                asked = batch["questions"][len(rewards) : len(rewards) + len(prompt.input_ids)]
                completions = answer_questions(
                    model.backbone, processor, prompt, asked, max_new_tokens=max_new_tokens, batch_size=batch_size
                )
                rewards += judge(completions, asked, REWARDS).tolist()
            for place, question, reward in zip(batch["places"], batch["questions"], rewards, strict=True):
                if reward >= threshold:
                    summary.answered[question.problem_type] += 1
                else:
                    summary.kept += 1
                    summary.kept_by_type[question.problem_type] += 1
                    lines.write(json.dumps(samples[place], ensure_ascii=False) + "\n")
    with replaced(summary_file) as temporary:
        temporary.write_text(json.dumps(vars(summary), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def check_filter(out: Path, threshold: float, limit: int | None) -> Path:
    """Refuse what `blind_filter` cannot do, before a model is loaded for it; return the file of the summary.

    Raises:
        FileExistsError: `out` or its summary exists.
        ValueError: a setting out of range.
    """
    summary_file = out.with_name(f"{out.name}.summary.json")
    for file in (out, summary_file):
        if file.exists():
            raise FileExistsError(f"{file} exists: choose another name, or remove it.")
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold={threshold} is outside (0, 1]: give the reward from which on an answer is right.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves nothing: give at least 1.")
    return summary_file


class _KeepingCollator:
    """Puts the samples beside what another collator makes of them."""

    def __init__(self, collate: AnswerCollator):
        self.collate = collate

    def __call__(self, samples: Any) -> dict[str, Any]:
        return {**self.collate(samples), "samples": samples}
