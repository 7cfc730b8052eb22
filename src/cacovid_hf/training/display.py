"""What a training shows while it runs: a bar with curves on a terminal, lines elsewhere, and a word where it learns nothing."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 32
# In the order shown; the accuracies at the evaluation's ratios follow.
_CURVES = {
    "reward": "reward",
    "greedy_reward": "greedy reward",
    "sampling_ratio": "sampling ratio",
    "kept_ratio": "tokens kept",
    "misleading": "likely tokens that mislead",
}
_VITAL_SIGNS = ("loss", "zero_variance", "clip_fraction", "score_spread", "entropy", "skipped_samples")
_ACCURACY = "eval_accuracy_at_"


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """Return a curve of at most `width` characters, from its smallest to its largest value; means where there are more values."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(place * len(values) / width) for place in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def concerns(logs: dict[str, float]) -> list[str]:
    """Return what in the figures of a log says that the policy learns nothing, or will soon fall apart."""
    found = []
    holds = "" if "ranking_loss" in logs else "raise kl_weight or "  # which contributions do not have
    if logs.get("zero_variance", 0.0) > 0.9:
        found.append(
            "over 90 % of the samples give equal rewards in all rollouts, so that nothing is learnt from them: take harder or easier questions "
            "(blind-filter), another sampling_ratio, or reward: probability"
        )
    if logs.get("entropy", 1.0) < 0.05:
        found.append("the policy is all but certain of every token and tries nothing new: raise kl_weight")
    if logs.get("clip_fraction", 0.0) > 0.5:
        found.append(
            "most choices are stopped by the clip: lower the learning rate, or take fewer iterations on a sample"
        )
    if logs.get("score_spread", 0.0) > 20.0:
        found.append(f"the scores grow large: {holds}lower the learning rate")
    return found


class TrainingDisplay(TrainerCallback):
    """Shows a training on a console.

    Args:
        console: where; stderr if None. If that is no terminal, each log is a line.
    """

    def __init__(self, console: Console | None = None):
        self.console = Console(stderr=True) if console is None else console
        self.curves: dict[str, list[float]] = defaultdict(list)
        self.latest: dict[str, float] = {}
        self._said: set[str] = set()
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        )
        self._task = self._progress.add_task("steps")

    def on_train_begin(self, args, state, control, **kwargs):
        """Start, with the curves of the run that is resumed."""
        self.curves.clear()
        for entry in state.log_history:
            self._note(entry)
        if state.is_world_process_zero and self.console.is_terminal:
            self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
            self._live = Live(self._picture(), console=self.console, refresh_per_second=4)
            self._live.start()

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Draw the new figures, or print them."""
        if not state.is_world_process_zero or not logs:
            return
        self._note(logs)
        if self._live is not None:
            self._live.update(self._picture())
        elif shown := {name: value for name, value in logs.items() if self._is_shown(name)}:
            figures = "  ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in shown.items())
            self.console.print(f"step {state.global_step} of {state.max_steps}  {figures}", soft_wrap=True)
        for concern in concerns(logs):
            if concern not in self._said:
                self._said.add(concern)
                self.console.print(f"step {state.global_step}: {concern}", style="yellow", soft_wrap=True)

    def on_train_end(self, args, state, control, **kwargs):
        """Leave the last picture."""
        self.stop()

    def stop(self) -> None:
        """Give the terminal back, also where training ended by an error; a second call does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _is_shown(self, name: str) -> bool:
        return name in _CURVES or name in _VITAL_SIGNS or name.startswith(_ACCURACY)

    def _note(self, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            if self._is_shown(name):
                self.curves[name].append(value)
                self.latest[name] = value

    def _picture(self) -> Group:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        accuracies = {name: f"accuracy at {name.removeprefix(_ACCURACY)}" for name in self.curves if _ACCURACY in name}
        for name, title in (_CURVES | accuracies).items():
            if values := self.curves.get(name):
                table.add_row(title, sparkline(values), f"{values[-1]:.3g}")
        signs = [f"{name} {self.latest[name]:.3g}" for name in _VITAL_SIGNS if name in self.latest]
        return Group(self._progress, table, TextLine("  ".join(signs)))


class TextLine:
    """One line that is cut at the console's width."""

    def __init__(self, text: str):
        self.text = text

    def __rich_console__(self, console, options):
        yield self.text[: options.max_width]
