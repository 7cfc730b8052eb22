"""An example of every command, by the groups that `cacovid --help` shows them in."""

from collections.abc import Sequence

USE, TRAIN, MEASURE, SHARE = "Use", "Train", "Measure", "Share"

# Command, group, example. Every example is parsed by a test.
COMMANDS = {
    "demo": (USE, "cacovid demo"),
    "ask": (
        USE,
        'cacovid ask film.mp4 "Who comes in?" --model Qwen/Qwen2.5-VL-7B-Instruct --compressor divprune --retention-ratio 0.25',
    ),
    "app": (USE, "cacovid app --model Qwen/Qwen2.5-VL-7B-Instruct --open"),
    "watch": (
        USE,
        'cacovid watch rtsp://camera/1 --model Qwen/Qwen2.5-VL-7B-Instruct --every 10s --ask "Is someone at the door?"',
    ),
    "serve": (USE, "cacovid serve Qwen/Qwen2.5-VL-7B-Instruct --compressor divprune --retention-ratio 0.25"),
    "train": (TRAIN, "cacovid train config.yaml --resume"),
    "blind-filter": (TRAIN, "cacovid blind-filter data/all.jsonl data/kept.jsonl --model you/model"),
    "evaluate": (MEASURE, "cacovid evaluate --output runs/tiny.json --method cacovid,divprune --ratio 1.0,0.1"),
    "report": (MEASURE, "cacovid report runs/mine.json --published cacovid_ov7b"),
    "import-published": (SHARE, "cacovid import-published you/published --to policy"),
}


def group(name: str) -> str:
    """Return the group of a command in the help."""
    return COMMANDS[name][0]


# What the commands need beyond the package itself.
EXTRAS = {
    "app": "demo",
    "serve": "serve",
    "train": "train",
    "blind-filter": "train",
    "evaluate": "eval",
    "report": "eval",
}


def extra_of(words: Sequence[str]) -> str | None:
    """Return the extra that the command in the words of a command line needs, or None."""
    return next((EXTRAS.get(word) for word in words if word in COMMANDS), None)


def example(name: str) -> str:
    """Return the line below the help of a command."""
    return f"Example: {COMMANDS[name][1]}"


def overview() -> str:
    """Return what stands below the list of all commands: one example per group."""
    first: dict[str, str] = {}
    for where, line in COMMANDS.values():
        first.setdefault(where, line)
    lines = [f"{where}: {line}" for where, line in first.items()]
    return "\n\n".join(["Examples", *lines, "Each command's --help has its own."])
