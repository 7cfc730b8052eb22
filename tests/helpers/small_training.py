"""A trainer on a small random model, for the tests of training; as a script, one process of a run that `accelerate launch` started."""

import argparse
import gc

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from helpers.models import Video, prompt_inputs, stock_model
from transformers import TrainerCallback

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.training.arguments import ContributionTrainingArguments
from cacovid_hf.training.question import Question
from cacovid_hf.training.trainer import ContributionTrainer

BY_CONTRIBUTIONS = {"objective": "contributions", "num_frame_rollouts": 0}
OBJECTIVES = {
    "cpo": {},
    "contributions": {**BY_CONTRIBUTIONS, "num_iterations": 1},
    "imitation": {"teacher": "attention", "num_frame_rollouts": 0, "num_iterations": 1},
}


class Collator:
    """Prompts of the tiny random models, in place of a processor; the samples in `broken` cannot be read."""

    def __init__(self, model, broken=()):
        self.model, self.broken, self.calls = model, broken, 0

    def __call__(self, samples):
        self.calls += 1
        good = [place for place, number in enumerate(samples) if number not in self.broken]
        rows = [[3, Video(), 4 + samples[place] % 3] for place in good]
        inputs = prompt_inputs(self.model, rows, seed=samples[0]) if rows else []
        answers = [torch.tensor([20 + samples[place] % 5, 31][: 1 + samples[place] % 2]) for place in good]
        return {
            "inputs": [inputs],
            "questions": [scored_question(answer) for answer in answers],
            "places": good,
            "skipped": [f"sample {number}: broken" for number in samples if number in self.broken],
        }


class TwoSizes(Collator):
    """Videos of 4 and of 6 frames, in prompts that do not depend on what else is in a batch."""

    def __call__(self, samples):
        batch = super().__call__(samples)
        good = [samples[place] for place in batch["places"]]
        rows = {n: [[3, Video(4 + 2 * (n % 2)), 4 + n % 3]] for n in good}
        return {**batch, "inputs": [prompt_inputs(self.model, row, seed=n) for n, row in rows.items()]}


class Processor:
    """Words are the tokens' numbers."""

    @property
    def tokenizer(self):
        return self

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(map(str, row)) for row in rows]

    def save_pretrained(self, folder):
        self.saved = folder


def scored_question(answer):
    return Question(*Processor().batch_decode([answer.tolist()], True), answer=answer)


class Gradients(TrainerCallback):
    """Notes every step's gradient as the optimiser sees it."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = {n: weight.grad.clone() for n, weight in model.named_parameters() if weight.requires_grad}
        self.seen.append(gradients)


def trainer(tmp_path, family="llava_onevision", steps=8, samples=16, broken=(), kind=ContributionTrainer, **settings):
    torch.manual_seed(0)
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, base_model_name_or_path="some/id")
    collator = Collator(stock, broken)
    settings = {
        "num_token_rollouts": 6,
        "num_frame_rollouts": 3,
        "num_iterations": 2,
        "sampling_ratio": 0.2,
        "learning_rate": 1e-3,
        "reward": "probability",  # a random model is never right
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        **settings,
    }
    samples = list(range(samples)) if isinstance(samples, int) else samples
    given = {name: settings.pop(name) for name in ("eval_dataset", "callbacks") if name in settings}
    args = ContributionTrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, report_to=[], use_cpu=True, disable_tqdm=True, **settings
    )
    return model, collator, kind(model, args, Processor(), samples, data_collator=collator, **given)


def assert_same_policy(one, other):
    """The policies of two models have the same weights, bit for bit."""
    theirs = other.policy.state_dict()
    for name, tensor in one.policy.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def counted(engine):
    """How many rollouts each call of a trainer's examiner answers, from now on."""
    asked, answer = [], engine.examiner.answer

    def noting(prompts, questions):
        asked.append(len(questions))
        return answer(prompts, questions)

    engine.examiner.answer = noting
    return asked


class Failing(Gradients):
    """Raises an error in one process."""

    def __init__(self, process, step):
        super().__init__()
        self.process, self.step = process, step

    def on_step_begin(self, args, state, control, **kwargs):
        if args.process_index == self.process and state.global_step == self.step:
            raise RuntimeError("this process fails")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--broken", type=int, nargs="*", default=())
    parser.add_argument("--failing-process", type=int)
    parser.add_argument("--objective", choices=OBJECTIVES, default="cpo")
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch = Gradients() if options.failing_process is None else Failing(options.failing_process, 2)
    _, _, engine = trainer(
        options.out,
        steps=options.steps,
        samples=options.samples,
        broken=options.broken,
        gradient_accumulation_steps=options.accumulation,
        max_grad_norm=0.0,
        callbacks=[watch],
        eval_dataset=list(range(100, 105)),
        eval_ratios=[0.5],
        **OBJECTIVES[options.objective],
    )
    asked = counted(engine)
    engine.train()
    rollouts, kept = sum(gather_object([sum(asked)])), gather_object([len(engine.imitation._known)])
    accuracy = engine.evaluate()
    if engine.args.process_index == 0:
        result = {"gradients": watch.seen, "log": engine.state.log_history, "eval": accuracy}
        result |= {"rollouts": rollouts, "kept": kept}
        torch.save(result, f"{options.out}/result.pt")


if __name__ == "__main__":
    main()
    # On a busy machine torch has aborted processes that ended with their group; a trainer holds it too.
    gc.collect()
    PartialState().destroy_process_group()
