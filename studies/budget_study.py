"""How to spend a video's budget, given the policy's scores: accuracy of the embedded tiny model by rule and ratio, paired over the same questions.

python -m studies.budget_study --num-questions 1000

Every clip is embedded and scored once; each rule then cuts the same prompts. A run that was stopped goes on where it was. The result is one JSON,
written at the end.
"""

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoProcessor

from benchmarks.record import command, write_result
from cacovid_hf import CaCoVidForConditionalGeneration, select_tokens
from cacovid_hf.compressors.attention import QUERIES, video_attention
from cacovid_hf.compressors.tools.selection import contribution_budget, spread_tokens, top_tokens
from cacovid_hf.generation.inputs import take_embedding_arguments
from cacovid_hf.prompt import VideoSelection, gather, kept_indices
from cacovid_hf.ratio import token_budget
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.synthetic import sample_questions
from cacovid_hf.utils.chat import chat_inputs, user_message
from studies.cells import RESULTS, Cells, Job, environment

BASELINE = "tokens"
BATCH = 50
# A rule: token scores (T, P), frame scores (T,), embeddings (T, P, D) and a ratio to a mask (T, P) and, if it merges, other embeddings.
Rule = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor | None]]
NOTES = [
    "A right answer is the right first word; standard errors are binomial over the questions, those of differences are of the paired differences; "
    "all of one trained policy.",
    f"Differences are to the rule {BASELINE!r}: the highest token scores of the whole video, embeddings as they are.",
]


def selected(share: float, scope: str) -> Rule:
    """The package's own selection."""

    def rule(tokens, frames, features, ratio):
        return select_tokens(tokens, frames, ratio, contribution_share=share, scope=scope), None

    return rule


def ranked(combine: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """One budget for the video, spent by a combination of the two scores."""

    def rule(tokens, frames, features, ratio):
        scores = combine(tokens, frames[:, None]).flatten()
        return top_tokens(scores, token_budget(scores.numel(), ratio)).view(tokens.shape), None

    return rule


def standardised(scores: Tensor) -> Tensor:
    """To mean 0 and variance 1 over the video."""
    return (scores - scores.mean()) / scores.std().clamp(min=1e-6)


def diverse(share: float) -> Rule:
    """`share` of the budget by token scores, the rest by max-min: again and again the token that is least like any kept one."""

    def rule(tokens, frames, features, ratio):
        scores = tokens.flatten()
        budget, first = token_budget(len(scores), ratio), contribution_budget(len(scores), ratio, share)
        keep = top_tokens(scores, first)
        directions = F.normalize(features.flatten(0, 1).float(), dim=-1)
        likeness = directions @ directions.T
        nearest = likeness[keep].amax(dim=0) if first else likeness.mean(dim=0)
        for _ in range(budget - first):
            token = int(nearest.masked_fill(keep, math.inf).argmin())
            keep[token] = True
            nearest = torch.maximum(nearest, likeness[token])
        return keep.view(tokens.shape), None

    return rule


def unlike(weight: float) -> Rule:
    """Greedy by standardised token score minus `weight` times the largest cosine with a kept token (maximal marginal relevance)."""

    def rule(tokens, frames, features, ratio):
        scores = standardised(tokens.flatten())
        directions = F.normalize(features.flatten(0, 1).float(), dim=-1)
        keep, nearest = torch.zeros_like(scores, dtype=torch.bool), torch.zeros_like(scores)
        for _ in range(token_budget(len(scores), ratio)):
            token = int((scores - weight * nearest).masked_fill(keep, -math.inf).argmax())
            keep[token] = True
            nearest = torch.maximum(nearest, directions @ directions[token])
        return keep.view(tokens.shape), None

    return rule


def merged(select: Rule, *, own: float | None = None, least: float = -1.0, weighted: bool = False) -> Rule:
    """Each dropped token goes to the kept one with the largest cosine, if that is at least `least`.

    A kept token becomes the mean of itself and what went to it, (`weighted`) by the exponential of the token scores; or, with `own`, that part of
    itself and the rest of the mean of what went to it.
    """

    def rule(tokens, frames, features, ratio):
        keep, _ = select(tokens, frames, features, ratio)
        flat, kept = features.flatten(0, 1), keep.flatten()
        directions = F.normalize(flat.float(), dim=-1)
        places, dropped = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
        closeness, nearest = (directions[dropped] @ directions[places].T).max(dim=1)
        goes = closeness >= least
        weights = (tokens - tokens.max()).exp().flatten() if weighted else torch.ones(len(flat))
        sums, totals = torch.zeros(len(places), flat.shape[1]), torch.zeros(len(places))
        sums.index_add_(0, nearest[goes], (flat * weights[:, None])[dropped[goes]])
        totals.index_add_(0, nearest[goes], weights[dropped[goes]])
        if own is None:
            mixed = (flat[places] * weights[places, None] + sums) / (weights[places] + totals)[:, None]
        else:
            part = torch.where(totals > 0, 1 - own, 0.0)[:, None]
            mixed = (1 - part) * flat[places] + part * sums / totals.clamp(min=1e-12)[:, None]
        return keep, flat.index_copy(0, places, mixed).view(features.shape)

    return rule


def uniform(tokens: Tensor, frames: Tensor, features: Tensor, ratio: float) -> tuple[Tensor, None]:
    """Looks at nothing."""
    nothing = torch.zeros(tokens.numel(), dtype=torch.bool)
    return spread_tokens(nothing, 0, token_budget(tokens.numel(), ratio)).view(tokens.shape), None


TOKENS = selected(1.0, "tokens")
RULES: dict[str, Rule] = {
    "uniform": uniform,
    "frame budgets, share 0.5 (published)": selected(0.5, "frame"),
    "frame budgets": selected(1.0, "frame"),
    "tokens": TOKENS,
    "tokens, share 0.5": selected(0.5, "tokens"),
    "tokens + frames": selected(1.0, "video"),
    "tokens + frames, standardised": ranked(lambda tokens, frames: standardised(tokens) + standardised(frames)),
    "tokens + 0.25 frames, standardised": ranked(
        lambda tokens, frames: standardised(tokens) + 0.25 * standardised(frames)
    ),
    "log probabilities of token and frame": ranked(lambda tokens, frames: F.logsigmoid(tokens) + F.logsigmoid(frames)),
    "tokens 0.5, max-min 0.5": diverse(0.5),
    "tokens 0.75, max-min 0.25": diverse(0.75),
    "max-min alone": diverse(0.0),
    "tokens, unlike kept ones 0.25": unlike(0.25),
    "tokens, unlike kept ones 1": unlike(1.0),
    "tokens, merged": merged(TOKENS),
    "tokens, merged 0.9": merged(TOKENS, own=0.9),
    "tokens, merged 0.6": merged(TOKENS, own=0.6),
    "tokens, merged by score": merged(TOKENS, weighted=True),
    "tokens, merged if cosine >= 0.8": merged(TOKENS, least=0.8),
    "tokens, merged if cosine >= 0.95": merged(TOKENS, least=0.95),
    "frame budgets, merged": merged(selected(1.0, "frame")),
    "frame budgets, share 0.5, merged": merged(selected(0.5, "frame")),
    "tokens 0.5, max-min 0.5, merged 0.9": merged(diverse(0.5), own=0.9),
    "tokens 0.75, max-min 0.25, merged by score": merged(diverse(0.75), weighted=True),
}


def answer_batch(model: Any, processor: Any, batch: list, ratios: list[float], attention: bool) -> dict[str, list[int]]:
    """For each `rule @ ratio`, which of the batch's questions are answered rightly (1 or 0)."""
    inputs = chat_inputs(processor, [[user_message(question.text, clip.frames)] for clip, question in batch])
    answers = processor.tokenizer.convert_tokens_to_ids([question.answer for _, question in batch])
    inputs = dict(inputs)
    input_ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    prompt = model.embed(input_ids, mask, **take_embedding_arguments(model.backbone, model.family, inputs))
    layout = prompt.layout
    scores = [
        (found.token_scores, found.frame_scores)
        for found in model.policy(prompt.inputs_embeds, prompt.position_ids, layout)
    ]
    rules = {name: (rule, scores) for name, rule in RULES.items()}
    if attention:
        for query in QUERIES:
            layers = range(len(model.get_decoder().layers))
            for layer, found in video_attention(model, prompt, layers, query).items():
                received = [(tokens, tokens.sum(dim=1)) for tokens in found]
                rules[f"attention of the {query}, layer {layer}"] = (TOKENS, received)
    right: dict[str, list[int]] = {}
    for name, (rule, given) in rules.items():
        for ratio in ratios:
            embeds, selections = prompt.inputs_embeds.clone(), []
            for span, (tokens, frames) in zip(layout.videos, given, strict=True):
                keep, features = rule(tokens, frames, prompt.video_features(span), ratio)
                if features is not None:
                    embeds[span.row, span.positions] = features.flatten(0, 1)
                selections.append(VideoSelection(span, keep))
            budgets = [token_budget(span.num_tokens, ratio) for span in layout.videos]
            indices = kept_indices(layout, [selection.keep for selection in selections], budgets)
            merged_prompt = type(prompt)(layout, input_ids, embeds, prompt.position_ids)
            cut = gather(merged_prompt, indices)
            logits = model.backbone(
                inputs_embeds=cut.inputs_embeds,
                attention_mask=cut.attention_mask,
                position_ids=cut.position_ids,
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
            right[f"{name} @ {ratio}"] = (logits.argmax(dim=-1) == torch.tensor(answers)).long().tolist()
    return right


def summary(right: dict[str, list[int]], ratios: list[float]) -> list[dict[str, Any]]:
    """Accuracy of every rule and ratio, and its difference to the baseline's, question by question."""
    results = []
    for cell, values in right.items():
        name, ratio = cell.rsplit(" @ ", 1)
        ours = torch.tensor(values, dtype=torch.float64)
        difference = ours - torch.tensor(right[f"{BASELINE} @ {ratio}"], dtype=torch.float64)
        accuracy = ours.mean().item()
        results.append(
            {
                "rule": name,
                "retention_ratio": float(ratio),
                "accuracy": accuracy,
                "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(ours)),
                "difference": difference.mean().item(),
                "standard_error_of_difference": (difference.std() / math.sqrt(len(ours))).item(),
            }
        )
    return results


def main(arguments: list[str] | None = None) -> Path:
    """Measure and write; returns the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_path(), help="a checkpoint around a tiny model")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.1, 0.05, 0.02])
    parser.add_argument("--num-questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=11, help="of the clips and questions")
    parser.add_argument(
        "--attention",
        action="store_true",
        help="also the language model's attention instead of the policy's scores, every layer",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--commit", help="of the code, where git does not know it")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--work", type=Path, default=Cells.work, help="folder of lock files")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    record = environment(options.commit)
    model = CaCoVidForConditionalGeneration.from_pretrained(options.model)
    processor = AutoProcessor.from_pretrained(options.model)
    weights = hashlib.sha256((Path(options.model) / "model.safetensors").read_bytes()).hexdigest()[:16]
    config = {
        "model": "embedded" if options.model == model_path() else str(options.model.name),
        "policy_sha256": weights,
        "policy_trained": model.config.policy_trained,
        "policy_attention": model.config.policy_attention,
        "num_questions": options.num_questions,
        "seed": options.seed,
        "ratios": options.ratios,
        "attention": options.attention,
        "batch": BATCH,
    }
    key = hashlib.sha256(json.dumps([config, record["commit"], list(RULES)]).encode()).hexdigest()[:12]
    progress = Cells("budget_study_part", options.output / f".budget_study_{key}", options.work, options.commit)
    pairs = list(sample_questions(options.num_questions, options.seed))

    def answered(batch: list) -> dict[str, Any]:
        with torch.inference_mode():
            return {"right": answer_batch(model, processor, batch, options.ratios, options.attention)}

    starts = {f"questions from {first}": first for first in range(0, len(pairs), BATCH)}
    jobs: dict[str, Job] = {
        name: lambda first=first: answered(pairs[first : first + BATCH]) for name, first in starts.items()
    }
    progress.run(jobs)
    right: dict[str, list[int]] = {}
    for name in jobs:
        for cell, values in progress.read(name)["right"].items():
            right.setdefault(cell, []).extend(values)
    results = summary(right, options.ratios)
    for result in results:
        print(
            "{rule:46} {retention_ratio:5.2f}  {accuracy:6.1%} ± {standard_error:.1%}   {difference:+6.1%} ± {standard_error_of_difference:.1%}".format(
                **result
            )
        )
    record |= {"benchmark": "budget_study", "command": command(), "config": config, "notes": NOTES, "results": results}
    path = write_result(options.output, "budget_study_tiny", record)
    shutil.rmtree(progress.folder)
    return path


if __name__ == "__main__":
    print(main())
