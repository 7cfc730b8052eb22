"""Mutated copies of a checkpoint's files, each loaded in a process of its own with limits of time and memory."""

import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers.models import stock_model
from helpers.processors import tiny_processor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.auto import load_model, load_processor

SECONDS, BYTES = 30, 1 << 30  # of processor time, and beyond what the process has when it begins
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    100_000,
    1 << 31,
    1 << 40,
    10**30,
    0.5,
    -2.5,
    float("nan"),
    float("inf"),
    "",
    "7",
    "evil",
    "\ud800",
    [],
    [1, 2],
    ["a"] * 5000,
    [[100_000, 100_000]],
    {},
    {"a": 1},
)
REMEDIES = ("copy", "give", "use", "choose", "upgrade", "pass", "leave", "save", "set", "wrap", "convert", "keep")


def make_checkpoint(folder: Path, family: str, legacy: bool = False) -> None:
    """A self-contained checkpoint with its processor, in the files of today or (`legacy`) of transformers 4."""
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(family))
    model.save_pretrained(folder, include_backbone=True)
    processor = tiny_processor(family)
    processor.save_pretrained(folder)
    if legacy:
        (folder / "processor_config.json").unlink()
        processor.image_processor.save_pretrained(folder)
        values = processor.video_processor.to_dict()
        (folder / "video_preprocessor_config.json").write_text(json.dumps(values, default=str))


def mutated_json(text: str, chance: random.Random) -> str:
    """One change of a JSON file: of its text, or of a value at any depth."""
    how = chance.random()
    if how < 0.05:
        return text[: chance.randrange(len(text))]
    if how < 0.1:
        place = chance.randrange(len(text))
        return text[:place] + chance.choice('{}[]",:0aé\x00') + text[place + 1 :]
    if how < 0.13:
        return chance.choice(["", "null", "[]", "{}", "3", '"x"', "[" * 50_000, '{"a":' * 50_000, "{" + '"a":1,' * 5])
    values = json.loads(text)
    places = [(values, key) for key in values]
    for parent, key in places:
        child = parent[key]
        inner = child if isinstance(child, dict) else range(len(child)) if isinstance(child, list) else ()
        places += [(child, key) for key in list(inner)[:40]]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        parent, key = chance.choice(places)
        what = chance.random()
        try:
            if what < 0.2:
                del parent[key]
            elif what < 0.25 and isinstance(parent, dict):
                parent[f"{key}_x"] = parent.pop(key)
            elif what < 0.3:
                parent[key] = nested(parent[key])
            elif what < 0.4 and isinstance(parent[key], int):
                parent[key] = parent[key] * chance.choice((-1, 10, 1000)) + chance.choice((0, 1))
            else:
                parent[key] = copy.deepcopy(chance.choice(VALUES))
        except (KeyError, IndexError):
            pass  # its parent went before
    return json.dumps(values)


def nested(value):
    """A value 400 lists deep."""
    for _ in range(400):
        value = [value]
    return value


def mutated_safetensors(content: bytes, chance: random.Random) -> bytes:
    """One change of a safetensors file: of its length, its header's length, its header's JSON, or single bytes of header and data."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    how = chance.random()
    if how < 0.1:
        return content[: chance.randrange(len(content))]
    if how < 0.15:
        return content + bytes(chance.randrange(1, 1000))
    if how < 0.25:
        size = chance.choice((0, 1, length - 1, length + 1, len(content), 1 << 31, 1 << 40, 1 << 62, (1 << 64) - 1))
        return size.to_bytes(8, "little") + header + data
    if how < 0.45:
        changed = bytearray(header)
        for _ in range(chance.choice((1, 2, 8))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return content[:8] + bytes(changed) + data
    if how < 0.55:
        changed = bytearray(data)
        for _ in range(chance.choice((1, 4))):
            place = chance.randrange(len(changed) // 4) * 4
            changed[place : place + 4] = chance.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x01\x02\x03\x04"))
        return content[: 8 + length] + bytes(changed)
    if how < 0.6:
        return chance.choice((b"", b"\x80\x04}.", b"PK\x03\x04" + data[:100], header))
    values = json.loads(header)
    name = chance.choice(list(values))
    what = chance.random()
    if what < 0.2:
        del values[name]
    elif what < 0.35:
        values[f"{name}.x"] = values.pop(name)
    elif what < 0.45:
        values[chance.choice(list(values))] = values[name]
    elif isinstance(values[name], dict):
        entry = values[name]
        field = chance.choice(list(entry))
        entry[field] = chance.choice(
            ([], [0], [1 << 38], [-1], [64, 64], [0, 1 << 40], [8, 0], "F16", "I64", "F8_E4M3", "evil", None, 3, {})
        )
    else:
        values[name] = chance.choice(([], 3, None, {"a": 1}))
    changed = json.dumps(values).encode()
    return len(changed).to_bytes(8, "little") + changed + data


@dataclass(frozen=True)
class Outcome:
    """What came of loading one mutated file: `loaded`, `refused` (one clear error), or a word that says what is wrong."""

    kind: str
    said: str


def load(folder: Path, file: str) -> None:
    """Load what reads `file`."""
    if "processor" in file or "token" in file or "chat" in file:
        load_processor(folder)
    elif file.startswith("backbone/"):
        load_model(folder / "backbone", dtype=torch.float32, device_map=None)
        CaCoVidForConditionalGeneration.from_pretrained(folder)
    else:
        load_model(folder, dtype=torch.float32, device_map=None)


def judged(folder: Path, file: str) -> Outcome:
    """Load in this process, and judge the error."""
    try:
        load(folder, file)
    except BaseException as error:
        said, name = str(error), Path(file).stem
        name = "weights|safetensors" if file.endswith(".safetensors") else name
        if "allocate" in said or isinstance(error, MemoryError):
            return Outcome("memory", said)
        clear = isinstance(error, (ValueError, OSError)) and "\n" not in said and len(said) <= 3500
        named = any(part in said for part in name.split("|"))
        told = any(word in said.lower() for word in REMEDIES)
        return Outcome("refused" if clear and named and told else "unclear", f"{type(error).__name__}: {said}")
    return Outcome("loaded", "")


def limited(folder: Path, file: str) -> Outcome:
    """As `judged`, in a fork with limits."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        outcome = judged(folder, file)
        text = json.dumps([outcome.kind, outcome.said[:2000]]).encode()
        os.write(write, text)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        text = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if text:
        return Outcome(*json.loads(text))
    return Outcome("time" if status in (-signal.SIGXCPU, -signal.SIGKILL) else "crash", f"exit status {status}")


def run_cases(pristine: Path, scratch: Path, file: str, numbers: range) -> Counter:
    """Load so many mutations of one file; count the outcomes, and print what is neither loaded nor refused clearly."""
    content = (pristine / file).read_bytes()

    def changed(number: int) -> bytes:
        chance = random.Random(f"{file} {number}")
        if file.endswith(".safetensors"):
            return mutated_safetensors(content, chance)
        return mutated_json(content.decode(), chance).encode(errors="surrogatepass")

    return outcomes(pristine, scratch, file, {str(number): changed(number) for number in numbers})


def run_sizes(pristine: Path, scratch: Path, file: str, size: int) -> Counter:
    """The same with each whole number of the models in a config in turn so large."""
    values, cases = json.loads((pristine / file).read_text()), {}
    places = [(values, key, key) for key in values]
    for parent, key, name in places:
        child = parent[key]
        inner = child if isinstance(child, dict) else range(len(child)) if isinstance(child, list) else ()
        places += [(child, key, f"{name}.{key}") for key in inner]
        if type(child) is int and "token" not in name and name.count("."):
            parent[key] = size
            cases[name] = json.dumps(values).encode()
            parent[key] = child
    return outcomes(pristine, scratch, file, cases)


def outcomes(pristine: Path, scratch: Path, file: str, cases: dict[str, bytes]) -> Counter:
    """Load each of these contents of one file; count, and print what is neither loaded nor refused clearly."""
    torch.set_num_threads(1)
    counts: Counter = Counter()
    for name, changed in cases.items():
        folder = scratch / "m"
        shutil.copytree(pristine, folder)
        (folder / file).write_bytes(changed)
        outcome = limited(folder, file)
        counts[outcome.kind] += 1
        if outcome.kind not in ("loaded", "refused"):
            print(f"{file} {name}: {outcome.kind}: {outcome.said[:700]}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    return counts
