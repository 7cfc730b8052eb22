"""What the cells of the laboratory measure."""

from typing import Any

import torch

from cacovid_hf.evaluation.methods import make_method
from studies.laboratory.headroom import by_kind, headroom, row, seen, share
from studies.laboratory.mechanism import exchanged, groups
from studies.laboratory.models import READING_CLIPS, TRAINING_CLIPS, VALIDATION_CLIPS, Models, save
from studies.laboratory.picture import example
from studies.laboratory.policies import RECIPES, Recipe, policy_scores, train
from studies.laboratory.prompts import Prompts
from studies.laboratory.questions import NUM_TOKENS, READING, REPORTED, TRAINING, VALIDATION
from studies.laboratory.reading import Reader
from studies.laboratory.scores import highest
from studies.laboratory.sizes import by_size, digits, set_row, within
from studies.laboratory.table import BEST
from studies.laboratory.video_model import tower_attention
from studies.questions import answered_right

SEEDS = (0, 1, 2, 3, 4)  # the readers of 3 and 4 are for the hard kinds
STRENGTHS = (80, 90, 97)  # of the reader; percent with all tokens, named before anything was measured
MAX_SECONDS = 7200.0  # of the processor, for a reader
METHOD_BUDGETS = (5, 14, 72)  # 2, 5 and 25 %
LARGER_BUDGETS = (43, 72)  # 15 and 25 %
RIVALS = ("attention", "imitation of the last token")
TEACHERS = ("imitation of the question", "imitation of the last token")


class Laboratory(Models):
    """The cells of a laboratory: what a method returns is written as JSON.

    Args:
        work: folder of the weights.
    """

    def read(self, seed: int, strength: int) -> dict[str, Any]:
        """Train a reader on from the one before it, and keep it."""
        model, _, quality = self.video_model(seed)
        asked, validation = self.asked(seed, READING, READING_CLIPS), self.asked(seed, VALIDATION, VALIDATION_CLIPS)
        reader = Reader(model, asked, validation, seed)
        path = self.reader_path(seed, strength)
        begun = path.with_suffix(".begun.pt")
        before = [self.reader_path(seed, one) for one in STRENGTHS if one < strength]
        if found := [one for one in (begun, *before[-1:]) if one.exists()]:
            reader.load_state_dict(torch.load(found[0], weights_only=False))
        reached = reader.run_to(strength / 100, MAX_SECONDS, keep=lambda: save(begun, reader.state_dict()))
        save(path, reader.state_dict())
        begun.unlink(missing_ok=True)
        progress = reader.progress
        return {
            "projector": quality,
            "accuracy": reached,
            "steps": progress.step,
            "questions": progress.questions,
            "tokens": progress.tokens,
            "processor_seconds": round(progress.seconds, 1),
        }

    def contribution(self, seed: int, strength: int) -> dict[str, Any]:
        """Measure contributions, and say how many of the likely tokens help and harm."""
        found, seconds = self.contributions(seed, strength)
        asked = self.asked(seed, TRAINING, TRAINING_CLIPS)
        values = torch.stack([one.values for one in found.measured()])
        evidence = asked.evidence.flatten(0, 1)[found.questions].gather(1, found.likely)
        objects = asked.objects[found.questions // asked.answers.shape[1]].gather(1, found.likely)
        groups = {"evidence": evidence, "other objects": objects & ~evidence, "cells without objects": ~objects}
        return {
            "questions": len(found.questions),
            "rollouts": found.probability.numel(),
            "processor_seconds": round(seconds, 1),
            "mean_probability": round(found.probability.mean().item(), 4),
            "likely_tokens": [
                {
                    "tokens": name,
                    "share": round(among.float().mean().item(), 4),
                    "mean_value": round(values[among].mean().item(), 4),
                    "above_0.05": round((values[among] > 0.05).float().mean().item(), 4),
                    "below_-0.05": round((values[among] < -0.05).float().mean().item(), 4),
                }
                for name, among in groups.items()
            ],
        }

    def headroom(self, seed: int, strength: int) -> dict[str, Any]:
        """See `headroom.headroom`; of the questions that are reported."""
        asked = self.asked(seed, REPORTED, self.reported_clips)
        attention = self.attention(seed, strength, REPORTED, self.reported_clips)
        return headroom(self.reader(seed, strength), asked, attention)

    def method(self, seed: int, strength: int, name: str) -> dict[str, Any]:
        """A method that needs no training, as the library has it."""
        asked = self.asked(seed, REPORTED, self.reported_clips)
        model = self.wrapped(seed, strength, Recipe(), 0)
        method = make_method(name, model)
        frames = [clip.frames for clip in self.clips(seed, REPORTED, self.reported_clips)]
        prompts = Prompts(model, asked, 24, tower=tower_attention(model, frames) if method.reads_tower else None)
        found: dict[str, Any] = {"results": [], "right": {}}
        for count in METHOD_BUDGETS:
            right = answered_right(model, prompts, count / NUM_TOKENS, method)
            right = right.view_as(asked.answers)
            found["results"].append({"choice": name, "tokens": count, **share(right), "by_kind": by_kind(asked, right)})
            found["right"][str(count)] = digits(right)
        return found

    def attended(self, seed: int, strength: int, query: str) -> dict[str, Any]:
        """The attention of the uncompressed prompt as a choice: its mean over the layers, and the layer that is best on other questions."""
        model = self.reader(seed, strength)
        asked, other = self.asked(seed, REPORTED, self.reported_clips), self.asked(seed, VALIDATION, VALIDATION_CLIPS)
        rows = getattr(self.attention(seed, strength, REPORTED, self.reported_clips), query).float()
        others = getattr(self.attention(seed, strength, VALIDATION, VALIDATION_CLIPS), query).float()
        among = [seen(other, highest(others[:, :, layer], 5)) for layer in range(others.shape[2])]
        best = max(range(len(among)), key=among.__getitem__)
        return {
            "mean of layers": by_size(model, asked, rows.mean(2), other, others.mean(2), f"{query}, mean of layers"),
            "best layer": by_size(model, asked, rows[:, :, best], other, others[:, :, best], f"{query}, layer {best}"),
        }

    def layers(self, seed: int, strength: int) -> dict[str, Any]:
        """How the last token's attention answers as a choice of 5 tokens, layer by layer."""
        model, asked = self.reader(seed, strength), self.asked(seed, REPORTED, self.reported_clips)
        rows = self.attention(seed, strength, REPORTED, self.reported_clips).last.float().unbind(2)
        found = [row(model, asked, f"last, layer {layer}", highest(one, 5)) for layer, one in enumerate(rows)]
        return {"results": [line for line, _ in found], "right": [digits(right) for _, right in found]}

    def policy(self, seed: int, strength: int, recipe: str) -> dict[str, Any]:
        """Train a policy and ask the questions that are reported."""
        settings = RECIPES[recipe]
        model = self.wrapped(seed, strength, settings, seed)
        training = self.asked(seed, TRAINING, TRAINING_CLIPS)
        attention = self.attention(seed, strength, TRAINING, TRAINING_CLIPS)
        once = settings.contribution_steps and not (settings.in_a_row or settings.by_policy)
        measured = self.contributions(seed, strength)[0] if once else None
        logs = train(model, training, attention, settings, seed, measured)
        save(self.policy_path(seed, strength, recipe), model.policy.state_dict())
        asked, other = self.asked(seed, REPORTED, self.reported_clips), self.asked(seed, VALIDATION, VALIDATION_CLIPS)
        scores = policy_scores(model, asked)
        found = by_size(model.backbone, asked, scores, other, policy_scores(model, other), recipe)
        if settings.contribution_steps:  # scores have a meaning of their own
            above, answers = set_row(model.backbone, asked, recipe, within(scores, 0.0) | (scores > 0))
            found |= {"above_zero": above, "right": found["right"] | {"above_zero": digits(answers)}}
        return {"recipe": vars(settings), **found, **logs}

    def teacher(self, seed: int, strength: int) -> dict[str, Any]:
        """Which attention a policy should imitate, told by questions that are not reported: of the imitations the one that is best with 5 tokens."""
        other, results = self.asked(seed, VALIDATION, VALIDATION_CLIPS), []
        for recipe in TEACHERS:
            model = self.trained(seed, strength, recipe)
            results.append(row(model.backbone, other, recipe, highest(policy_scores(model, other), 5))[0])
        return {"results": results, "chosen": max(results, key=lambda line: line["mean"])["choice"]}

    def larger(self, seed: int, strength: int, choice: str) -> dict[str, Any]:
        """How a choice that is there answers with more tokens: that of a recipe's policy, or `attention`, the last token's as a mean of the layers."""
        asked = self.asked(seed, REPORTED, self.reported_clips)
        if choice == "attention":
            model = self.reader(seed, strength)
            scores = self.attention(seed, strength, REPORTED, self.reported_clips).last.float().mean(2)
        else:
            trained = self.trained(seed, strength, choice)
            model, scores = trained.backbone, policy_scores(trained, asked)
        found = {count: row(model, asked, choice, highest(scores, count)) for count in LARGER_BUDGETS}
        return {
            "results": [line for line, _ in found.values()],
            "right": {str(count): digits(right) for count, (_, right) in found.items()},
        }

    def mechanism(self, seed: int, strength: int, recipe: str, rival: str) -> dict[str, Any]:
        """What the tokens do that a policy keeps and a rival drops, and the other way round."""
        asked = self.asked(seed, REPORTED, self.reported_clips)
        attention = self.attention(seed, strength, REPORTED, self.reported_clips).last.float().mean(2)
        scores = {"attention": attention}
        for name in {recipe, rival} - set(scores):
            scores[name] = policy_scores(self.trained(seed, strength, name), asked)
        group, model = groups(asked, attention), self.reader(seed, strength)
        return {
            f"kept by {one}, dropped by {other}": exchanged(model, asked, scores[one], scores[other], group, 5)
            for one, other in ((rival, recipe), (recipe, rival))
        }

    def picture(self, seed: int, strength: int) -> dict[str, Any]:
        """One question and what is kept for it, for `picture.draw`."""
        asked = self.asked(seed, REPORTED, self.reported_clips)
        attention = self.attention(seed, strength, REPORTED, self.reported_clips).last.float().mean(2)
        ours, group = policy_scores(self.trained(seed, strength, BEST), asked), groups(asked, attention)
        shown = example(self.reader(seed, strength), asked, attention, ours, group, 5)
        tokenizer = self.video_model(seed)[1].tokenizer
        for choice, name in zip(shown["choices"], ("attention", BEST), strict=True):
            choice |= {"name": name, "word": tokenizer.decode([choice["said"]]).strip()}
        words = {"text": tokenizer.decode(shown["question"]), "word": tokenizer.decode([shown["answer"]]).strip()}
        return shown | words | {"stream": REPORTED, "seed": seed}
