"""The models of the laboratory, what they are asked, and what was measured of them. Weights and measurements are kept in files."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import torch

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny.synthetic import Clip
from cacovid_hf.utils.files import replaced
from studies.laboratory.contributions import Contributions, measure
from studies.laboratory.policies import CONTRIBUTION_QUESTIONS, RECIPES, Recipe
from studies.laboratory.questions import READING, REPORTED, TRAINING, VALIDATION, Asked, ask, balanced, clips_of
from studies.laboratory.reading import trained_weights
from studies.laboratory.scores import Attended, attended
from studies.laboratory.video_model import ProjectorTraining, build
from studies.laboratory.words import Vocabulary

READING_CLIPS, TRAINING_CLIPS, VALIDATION_CLIPS, REPORTED_CLIPS = 400, 220, 24, 48
PER_KIND = {TRAINING: 4, VALIDATION: 2, REPORTED: 2}
_AT_ONCE = 100  # questions, between two saves


class Models:
    """What the cells of a laboratory build on, each made when it is first asked for.

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
            save(path, {"weights": model.model.multi_modal_projector.state_dict(), "quality": quality})
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
            save(path, vars(found))
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
            save(path, parts)
            print(f"contributions of {(number + 1) * _AT_ONCE} questions, {parts[-1]['seconds']:.0f} s", flush=True)
        seconds = sum(part["seconds"] for part in parts)
        names = [field.name for field in dataclasses.fields(Contributions)]
        return Contributions(**{name: torch.cat([part[name] for part in parts]) for name in names}), seconds

    def wrapped(self, seed: int, strength: int, recipe: Recipe, policy_seed: int) -> Any:
        """A reader with a new policy of a recipe's kind, its layer from layer 0; selection by token scores alone."""
        torch.manual_seed(policy_seed)
        return CaCoVidForConditionalGeneration.from_backbone(
            self.reader(seed, strength),
            policy_type=recipe.policy_type,
            policy_attention=recipe.policy_attention,
            contribution_share=1.0,
            scope="tokens",
        ).eval()

    def trained(self, seed: int, strength: int, recipe: str) -> Any:
        """The reader with the policy of a recipe, which its cell has trained."""
        model = self.wrapped(seed, strength, RECIPES[recipe], seed)
        model.policy.load_state_dict(torch.load(self.policy_path(seed, strength, recipe)))
        return model

    def policy_path(self, seed: int, strength: int, recipe: str) -> Path:
        """Where the weights of a policy stand."""
        return self.work / f"{self.prefix}policy-{seed}-{strength}-{recipe}.pt"


def save(path: Path, value: Any) -> None:
    """Write a file of torch whole, or not at all."""
    with replaced(path) as temporary:
        torch.save(value, temporary)
