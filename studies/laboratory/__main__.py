"""The cells of the laboratory; a cell that is there is not run again.

python -m studies.laboratory                            # everything that is not there yet: hours
python -m studies.laboratory --only 'reader/0/*'        # some cells
python -m studies.laboratory --list

Cells named `hard-...` are about the clips of `hard_clips`, told by kind.
A cell is one JSON under studies/results/laboratory. Weights stay in `--work` and are not shipped: 538 MB of SmolLM2 and 106 MB for each reader.
Any number of processes may work on the same folders.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import ROOT
from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.evaluation.methods import make_method
from cacovid_hf.tiny.synthetic import Clip
from cacovid_hf.utils.files import replaced
from studies.cells import RESULTS, Cells, Job, chosen
from studies.laboratory.contributions import Contributions, measure
from studies.laboratory.hard_clips import CHANCE, HARD_KINDS, make_hard_clip
from studies.laboratory.hard_reading import HardReader
from studies.laboratory.headroom import by_kind, headroom, row, seen, share
from studies.laboratory.mechanism import exchanged, groups
from studies.laboratory.packing import answered_right as right_of
from studies.laboratory.packing import everything
from studies.laboratory.picture import example
from studies.laboratory.policies import CONTRIBUTION_QUESTIONS, RECIPES, policy_scores, train
from studies.laboratory.prompts import Prompts
from studies.laboratory.questions import (
    ALL_KINDS,
    NUM_TOKENS,
    READING,
    REPORTED,
    TRAINING,
    VALIDATION,
    Asked,
    ask,
    balanced,
    clips_of,
)
from studies.laboratory.reading import Reader, trained_weights
from studies.laboratory.scores import Attended, attended, highest
from studies.laboratory.sizes import by_size, digits, set_row, within
from studies.laboratory.video_model import ProjectorTraining, build, tower_attention
from studies.laboratory.words import Vocabulary
from studies.questions import answered_right

SEEDS, STRENGTHS = (0, 1, 2), (80, 90, 97)  # of the reader; percent with all tokens, named before anything was measured
READING_CLIPS, TRAINING_CLIPS, VALIDATION_CLIPS, REPORTED_CLIPS = 400, 220, 24, 48
_AT_ONCE = 100  # questions, between two saves
PER_KIND = {TRAINING: 4, VALIDATION: 2, REPORTED: 2}
METHODS = (
    *("uniform", "random", "divprune", "vidcom2", "evs", "vcast", "simplecluster", "gleanvid", "marc", "prunevid"),
    *("visionzip", "fastvid", "flashvid", "infomerge", "streamingtom"),  # read the vision tower's attention
    *("fastv:ratio_of=kept", "framefusion"),  # inside the language model, whose first layers see more
)
METHOD_BUDGETS = (5, 14, 72)  # 2, 5 and 25 %
LARGER_BUDGETS = (43, 72)  # 15 and 25 %
BEST_RECIPE = "imitation, then contributions"
HARD_STREAM = 10  # is added to a stream of seeds
HARD_READING_CLIPS, HARD_REPORTED_CLIPS = 300, 32
RIVALS = ("attention", "imitation of the last token")
TEACHERS = ("imitation of the question", "imitation of the last token")
MAX_SECONDS = 7200.0  # of the processor, for a reader


class Laboratory:
    """Its models and questions, each made once in a process.

    Args:
        work: folder of the weights.
    """

    prefix = ""  # of its cells and files
    reported_clips = REPORTED_CLIPS

    def __init__(self, work: Path):
        self.work = work
        work.mkdir(parents=True, exist_ok=True)

    @functools.cache  # noqa: B019 (one laboratory a process)
    def video_model(self, seed: int) -> tuple[Any, Vocabulary, dict[str, float]]:
        """A video model whose projector was trained, and how well: of every kind of word, the share of cells that are read right."""
        model, tokenizer = build(self.work, seed)
        vocabulary, path = Vocabulary(tokenizer), self.work / f"projector-{seed}.pt"
        if not path.exists():
            quality = ProjectorTraining(model, vocabulary, seed).run()
            _save(path, {"weights": model.model.multi_modal_projector.state_dict(), "quality": quality})
        saved = torch.load(path)
        model.model.multi_modal_projector.load_state_dict(saved["weights"])
        return model, vocabulary, saved["quality"]

    @functools.cache  # noqa: B019
    def asked(self, seed: int, stream: int, clips: int) -> Asked:
        """Clips of a stream and their questions, as a seed's projector shows them."""
        model, vocabulary, _ = self.video_model(seed)
        found = ask(model, vocabulary, clips, stream, seed)
        if stream == READING:
            return found
        return balanced(found, PER_KIND[stream], torch.Generator().manual_seed(seed))

    def clips(self, seed: int, stream: int, count: int) -> list[Clip]:
        """The clips that `asked` is about."""
        return clips_of(count, stream, seed)

    def reader_path(self, seed: int, strength: int) -> Path:
        """Where the weights of a reader stand."""
        return self.work / f"{self.prefix}reader-{seed}-{strength}.pt"

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
        reached = reader.run_to(strength / 100, MAX_SECONDS, keep=lambda: _save(begun, reader.state_dict()))
        _save(path, reader.state_dict())
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

    def reader(self, seed: int, strength: int) -> Any:
        """A video model that reads as well as named."""
        model = self.video_model(seed)[0]
        weights = torch.load(self.reader_path(seed, strength), weights_only=False)["weights"]
        with torch.no_grad():
            for name, weight in trained_weights(model).items():
                weight.copy_(weights[name])
        return model.eval().requires_grad_(False)

    @functools.cache  # noqa: B019
    def attention(self, seed: int, strength: int, stream: int, clips: int) -> Attended:
        """What the questions of a stream attend to."""
        path = self.work / f"{self.prefix}attention-{seed}-{strength}-{stream}-{clips}.pt"
        if not path.exists():
            found = attended(self.reader(seed, strength), self.asked(seed, stream, clips))
            _save(path, vars(found))
        return Attended(**torch.load(path))

    @functools.cache  # noqa: B019
    def contributions(self, seed: int, strength: int) -> tuple[Contributions, float]:
        """What tokens contribute, measured on questions of the policies' training, and the seconds it took; goes on where it was stopped."""
        asked = self.asked(seed, TRAINING, TRAINING_CLIPS)
        path = self.work / f"{self.prefix}contributions-{seed}-{strength}.pt"
        attention = self.attention(seed, strength, TRAINING, TRAINING_CLIPS).last.float().mean(2)
        order = torch.randperm(asked.answers.numel(), generator=torch.Generator().manual_seed(seed))
        parts: list[dict[str, Any]] = torch.load(path) if path.exists() else []
        for number, questions in enumerate(order[:CONTRIBUTION_QUESTIONS].split(_AT_ONCE)):
            if number < len(parts):
                continue
            generator, begun = torch.Generator().manual_seed(1000 * seed + number), time.process_time()
            likely = attention.flatten(0, 1)[questions]
            found = measure(self.reader(seed, strength), asked, likely, questions, generator)
            parts.append(vars(found) | {"seconds": time.process_time() - begun})
            _save(path, parts)
            print(f"contributions of {(number + 1) * _AT_ONCE} questions, {parts[-1]['seconds']:.0f} s", flush=True)
        seconds = sum(part["seconds"] for part in parts)
        names = [field.name for field in dataclasses.fields(Contributions)]
        return Contributions(**{name: torch.cat([part[name] for part in parts]) for name in names}), seconds

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
        model = self.wrapped(seed, strength, "light", 0)
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
        model = self.wrapped(seed, strength, settings.policy_type, seed)
        training = self.asked(seed, TRAINING, TRAINING_CLIPS)
        attention = self.attention(seed, strength, TRAINING, TRAINING_CLIPS)
        once = settings.contribution_steps and not (settings.in_a_row or settings.by_policy)
        measured = self.contributions(seed, strength)[0] if once else None
        logs = train(model, training, attention, settings, seed, measured)
        _save(self.policy_path(seed, strength, recipe), model.policy.state_dict())
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

    def trained(self, seed: int, strength: int, recipe: str) -> Any:
        """The reader with the policy of a recipe, which its cell has trained."""
        model = self.wrapped(seed, strength, RECIPES[recipe].policy_type, seed)
        model.policy.load_state_dict(torch.load(self.policy_path(seed, strength, recipe)))
        return model

    def policy_path(self, seed: int, strength: int, recipe: str) -> Path:
        """Where the weights of a policy stand."""
        return self.work / f"{self.prefix}policy-{seed}-{strength}-{recipe}.pt"

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
        ours, group = policy_scores(self.trained(seed, strength, BEST_RECIPE), asked), groups(asked, attention)
        shown = example(self.reader(seed, strength), asked, attention, ours, group, 5)
        tokenizer = self.video_model(seed)[1].tokenizer
        for choice, name in zip(shown["choices"], ("attention", BEST_RECIPE), strict=True):
            choice |= {"name": name, "word": tokenizer.decode([choice["said"]]).strip()}
        words = {"text": tokenizer.decode(shown["question"]), "word": tokenizer.decode([shown["answer"]]).strip()}
        return shown | words | {"stream": REPORTED, "seed": seed}

    def wrapped(self, seed: int, strength: int, policy_type: str, policy_seed: int) -> Any:
        """A reader with a new policy, its layer from layer 0; selection by token scores alone."""
        torch.manual_seed(policy_seed)
        return CaCoVidForConditionalGeneration.from_backbone(
            self.reader(seed, strength), policy_type=policy_type, contribution_share=1.0, scope="tokens"
        ).eval()


class HardLaboratory(Laboratory):
    """The same with the clips of `hard_clips`: its readers are those of another laboratory, trained further, and its tables are of the hard kinds.

    Args:
        easy: the other one.
    """

    prefix = "hard-"
    reported_clips = HARD_REPORTED_CLIPS

    def __init__(self, easy: Laboratory):
        super().__init__(easy.work)
        self.easy = easy

    def video_model(self, seed: int) -> tuple[Any, Vocabulary, dict[str, float]]:
        """That of the other."""
        return self.easy.video_model(seed)

    @functools.cache  # noqa: B019
    def asked(self, seed: int, stream: int, clips: int) -> Asked:
        """As of the other, about clips of a stream of their own; two questions of every hard kind about each, of the reader's training all."""
        model, vocabulary, _ = self.video_model(seed)
        found = ask(model, vocabulary, clips, HARD_STREAM + stream, seed, make_hard_clip, ALL_KINDS)
        return found if stream == READING else balanced(found, 2, torch.Generator().manual_seed(seed), HARD_KINDS)

    def clips(self, seed: int, stream: int, count: int) -> list[Clip]:
        """Those of the hard kinds."""
        return clips_of(count, HARD_STREAM + stream, seed, make_hard_clip)

    def every_kind(self, seed: int) -> Asked:
        """Two questions of every kind, old and hard, about clips that nothing is trained on."""
        model, vocabulary, _ = self.video_model(seed)
        found = ask(model, vocabulary, VALIDATION_CLIPS, HARD_STREAM + VALIDATION, seed, make_hard_clip, ALL_KINDS)
        return balanced(found, 2, torch.Generator().manual_seed(seed), ALL_KINDS)

    def unread(self, seed: int, strength: int) -> dict[str, Any]:
        """What the other's reader makes of these questions."""
        asked = self.every_kind(seed)
        right = right_of(self.easy.reader(seed, strength), asked, everything(len(asked)))
        return {"accuracy": share(right), "by_kind": by_kind(asked, right)}

    def read(self, seed: int, strength: int) -> dict[str, Any]:
        """Train a reader of the other further, and say what it has learnt, of new and old kinds, and how it now reads the old clips."""
        model, validation = self.video_model(seed)[0], self.every_kind(seed)
        path = self.reader_path(seed, strength)
        begun = path.with_suffix(".begun.pt")
        self.easy.reader(seed, strength)
        reader = HardReader(model, self.asked(seed, READING, HARD_READING_CLIPS), validation, seed)
        if begun.exists():
            reader.load_state_dict(torch.load(begun, weights_only=False))
        reader.run(keep=lambda: _save(begun, reader.state_dict()))
        _save(path, reader.state_dict())
        begun.unlink(missing_ok=True)
        old, progress = self.easy.asked(seed, VALIDATION, VALIDATION_CLIPS), reader.progress
        right = right_of(model, validation, everything(len(validation)))
        return {
            "steps": progress.step,
            "questions": progress.questions,
            "tokens": progress.tokens,
            "processor_seconds": round(progress.seconds, 1),
            "accuracy": share(right),
            "by_kind": by_kind(validation, right),
            "chance": {kind: round(value, 4) for kind, value in CHANCE.items()},
            "old_clips": share(right_of(model, old, everything(len(old)))),
        }


def _save(path: Path, value: Any) -> None:
    with replaced(path) as temporary:
        torch.save(value, temporary)


def jobs(laboratory: Laboratory) -> dict[str, Job]:
    """Every cell, in the order in which they build on each other."""
    hard = HardLaboratory(laboratory)
    before = {
        f"hard-untrained/{seed}/{strength}": functools.partial(hard.unread, seed, strength)
        for seed in SEEDS
        for strength in STRENGTHS
    }
    pictures = {
        f"picture/{seed}/{strength}": functools.partial(laboratory.picture, seed, strength)
        for seed in SEEDS
        for strength in STRENGTHS
    }
    return _jobs(laboratory) | pictures | before | _jobs(hard)


def _jobs(laboratory: Laboratory) -> dict[str, Job]:
    found: dict[str, Job] = {}
    for seed in SEEDS:
        for strength in STRENGTHS:
            at = f"{seed}/{strength}"
            found[f"reader/{at}"] = functools.partial(laboratory.read, seed, strength)
            found[f"headroom/{at}"] = functools.partial(laboratory.headroom, seed, strength)
            found[f"layers/{at}"] = functools.partial(laboratory.layers, seed, strength)
            for method in METHODS:
                found[f"method/{at}/{method}"] = functools.partial(laboratory.method, seed, strength, method)
            for query in ("question", "last"):
                found[f"attention/{at}/{query}"] = functools.partial(laboratory.attended, seed, strength, query)
            found[f"contributions/{at}"] = functools.partial(laboratory.contribution, seed, strength)
            for recipe in RECIPES:
                found[f"policy/{at}/{recipe}"] = functools.partial(laboratory.policy, seed, strength, recipe)
            found[f"teacher/{at}"] = functools.partial(laboratory.teacher, seed, strength)
            for choice in (*RIVALS, BEST_RECIPE):
                found[f"larger/{at}/{choice}"] = functools.partial(laboratory.larger, seed, strength, choice)
            for rival in RIVALS:
                found[f"mechanism/{at}/{rival}"] = functools.partial(
                    laboratory.mechanism, seed, strength, BEST_RECIPE, rival
                )
    return {laboratory.prefix + name: job for name, job in found.items()}


def waits_for(name: str) -> str | None:
    """The cell that must be there before another: the reader that it is about, of a reader the one before it, of a comparison its policy."""
    kind, seed, strength, *rest = name.split("/")
    if kind.startswith(HardLaboratory.prefix):
        if kind in ("hard-reader", "hard-untrained"):
            return f"reader/{seed}/{strength}"
        return HardLaboratory.prefix + str(waits_for(name.removeprefix(HardLaboratory.prefix)))
    if kind == "larger":
        return f"reader/{seed}/{strength}" if rest == ["attention"] else f"policy/{seed}/{strength}/{rest[0]}"
    if kind == "teacher":
        return f"policy/{seed}/{strength}/{TEACHERS[-1]}"
    if kind in ("mechanism", "picture"):
        return f"policy/{seed}/{strength}/{BEST_RECIPE if rest in ([], ['attention']) else rest[0]}"
    if kind != "reader":
        return f"reader/{seed}/{strength}"
    before = [one for one in STRENGTHS if one < int(strength)]
    return f"reader/{seed}/{before[-1]}" if before else None


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="cells, as a pattern; may come several times")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "laboratory", help="folder of the weights")
    parser.add_argument("--list", action="store_true", help="print the names of the cells")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted = chosen(jobs(Laboratory(options.work)), options.only)
    if options.list:
        print("\n".join(wanted))
    else:
        Cells("laboratory", RESULTS / "laboratory").run(wanted, waits_for)


if __name__ == "__main__":
    main()
