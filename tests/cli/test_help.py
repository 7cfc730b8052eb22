"""The help of the command line: its groups, its examples, and the completion of the shell."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import typer

from cacovid_cli.examples import COMMANDS, MEASURE, SHARE, TRAIN, USE
from cacovid_cli.main import app, main
from scripts import command_line_page

COMMAND = typer.main.get_command(app)


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--help"])
    assert not exit.value.code
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def test_commands_stand_in_their_groups(capsys):
    out = shown(capsys)
    groups = [USE, TRAIN, MEASURE, SHARE]
    starts = [out.index(f"─ {group} ─") for group in groups]
    assert starts == sorted(starts)
    assert set(COMMANDS) == set(COMMAND.commands)
    for name, (group, _) in COMMANDS.items():
        at = re.search(rf"^│ {name} ", out, re.M).start()
        assert groups[sum(start < at for start in starts) - 1] == group


def test_the_first_sentence_of_every_command_fits_a_line():
    for name, command in COMMAND.commands.items():
        first = command.help.split("\n\n")[0]
        assert len(first) < 80, name
        assert first.endswith("."), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_understood(name, capsys):
    line = COMMANDS[name][1]
    program, first, *words = shlex.split(line)
    assert (program, first) == ("cacovid", name)
    COMMAND.commands[name].make_context(name, words)
    assert " ".join(line.split()) in " ".join(shown(capsys, name).split())


def test_the_shell_completes_commands():
    """As the script that `--install-completion` installs for bash asks."""
    ask = {"_CACOVID_COMPLETE": "complete_bash", "COMP_WORDS": "cacovid ev", "COMP_CWORD": "1"}
    program = "from cacovid_cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **ask}, check=True
    )
    assert result.stdout.split() == ["evaluate"]


def test_the_page_is_what_the_help_says():
    """`python scripts/command_line_page.py` writes it, with a typer whose arguments know their help."""
    if any(parameter.help is None for parameter in COMMAND.commands["train"].params):
        pytest.skip("this typer keeps the help of arguments to itself")
    assert command_line_page.PAGE.read_text(encoding="utf-8") == command_line_page.page()
