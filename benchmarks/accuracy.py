"""Accuracy of the embedded tiny model by method and retention ratio, on fresh questions about fresh clips: one JSON.

python benchmarks/accuracy.py --num-questions 1000
"""

import argparse
import time
from pathlib import Path

import torch
from record import RESULTS, command, environment, write_result
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors import CaCoVid, Random, Uniform
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.accuracy import answer_accuracy

METHODS = {
    "cacovid": None,  # with the settings of the checkpoint
    "cacovid, published selection": CaCoVid(0.5, scope="frame"),
    "cacovid, frame budgets": CaCoVid(1.0, scope="frame"),
    "cacovid, tokens": CaCoVid(1.0, scope="tokens"),
    "cacovid, whole video": CaCoVid(contribution_share=1.0, scope="video"),
    "uniform": Uniform(),
    "random": Random(),
}
NOTES = [
    "A right answer is the right first word; standard errors are binomial over the questions, of one trained policy.",
    "The settings shipped with the checkpoint were chosen before this was measured, not by it.",
]


def main(arguments: list[str] | None = None) -> Path:
    """Measure and write; returns the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_path(), help="a checkpoint around a tiny model")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.15, 0.1, 0.05, 0.02])
    parser.add_argument("--num-questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the clips and questions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--commit", help="of the code, where git does not know it")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    record = environment(options.commit, torch.device("cpu"))
    model = CaCoVidForConditionalGeneration.from_pretrained(options.model)
    processor = AutoProcessor.from_pretrained(options.model)
    cells = [(None, 1.0)] + [(name, ratio) for name in options.methods for ratio in options.ratios]
    results = []
    for name, ratio in cells:
        start = time.perf_counter()
        measured = answer_accuracy(
            model,
            processor,
            num_questions=options.num_questions,
            seed=options.seed,
            retention_ratio=ratio,
            compressor=METHODS[name] if name else None,
        )
        results.append(
            {
                "method": name or "all tokens",
                "retention_ratio": ratio,
                "accuracy": measured.accuracy,
                "standard_error": measured.standard_error,
                "by_kind": measured.by_kind,
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(
            f"{name or 'all tokens':22} {ratio:5.2f}  {measured.accuracy:6.1%} ± {measured.standard_error:.1%}",
            flush=True,
        )
    record |= {
        "benchmark": "accuracy",
        "command": command(),
        "config": {
            "model": "embedded" if options.model == model_path() else str(options.model.name),
            "policy_trained": model.config.policy_trained,
            "policy_attention": model.config.policy_attention,
            "contribution_share": model.config.contribution_share,
            "scope": model.config.scope,
            "num_questions": options.num_questions,
            "seed": options.seed,
        },
        "notes": NOTES,
        "results": results,
    }
    return write_result(options.output, "accuracy_tiny", record)


if __name__ == "__main__":
    print(main())
