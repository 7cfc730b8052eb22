"""Learning what single tokens contribute, from a few rollouts a sample that every later pass over the data uses again (ours)."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from ..policies.base import PolicyOutput
from ..utils.files import replaced
from .batches import BatchHeader, sample_generator
from .learner import Learner
from .replay import BatchMemory, VideoMemory
from .resuming import TOKEN_VALUES
from .rollouts import select_subsets
from .token_values import TokenValues, draw_among_likely, ranking_loss, token_values

logger = logging.get_logger(__name__)


class ContributionRanking(Learner):
    """Measures the tokens that the policy finds likely when it first meets a sample, and learns their order then and in all later passes.

    What was measured is kept by the sample's place in the dataset, in all processes and in checkpoints. Samples of a stream have no place, and are
    measured in every pass. A sample that comes back with another number of tokens is measured again.
    """

    def __init__(self, *of_all: Any):
        super().__init__(*of_all)
        self._known: dict[int | None, TokenValues] = {}
        self._unshared: dict[int | None, TokenValues] = {}  # of these, what other processes have not been told

    def begin(self, checkpoint: str | None) -> None:
        """Forget what was measured on other samples, or go on with what a checkpoint knows."""
        self._known, self._unshared = {}, {}
        if checkpoint is None:
            return
        file = Path(checkpoint, TOKEN_VALUES)
        if file.is_file():
            self._known |= _read(file)
        else:
            logger.warning(f"{checkpoint} has no {TOKEN_VALUES}. Its samples are measured again.")

    def share(self) -> None:
        """Tell the other processes what was measured."""
        if self.args.world_size > 1:
            for measured in gather_object([self._unshared]):
                self._known |= measured
        self._unshared = {}

    def save(self, checkpoint: Path) -> None:
        """Write what is known, one row of `samples`, `counts` and `sizes` for each sample, the tokens and values of all behind each other."""
        known = {index: values for index, values in self._known.items() if index is not None}
        none = TokenValues(torch.zeros(0, dtype=torch.long), torch.zeros(0), 0)
        tensors = {
            "samples": torch.tensor([*known], dtype=torch.long),
            "counts": torch.tensor([len(one.tokens) for one in known.values()], dtype=torch.long),
            "sizes": torch.tensor([one.size for one in known.values()], dtype=torch.long),
            "tokens": torch.cat([one.tokens for one in (none, *known.values())]),
            "values": torch.cat([one.values for one in (none, *known.values())]),
        }
        file = checkpoint / TOKEN_VALUES
        with replaced(file) as temporary:
            try:
                save_file(tensors, temporary)
            except SafetensorError as error:
                raise OSError(f"{file} cannot be written ({error}). Free disk space, and resume.") from error

    def losses(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Return how far the scores are from the measured order, one loss per video."""
        if header.iteration == 0:
            self.measure(memory, header)
        losses = []
        for video, output in zip(memory.videos, outputs, strict=True):
            generator = sample_generator(self.args.seed, header, video.number, "ranking")
            losses.append(ranking_loss(output, video.measured, self.args.least_value, generator=generator))
            self.note(ranking_loss=losses[-1], score_spread=output.token_scores.std(correction=0))
        return losses

    @torch.no_grad()
    def measure(self, memory: BatchMemory, header: BatchHeader) -> None:
        """Give every video the values of its likely tokens: those that are known, or else what the backbone answers from subsets."""
        keeps: list[Tensor] = []
        likely: list[Tensor | None] = []
        for video in memory.videos:
            scores = video.old.token_scores
            if self._is_known(video):
                keeps.append(torch.zeros(0, scores.numel(), dtype=torch.bool, device=scores.device))
                likely.append(None)
                continue
            generator = sample_generator(self.args.seed, header, video.number, "rollouts")
            masks, found = draw_among_likely(scores, video.ratio, self.args.num_token_rollouts, generator=generator)
            keeps.append(masks.flatten(1))  # (G, N)
            likely.append(found)
        groups = self._rewards(memory, keeps).split([*map(len, keeps)])
        for video, keep, tokens, group in zip(memory.videos, keeps, likely, groups, strict=True):
            if tokens is None:
                video.measured = self._known[video.index]
                continue
            video.measured = token_values(keep, group, tokens).to("cpu")
            if video.index is not None:
                self._known[video.index] = self._unshared[video.index] = video.measured
            values = video.measured.values
            self.note(reward=group.mean(), greedy_reward=group[0], sampling_ratio=video.ratio)
            self.note(misleading=(values < -self.args.least_value).float().mean(), zero_variance=not group.var().item())

    def _is_known(self, video: VideoMemory) -> bool:
        known = self._known.get(video.index)
        return known is not None and known.size == video.old.token_scores.numel()

    def _rewards(self, memory: BatchMemory, keeps: list[Tensor]) -> Tensor:
        """Return what the answers from all subsets of all videos earn, `(R,)`."""
        if not any(map(len, keeps)):
            return torch.zeros(0)
        prompts, rows = select_subsets(memory.prompt, keeps)
        questions = [memory.videos[row].question for row in rows.tolist()]
        return self.examiner.reward(self.examiner.answer(prompts, questions), questions)


def _read(file: Path) -> dict[int | None, TokenValues]:
    tensors = load_file(file)
    counts = tensors["counts"].tolist()
    parts = zip(
        tensors["tokens"].split(counts), tensors["values"].split(counts), tensors["sizes"].tolist(), strict=True
    )
    return {index: TokenValues(*part) for index, part in zip(tensors["samples"].tolist(), parts, strict=True)}
