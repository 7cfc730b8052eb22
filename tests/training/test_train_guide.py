"""The guide's commands and settings exist."""

import re
import shlex
from typing import get_type_hints

import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from helpers.configs import EXAMPLES

from cacovid_cli.main import app
from cacovid_hf.policies.settings import PolicySettings
from cacovid_hf.training.arguments import ContributionTrainingArguments
from cacovid_hf.training.config import TrainingConfig

GUIDE = (EXAMPLES.parents[1] / "docs" / "how_to" / "train.md").read_text(encoding="utf-8")


def test_commands_of_the_guide_are_understood():
    """Parsed, not run; those in front of which `accelerate launch` stands too."""
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^(?:cacovid|accelerate) .*$", GUIDE, re.M)]
    assert len(commands) >= 6
    for words in commands:
        if words[0] == "accelerate":
            launch = launch_command_parser().parse_args(words[2:])
            assert (words[1], launch.module, launch.training_script) == ("launch", True, "cacovid_hf")
            assert launch.num_processes > 1
            words = ["cacovid", *launch.training_script_args]
        command = typer.main.get_command(app).commands[words[1]]
        command.make_context(words[1], words[2:])


def test_settings_of_the_guide_exist():
    rows = dict(re.findall(r"^\| `(model|policy|data|training)` \| (.*) \|$", GUIDE, re.M))
    sections, arguments = get_type_hints(TrainingConfig), get_type_hints(ContributionTrainingArguments)
    known = {
        "model": {*get_type_hints(sections["model"])},
        "policy": {*get_type_hints(PolicySettings), "CaCoVidConfig"},
        "data": {*get_type_hints(sections["data"])},
        "training": {
            *arguments,
            "preset",
            "published",
            "ours",
            "contributions",
            "ContributionTrainingArguments",
            "TrainingArguments",
        },
    }
    assert set(rows) == set(known)
    for name, row in rows.items():
        assert set(re.findall(r"`(\w+)`", row)) <= known[name]
    for line in re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)[0].splitlines():
        assert isinstance(yaml.safe_load(line)["train"], (str, dict))
    written = set(re.findall(r"`(\w+): [^`]+`", GUIDE))  # every `name: value` in the text
    assert {"reward", "reward_functions"} <= written <= {*arguments, *known["policy"]}
