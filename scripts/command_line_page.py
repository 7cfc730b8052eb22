#!/usr/bin/env python3
"""Write docs/reference/command_line.md from the help of the command `cacovid`.

    python scripts/command_line_page.py [--check]

`--check` writes nothing and ends with status 1 if the page is another.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import typer

from cacovid_cli.examples import COMMANDS
from cacovid_cli.main import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "command_line.md"
HEAD = """# Command line

Made from the help of `cacovid` by `scripts/command_line_page.py`. In a shell, `cacovid COMMAND --help` prints the same.

- `cacovid --version` prints the version.
- `cacovid --install-completion` installs completion for your shell. `--show-completion` prints its script.
- `python -m cacovid_hf` is the same command. `accelerate launch -m cacovid_hf` starts it in several processes.

Whatever you can put right ends with status 2 and one line on stderr.
"""


def page() -> str:
    """Return the whole page."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines, shown = [HEAD], ""
    for name, (group, example) in COMMANDS.items():
        if group != shown:
            lines.append(f"## {group}\n")
            shown = group
        command = commands[name]
        text = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
        lines += [f"### {name}\n", f"{text}\n", f"```bash\n{example}\n```\n", table(command.params)]
    return "\n".join(lines)


def table(parameters: list[Any]) -> str:
    """Return the rows of a command's arguments and options."""
    rows = ["| | default | |", "|---|---|---|"]
    for parameter in parameters:
        if parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        metavar = parameter.metavar or ("" if getattr(parameter, "is_flag", False) else parameter.name.upper())
        name = f"{parameter.opts[0]} {metavar}".strip() if is_option else metavar
        if parameter.required:
            default = "required"
        else:
            unset = parameter.default is None or parameter.default is False
            default = "" if unset else f"`{parameter.default}`"
        words = parameter.help.replace("|", "\\|")
        words += f" Or {parameter.envvar} in the environment." if getattr(parameter, "envvar", None) else ""
        rows.append(f"| `{name}` | {default} | {words} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Write the page of the command line.")
    parser.add_argument("--check", action="store_true", help="only compare")
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is another: run {sys.argv[0]}.")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
