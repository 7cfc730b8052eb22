"""Markdown tables from result files.

python -m studies.table studies/results/*.json
"""

import sys
from typing import Any

from benchmarks.table import device, main


def budget_table(record: dict[str, Any]) -> list[str]:
    """Rows: rules; columns: accuracy by ratio, then the paired difference to the baseline, in percent with standard errors."""
    results, ratios = record["results"], record["config"]["ratios"]
    cells = {(row["rule"], row["retention_ratio"]): row for row in results}

    def percent(rule: str, name: str, error: str, sign: str) -> str:
        rows = [cells[rule, ratio] for ratio in ratios]
        return " | ".join(f"{100 * row[name]:{sign}.1f} ± {100 * row[error]:.1f}" for row in rows)

    heads = [f"{100 * ratio:g} %" for ratio in ratios]
    lines = [f"| rule | {' | '.join(heads + heads)} |", "|---" * (2 * len(ratios) + 1) + "|"]
    for rule in dict.fromkeys(row["rule"] for row in results):
        accuracy = percent(rule, "accuracy", "standard_error", "")
        lines.append(f"| {rule} | {accuracy} | {percent(rule, 'difference', 'standard_error_of_difference', '+')} |")
    questions = record["config"]["num_questions"]
    return [f"{questions} fresh questions; accuracy, then its difference to the rule `tokens`, in %:", "", *lines]


def rollouts_table(record: dict[str, Any]) -> list[str]:
    """Rows: ways to run rollouts, one step from the next."""
    lines = ["| rollouts | samples an hour | against the published way |", "|---|---|---|"]
    lines += [
        f"| {row['way']} | {row['samples_per_hour']:.0f} | {row['times_the_published']:.2f}x |"
        for row in record["results"]
    ]
    config = record["config"]
    rollouts = f"{config['iterations']} iterations of {config['token_rollouts']} token and {config['frame_rollouts']} frame rollouts a sample"
    return [f"{rollouts}, {device(record)}, seconds of the processor.", "", *lines]


def search_table(record: dict[str, Any]) -> list[str]:
    """Rows: samplers under an untrained and a trained policy; the best reward of so many draws, and what a search finds."""
    draws = sorted({row["best_of"] for row in record["results"] if "best_of" in row})
    cells = {
        (row["policy"], row["method"], row["best_of"]): f"{row['mean']:.3f} ± {row['standard_error']:.3f}"
        for row in record["results"]
        if "best_of" in row
    }
    lines = [
        "| policy | sampler | " + " | ".join(f"best of {n}" for n in draws) + " |",
        "|---" * (len(draws) + 2) + "|",
    ]
    for policy, method in dict.fromkeys(key[:2] for key in cells):
        lines.append(f"| {policy} | {method} | " + " | ".join(cells[policy, method, n] for n in draws) + " |")
    searched = [row for row in record["results"] if row["method"] == "beam search"]
    found = ", ".join(
        f"{row['mean']:.3f} ± {row['standard_error']:.3f} with {row['tokens_at_most']}" for row in searched
    )
    return [f"{record['config']['num_questions']} questions; beam search finds {found} tokens at most.", "", *lines]


def before_after_table(record: dict[str, Any]) -> list[str]:
    """Rows: what was timed; medians in ms of both commits, and their ratios."""
    lines = ["| what | before, ms | after, ms | least | median | paired |", "|---|---|---|---|---|---|"]
    for rows in record["results"].values():
        for row in rows:
            ratio, medians = row["ratio"], [f"{row[side]['median']:.3g}" for side in ("before", "after")]
            paired = f"{ratio['paired']:.2f}x" if "paired" in ratio else ""
            lines.append(
                f"| {row['name']} | {' | '.join(medians)} | {ratio['min']:.2f}x | {ratio['median']:.2f}x | {paired} |"
            )
    commits = " and ".join(commit[:7] for commit in record["commits"].values())
    return [f"{commits}, {record['config']['rounds']} rounds.", "", *lines]


def accuracy_table(record: dict[str, Any]) -> list[str]:
    """Rows: trainings; columns: accuracy by ratio, in percent with standard errors."""
    rows = record["rows"]
    ratios = next(iter(rows.values()))["ratios"]
    heads = [ratio if ratio == "auto" else f"{100 * float(ratio):.2g} %" for ratio in ratios]
    lines = [f"| trained | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, row in rows.items():
        cells = (f"{100 * one['accuracy']:.1f} ± {100 * one['standard_error']:.1f}" for one in row["ratios"].values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [f"{record['config']['questions']} fresh questions, accuracy in %.", "", *lines]


TABLES = {
    "before_after": before_after_table,
    "budget_study": budget_table,
    "residual_study": accuracy_table,
    "rollouts": rollouts_table,
    "search_study": search_table,
}


if __name__ == "__main__":
    main(sys.argv[1:], TABLES)
