"""vLLM in this process or its own, on a CPU, as small as it gets; asked and compared."""

import os

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
)
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from in_engine.cases import NEW_TOKENS, Case
from vllm import LLM, SamplingParams


def start(folder: Path | str, **settings: Any) -> LLM:
    """An engine."""
    usual = dict(
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        block_size=32,
        limit_mm_per_prompt={"image": 1, "video": 2},
    )
    return LLM(str(folder), **{**usual, **settings})


def ask(llm: LLM, family: str, cases: Sequence[Case], new_tokens: int = NEW_TOKENS) -> list[dict[str, Any]]:
    """The answers of several cases, sent together."""
    return answers(llm, [case.request(family) for case in cases], new_tokens)


def answers(llm: LLM, requests: Sequence[Any], new_tokens: int = NEW_TOKENS, **how: Any) -> list[dict[str, Any]]:
    """The answers of several requests, sent together."""
    sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    outputs = llm.generate(requests, sampling, use_tqdm=False, **how)
    return [{"tokens": list(output.outputs[0].token_ids), "length": len(output.prompt_token_ids)} for output in outputs]


def rounds(
    llm: LLM, family: str, cases: Sequence[Case], expected: Sequence[dict[str, Any]], alone: int = 6
) -> dict[str, Any]:
    """Ask the first cases alone, then all together, then in another order; count what equals the expected answers."""
    numbers = list(range(len(cases)))
    orders = [[number] for number in numbers[:alone]] + [numbers, numbers[5::-1] + numbers[:5:-1]]
    wrong: list[Any] = []
    asked = 0
    for order in orders:
        for number, answer in zip(order, ask(llm, family, [cases[n] for n in order]), strict=True):
            asked += 1
            if answer != expected[number]:
                wrong.append({"case": number, "together": len(order), "got": answer, "expected": expected[number]})
    return {"asked": asked, "same": asked - len(wrong), "wrong": wrong}
