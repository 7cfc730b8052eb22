"""What the tests of sweeps share: a small run, the same as a command, and what of a run must not change."""

import json

from cacovid_hf.evaluation.sweep import Settings

METHODS, RATIOS = ("cacovid", "uniform"), (1.0, 0.25, 0.02)
BASE = Settings(methods=METHODS, ratios=RATIOS, limit=18, batch_size=6, seed=5)
COMMAND = [
    "evaluate",
    "--method",
    "cacovid,uniform",
    "--ratio",
    "1.0,0.25,0.02",
    "--limit",
    "18",
    "--batch-size",
    "6",
    "--seed",
    "5",
]


def settings(**changes) -> Settings:
    return Settings(**{**vars(BASE), **changes})


def answers(run, folder):
    """Whatever must not depend on the machine or on what was run before: figures and responses of every cell."""
    return {
        (c["dataset"]["name"], c["method"]["label"], c["retention_ratio"]): (
            c["score"],
            c["outcomes"],
            c["kept_tokens"],
            [json.loads(line)["response"] for line in (folder / c["log"]).read_text().splitlines()],
        )
        for c in run["cells"]
    }
