"""Trainers of others around the wrapper: what works gives the loss that is worked out here, what does not names the way round."""

import pytest
import torch
from helpers.models import FAMILIES, ONE_VIDEO, for_forward, prompt_inputs, wrapped
from packaging.version import Version
from torch.nn.functional import log_softmax
from transformers import AutoProcessor, Trainer, TrainingArguments

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.tiny import clips, model_path
from cacovid_hf.training.compressed_loss import CompressedLoss

RATIO = 0.25


def make_model(ratio=RATIO):
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    model.config.retention_ratio = ratio
    return model


@pytest.fixture(scope="module")
def batch():
    """Two prompts; the last four tokens are the answer."""
    processor = with_video_reader(AutoProcessor.from_pretrained(model_path()))
    messages = [
        [
            {
                "role": "user",
                "content": [{"type": "video", "path": clip.path}, {"type": "text", "text": clip.questions[0].text}],
            }
        ]
        for clip in clips()[:2]
    ]
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    return {**inputs, "labels": labels}


def trainer_of(model, batch, folder, trainer=Trainer, arguments=TrainingArguments, more=None, **settings):
    args = arguments(
        str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=1,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    from datasets import Dataset

    data = Dataset.from_list([{"number": 0}, {"number": 1}])
    return trainer(
        model, args, train_dataset=data, eval_dataset=data, data_collator=lambda samples: dict(batch), **(more or {})
    )


def smoothed(model, batch, smoothing):
    """The loss by hand: of each label the position before it, `(1 - e) nll + e` times the mean over the vocabulary."""
    with torch.no_grad():
        logits = model.train()(**batch).logits
    found = []
    for row in range(2):
        for place in range(-4, 0):  # the answer stands at the end of the compressed prompt too
            log_probs = log_softmax(logits[row, place - 1], dim=-1)
            nll, spread = -log_probs[batch["labels"][row, place]], -log_probs.mean()
            found.append((1 - smoothing) * nll + smoothing * spread)
    return torch.stack(found).mean()


@pytest.mark.parametrize("ratio", [RATIO, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing(batch, ratio, smoothing, tmp_path):
    expected = float(smoothed(make_model(ratio), batch, smoothing))
    loss = CompressedLoss(label_smoothing=smoothing)
    trainer = trainer_of(make_model(ratio), batch, tmp_path, more={"compute_loss_func": loss})
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)
    model = make_model(ratio)
    with torch.no_grad():
        outputs = model(**batch)
    for labels in (batch["labels"], outputs.labels):
        assert float(loss(outputs, labels)) == pytest.approx(expected, rel=1e-5)
    if smoothing == 0:
        assert float(outputs.loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family):
    """The loss and the gradients of a backbone that is tuned are those without it, also where it says that it caches and does not."""
    found = []
    for checkpointing in (False, True):
        stock, model = wrapped(family, policy_type="light")
        inputs = prompt_inputs(stock, ONE_VIDEO)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loss = model(**for_forward(inputs), labels=inputs["input_ids"], retention_ratio=0.3).loss
        loss.backward()
        norms = [p.grad.norm() for p in model.backbone.get_decoder().parameters() if p.grad is not None]
        found.append((float(loss), float(torch.stack(norms).sum())))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_labels_of_the_output(batch):
    outputs = make_model()(**batch)
    assert outputs.labels.shape == outputs.logits.shape[:2]
    assert torch.equal(outputs.labels[:, -4:], batch["labels"][:, -4:])
    assert bool((outputs.labels[:, :-4] == -100).all())
    assert make_model()(**{**batch, "labels": None}).labels is None


@pytest.mark.parametrize("around", ["wrapper", "adapters"])
@pytest.mark.parametrize("ratio", [RATIO, 1.0])
def test_the_smoothing_of_trainer_names_the_way_round(batch, ratio, around, tmp_path):
    """At ratio 1.0 too, where Trainer would compare each position with its own token."""
    model = make_model(ratio)
    if around == "adapters":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
    trainer = trainer_of(model, batch, tmp_path, label_smoothing_factor=0.1)
    for work in (trainer.train, trainer.evaluate):
        with pytest.raises(
            ValueError, match=r"^label_smoothing_factor of Trainer .*compute_loss_func=CompressedLoss\("
        ):
            work()


def test_a_loss_function_goes_before_the_smoothing_of_trainer(batch, tmp_path):
    more = {"compute_loss_func": CompressedLoss(label_smoothing=0.1)}
    trainer = trainer_of(make_model(), batch, tmp_path, label_smoothing_factor=0.3, more=more)
    expected = float(smoothed(make_model(), batch, 0.1))
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)


def test_a_loop_without_labels_is_warned_once(batch, caplog):
    from cacovid_hf.modeling import logger

    type(logger).warning_once.cache_clear()
    model, given = make_model().train(), {**batch, "labels": None}
    with caplog.at_level("WARNING"):
        for _ in range(2):
            model(**given)
    assert caplog.text.count("forward trains without labels") == 1


def test_wrong_settings(batch):
    with pytest.raises(ValueError, match=r"label_smoothing=1\.5 is outside"):
        CompressedLoss(label_smoothing=1.5)
    outputs = make_model()(**batch)
    with pytest.raises(ValueError, match="no labels"):
        CompressedLoss()(outputs, None)
    with pytest.raises(ValueError, match="fewer than the prompt"):
        CompressedLoss()(outputs, batch["labels"][:, :-1])


def test_evaluate_and_predict(batch, tmp_path):
    expected = float(smoothed(make_model(), batch, 0.0))
    trainer = trainer_of(make_model(), batch, tmp_path)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    logits, places, labels = trainer.predict(trainer.eval_dataset).predictions
    assert logits.shape[:2] == places.shape == labels.shape


@pytest.mark.parametrize("around", ["wrapper", "backbone"])
def test_peft(batch, around, tmp_path):
    peft = pytest.importorskip("peft")
    model = make_model()
    expected = float(smoothed(model, batch, 0.0))
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)", task_type="CAUSAL_LM")
    if around == "wrapper":
        model = peft.get_peft_model(model, config)
    else:
        model.backbone = peft.get_peft_model(model.backbone, config)
    trainer = trainer_of(model, batch, tmp_path, learning_rate=1e-2)
    before = {
        name: value.clone() for name, value in model.named_parameters() if value.requires_grad and "lora_B" in name
    }
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)  # adapters begin as nothing
    after = dict(model.named_parameters())
    assert before
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


def test_accelerate(batch):
    accelerate = pytest.importorskip("accelerate")
    expected = float(smoothed(make_model(), batch, 0.0))
    model = make_model()
    optimizer = torch.optim.SGD(model.backbone.parameters(), lr=1e-3)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    for _ in range(2):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[1] < losses[0]


def test_trl(batch, tmp_path):
    trl = pytest.importorskip("trl")

    class CompressedSFTTrainer(trl.SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    how = {
        "arguments": trl.SFTConfig,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "bf16": False,
        "more": {"processing_class": with_video_reader(AutoProcessor.from_pretrained(model_path()))},
    }
    expected = float(smoothed(make_model(), batch, 0.0))
    trainer = trainer_of(make_model(), batch, tmp_path / "a", CompressedSFTTrainer, **how)
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)
    if Version(trl.__version__).major >= 1:  # former versions fail at sizes, in their metrics
        with pytest.raises(AttributeError, match="override compute_loss with that of"):
            trainer_of(make_model(), batch, tmp_path / "b", trl.SFTTrainer, **how).train()


def test_trl_with_adapters(batch, tmp_path):
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")

    class CompressedSFTTrainer(trl.SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)", task_type="CAUSAL_LM")
    how = {
        "arguments": trl.SFTConfig,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "bf16": False,
        "learning_rate": 1e-2,
        "more": {
            "processing_class": with_video_reader(AutoProcessor.from_pretrained(model_path())),
            "peft_config": config,
        },
    }
    expected = float(smoothed(make_model(), batch, 0.0))
    trainer = trainer_of(make_model(), batch, tmp_path, CompressedSFTTrainer, **how)
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)  # adapters begin as nothing
    moved = [weight for name, weight in trainer.model.named_parameters() if "lora_B" in name]
    assert moved
    assert all(bool(weight.any()) for weight in moved)


def test_the_output_has_no_hidden_states_of_the_whole_prompt():
    from cacovid_hf import CaCoVidOutput

    output = CaCoVidOutput()
    assert not hasattr(output, "last_hidden_state")
    with pytest.raises(AttributeError, match=r"With TRL's SFTTrainer, override compute_loss"):
        _ = output.last_hidden_state
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = output.nothing
