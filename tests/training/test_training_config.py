"""What a training config may say, and what it refuses."""

import pytest
import yaml
from helpers.configs import EXAMPLES, TINY, write

from cacovid_cli.main import main
from cacovid_hf.auto import load_model, load_processor
from cacovid_hf.tiny import model_path
from cacovid_hf.training.config import read_config, training_arguments
from cacovid_hf.training.from_yaml import make_trainer

BAD = [
    (dict(trainning={}), r"has no setting 'trainning': did you mean training\?"),
    (dict(training={"learning_rat": 1}), "training has no setting 'learning_rat': did you mean learning_rate"),
    (
        dict(training={"preset": "best"}),
        "training.preset='best' is unknown. Choose one of published, ours, contributions",
    ),
    (dict(training={"max_steps": 7}), "max_steps=7 ends within the 2 iterations"),
    (dict(policy={"scop": "tokens"}), "policy has no setting 'scop': did you mean scope"),
    (dict(policy={"policy_trained": True}), "policy has no setting 'policy_trained'"),
    (dict(model={"nam": "x"}), "model has no setting 'nam': did you mean name"),
    (dict(model="x"), "model is 'x': give names and values"),
    (dict(data={"train": None}), "no training data: give data.train"),
    (dict(data={"eval": None, "train": 3}), "data.train=3 is not a source of samples"),
    (dict(data={"train": "no.such:thing"}), "data.train='no.such:thing' cannot be imported"),
    (dict(data={"train": TINY}), "data.eval is data.train"),
    (dict(training={"max_steps": "100"}), "training.max_steps='100' is text. Give a number, without quotes"),
    (dict(training={"num_token_rollouts": 4.5}), "num_token_rollouts=4.5 is not of type int"),
    (dict(model={"dtype": "float99"}), "model.dtype='float99' is unknown: give auto, or a dtype of torch"),
    (dict(data={"root": ["a"]}), r"data.root=\['a'\] is not of type str"),
    (dict(data={"columns": ["a"]}), r"data.columns=\['a'\] is not of type dict\[str, str\]"),
    (dict(data={"num_frames": 0}), "num_frames=0 leaves nothing to see"),
    (dict(data={"train": {**TINY, "num_samples": 0}}), "data.train has no samples"),
    (dict(data={"train": {"function": TINY["function"]}}), "cannot be called like this .*num_samples"),
    (dict(data={"train": "cacovid_hf.tiny.dataset:_POLICY_STREAM"}), "cannot be called like this .*not callable"),
    (
        dict(data={"root": "/nowhere"}),
        "Of 10 videos of data.train none exists, such as /nowhere/clip0.mp4: set data.root",
    ),
    (
        dict(data={"eval": {"function": "helpers.configs:stream"}, "eval_root": "/nowhere"}),
        "Of 3 videos of data.eval none exists, such as /nowhere/clip0.mp4: set data.eval_root",
    ),
    (dict(data={"eval": {**TINY, "num_samples": 0}}), "data.eval has no samples"),
]


@pytest.mark.parametrize(("sections", "message"), BAD, ids=[message for _, message in BAD])
def test_what_a_config_refuses(tmp_path, sections, message, capsys):
    file = write(tmp_path, **sections)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file)])
    assert ended.value.code == 2
    assert pytest.approx(1) == len(capsys.readouterr().err.strip().splitlines())
    with pytest.raises((ValueError, OSError), match=message):
        make_trainer(read_config(file, model_path()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("training: {seed: 1, seed: 2}", "seed stands twice"),
        ("- 1", "give names and values"),
    ],
)
def test_what_is_no_config(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(file, model_path())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_config(tmp_path / "other.yaml", model_path())


@pytest.mark.parametrize(
    ("saved", "evaluated"),
    [("steps", "steps"), ("epoch", "epoch"), ("no", "steps"), ("best", "steps"), (None, "steps")],
)
def test_data_to_evaluate_by_are_used(tmp_path, saved, evaluated):
    """As often as is saved, where that says how often, else by steps."""
    training = {} if saved is None else {"save_strategy": saved}
    if saved == "best":
        training["metric_for_best_model"] = "accuracy_at_0.1"
    args = training_arguments(read_config(write(tmp_path, training=training, data={"eval": TINY}), model_path()))
    assert args.eval_strategy == evaluated


def test_presets_are_under_what_is_written_out(tmp_path):
    args = training_arguments(read_config(write(tmp_path), model_path()))
    assert (args.sampler, args.num_iterations, args.num_token_rollouts) == ("multinomial", 2, 4)
    file = write(tmp_path, training={"preset": "published", "num_iterations": 4})
    args = training_arguments(read_config(file, model_path()))
    assert (args.sampler, args.clip_high, args.learning_rate) == ("ocss", 0.28, 1e-6)


def test_without_a_preset_a_light_policy_is_taught_and_learns_contributions(tmp_path):
    stock = str(tmp_path / "stock")
    load_model(model_path()).backbone.save_pretrained(stock)
    load_processor(model_path()).save_pretrained(stock)
    config = {"model": {"name": stock}, "data": {"train": TINY}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"training": {"output_dir": str(tmp_path / "run")}}))
    trainer = make_trainer(read_config(tmp_path / "config.yaml"))
    assert (trainer.args.objective, trainer.args.teacher_steps) == ("contributions", 0.4)
    assert trainer.full_model.config.policy_type == "light"
    file = write(tmp_path, model={"name": stock}, training={"preset": "published", "num_iterations": 4})
    assert make_trainer(read_config(file)).full_model.config.policy_type == "full"


def test_settings_of_rollouts_without_a_preset_are_answered_by_one_that_has_them(tmp_path):
    file = write(tmp_path, training={"kl_weight": 0.05})
    config = yaml.safe_load(file.read_text())
    del config["training"]["preset"]
    file.write_text(yaml.safe_dump(config))
    message = "training.kl_weight is of rollouts, and the preset is 'contributions' where a config names none. Name"
    with pytest.raises(ValueError, match=message):
        training_arguments(read_config(file, model_path()))


def test_a_policy_whose_attention_is_named_keeps_the_type_that_has_it(tmp_path):
    stock = str(tmp_path / "stock")
    load_model(model_path()).backbone.save_pretrained(stock)
    load_processor(model_path()).save_pretrained(stock)
    training = {"preset": "contributions", "num_token_rollouts": 8, "policy_attention": "causal"}
    trainer = make_trainer(read_config(write(tmp_path, model={"name": stock}, training=training)))
    config = trainer.full_model.config
    assert (config.policy_type, config.policy_attention) == ("full", "causal")


def test_no_teacher_leaves_out_what_a_preset_says_of_it(tmp_path):
    training = {"preset": "contributions", "num_token_rollouts": 8, "teacher": None, "policy_attention": None}
    args = training_arguments(read_config(write(tmp_path, training=training), model_path()))
    assert (args.objective, args.teacher, args.teacher_steps) == ("contributions", None, None)


def test_numbers_are_numbers(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: {train: a.json}\ntraining: {learning_rate: 1e-6, weight_decay: 2E+1, output_dir: 5e}\n")
    config = read_config(file, model_path())
    assert config.training == {"learning_rate": 1e-6, "weight_decay": 20.0, "output_dir": "5e"}


# What stands in a config's section `training`, and what it is taken for.
READ = [
    ("learning_rate: 1e-3", 1e-3),
    ("learning_rate: 1E-3", 1e-3),
    ("learning_rate: .5", 0.5),
    ("learning_rate: 1", 1),
    ("max_steps: 1_000", 1000),
    ("bf16_full_eval: yes", True),
    ("bf16_full_eval: Off", False),
    ("save_strategy: no", "no"),
    ("logging_strategy: no", "no"),
    ("eval_strategy: epoch", "epoch"),
    ("tf32: null", None),
    ("report_to: []", []),
    ("eval_ratios: [1, 0.1]", [1, 0.1]),
    ("data_seed: 3", 3),
    ("target_ratios: null", None),
]
REFUSED = [
    ('learning_rate: "0.001"', "learning_rate='0.001' is text. Give a number, without quotes"),
    ("learning_rate: 0,001", "learning_rate='0,001' is text. Give a number, without quotes"),
    ("learning_rate: true", "learning_rate=True is not of type float. Give a number"),
    ("learning_rate:", "learning_rate=None is not a value. Give a number, or leave it out"),
    ("learning_rate: -1e-3", r"learning_rate=-0.001 is outside \[0, inf\)"),
    ("learning_rate: .nan", r"learning_rate=nan is outside \[0, inf\)"),
    ("kl_weight: '0.1'", "kl_weight='0.1' is text. Give a number, without quotes"),
    ("max_steps: 1e3", "max_steps=1000.0 is not of type int. Give a whole number, such as 1000"),
    ("max_steps: 1,000", "max_steps='1,000' is text. Give a number, without quotes"),
    ("num_iterations: 2.5", "num_iterations=2.5 is not of type int. Give a whole number"),
    ("gradient_accumulation_steps: 0", "gradient_accumulation_steps=0 is too small. Give at least 1"),
    ("per_device_train_batch_size: 0", "per_device_train_batch_size=0 is too small. Give at least 1"),
    ('bf16: "true"', "bf16='true' is text. Give true or false, without quotes"),
    ('use_cpu: "no"', "use_cpu='no' is text. Give true or false, without quotes"),
    ("load_best_model_at_end: y", "load_best_model_at_end='y' is text. Give true or false, without quotes"),
    ("replay: 1", "replay=1 is not of type bool. Give true or false"),
    ("eval_ratios: 0.1", r"eval_ratios=0.1 is not of type list\[float\]. Give a list"),
    ("eval_ratios: ['0.1']", r"eval_ratios=\['0.1'\] is not of type list\[float\]. Give a list"),
    ("run_name: 7", "run_name=7 is not of type str | None. Give text"),
    ("save_strategy: sometimes", "save_strategy='sometimes' is unknown. Choose one of no, steps, epoch, best"),
    ("lr_scheduler_type: cosinus", "lr_scheduler_type='cosinus' is unknown. Choose one of linear, cosine"),
    ("save_total_limit: '3'", "save_total_limit='3' is text. Give a number, without quotes"),
    ("reward_functions: [a]", r"reward_functions=\['a'\] is not of type dict\[str, str\]. Give names and values"),
    ("ignore_data_skip: true", "ignore_data_skip=True is not supported here"),
]


def written(folder, line):
    lines = [f"output_dir: {folder}", line] + ["use_cpu: true"] * (not line.startswith("use_cpu"))
    file = folder / "config.yaml"
    file.write_text("data: {train: a.json}\ntraining:\n" + "".join(f"  {line}\n" for line in lines))
    return read_config(file, model_path())


@pytest.mark.parametrize(("line", "value"), READ, ids=[line for line, _ in READ])
def test_values_that_are_read(tmp_path, line, value):
    name = line.partition(":")[0]
    config = written(tmp_path, line)
    if name == "max_steps":
        config.training["num_iterations"] = 5
    found = getattr(training_arguments(config), name)
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_values_that_are_refused(tmp_path, line, message):
    with pytest.raises(ValueError, match=message.replace(" | ", r" \| ")):
        training_arguments(written(tmp_path, line))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retention_ratio": "0.25"}, "retention_ratio='0.25' is not a number"),
        ({"contribution_share": "0.5"}, "policy.contribution_share='0.5' is text. Give a number, without quotes"),
        ({"policy_attention": True}, "policy.policy_attention=True is not of type str. Give text"),
        ({"auto_cap": None}, "policy.auto_cap=None is not a value. Give a number, or leave it out"),
    ],
)
def test_settings_of_a_policy_that_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(read_config(write(tmp_path, policy=settings), model_path()))


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_the_examples_are_configs(file, tmp_path):
    config = read_config(file, model_path())
    config.training |= {"output_dir": str(tmp_path), "use_cpu": True}
    config.training.pop("bf16", None)
    assert training_arguments(config).output_dir == str(tmp_path)
