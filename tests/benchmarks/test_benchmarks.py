"""The benchmarks run, measure what they say, and every committed result says where it comes from."""

import json
import time
from pathlib import Path

import pytest
import torch
from helpers.provenance import check_provenance

from cacovid_hf import CaCoVidForConditionalGeneration

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
STAGES = {
    "layout",
    "policy",
    "selection",
    "gather",
    "prefill",
    "compression",
    "with_compression",
    "decode_step",
    "time_to_first_token",
}


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture(scope="module")
def peaks():
    """What this machine can do, measured once for all runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        from roofline import measured_peaks

        return measured_peaks(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def measured_once(monkeypatch, benchmarks_on_path, peaks):
    monkeypatch.setattr("prefill.measured_peaks", lambda device, dtype: peaks)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run_prefill(tmp_path, *arguments):
    from prefill import main

    path = main(["--device", "cpu", "--dtype", "float32", "--threads", "1", "--output", str(tmp_path), *arguments])
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("arch", "video_tokens"), [("tiny-llava-onevision", [36, 9, 3]), ("tiny-qwen2.5-vl", [18, 4, 1])]
)
def test_prefill(tmp_path, threads, arch, video_tokens):
    arguments = [
        "--arch",
        arch,
        "--frames",
        "4",
        "--repeats",
        "3",
        "--vision-repeats",
        "2",
        "--commit",
        "abc",
        "--clip-side",
        "96",
    ]
    path, record = run_prefill(tmp_path, *arguments)

    check_provenance(record)
    assert path.name.startswith(f"prefill_{arch}_4frames_float32_cpu_")
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays
    assert record["config"]["layers"] == record["config"]["all_layers"]
    assert record["config"]["ratios"] == [0.25, 0.1]
    assert record["commit"] == "abc"
    assert len(record["vision_ms"]["samples"]) == 2
    media = record["media"]
    assert media["clip"] == {"frames": 4, "height": 96, "width": 96, "codec": "h264"}
    pixels = [1, 4, 3, 84, 84] if arch == "tiny-llava-onevision" else [2 * 6 * 6, 3 * 2 * 14 * 14]
    assert media["pixels"] == {"pixel_values_videos": pixels}
    assert media["decode_skipped"] is None
    for stage in ("decode_ms", "preprocess_ms"):
        assert len(media[stage]["samples"]) == 2
        assert media[stage]["min"] > 0

    stock, *compressed = record["variants"]
    assert [variant["name"] for variant in record["variants"]] == ["stock", "cacovid 0.25", "cacovid 0.1"]
    assert [variant["video_tokens"] for variant in record["variants"]] == video_tokens
    text = stock["prompt_tokens"] - stock["video_tokens"]
    assert [variant["prompt_tokens"] - variant["video_tokens"] for variant in compressed] == [text, text]
    assert set(stock["times_ms"]) == {"prefill", "decode_step", "time_to_first_token"}
    cached = [variant["kv_cache_bytes"] / variant["prompt_tokens"] for variant in record["variants"]]
    assert cached[0] <= cached[1] <= cached[2] < 3 * cached[0]  # a few decoded tokens weigh more in a short cache
    assert set(stock["limits"]) == {"prefill", "decode_step"}
    for variant in compressed:
        assert set(variant["limits"]) == {"policy", "selection", "gather", "prefill", "decode_step"}
        assert variant["limits"]["prefill"]["flops"] < stock["limits"]["prefill"]["flops"]
    for variant in compressed:
        times = variant["times_ms"]
        assert set(times) == STAGES
        assert len(times["prefill"]["samples"]) == 3
        assert len(times["time_to_first_token"]["samples"]) == 2
        for sample in times.values():
            assert 0 < sample["min"] <= sample["median"] <= sample["max"]
        for i, total in enumerate(times["with_compression"]["samples"]):
            parts = ("layout", "policy", "selection", "gather", "prefill")
            assert total == pytest.approx(sum(times[part]["samples"][i] for part in parts), abs=1e-3)
        expected = stock["times_ms"]["prefill"]["median"] / times["with_compression"]["median"]
        assert variant["speedup"]["compression_and_prefill"] == pytest.approx(expected)


def test_a_machine_without_a_video_decoder(monkeypatch):
    """Decoding is left out, with the reason; frames are prepared all the same."""
    import clips
    from architectures import ARCHITECTURES

    monkeypatch.setattr(clips.importlib.util, "find_spec", lambda name: None)
    media = clips.media_stages(ARCHITECTURES["tiny-llava-onevision"], 3, 96, 1, time.perf_counter)
    assert media["decode_ms"] is None
    assert media["decode_skipped"] == "PyAV (av) is not installed"
    assert media["pixels"] == {"pixel_values_videos": [1, 3, 3, 84, 84]}
    assert media["preprocess_ms"]["median"] > 0


@pytest.mark.parametrize("arch", ["tiny-llava-onevision", "tiny-qwen2.5-vl"])
def test_every_policy_in_a_batch_with_a_static_cache(tmp_path, threads, arch):
    arguments = ["--frames", "4", "--repeats", "1", "--ratios", "0.25", "--batch", "2", "--policies", "full", "light"]
    path, record = run_prefill(
        tmp_path, "--arch", arch, *arguments, "--static-cache", "--compressors", "cacovid", "random"
    )
    assert "_batch2_static_" in path.name
    assert [v["name"] for v in record["variants"]] == ["stock", "cacovid 0.25", "cacovid, light 0.25", "random 0.25"]
    assert record["prompt"]["rows"] == 2
    assert set(record["model"]["policy_parameters"]) == {"full", "light"}
    full, light = record["variants"][1:3]
    assert light["limits"]["policy"]["flops"] < full["limits"]["policy"]["flops"]


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *(("full", attention) for attention in ("question", "causal", "bidirectional")),
        ("light", "question"),
        ("residual", "none"),
        ("residual", "question"),
    ],
)
def test_counted_operations(kind, attention):
    """The formulas against what PyTorch counts, on a shape that is no multiple of anything."""
    from architectures import ARCHITECTURES, build_backbone, build_inputs
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from cacovid_hf.utils.operations import Shape

    architecture = ARCHITECTURES["tiny-llava-onevision"]
    backbone = build_backbone(architecture, None, torch.float32, torch.device("cpu"), "eager")
    model = CaCoVidForConditionalGeneration.from_backbone(backbone, policy_type=kind, policy_attention=attention)
    prompt = model.embed(**build_inputs(backbone, architecture, 4, 14, 32))
    tokens, video = prompt.inputs_embeds.shape[1], prompt.layout.videos[0].num_tokens
    shape = Shape(backbone.config.get_text_config(), 4)

    def counted(call):
        # The counter does not know the fused CPU kernel.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    policy = counted(lambda: model.policy(prompt.inputs_embeds, prompt.position_ids, prompt.layout))
    expected = shape.policy(kind, attention, 1, video, tokens - video).flops
    assert policy == pytest.approx(expected, rel=0.25 if attention == "causal" else 0.1)

    if (kind, attention) == ("full", "question"):
        prefill = counted(
            lambda: backbone(inputs_embeds=prompt.inputs_embeds, position_ids=prompt.position_ids, logits_to_keep=1)
        )
        assert prefill == pytest.approx(shape.prefill(1, tokens).flops, rel=0.35)  # eager computes the masked half too


def test_measured_peaks():
    from roofline import measured_peaks

    from cacovid_hf.utils.operations import Work

    peaks = measured_peaks(torch.device("cpu"), torch.float32)
    assert peaks.flops > 1e8
    assert peaks.bytes > 1e7
    work = Work(peaks.flops, 0) + Work(0, 2 * peaks.bytes)
    assert peaks.milliseconds(work) == pytest.approx(2000)


def test_peak_memory_on_a_cpu(threads):
    import prefill

    options = prefill.parse(
        ["--arch", "tiny-llava-onevision", "--frames", "4", "--device", "cpu", "--dtype", "float32"]
    )
    memory = prefill._peak_rss(options, prefill.Variant())
    if memory is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 50e6 < memory["before_bytes"] <= memory["peak_bytes"] < 20e9


def test_fewer_layers_are_said(tmp_path, threads):
    path, record = run_prefill(
        tmp_path, "--arch", "tiny-llava-onevision", "--frames", "2", "--repeats", "1", "--layers", "1"
    )
    assert "_1layers_" in path.name
    assert record["config"]["layers"] == 1
    assert record["config"]["all_layers"] == 3
    assert record["notes"][0].startswith("1 of 3 language-model layers")


def test_prefill_checks_its_stages(tmp_path, threads, monkeypatch):
    """A stage that departs from what `model.compress` does stops the run, and nothing is written."""
    import prefill

    real = prefill.gather

    def departs(prompt, indices, videos, pad_token_id):
        return real(prompt, indices.roll(1, dims=1), videos, pad_token_id)

    monkeypatch.setattr(prefill, "gather", departs)
    with pytest.raises(RuntimeError, match="came out different"):
        run_prefill(tmp_path, "--arch", "tiny-llava-onevision", "--frames", "2", "--repeats", "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratios", "0"], "fractions of the video tokens to keep"),
        (["--layers", "3"], "give 1 to 2, or leave it out for all 3 layers"),
        (["--frames", "0"], "must be at least 1"),
        (["--clock", "cpu", "--threads", "2"], "add --device cpu --threads 1"),
    ],
)
def test_bad_options(tmp_path, threads, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run_prefill(tmp_path, "--arch", "tiny-llava-onevision", *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_odd_frames_of_qwen(tmp_path, threads):
    with pytest.raises(ValueError, match="frames=3 is odd"):
        run_prefill(tmp_path, "--arch", "tiny-qwen2.5-vl", "--frames", "3")


def test_selection(tmp_path):
    from selection import main

    path = main(["--frames", "4", "8", "--side", "6", "--repeats", "3", "--output", str(tmp_path), "--commit", "abc"])
    record = json.loads(path.read_text())
    check_provenance(record)
    assert record["hardware"]["threads"] == 1
    assert [(size["tokens"], size["kept"]) for size in record["sizes"]] == [(144, 36), (288, 72)]
    for size in record["sizes"]:
        for times in size["times_ms"].values():
            assert 0 < times["min"] <= times["median"] <= times["max"]


def test_methods(tmp_path):
    from methods import main
    from table import methods_table

    small = ["--frames", "4", "--side", "4", "--width", "56", "--depth", "12", "--repeats", "1", "--once", "60"]
    path = main([*small, "--output", str(tmp_path), "--commit", "abc"], report=lambda line: None)
    record = json.loads(path.read_text())
    check_provenance(record)
    names = [method["name"] for method in record["methods"]]
    assert {"cacovid, full policy", "cacovid, light policy", "divprune", "attention", "fastv", "framefusion"} < set(
        names
    )
    assert all(method["kept"] == 16 and method["times_ms"]["median"] > 0 for method in record["methods"])
    assert "| *published: DivPrune* | | *134.3* |" in "\n".join(methods_table(record))


def test_policy_cost(tmp_path, threads):
    from policy_cost import main
    from table import policy_cost_table

    arguments = [
        "--tiny",
        "--only",
        "qwen3-vl-30b-a3b",
        "glm-4.5v",
        "gemma4-small",
        "gemma4-26b-a4b",
        "--grid",
        "2",
        "2",
        "2",
        "--repeats",
        "1",
    ]
    path = main([*arguments, "--dtype", "float32", "--output", str(tmp_path), "--commit", "abc"])
    record = json.loads(path.read_text())
    check_provenance(record)
    experts, gemma = record["shapes"]["qwen3-vl-30b-a3b"], record["shapes"]["gemma4-small"]
    assert [shape["full_refused"] for shape in record["shapes"].values()] == [None] * 4
    assert experts["prompt_tokens"] == 16 + 8 + 32
    for times in (*experts["policies"].values(), *gemma["policies"].values()):
        whole, policy = experts["stock_prefill_ms"]["median"], times["policy_ms"]["median"]
        assert policy > 0
        if times in experts["policies"].values():
            assert times["scaled_of_stock_prefill"] == pytest.approx(
                policy / (48 * whole)
            )  # one layer of 48 is measured
        assert set(times["ratios"]) == {"0.25", "0.1"}
    rows = policy_cost_table(record)
    assert not any("| refused |" in row for row in rows)
    assert len(rows) == 2 + 2 + 8  # a sentence, a head, each shape with each kind


def test_throughput(tmp_path, threads):
    from throughput import main

    arguments = [
        "--arch",
        "tiny-qwen2.5-vl",
        "--frames",
        "4",
        "--batches",
        "3",
        "--pool",
        "2",
        "--dtype",
        "float32",
        "--repeats",
        "2",
    ]
    path = main([*arguments, "--device", "cpu", "--threads", "1", "--output", str(tmp_path), "--commit", "abc"])
    record = json.loads(path.read_text())
    check_provenance(record)
    (row,) = record["batches"]
    kept = row["kept_lengths"]
    assert len(kept) == len(row["prompt_lengths"]) == row["prompts"] == 6
    assert len(set(row["prompt_lengths"])) > 1
    assert row["padding_waste"] == pytest.approx(1 - sum(kept) / (3 * max(kept[:3]) + 3 * max(kept[3:])))
    sorted_kept = sorted(kept)
    assert row["padding_waste_by_length"] == pytest.approx(1 - sum(kept) / (3 * sorted_kept[2] + 3 * sorted_kept[5]))
    assert row["padding_waste_by_length"] < row["padding_waste"]
    assert row["speedup"] == pytest.approx(row["answers_per_second"]["batch"] / row["answers_per_second"]["one_by_one"])


def test_optimisations(tmp_path, threads):
    from optimisations import main

    arguments = ["--arch", "tiny-llava-onevision", "--layers", "2", "--frames", "2", "--repeats", "1"]
    path = main([*arguments, "--dtype", "float32", "--device", "cpu", "--output", str(tmp_path), "--commit", "abc"])
    record = json.loads(path.read_text())
    check_provenance(record)
    assert len(record["cases"]) == 8
    folder = str(tmp_path / "only")
    only = main([*arguments, "--dtype", "float32", "--device", "cpu", "--output", folder, "--only", "norm"])
    assert [case["name"][:4] for case in json.loads(only.read_text())["cases"]] == ["norm"]
    tests = {test.name: test.read_text() for test in Path(__file__).parents[1].rglob("test_*.py")}
    for case in record["cases"]:
        assert case["speedup"] > 0
        assert ("ours_alone" in case["times_ms"]) == ("1 is the aim" in case["name"])
        if "ours_alone" in case["times_ms"]:
            assert case["times_ms"]["ours_alone"]["median"] > 0
        for guard in case["guard"].split(": ")[-1].split("; ")[-1].split():
            file, _, name = guard.partition("::")
            if file.endswith(".py"):
                assert f"def {name}" in tests[file]


def test_results_are_added_never_replaced(tmp_path):
    from record import write_result

    record = {"date": "2026-01-02T03:04:05+00:00", "value": 1}
    path = write_result(tmp_path, "name", record)
    assert path.name == "name_20260102T030405.json"
    with pytest.raises(FileExistsError):
        write_result(tmp_path, "name", {**record, "value": 2})
    assert json.loads(path.read_text())["value"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_result(path, capsys):
    import table

    record = json.loads(path.read_text())
    check_provenance(record)
    assert path.name.startswith(record["benchmark"] + "_")
    assert record["dirty"] is not True
    table.main([str(path)])
    assert path.name in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((RESULTS[0].parent / "training").glob("*.json")), ids=lambda path: path.name)
def test_committed_training(path):
    """The trainings of the backbone, with seed, commit, versions and hardware; the weights of seed 0 are shipped."""
    record = json.loads(path.read_text())
    settings = record.get("settings") or record["training"]
    assert path.stem.endswith(f"seed{settings['seed']}")
    assert len(record["commit"]) >= 40
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    assert "thread" in record["hardware"]


def test_there_are_results():
    kinds = {path.name.split("_")[0] for path in RESULTS}
    assert {"prefill", "selection"} <= kinds


@pytest.mark.parametrize("memory", ["features", "kv"])
def test_stream_memory(tmp_path, threads, memory):
    from stream_memory import main

    arguments = ["--memory", memory, "--minutes", "4", "--fps", "0.5", "--tokens-per-frame", "4", "--ask-every", "2"]
    arguments += ["--max-memory", "60000", "--commit", "abc", "--output", str(tmp_path)]
    record = json.loads(main(arguments).read_text())
    check_provenance(record)
    assert record["num_frames"] == 120
    assert record["video_seconds"] == 238
    assert [row["minute"] for row in record["minutes"]] == [1, 2, 4]
    assert all(row["in_use"] is None or row["in_use"] < row["rss"] for row in record["minutes"])
    assert 40_000 < record["largest_memory_bytes"] <= 60_000
    assert record["minutes"][0]["rss"] > 2**20


def test_long_video(tmp_path, threads):
    """Each way in a process of its own, and decoding beside encoding; the memory itself is a matter of the committed results."""
    from long_video import main

    arguments = ["--arch", "tiny-llava-onevision", "--frames", "6", "--stock-frames", "2", "--ratio", "0.25"]
    arguments += ["--other-ratios", "0.5", "--frames-per-chunk", "4", "--overlap-frames", "6", "--repeats", "2"]
    arguments += ["--overlap-size", "96", "128", "--device", "cpu", "--threads", "1", "--commit", "abc"]
    record = json.loads(main([*arguments, "--output", str(tmp_path)]).read_text())
    check_provenance(record)
    rows = [(row["way"], row["frames"], row["video_tokens"], row["kept_tokens"]) for row in record["peak_memory"]]
    assert rows == [
        ("build", 0, 0, 0),
        ("stock", 2, 18, 18),
        ("streamed", 6, 54, 13),
        ("streamed", 6, 54, 27),
        ("whole", 2, 18, 4),
    ]
    assert all(row["peak_bytes"] > 2**20 for row in record["peak_memory"])
    assert {name: len(times["samples"]) for name, times in record["overlap"]["seconds"].items()} == {
        "beside": 2,
        "in_turn": 2,
        "decode_and_prepare_alone": 2,
    }
