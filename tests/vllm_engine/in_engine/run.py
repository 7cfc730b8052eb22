"""One scenario in vLLM's environment: `python -m in_engine.run SCENARIO FAMILY FOLDER`. Its last line is JSON."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from helpers.processors import tiny_processor
from in_engine.cases import CASES, NEW_TOKENS, Case, Clip, Text
from in_engine.checkpoints import write_checkpoint

ONE_VIDEO = [case for case in CASES if len(case.parts) == 3 and case.method is None]


def references(folder: Path, cases: Sequence[Case], new_tokens: int = NEW_TOKENS, **where: Any) -> list[dict[str, Any]]:
    """What transformers answers."""
    from in_engine.reference import Reference

    found = Reference(folder, **where)
    return [found.answer(case, new_tokens) for case in cases]


def tower_runs(llm: Any, ask: Callable[[], Any]) -> tuple[int, Any]:
    """How often the vision tower runs while something is asked, and the answers; the engine is in this process."""
    runs: list[int] = []

    def listen(model: Any) -> Any:
        tower = model.visual if "visual" in dict(model.named_children()) else model.vision_tower
        return tower.register_forward_hook(lambda *_: runs.append(1))

    (handle,) = llm.apply_model(listen)
    try:
        answers = ask()
    finally:
        handle.remove()
    return len(runs), answers


def forget(llm: Any) -> None:
    """Empty vLLM's own caches."""
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()


def parity(family: str, folder: Path) -> dict[str, Any]:
    """All cases alone, together and in another order; embeddings; vision once per video; two mutations."""
    from in_engine import embeddings, engines, files
    from in_engine.reference import Reference

    import cacovid_hf.vllm.model as worker
    from cacovid_hf.vllm.marks import COLUMNS
    from cacovid_hf.vllm.requests import Asked

    write_checkpoint(family, folder)
    expected = references(folder, CASES)
    llm = engines.start(folder, enable_mm_embeds=True)
    result = {"rounds": engines.rounds(llm, family, CASES, expected, alone=len(CASES))}

    found, given = Reference(folder), embeddings.cases_of(family)
    got = engines.answers(llm, [embeddings.as_embeddings(found, case) for case in given])
    result["embeddings"] = {
        "asked": len(given),
        "same": sum(map(equal, got, map(found.answer, given))),
        "refused": refusal(lambda: engines.answers(llm, [embeddings.refused(family)])),
    }
    if family == "qwen2_5_vl":
        result["files"] = files.asked(llm, found, folder)
        endless = embeddings.endless(found)
        result["endless"] = [refusal(lambda one=one: engines.answers(llm, [one])) for one in endless]

    fresh = [Case((Text(1, 20), Clip(20), Text(question, 9)), ratio) for question in (2, 3) for ratio in (0.25, 0.1)]
    wanted = references(folder, fresh)
    result["trailing_video"] = refusal(
        lambda: llm.generate({**fresh[0].request(family), "prompt": "what color <video>"}, use_tqdm=False)
    )
    with patch.object(llm.model_config.hf_config.get_text_config(), "max_position_embeddings", 64):
        unseen = Case((Text(1, 20), Clip(22), Text(2, 9)), 0.25)
        result["too_long"] = refusal(lambda: engines.ask(llm, family, [unseen]))
    first, answers = tower_runs(llm, lambda: engines.ask(llm, family, fresh[:1]))
    later, others = tower_runs(llm, lambda: [engines.ask(llm, family, [case])[0] for case in fresh[1:]])
    result["tower"] = {"first": first, "later": later, "same": sum(map(equal, [*answers, *others], wanted))}

    def unread(self: Any, video_token: int) -> Any:
        return self.method, self.ratios, self.digests

    def unwritten(positions: Any, embeds: Any) -> Any:
        return [part[:, :-COLUMNS] for part in embeds]

    forget(llm)
    result["shared_prefix"] = {}
    for method in ("cacovid", "divprune"):
        pair = [Case((Text(1, 20), Clip(21), Text(question, 9)), 0.75, method) for question in (2, 3)]
        _, (second,) = (llm.generate([case.request(family)], use_tqdm=False) for case in pair)
        result["shared_prefix"][method] = second.num_cached_tokens

    result["mutations"] = {}
    for name, target, attribute, change in (
        ("hash without question", Asked, "identity", unread),
        ("positions not written", worker, "write_positions", unwritten),
    ):
        forget(llm)
        with patch.object(target, attribute, change):
            got = [engines.ask(llm, family, [case])[0] for case in fresh]
        result["mutations"][name] = len(fresh) - sum(map(equal, got, wanted))
    forget(llm)
    result["mutations"]["none"] = len(fresh) - sum(map(equal, engines.ask(llm, family, fresh), wanted))
    return result


def refusal(ask: Callable[[], Any]) -> str | None:
    """What the `ValueError` says; None if there is none."""
    try:
        ask()
    except ValueError as error:
        return str(error)
    return None


def equal(got: dict[str, Any], expected: dict[str, Any]) -> bool:
    return got == expected


def squeezed(family: str, folder: Path) -> dict[str, Any]:
    """No prefix cache, prefill in chunks of 40 tokens, and so few blocks that requests are preempted."""
    from in_engine import engines
    from vllm.v1.core.sched.scheduler import Scheduler

    write_checkpoint(family, folder)
    cases, new_tokens = CASES[:8], 64
    expected = references(folder, cases, new_tokens)
    preempted: list[int] = []
    stock = Scheduler._preempt_request

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(1)
        return stock(self, *args, **kwargs)

    llm = engines.start(
        folder,
        enable_prefix_caching=False,
        max_num_batched_tokens=40,
        long_prefill_token_threshold=40,
        max_model_len=352,
        num_gpu_blocks_override=13,
    )
    with patch.object(Scheduler, "_preempt_request", counted):
        answers = engines.ask(llm, family, cases, new_tokens)
    alone = [engines.ask(llm, family, [case], new_tokens)[0] for case in cases]
    return {
        "preempted": len(preempted),
        "asked": 2 * len(cases),
        "same": sum(map(equal, [*answers, *alone], [*expected, *expected])),
    }


def variant(settings: dict[str, Any], **policy: Any) -> Callable[[str, Path], dict[str, Any]]:
    """A scenario: all cases with these settings of the engine and this policy."""

    def scenario(family: str, folder: Path) -> dict[str, Any]:
        from in_engine import engines

        write_checkpoint(family, folder, **policy)
        cases = CASES if policy.get("policy_attention", "question") == "question" else ONE_VIDEO
        return engines.rounds(engines.start(folder, **settings), family, cases, references(folder, cases))

    return scenario


def policy_alone(family: str, folder: Path) -> dict[str, Any]:
    """A checkpoint without its backbone, tokenizer and processor."""
    from in_engine import engines

    base = folder / "base"
    write_checkpoint(family, folder / "policy", base=base)
    expected = references(folder / "policy", CASES, processor=base)
    return engines.rounds(engines.start(folder / "policy"), family, CASES, expected)


def other_rule(family: str, folder: Path) -> dict[str, Any]:
    """With vLLM's rule of positions and everything kept, stock vLLM's answers; with transformers' rule, transformers'."""
    from in_engine import engines

    write_checkpoint(family, folder)
    cases = [Case(case.parts, 1.0) for case in CASES if case.clips() and case.method is None]
    tiny_processor(family).save_pretrained(folder / "backbone")
    stock = engines.start(folder / "backbone")
    plain = [dataclasses.replace(case, ratio=None) for case in cases]
    theirs = engines.ask(stock, family, plain)
    del stock
    llm = engines.start(folder, hf_overrides={"cacovid_positions": "vllm"})
    ours = engines.ask(llm, family, cases)
    return {
        "asked": len(cases),
        "same": sum(map(equal, ours, theirs)),
        "as_transformers": sum(map(equal, theirs, references(folder, cases))),
    }


def known_videos(family: str, folder: Path) -> dict[str, Any]:
    """By vLLM's rule, at ratio 1.0: videos too long together, asked at once before and after vLLM knows each, and what is answered behind that."""
    from in_engine import engines

    write_checkpoint(family, folder)
    rule = {"cacovid_positions": "vllm"}
    limits = {"image": 1, "video": 6}
    llm = engines.start(folder, hf_overrides=rule, limit_mm_per_prompt=limits, max_model_len=256)
    config = llm.model_config.hf_config
    longest = config.get_text_config().max_position_embeddings / config.vision_config.tokens_per_second
    videos = [Clip(seed, 4, 2 / (0.9 * longest)) for seed in range(6)]

    def asked(*some: Clip) -> str | None:
        return refusal(lambda: engines.ask(llm, family, [Case((Text(1, 2), *some, Text(2, 2)), 1.0)], 2))

    return {
        "unknown": asked(*videos),
        "alone": [asked(video) for video in videos],
        "known": asked(*videos),
        "a short pair": [asked(videos[0], Clip(50, 4, 2.0)) for _ in range(2)],
    }


def kept_tokens(family: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Of 40 clips, which tokens stay in vLLM and in transformers."""
    from in_engine import engines
    from in_engine.reference import Reference

    import cacovid_hf.vllm.model as worker

    write_checkpoint(family, folder)
    cases = [Case((Text(seed, 6), Clip(seed), Text(100 + seed, 14)), 0.25) for seed in range(40)]
    found = Reference(folder, dtype=getattr(torch, dtype))
    expected = [found.kept(case) for case in cases]
    llm = engines.start(folder, dtype=dtype)
    seen: list[list[int]] = []
    stock = worker.ordered_places

    def noted(stays: Any, lengths: list[int]) -> Any:
        places = stock(stays, lengths)
        seen.append([place for place in places[0].tolist() if place < videos])
        return places

    videos = int(found.model.compress(**found.inputs(cases[0]), retention_ratio=1.0).videos[0].keep.numel())
    with patch.object(worker, "ordered_places", noted):
        for case in cases:
            engines.ask(llm, family, [case], 1)
    shared = sum(len(set(a) & set(b)) for a, b in zip(seen, expected, strict=True)) / sum(map(len, expected))
    return {"asked": len(cases), "same": sum(a == b for a, b in zip(seen, expected, strict=True)), "shared": shared}


def adapter(family: str, folder: Path) -> dict[str, Any]:
    """LoRA on the backbone's language model; without it, other answers."""
    import peft
    from in_engine import engines
    from in_engine.reference import Reference
    from transformers import AutoModelForImageTextToText
    from vllm.lora.request import LoRARequest

    from cacovid_hf import CaCoVidForConditionalGeneration

    write_checkpoint(family, folder)
    plain = references(folder, CASES)
    found = Reference(folder)
    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(AutoModelForImageTextToText.from_pretrained(folder / "backbone"), config)
    adapted.save_pretrained(folder / "adapter")
    found.model = CaCoVidForConditionalGeneration.from_pretrained(folder, backbone=adapted).eval()
    expected = [found.answer(case) for case in CASES]
    llm = engines.start(folder, enable_lora=True, max_lora_rank=8)
    request = LoRARequest("adapter", 1, str(folder / "adapter"))
    got = engines.answers(llm, [case.request(family) for case in CASES], lora_request=request)
    return {
        "asked": len(CASES),
        "same": sum(map(equal, got, expected)),
        "changed": sum(a != b for a, b in zip(plain, expected, strict=True)),
        "plain": sum(map(equal, engines.ask(llm, family, CASES), plain)),
    }


def stock_checkpoint(family: str, folder: Path) -> dict[str, Any]:
    """A stock model without a policy, and methods that need none."""
    from in_engine import engines

    from cacovid_hf.vllm.config import ARCHITECTURES

    write_checkpoint(family, folder / "policy", base=folder / "base")
    cases = [case for case in CASES if case.method or case.ratio in (None, 1.0)]
    expected = references(folder / "policy", cases, processor=folder / "base")
    llm = engines.start(folder / "base", hf_overrides={"architectures": [ARCHITECTURES[family]]})
    return {
        **engines.rounds(llm, family, cases, expected),
        "without_method": refusal(lambda: engines.ask(llm, family, [CASES[0]])),
    }


def refused_starts(family: str, folder: Path) -> dict[str, Any]:
    """Settings of a server that are not served, each with what is said; and whether the usual ones are."""
    import in_engine.engines  # noqa: F401  sets vLLM up
    from vllm.engine.arg_utils import EngineArgs

    write_checkpoint(family, folder / "whole")
    write_checkpoint(family, folder / "policy", base=folder / "base")
    (folder / "base").rename(folder / "moved")

    def said(checkpoint: str = "whole", **settings: Any) -> str | None:
        usual = dict(dtype="float32", max_model_len=512, block_size=32)
        return refusal(lambda: EngineArgs(str(folder / checkpoint), **{**usual, **settings}).create_engine_config())

    return {
        "usual": said(mm_processor_kwargs={"retention_ratio": 0.25}),
        "ratio": said(mm_processor_kwargs={"retention_ratio": 2}),
        "list": said(mm_processor_kwargs={"retention_ratio": [0.25]}),
        "mistyped": said(mm_processor_kwargs={"retention_rato": 0.25}),
        "method": said(mm_processor_kwargs={"compressor": "fastv"}),
        "frames": said(media_io_kwargs={"video": {"num_frames": -1}}),
        "own pruning": said(video_pruning_rate=0.5),
        "rule": said(hf_overrides={"cacovid_positions": "theirs"}),
        "pipeline": said(pipeline_parallel_size=2),
        "tower adapters": said(enable_lora=True, enable_tower_connector_lora=True),
        "no backbone": said("policy"),
    }


def planned(family: str, folder: Path) -> dict[str, Any]:
    """For how many frames of a video memory is planned, by the server's own settings."""
    import in_engine.engines  # noqa: F401  sets vLLM up
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    write_checkpoint(family, folder)

    def processor(max_model_len: int = 16_384, **reading: Any) -> Any:
        usual = dict(dtype="float32", max_model_len=max_model_len, block_size=32, media_io_kwargs={"video": reading})
        config = EngineArgs(str(folder), hf_overrides=LONG, **usual).create_engine_config()
        return MULTIMODAL_REGISTRY.create_processor(config.model_config)

    def frames(made: Any) -> int:
        length = made.info.ctx.model_config.max_model_len
        (video,) = made.get_dummy_inputs(length, {"video": 1}, {}).mm_data_items["video"]
        return len(video[0] if isinstance(video, tuple) else video)

    made = processor(num_frames=40)
    item = made.get_dummy_mm_inputs({"video": 1})["mm_kwargs"]["video"][0]
    shape = item["video_grid_thw" if family == "qwen2_5_vl" else "pixel_values_videos"].data
    return {
        "frames": {count: frames(processor(num_frames=count)) for count in (2, 12, 40)},
        "steps": int(shape[0]) if family == "qwen2_5_vl" else len(shape),
        "little room": frames(processor(max_model_len=64, num_frames=40)),
        "another loader": frames(processor(num_frames=40, video_backend="opencv")),
    }


LONG = {"text_config": {"max_position_embeddings": 16_384}}
CHUNKS = dict(max_num_batched_tokens=40, max_num_seqs=3)
SCENARIOS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "parity": parity,
    "squeezed": squeezed,
    "policy_alone": policy_alone,
    "refused_starts": refused_starts,
    "planned": planned,
    "other_rule": other_rule,
    "known_videos": known_videos,
    "adapter": adapter,
    "stock_checkpoint": stock_checkpoint,
    "no_prefix_cache": variant({"enable_prefix_caching": False}),
    "chunks": variant(CHUNKS),
    "compiled": variant({"enforce_eager": False}),
    "light": variant({}, policy_type="light"),
    "causal": variant({}, policy_attention="causal"),
    "bidirectional": variant({}, policy_attention="bidirectional"),
    "kept_float32": lambda family, folder: kept_tokens(family, folder, "float32"),
    "kept_bfloat16": lambda family, folder: kept_tokens(family, folder, "bfloat16"),
}
# With VLLM_ENABLE_V1_MULTIPROCESSING=1 the variants run in a process of the engine's own.

if __name__ == "__main__":
    scenario, family, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    print(json.dumps(SCENARIOS[scenario](family, folder)))
