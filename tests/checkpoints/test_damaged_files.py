"""Damaged, mutated and oversized files of a checkpoint: it loads, or one clear error names the file and the remedy."""

import json
import shutil
from collections import Counter

import pytest
import torch
from helpers.damaged_checkpoints import make_checkpoint, run_cases, run_sizes
from helpers.killed_saves import clean_processes
from helpers.models import FAMILIES, FIRST
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.auto import load_config, load_model, load_processor

JSON = (
    "config.json",
    "backbone/config.json",
    "backbone/generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
LEGACY = ("preprocessor_config.json", "video_preprocessor_config.json")
WEIGHTS = ("model.safetensors", "backbone/model.safetensors")
FUZZ_CASES = {"quick": range(3), "slow": range(100)}  # of each file


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    for family in FIRST:
        make_checkpoint(folder / family, family)
        make_checkpoint(folder / f"{family}, legacy", family, legacy=True)
    return folder


@pytest.fixture(scope="module")
def processes():
    with clean_processes() as context:
        yield context


@pytest.fixture(scope="module", params=FAMILIES[len(FIRST) :])
def further(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("further") / request.param
    make_checkpoint(folder, request.param)
    return folder


def send(answer, run, *arguments):
    answer.put(run(*arguments))


def in_a_process(processes, seconds, run, *arguments):
    answer = processes.Queue()
    process = processes.Process(target=send, args=(answer, run, *arguments))
    process.start()
    counts = answer.get(timeout=seconds)
    process.join()
    return counts


def fuzz(processes, pristine, scratch, name, file, numbers):
    return in_a_process(processes, 40 * len(numbers), run_cases, pristine / name, scratch, file, numbers)


@pytest.mark.parametrize(
    ("family", "file"),
    [
        (FIRST[place % 2] + (", legacy" if file in LEGACY else ""), file)
        for place, file in enumerate((*JSON, *LEGACY, *WEIGHTS))
    ],
)
def test_a_few_mutated_files(processes, pristine, tmp_path, family, file):
    counts = fuzz(processes, pristine, tmp_path, family, file, FUZZ_CASES["quick"])
    assert set(counts) <= {"loaded", "refused"}, counts


@pytest.mark.slow
@pytest.mark.parametrize("files", [JSON, LEGACY, WEIGHTS], ids=["settings", "legacy settings", "weights"])
def test_mutated_files(processes, pristine, tmp_path, files):
    total = Counter()
    for family in FIRST:
        for file in files:
            name = f"{family}, legacy" if files is LEGACY else family
            total += fuzz(processes, pristine, tmp_path, name, file, FUZZ_CASES["slow"])
    print(f"{', '.join(files)}: {dict(total)}")
    assert set(total) <= {"loaded", "refused"}, total


@pytest.mark.slow
def test_mutated_files_of_further_families(processes, further, tmp_path):
    first = FUZZ_CASES["slow"].stop + 5 * FAMILIES.index(further.name)
    total = Counter()
    for file in (*JSON, *WEIGHTS):
        total += fuzz(processes, further.parent, tmp_path, further.name, file, range(first, first + 5))
    assert set(total) <= {"loaded", "refused"}, total


@pytest.mark.slow
@pytest.mark.parametrize("size", [1 << 40, -1])
def test_no_size_of_further_families_is_taken_on_trust(processes, further, tmp_path, size):
    """Each number in the config of its language model and of its vision tower in turn: refused, or it was no size."""
    counts = in_a_process(processes, 600, run_sizes, further, tmp_path, "backbone/config.json", size)
    print(f"{further.name}: {dict(counts)}")
    assert set(counts) <= {"loaded", "refused"}, counts


def edit(path, **values):
    content = json.loads(path.read_text())
    for key, value in values.items():
        *parents, last = key.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(content))


PROCESSORS = {
    "a side of 10^5 pixels": ("processor_config.json", dict(video_processor__size={"height": 100_000, "width": 384})),
    "images of 10^5 pixels": ("processor_config.json", dict(image_processor__size={"height": 384, "width": 100_000})),
    "a size in words": ("processor_config.json", dict(video_processor__size="large")),
    "a frame of 10^10 pixels": ("processor_config.json", dict(video_processor__size={"longest_edge": 10**10})),
    "a smallest frame over the largest": (
        "processor_config.json",
        dict(video_processor__size={"shortest_edge": 9, "longest_edge": 4}),
    ),
    "a mean of no number": ("processor_config.json", dict(video_processor__image_mean="grey")),
    "no such filter": ("processor_config.json", dict(video_processor__resample=99)),
    "endless frames": ("processor_config.json", dict(video_processor__num_frames=10**9)),
    "a tokenizer without tokens": ("tokenizer.json", dict(model=None)),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_a_processor_that_cannot_be(pristine, tmp_path, case):
    shutil.copytree(pristine / "llava_onevision", tmp_path / "m")
    file, values = PROCESSORS[case]
    edit(tmp_path / "m" / file, **values)
    with pytest.raises(ValueError, match=rf"^{file}.* of {tmp_path}/m .*copy or download it again"):
        load_processor(tmp_path / "m")


@pytest.mark.parametrize(
    ("family", "edge"), [("qwen3_5", 234_881_024), ("qwen3_vl", 234_881_024), ("glm46v", 100_352_000)]
)
def test_published_sizes_are_taken(tmp_path, family, edge):
    """Pixels of all frames of a video, of Qwen3.5 and GLM-4.6V as published."""
    make_checkpoint(tmp_path / "m", family)
    edit(tmp_path / "m" / "processor_config.json", video_processor__size__longest_edge=edge)
    assert load_processor(tmp_path / "m").video_processor.size["longest_edge"] == edge


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"
REPLACED = {  # what a file holds, None if it is gone, and what the error says of it
    "no template": ("chat_template.jinja", None, "is missing or empty"),
    "an empty template": ("chat_template.jinja", "", "is missing or empty"),
    "a cut template": ("chat_template.jinja", "{% for message in messages %}{{ mess", "TemplateSyntaxError"),
    "a pointer instead of a template": ("chat_template.jinja", LFS, "writes no text of a message"),
    "a template that calls what is not there": ("chat_template.jinja", "{{ nothing() }}", "'nothing' is undefined"),
    "a template of zeros": ("chat_template.jinja", "\0" * 50, "writes no text of a message"),
    "a template of former times without text": ("chat_template.json", "{}", "has no chat_template"),
    "a template of former times of another type": ("chat_template.json", '{"chat_template": 3}', "cannot be used"),
    "no tokenizer": ("tokenizer.json", None, "is missing"),
    "an empty tokenizer": ("tokenizer.json", "{}", "Model missing"),
    "no settings of the tokenizer": ("tokenizer_config.json", None, "is missing or empty"),
    "empty settings of the tokenizer": ("tokenizer_config.json", "{}", "is missing or empty"),
    "a pointer instead of settings": ("tokenizer_config.json", LFS, "is not readable JSON"),
    "an empty processor": ("processor_config.json", "{}", "has no video_processor"),
    "a list instead of a processor": ("processor_config.json", "[1]", "does not hold a JSON object"),
    "no class": ("preprocessor_config.json", "{}", "image_processor_type"),
    "half a video processor": ("video_preprocessor_config.json", '{"size": {', "is not readable JSON"),
}


@pytest.mark.parametrize("case", REPLACED)
def test_a_file_of_a_processor_that_is_another(pristine, tmp_path, case):
    file, content, said = REPLACED[case]
    shutil.copytree(pristine / ("qwen2_5_vl, legacy" if file in LEGACY else "qwen2_5_vl"), tmp_path / "m")
    (tmp_path / "m" / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / "m" / file).write_text(content)
    with pytest.raises(ValueError, match=rf"^{file}.* of {tmp_path}/m .*{said}.*copy or download it again\.$"):
        load_processor(tmp_path / "m")


@pytest.mark.parametrize(
    ("file", "template"),
    [("chat_template.jinja", "{{ messages[0].content[1].text }}"), ("tokenizer_config.json", None)],
)
def test_a_template_and_a_tokenizer_of_two_models(pristine, tmp_path, file, template):
    """Either may be to blame, and both are named."""
    shutil.copytree(pristine / "llava_onevision", tmp_path / "m")
    if template is None:
        edit(tmp_path / "m" / file, extra_special_tokens={"image_token": "<image>", "video_token": "<eos>"})
    else:
        (tmp_path / "m" / file).write_text(template)
    with pytest.raises(
        ValueError, match=r"_config.json or tokenizer_config.json or chat_template.jinja of .* writes no '<"
    ):
        load_processor(tmp_path / "m")


def test_a_template_that_is_no_text(pristine, tmp_path):
    shutil.copytree(pristine / "llava_onevision", tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"^chat_template.jinja of .* codec can't decode .*copy or download it again"):
        load_processor(tmp_path / "m")


def test_a_processor_without_its_class(pristine, tmp_path):
    """Then stock loading takes the tokenizer for the processor."""
    shutil.copytree(pristine / "qwen2_5_vl, legacy", tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    del settings["processor_class"]
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"^preprocessor_config.json .*name no processor_class: copy or download"):
        load_processor(tmp_path / "m")


def test_no_processor_at_all(pristine, tmp_path):
    shutil.copytree(pristine / "qwen2_5_vl", tmp_path / "m")
    (tmp_path / "m" / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=rf"^processor_config.json or .* is missing in {tmp_path}/m: copy it there"):
        load_processor(tmp_path / "m")


@pytest.mark.parametrize(
    ("template", "said"), [(None, "has no chat template"), ("{% if", "cannot be read \\(line 1: ")]
)
def test_a_template_that_reaches_a_call(pristine, template, said):
    processor = with_video_reader(AutoProcessor.from_pretrained(pristine / "llava_onevision"))
    processor.chat_template = template
    messages = [{"role": "user", "content": "What is shown?"}]
    with pytest.raises(ValueError, match=rf"{said}.*copy chat_template.jinja of the model"):
        processor.apply_chat_template(messages)
    assert processor.apply_chat_template(messages, chat_template="{{ messages[0].content }}") == "What is shown?"


def test_a_tokenizer_of_70_megabytes(pristine, tmp_path):
    shutil.copytree(pristine / "llava_onevision", tmp_path / "m")
    with open(tmp_path / "m" / "tokenizer.json", "r+b") as file:
        file.truncate(70 << 20)
    with pytest.raises(ValueError, match=r"tokenizer.json of .* has \d+ bytes, far too many"):
        load_processor(tmp_path / "m")


CONFIGS = {  # file, values, what the error says
    "no backbone": ("config.json", dict(backbone_config=None), "has no backbone_config with a model_type"),
    "a backbone without a type": ("config.json", dict(backbone_config={"a": 1}), "has no backbone_config with"),
    "a flag in words": ("config.json", dict(includes_backbone="yes"), "includes_backbone='yes' is not true or false"),
    "a number as a flag": ("config.json", dict(policy_trained=1), "policy_trained=1 is not true or false"),
    "a number as an id": ("config.json", dict(base_model_name_or_path=3), "base_model_name_or_path=3 is not a text"),
    "a number as a commit": ("config.json", dict(base_model_revision=5), "base_model_revision=5 is not a text"),
    "an id in words": ("backbone/config.json", dict(video_token_id="x"), "expected int, got str"),
    "an end in words": (
        "backbone/generation_config.json",
        dict(eos_token_id="x"),
        "eos_token_id='x', which must be a token",
    ),
    "no beams": ("backbone/generation_config.json", dict(num_beams=0), "num_beams=0, which must be a whole number"),
    "a cold draw": (
        "backbone/generation_config.json",
        dict(temperature=-1),
        "temperature=-1, which must be a number of",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be(pristine, tmp_path, case):
    shutil.copytree(pristine / "llava_onevision", tmp_path / "m")
    file, values, said = CONFIGS[case]
    edit(tmp_path / "m" / file, **values)
    with pytest.raises(ValueError, match=rf"{file.split('/')[-1]}.*{said}") as caught:
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert "copy or download it again" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_mistyped_setting_is_said(pristine, tmp_path, caplog):
    shutil.copytree(pristine / "llava_onevision", tmp_path / "m")
    edit(tmp_path / "m" / "config.json", retention_ratoi=0.5)
    with caplog.at_level("WARNING"):
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert "has the unknown setting retention_ratoi, which does nothing: did you mean retention_ratio?" in caplog.text


def test_weights_of_another_size(pristine, tmp_path):
    """Of many tensors the first are named."""
    shutil.copytree(pristine / "llava_onevision", tmp_path / "m")
    edit(tmp_path / "m" / "config.json", backbone_config__text_config__hidden_size=32)
    with pytest.raises(ValueError, match=r"do not fit its config \(.* and \d+ more\): .*Copy or download") as caught:
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite(pristine, tmp_path, bad, dtype):
    for file, tensor in (("backbone/model.safetensors", "1.mlp.up_proj.weight"), ("model.safetensors", "norm.weight")):
        shutil.copytree(pristine / "llava_onevision", tmp_path / "m")
        weights = {name: weight.to(dtype) for name, weight in load_file(tmp_path / "m" / file).items()}
        weights[next(name for name in weights if name.endswith(tensor))].view(-1)[7] = bad
        save_file(weights, tmp_path / "m" / file, metadata={"format": "pt"})
        said = rf"{tensor} in the weights of {tmp_path}/m.* holds NaN or infinite values: copy or download them again"
        with pytest.raises(ValueError, match=said):
            CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "m", dtype=dtype)
        if file.startswith("backbone"):
            with pytest.raises(ValueError, match=said):
                load_model(tmp_path / "m" / "backbone", dtype=dtype)
        shutil.rmtree(tmp_path / "m")


@pytest.mark.parametrize("file", ["config.json", "backbone/config.json"])
def test_a_config_nested_without_end(pristine, tmp_path, file):
    shutil.copytree(pristine / "qwen2_5_vl", tmp_path / "m")
    (tmp_path / "m" / file).write_text('{"a":' * 100_000)
    for load in (load_config, load_model, CaCoVidForConditionalGeneration.from_pretrained):
        if file == "config.json" or load is not load_config:
            with pytest.raises(ValueError, match=r"config.json of .* is not readable JSON"):
                load(tmp_path / "m")
