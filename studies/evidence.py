"""The evidence of training in miniature: accuracy by method and ratio, and learning curves of the ablations, cell by cell.

python -m studies.evidence --jobs 2                 # everything that is not there yet, on the embedded backbone
python -m studies.evidence --from-nothing SEED      # the same on a backbone that is trained first
python -m studies.evidence --only 'train/ours/*'    # some cells
python -m studies.evidence --list

A cell is one JSON under studies/results/evidence; a cell that is there is not run again. Trained policies are kept under `--work`.
Any number of processes may work on the same folders (`--jobs` starts them): none takes a cell that another is at.
`python -m studies.evidence_report` makes the table and the plots.
"""

import argparse
import functools
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.record import ROOT
from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import COMPRESSORS, CaCoVid, Compressor, Random
from cacovid_hf.compressors.tools.selection import spread_tokens, top_tokens
from cacovid_hf.prompt import stack_prompts
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.dataset import QuestionDataset
from cacovid_hf.tiny.policy_training import train_policy
from cacovid_hf.tiny.pretrain import pretrain
from cacovid_hf.training.data import AnswerCollator
from cacovid_hf.training.trainer import ContributionTrainer
from cacovid_hf.utils.files import replaced
from studies.cells import RESULTS, Cells, Job, chosen
from studies.questions import EmbeddedQuestions, answered_right, embed_questions

RATIOS = (0.25, 0.15, 0.1, 0.05, 0.02)
# The reported questions are asked once all is chosen; curves and choices are on the others.
REPORTED_SEED, VALIDATION_SEED = 1001, 2002
# Four times as many, others again, for what a table of 1,000 cannot tell apart: ours and the best row of attention.
CLOSE_SEED, CLOSE_RATIOS, CLOSE_TIMES = 3003, (0.05, 0.02), 4
CURVE_RATIOS = (0.1, 0.02)
STEPS = {
    "ours": 500,
    "light": 300,
    "published": 300,
    "taught first": 200,
    "imitation": 200,
    "contributions": 400,
    "light imitation": 400,
}
BATCH = 32
ABLATION_STEPS, ABLATION_BATCH, POOL = 150, 16, 1600
CURVE_EVERY, VALIDATION_QUESTIONS = 25, 300
POLICY_SEEDS, ABLATION_SEEDS = (0, 1, 2), (0, 1)
READS_A_POLICY = ("table", "mp4", "close")

# What differs from our recipe, as (settings of the trainer, settings of the model).
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ours": ({}, {}),
    "attention=causal": ({}, {"policy_attention": "causal"}),
    "attention=bidirectional": ({}, {"policy_attention": "bidirectional"}),
    "sampler=random": ({"sampler": "random"}, {}),
    "sampler=ocss, video": ({"sampler": "ocss"}, {}),
    "sampler=ocss, frame": (
        {"sampler": "ocss", "sampling_scope": "frame", "sampling_ratio": 1 / 36, "ratio_ceiling": 4 / 36},
        {},
    ),
    "sampler=multinomial, frame": (
        {"sampling_scope": "frame", "sampling_ratio": 1 / 36, "ratio_ceiling": 4 / 36},
        {},
    ),
    "reward=accuracy": ({"reward": "accuracy"}, {}),
    "kl=0": ({"kl_weight": 0.0}, {}),
    "replay=off": ({"replay": False}, {}),
    "iterations=1": ({"num_iterations": 1}, {}),
    "ratio=fixed": ({"dynamic_ratio": False}, {}),
    "ratio=several": ({"target_ratios": [0.01, 0.02, 0.05, 0.1]}, {}),
    "rollouts=6": ({"num_token_rollouts": 6}, {}),
    "rollouts=24": ({"num_token_rollouts": 24}, {}),
    "frame head": ({"num_frame_rollouts": 4}, {}),
    "layer rate 0.1": ({"layer_learning_rate_factor": 0.1}, {}),
    "teacher=attention": ({"teacher": "attention"}, {}),
    "teacher=attention, 50 steps": ({"teacher": "attention", "teacher_steps": 50}, {}),
    "teacher=attention, layer 1": ({"teacher": "attention", "teacher_layer": 1}, {}),
}


@dataclass(frozen=True)
class KnownEvidence(Compressor):
    """The tokens that show the answer, and others evenly spread: the upper bound, which no method can know.

    Args:
        evidence: bool `(B, N)`, one row a prompt.
    """

    evidence: torch.Tensor

    name = "known evidence"

    def select(self, prompt, span, scores, budget):
        """The evidence first."""
        known = self.evidence[span.row]
        count = min(budget, int(known.sum()))
        keep = spread_tokens(top_tokens(known.float(), count), count, budget - count)
        return keep.view(span.num_frames, span.tokens_per_frame)


@dataclass(frozen=True)
class AllTokens(Compressor):
    """Everything, whatever the ratio: the row that the others are a share of."""

    name = "all tokens"

    def compress(self, prompt, policy, retention_ratios):
        """As at ratio 1."""
        return COMPRESSORS["uniform"]().compress(prompt, policy, [1.0] * len(retention_ratios))


class Pool(torch.utils.data.Dataset):
    """Training questions that are embedded once for all the short runs of a seed; a sample is its number."""

    def __init__(self, model: Any, processor: Any, size: int, seed: int):
        samples = QuestionDataset(size, seed=seed)
        collate = AnswerCollator(processor)
        self.prompts, self.questions = [], []
        for index in range(size):
            batch = collate([samples[index]])
            with torch.no_grad():
                self.prompts.append(model.embed(**batch["inputs"][0]))
            self.questions += batch["questions"]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, numbers: list[int]) -> dict[str, Any]:
        """What the trainer expects of a collator, with numbers in place of the processor's inputs."""
        questions = [self.questions[number] for number in numbers]
        inputs = [{"numbers": torch.tensor(numbers)}]
        return {"inputs": inputs, "questions": questions, "places": list(range(len(numbers))), "skipped": []}

    def trainer(self, *args: Any, **kwargs: Any) -> ContributionTrainer:
        """A trainer that takes its prompts from here."""
        pool = self

        class PoolTrainer(ContributionTrainer):
            def _embed(self, inputs):
                return stack_prompts([pool.prompts[number] for number in inputs[0]["numbers"].tolist()])

        return PoolTrainer(*args, data_collator=self.collate, **kwargs)


class Curve:
    """Accuracy on validation questions while a policy learns, and the seconds of training until then (without the measuring).

    Attributes:
        best: weights of the policy where the mean over the ratios was highest, the latest such.
        best_step: when that was.
    """

    def __init__(self, batches: list[EmbeddedQuestions]):
        self.batches = batches
        self.points: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.best_step, self._highest = 0, -1.0
        self._start = time.perf_counter()

    def __call__(self, model: CaCoVidForConditionalGeneration, step: int) -> None:
        """Add a point."""
        begun = time.perf_counter()
        if step == 0:
            self._start = begun
        point: dict[str, float] = {"step": step, "seconds": round(begun - self._start, 1)}
        for ratio in CURVE_RATIOS:
            point[f"accuracy_{ratio}"] = round(answered_right(model, self.batches, ratio).float().mean().item(), 5)
        self.points.append(point)
        mean = sum(point[f"accuracy_{ratio}"] for ratio in CURVE_RATIOS) / len(CURVE_RATIOS)
        if mean >= self._highest:
            self.best = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
            self.best_step, self._highest = step, mean
        self._start += time.perf_counter() - begun


@dataclass
class Laboratory:
    """The backbone and the questions, made when first asked for."""

    backbone_dir: Path
    work: Path
    questions: int
    _cache: dict[str, Any] = field(default_factory=dict)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    @property
    def processor(self) -> Any:
        """The backbone's."""
        return self._once("processor", lambda: AutoProcessor.from_pretrained(self.backbone_dir))

    def backbone(self) -> Any:
        """The stock model."""

        def load():
            model = AutoModelForImageTextToText.from_pretrained(self.backbone_dir, dtype=torch.float32)
            return model.backbone if isinstance(model, CaCoVidForConditionalGeneration) else model

        return self._once("backbone", load)

    def untrained(self, seed: int) -> Any:
        """A new policy around the backbone."""
        torch.manual_seed(seed)
        return CaCoVidForConditionalGeneration.from_backbone(
            self.backbone(), policy_attention="question", contribution_share=1.0, scope="tokens"
        ).eval()

    def policy(self, name: str, seed: int) -> Any:
        """A trained one."""
        path = self.work / f"{name}_{seed}"
        if not path.is_dir():
            raise SystemExit(
                f"{path} is missing: run the cell train/{name}/{seed} first (remove its JSON if it is there)."
            )
        model = CaCoVidForConditionalGeneration.from_pretrained(path, backbone=self.backbone())
        return model.eval()

    def pool(self, seed: int) -> Pool:
        """Questions to train on."""
        return self._once(f"pool {seed}", lambda: Pool(self.untrained(0), self.processor, POOL, 100 + seed))

    def embedded(self, seed: int, count: int, through_mp4: bool = False) -> list[EmbeddedQuestions]:
        """Questions, as the language model receives them."""
        return self._once(
            f"questions {seed} {count} {through_mp4}",
            lambda: embed_questions(self.untrained(0), self.processor, count, seed, through_mp4=through_mp4),
        )


def backbone_cell(seed: int, folder: Path) -> dict:
    """Train a backbone from nothing into a folder, and return what it took."""
    model, processor, record = pretrain(seed)
    with replaced(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return asdict(record) | {"threads": torch.get_num_threads()}


def train_cell(
    lab: Laboratory,
    folder: str,
    preset: str,
    steps: int,
    seed: int,
    settings: dict,
    selection: dict,
    short: bool = False,
) -> dict:
    """Train one policy, keep its best weights by the validation questions, and return its settings, log and curve; `short` runs share a pool of questions."""
    curve = Curve(lab.embedded(VALIDATION_SEED, VALIDATION_QUESTIONS))
    pool = lab.pool(seed) if short else None
    batch_size = ABLATION_BATCH if short else BATCH
    path = lab.work / f"{folder}_{seed}"
    model, trainer = train_policy(
        lab.backbone(),
        lab.processor,
        lab.work / "trainer",
        preset=preset,
        steps=steps,
        seed=seed,
        settings=settings,
        selection=selection,
        watch=curve,
        watch_every=CURVE_EVERY,
        batch_size=batch_size,
        dataset=pool,
        trainer_class=pool.trainer if pool else ContributionTrainer,
    )
    model.policy.load_state_dict(curve.best)
    model.save_pretrained(path, include_backbone=True)
    lab.processor.save_pretrained(path)
    return {
        "preset": preset,
        "changed_settings": settings,
        "changed_selection": selection,
        "policy_attention": model.config.policy_attention,
        "contribution_share": model.config.contribution_share,
        "scope": model.config.scope,
        "steps": steps,
        "batch_size": batch_size,
        "pool": len(pool) if pool else None,
        "seed": seed,
        "validation_questions": VALIDATION_QUESTIONS,
        "kept_step": curve.best_step,
        "curve": curve.points,
        "log": trainer.state.log_history,
    }


def accuracy_cell(lab: Laboratory, model: Any, method: Any, through_mp4: bool = False, close: bool = False) -> dict:
    """Accuracy of one method at every ratio; `method` makes the compressor for a batch of questions."""
    seed, count = (CLOSE_SEED, CLOSE_TIMES * lab.questions) if close else (REPORTED_SEED, lab.questions)
    batches = lab.embedded(seed, count, through_mp4)
    ratios = {}
    for ratio in CLOSE_RATIOS if close else RATIOS:
        begun = time.perf_counter()
        right = torch.cat([answered_right(model, [batch], ratio, method(batch)) for batch in batches])
        rate = right.float().mean().item()
        kinds = [kind for batch in batches for kind in batch.kinds]
        ratios[str(ratio)] = {
            "accuracy": rate,
            "standard_error": math.sqrt(rate * (1 - rate) / len(right)),
            "by_kind": {
                kind: right[torch.tensor([k == kind for k in kinds])].float().mean().item()
                for kind in sorted(set(kinds))
            },
            "right": "".join("01"[bit] for bit in right.tolist()),  # question by question, for paired comparisons
            "seconds": round(time.perf_counter() - begun, 2),
        }
    return {"questions": count, "question_seed": seed, "through_mp4": through_mp4, "ratios": ratios}


def trained_by(name: str) -> str | None:
    """The cell that trains the policy which the cell `name` reads."""
    parts = name.replace("published, our selection", "published").split("/")
    return (
        f"train/{parts[1]}/{parts[2]}" if len(parts) == 3 and parts[1] in STEPS and parts[0] in READS_A_POLICY else None
    )


def jobs_of(lab: Laboratory) -> dict[str, Job]:
    """Every cell by name, in the order in which they are run."""
    table: dict[str, Job] = {}

    def accuracy(name: str, model: Callable[[], Any], method: Callable[[EmbeddedQuestions], Any]) -> None:
        for kind, through_mp4 in (("table", False), ("mp4", True)):
            table[f"{kind}/{name}"] = lambda mp4=through_mp4: accuracy_cell(lab, model(), method, mp4)
        if name.startswith(("ours/", "taught first/", "contributions/")) or name == "attention, layer 2, last":
            table[f"close/{name}"] = lambda: accuracy_cell(lab, model(), method, close=True)

    def train(folder: str, preset: str, steps: int, seed: int, settings: dict, selection: dict) -> None:
        table[f"train/{folder}/{seed}"] = lambda: train_cell(lab, folder, preset, steps, seed, settings, selection)

    for seed in POLICY_SEEDS:
        train("ours", "ours", STEPS["ours"], seed, {}, {})
        train("light", "ours", STEPS["light"], seed, {}, {"policy_type": "light"})
        train("published", "published", STEPS["published"], seed, {}, {})
        teacher = {"teacher": "attention"}
        train("taught first", "ours", STEPS["taught first"], seed, teacher | {"teacher_steps": 50}, {})
        train("imitation", "ours", STEPS["imitation"], seed, teacher, {})
        taught = {"teacher_steps": 160}  # 4 of 10 steps, and a light policy: the recipe of the laboratory of 30 layers
        train("contributions", "contributions", STEPS["contributions"], seed, taught, {"policy_type": "light"})
        # The same teacher, policy and steps without the contributions; the questions are fresh.
        same = {"teacher": "attention", "teacher_query": "last", "num_iterations": 1}
        train("light imitation", "ours", STEPS["light imitation"], seed, same, {"policy_type": "light"})
    for seed in POLICY_SEEDS:
        untrained = functools.partial(lab.untrained, seed)
        accuracy(f"random/{seed}", untrained, lambda batch, seed=seed: Random(seed=seed))
        accuracy(f"untrained policy/{seed}", untrained, lambda batch: None)
        for folder in STEPS:
            accuracy(f"{folder}/{seed}", functools.partial(lab.policy, folder, seed), lambda batch: None)
        accuracy(
            f"published, our selection/{seed}",
            functools.partial(lab.policy, "published", seed),
            lambda batch: CaCoVid(contribution_share=1.0, scope="tokens"),
        )
    first = functools.partial(lab.untrained, 0)
    accuracy("all tokens", first, lambda batch: AllTokens())
    accuracy("known evidence", first, lambda batch: KnownEvidence(batch.evidence))
    # Those that read nothing but an embedded prompt; `cacovid evaluate` compares all.
    for name in ("uniform", "divprune", "vidcom2", "evs", "vcast"):
        accuracy(name, first, lambda batch, name=name: COMPRESSORS[name]())
    for layer in range(3):
        for query in ("last", "question"):
            accuracy(
                f"attention, layer {layer}, {query}",
                first,
                lambda batch, layer=layer, query=query: COMPRESSORS["attention"](layer=layer, query=query),
            )
    for seed in ABLATION_SEEDS:
        for name, (settings, selection) in ABLATIONS.items():
            folder = "ablation-" + "".join(c if c.isalnum() or c in "=.-" else "_" for c in name)
            table[f"ablation/{name}/{seed}"] = lambda f=folder, s=settings, c=selection, seed=seed: train_cell(
                lab, f, "ours", ABLATION_STEPS, seed, s, c, short=True
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="instead of studies/results/evidence (or evidence_backbone_SEED)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "evidence", help="trained policies, not committed"
    )
    parser.add_argument("--from-nothing", type=int, metavar="SEED", help="train the backbone of this seed first")
    parser.add_argument("--only", action="append", default=[], help="pattern of cells' names; may be repeated")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cells")
    parser.add_argument("--list", action="store_true", help="print the cells and whether they are there")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    backbone_dir, results, work = model_path(), RESULTS / "evidence", options.work
    if options.from_nothing is not None:
        backbone_dir = work / f"backbone_{options.from_nothing}"
        results = RESULTS / f"evidence_backbone_{options.from_nothing}"
        work = work / f"on_backbone_{options.from_nothing}"
    results = options.results or results
    lab = Laboratory(backbone_dir, work, options.questions)
    jobs, cells = chosen(jobs_of(lab), options.only), Cells("evidence", results, work)
    if options.list:
        for name in jobs:
            print(f"{'there' if cells.is_there(name) else 'missing'}  {name}", flush=True)
        return
    work.mkdir(parents=True, exist_ok=True)
    if options.from_nothing is not None:
        with FileLock(work / ".backbone.lock"):
            if not backbone_dir.is_dir():
                torch.set_num_threads(options.threads * options.jobs)  # nothing else can be done meanwhile
                train = functools.partial(backbone_cell, options.from_nothing, backbone_dir)
                cells.run_one("train/backbone", train)
                torch.set_num_threads(options.threads)
    again = [sys.executable, "-m", "studies.evidence", *sys.argv[1:], "--jobs", "1"]
    others = [subprocess.Popen(again) for _ in range(options.jobs - 1)]
    cells.run(jobs, trained_by)
    if any(other.wait() for other in others):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
