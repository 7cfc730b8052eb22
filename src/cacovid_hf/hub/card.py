"""The model card: written on every save, brought up to date on the next, without ever undoing what somebody wrote into it.

A card is YAML metadata and a text of sections. What was generated is noted in the card itself: a section's marker carries a hash of its text, and
a comment at the end holds the metadata. A section whose text still has its hash is replaced by the new one; one that was edited or removed stays
so. Of the metadata, what still is as it was generated is replaced; everything else is the users'.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..policies.settings import PolicySettings
from ..utils.version import VERSION
from .figures import POLICY_METHOD, Runs, plot, read_runs, table

if TYPE_CHECKING:
    from ..configuration import CaCoVidConfig

CARD, PLOT = "README.md", "accuracy.png"
TAGS = ["cacovid", "video", "token-compression", "vision-language"]
CITATION = """@article{cacovid2026,
  title = {Contribution-aware Token Compression for Efficient Video Understanding via Reinforcement Learning},
  journal = {arXiv preprint arXiv:2602.01649},
  year = {2026}
}"""
_SECTION = re.compile(r"<!-- section (\w+) ([0-9a-f]{12}) -->\n(.*?)\n<!-- end of \1 -->", re.DOTALL)
_RECORD = re.compile(r"\n*<!-- generated (\{\"metadata\": .*\}) -->\n*")


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside what the config says; nothing of it can be guessed.

    Args:
        license: of the weights, as the Hub knows it (such as `"apache-2.0"`); None leaves it open, and the card says so.
        datasets: Hub ids of what the policy was trained on.
        training: settings of the training by name, or the path of a JSON that holds them; shown as they are.
        evaluations: paths of evaluation JSONs; the only source of figures.
        tags: more tags.
        notes: sentences for the section on limits.
    """

    license: str | None = None
    datasets: Sequence[str] = ()
    training: Mapping[str, Any] | str | os.PathLike | None = None
    evaluations: Sequence[str | os.PathLike] = ()
    tags: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Generated:
    """Metadata and sections as they would be in a fresh card; sections that nothing was given for are absent."""

    metadata: dict[str, Any]
    sections: dict[str, str]
    title: str


@dataclass(frozen=True)
class _Told:
    """What the card says by now, from this call or an earlier one."""

    license: bool
    results: bool


def write_card(
    folder: Path,
    config: "CaCoVidConfig",
    name: str,
    facts: CardFacts | None = None,
    existing: str | None = None,
    processor_inside: bool = False,
) -> None:
    """Write `README.md` (and `accuracy.png`, if there are results and matplotlib) into a folder.

    Args:
        folder: of the checkpoint.
        config: of the checkpoint.
        name: what `from_pretrained` is called with: the repository's id, or the folder's name.
        facts: see `CardFacts`.
        existing: the card to bring up to date; None stands for the one in the folder, if there is one.
        processor_inside: whether the checkpoint holds its processor.

    Raises:
        ValueError: an evaluation that cannot be quoted, or an existing card whose metadata is not YAML.
    """
    facts = facts or CardFacts()
    runs = read_runs(facts.evaluations)
    with_plot = bool(runs.results) and importlib.util.find_spec("matplotlib") is not None
    if existing is None and (folder / CARD).is_file():
        existing = card_text(folder / CARD)
    card = None if existing is None else _read(existing)
    told = _Told(
        bool(facts.license or (card and card.data.get("license"))),
        bool(runs.results or (card and "<!-- section results " in card.text)),
    )
    text = updated(card, _generate(config, name, facts, runs, with_plot, processor_inside, told))
    if with_plot:
        plot(runs.results, folder / PLOT)
    from ..utils.files import replaced

    with replaced(folder / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_card(folder: Path, facts: CardFacts) -> None:
    """Raise a `ValueError` if `write_card` would, before anything is written."""
    read_runs(facts.evaluations)
    if (folder / CARD).is_file():
        _read(card_text(folder / CARD))


def card_text(path: Path) -> str:
    """Text of a card, without a byte order mark.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The existing {path} is not UTF-8 ({error}): save it as UTF-8, or remove it.") from error


def _read(text: str) -> ModelCard:
    try:
        return ModelCard(text)
    except Exception as error:  # yaml's errors have no common public class with huggingface_hub's
        raise ValueError(
            f"The metadata of the existing {CARD} cannot be read ({error}): correct the YAML at its top."
        ) from error


def updated(card: ModelCard | None, new: _Generated) -> str:
    """Return the card with what was generated brought up to date, or a fresh one."""
    if card is None:
        body = "\n\n".join([f"# {new.title}", *(_marked(key, text) for key, text in new.sections.items())])
        return _assembled(new.metadata, new.metadata, body, list(new.sections))
    body = card.text.strip("\n")
    record = _RECORD.search(body)
    known = json.loads(record[1]) if record else {"metadata": {}, "sections": []}
    body = _RECORD.sub("\n", body).strip("\n")
    there = {match[1] for match in _SECTION.finditer(body)}

    def renewed(match: re.Match) -> str:
        key, digest, text = match.groups()
        return _marked(key, new.sections[key]) if key in new.sections and digest == _digest(text) else match[0]

    body = _SECTION.sub(renewed, body)
    for key in (key for key in new.sections if key not in there and key not in known["sections"]):
        body += f"\n\n{_marked(key, new.sections[key])}"
    sections = list(dict.fromkeys([*known["sections"], *new.sections]))
    generated = {**known["metadata"], **new.metadata}
    return _assembled(_merged(card.data.to_dict(), known["metadata"], new.metadata), generated, body, sections)


def _merged(current: dict[str, Any], known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Metadata after an update: the users' values, and ours where they left ours alone."""
    merged = dict(current)
    for key, value in new.items():
        if key in ("tags", "datasets"):
            there = current.get(key) or []
            there = [there] if isinstance(there, str) else there
            users = [item for item in there if item not in known.get(key, [])]
            removed = [item for item in known.get(key, []) if item not in there]
            merged[key] = [item for item in dict.fromkeys([*value, *users]) if item not in removed]
        elif current.get(key) == known.get(key):
            merged[key] = value
    return merged


def _assembled(metadata: dict[str, Any], generated: dict[str, Any], body: str, sections: list[str]) -> str:
    record = json.dumps({"metadata": generated, "sections": sections}, sort_keys=True).replace(">", "\\u003e")
    yaml = ModelCardData(**metadata).to_yaml()
    return ModelCard(f"---\n{yaml}\n---\n\n{body}\n\n<!-- generated {record} -->\n").content


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _marked(key: str, text: str) -> str:
    return f"<!-- section {key} {_digest(text)} -->\n{text}\n<!-- end of {key} -->"


# ---------------------------------------------------------------- what a fresh card says


def _generate(
    config: "CaCoVidConfig",
    name: str,
    facts: CardFacts,
    runs: Runs,
    with_plot: bool,
    processor_inside: bool,
    told: _Told,
) -> _Generated:
    base = config.base_model_name_or_path
    on_hub = bool(base) and not os.path.isdir(str(base))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        license=facts.license,
        datasets=list(facts.datasets) or None,
        tags=[*TAGS, *facts.tags],
        model_name=name,
        eval_results=_eval_results(runs) or None,
    )
    sections = {
        "about": _about(config, base),
        "usage": _usage(config, name, processor_inside),
        "settings": _settings(config),
        "limits": _limits(config, facts, told),
        "citation": f"## Citation\n\n```bibtex\n{CITATION}\n```",
    }
    if runs.results:
        picture = f"\n\n![Accuracy by share of the tokens kept]({PLOT})" if with_plot else ""
        files = ", ".join(dict.fromkeys(result.file for result in runs.results))
        measured = f"\n\nMeasured on: {' and '.join(runs.hardware)}. Source: {files}."
        sections["results"] = f"## Results\n\n{table(runs.results)}{picture}{measured}"
    if facts.training:
        sections["training"] = _training(facts.training)
    order = ("about", "usage", "results", "settings", "training", "limits", "citation")
    metadata = {key: value for key, value in data.to_dict().items() if value is not None}
    return _Generated(metadata, {key: sections[key] for key in order if key in sections}, name.rsplit("/", 1)[-1])


def _eval_results(runs: Runs) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="video-text-to-text",
            dataset_type=re.sub(r"[^\w.-]+", "-", result.dataset),
            dataset_name=result.dataset,
            dataset_args={"retention_ratio": result.retention_ratio},
            metric_type="accuracy",
            metric_name=f"accuracy, {100 * result.retention_ratio:g} % of the video tokens kept",
            metric_value=round(result.accuracy, 4),
            metric_args={"retention_ratio": result.retention_ratio},
        )
        for result in runs.results
        if result.method == POLICY_METHOD
    ]


def _about(config: "CaCoVidConfig", base: str | None) -> str:
    family = config.backbone_config.model_type
    what = f"[{base}](https://huggingface.co/{base})" if base and not os.path.isdir(base) else f"a {family} model"
    if base and config.base_model_revision and not os.path.isdir(base):
        what += f" at revision `{config.base_model_revision}`"
    inside = (
        "The backbone's weights are included."
        if config.includes_backbone
        else "The backbone is loaded from its own repository."
    )
    trained = (
        ""
        if config.policy_trained
        else "\n\n**The policy is not trained**: expect of it what you would of a random subset."
    )
    return (
        f"A contribution policy (CaCoVID) for {what}: it keeps the video tokens that contribute to the answer, a quarter or a tenth of them, before the "
        f"language model reads the prompt. {inside} Made with cacovid-hf {VERSION}.{trained}"
    )


def _usage(config: "CaCoVidConfig", name: str, processor_inside: bool) -> str:
    base, revision = config.base_model_name_or_path, config.base_model_revision
    if processor_inside or not base:
        imports, processor = (
            "from cacovid_hf import CaCoVidForConditionalGeneration",
            f"AutoProcessor.from_pretrained({name!r})",
        )
    else:
        imports = "from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader"
        pinned = f", revision={revision!r}" if revision and not os.path.isdir(base) else ""
        processor = f"with_video_reader(AutoProcessor.from_pretrained({base!r}{pinned}))"
    return f"""## Use

With the package cacovid-hf installed (`pip install .` in a clone of its repository):

```python
from transformers import AutoProcessor

{imports}
from cacovid_hf.tiny import clips

model = CaCoVidForConditionalGeneration.from_pretrained({name!r}, dtype="auto")
processor = {processor}
video = str(clips()[0].path)  # an example of the package; or your own file
content = [{{"type": "video", "path": video}}, {{"type": "text", "text": "What color is the cross?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    add_generation_prompt=True,
)
ids = model.generate(**inputs.to(model.device), retention_ratio=0.25, max_new_tokens=64)
print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def _settings(config: "CaCoVidConfig") -> str:
    lines = [f"| {name} | `{value}` |" for name, value in vars(PolicySettings.of(vars(config))).items()]
    return "## Settings\n\n| selection | |\n|---|---|\n" + "\n".join(lines)


def _training(training: Mapping[str, Any] | str | os.PathLike) -> str:
    if isinstance(training, (str, os.PathLike)):
        training = json.loads(Path(training).read_text(encoding="utf-8"))
    rows = [f"| {name} | `{_cell(value)}` |" for name, value in dict(training).items()]  # type: ignore[arg-type]
    return "## Training\n\n| setting | |\n|---|---|\n" + "\n".join(rows)


def _cell(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return words.replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _limits(config: "CaCoVidConfig", facts: CardFacts, told: _Told) -> str:
    lines = [
        "- A dropped token is gone for good: questions about small details, or other ones about the same cached prompt, may need a larger ratio.",
        "- Video tokens alone are dropped; images and text are read in full.",
    ]
    if config.policy_attention == "causal":
        lines.append(
            "- The policy reads what stands before a token; a question behind the video does not reach the scores."
        )
    if not told.results:
        lines.append("- No accuracy of this policy was given when this card was written.")
    if not told.license:
        lines.append("- The license of these weights is not stated; that of the backbone applies to the backbone.")
    lines += [f"- {note}" for note in facts.notes]
    return "## Limits\n\n" + "\n".join(lines)
