"""MARC's frame merging: the two neighbouring frames most alike become one, again and again (ICLR 2026, arXiv 2510.07915)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..prompt import Prompt, VideoSpan
from ..utils.tensors import to_device_async
from .base import CompressibleModel, Compressor, Merged, Scores
from .prior import check_prior, frame_values, prior_scores
from .tools.counts import apportion
from .tools.segments import frame_slices, segment_lengths
from .tools.tokens import top_tokens


@dataclass(frozen=True)
class Marc(Compressor):
    """Merge neighbouring frames, token by token, until as many are left as the budget holds; blind to the question unless `clips` is set.

    Published: two neighbouring frames are as alike as the mean cosine of their tokens at the same places. The most alike become their plain mean, first
    within clips, then over the whole video.
    Derived by us: the split between the two steps and the length of a window are not known. Within clips, merging goes on until these have frames in
    proportion to their lengths, at least one each, and the window is the clip. A merged frame stands at the last of its frames.
    Departures: clips are segments of like frames instead of a network's shots, and the budget is exact. What it holds beyond whole frames are tokens of the
    frame that the last merge ended, those that it changes most. A budget below one frame takes the places farthest from the frame's mean.

    With `clips` only the clips that matter to the question are merged, and the others go. The paper decides that by two networks of their own. Here it is
    the clips with the most tokens a frame that the policy's own selection would keep, or with the most attention a frame. Further clips join them where these
    hold too few tokens.

    Args:
        clips: how many (published: 3); None: all of the video.
        clips_by: `"cacovid"` or `"attention"`, for `clips` alone.
        min_clips: at least so many clips.
        threshold: cosine of neighbouring frames below which a clip ends.
    """

    clips: int | None = None
    clips_by: str = "cacovid"
    min_clips: int = 8
    threshold: float = 0.9

    name = "marc"

    def __post_init__(self):
        check_prior(self.clips_by, "clips_by")
        if self.clips is not None and (
            isinstance(self.clips, bool) or not isinstance(self.clips, int) or self.clips < 1
        ):
            raise ValueError(f"clips={self.clips!r}: give a whole number of clips, at least 1, or None for all.")
        if self.min_clips < 1:
            raise ValueError(f"min_clips={self.min_clips!r} must be at least 1.")

    @property
    def uses_policy(self) -> bool:  # type: ignore[override]
        """If it chooses the clips."""
        return self.clips is not None and self.clips_by == "cacovid"

    @property
    def is_blind(self) -> bool:
        """If no clips are chosen."""
        return self.clips is None

    def score(self, prompt: Prompt, model: CompressibleModel) -> list[Scores | None]:
        """Those that clips are chosen by."""
        return super().score(prompt, model) if self.clips is None else prior_scores(self.clips_by, prompt, model)

    def select_at(
        self, prompt: Prompt, span: VideoSpan, scores: Scores | None, retention_ratio: float, budget: int | None
    ) -> Merged:
        """`merge_frames`, of the chosen clips alone if there are some; which ones is read back from the device once."""
        if budget is None:
            raise ValueError("MARC keeps an exact number of tokens: give one.")
        features = prompt.video_features(span).float()
        lengths = segment_lengths(features.mean(1), self.min_clips, self.threshold)
        if self.clips is None:
            return merge_frames(features, lengths, budget)
        if scores is None:
            raise ValueError("MARC chooses clips by scores, and there are none: call `score` first.")
        values = frame_values(scores, retention_ratio, budget)
        chosen = best_clips(values, lengths, self.clips, -(-budget // span.tokens_per_frame))
        frames = torch.cat([torch.arange(*frame_slices(lengths)[clip].indices(span.num_frames)) for clip in chosen])
        part = merge_frames(features[frames], [lengths[clip] for clip in chosen], budget)
        keep = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
        keep[frames], features[frames] = part
        return Merged(keep, features)


def best_clips(frame_scores: Tensor, lengths: list[int], count: int, least_frames: int) -> list[int]:
    """Return the clips with the highest mean score of a frame, and further ones until they hold enough frames.

    Args:
        frame_scores: `(T,)`, larger = rather chosen.
        lengths: of the clips, in frames.
        count: how many clips, or all of them if there are fewer.
        least_frames: frames that they hold at least.

    Returns:
        Their numbers in order of time; read back from the device, once. At ties the earlier clip wins.
    """
    means = torch.stack([frame_scores[frames].double().mean() for frames in frame_slices(lengths)])
    order = means.sort(descending=True, stable=True).indices.tolist()
    while count < len(order) and sum(lengths[clip] for clip in order[:count]) < least_frames:
        count += 1
    return sorted(order[:count])


@torch.no_grad()
def merge_frames(features: Tensor, lengths: list[int], budget: int) -> Merged:
    """Merge neighbouring frames until `budget // P` are left, at least one, and keep `budget` tokens.

    Args:
        features: `(T, P, D)`.
        lengths: of the clips, in frames; they are merged within first.
        budget: tokens kept, in [1, T * P].

    Returns:
        A merged frame stands at the place of its last.
    """
    features = features.float()
    steps, size = features.shape[:2]
    whole = max(1, budget // size)
    in_clips = apportion(torch.tensor(lengths), max(whole, len(lengths)), torch.tensor(lengths), least=1)
    chain = _Chain(features, lengths, [n - left for n, left in zip(lengths, in_clips.tolist(), strict=True)])
    within = steps - int(in_clips.sum())
    for step in range(steps - whole):
        chain.merge(within_clips=step < within)
    keep = chain.there[:-1, None].expand(-1, size).clone()
    out = chain.frames[:-1]
    if budget < size:
        last = out[-1]
        keep[-1] = top_tokens((last - last.mean(0)).norm(dim=-1), budget)
    elif budget > whole * size:
        # The frame that the last merge ended, as it was: nothing has been written to its place since.
        keep.index_copy_(0, chain.ended, top_tokens(chain.changed, budget - whole * size)[None])
    return Merged(keep, out)


class _Chain:
    """Frames that are merged with their neighbours, without reading back from the device which.

    One place more than there are frames stands for "none" at both ends.

    Args:
        features: float32 `(T, P, D)`.
        lengths: of the clips.
        merges: how many merges there are within each.
    """

    def __init__(self, features: Tensor, lengths: list[int], merges: list[int]):
        device, count = features.device, len(features)
        places = torch.arange(count + 1, device=device)
        self.frames = torch.cat([features, features.new_zeros(1, *features.shape[1:])])
        self.there = places < count
        self.following = (places + 1).clamp(max=count)
        self.preceding = torch.where(places > 0, places - 1, count)
        sizes = torch.tensor([*lengths[:-1], lengths[-1] + 1])
        self.clip = to_device_async(torch.arange(len(lengths)).repeat_interleave(sizes), device)
        self.merges = to_device_async(torch.tensor(merges), device)
        likeness = cosine_similarity(features[:-1], features[1:], dim=-1).mean(1)
        nothing = likeness.new_full((2,), -torch.inf)
        self.likeness = torch.cat([likeness, nothing])  # to the following frame
        self.ended = places[:1]
        self.changed = features.new_zeros(features.shape[1])

    def merge(self, within_clips: bool) -> None:
        """Merge the two neighbours most alike, of two in one clip that still has merges to come if `within_clips`."""
        likeness = self.likeness
        if within_clips:
            allowed = (self.clip == self.clip[self.following]) & (self.merges[self.clip] > 0)
            likeness = likeness.masked_fill(~allowed, -torch.inf)
        first = likeness.argmax(0, keepdim=True)
        second, before = self.following[first], self.preceding[first]
        after = self.following[second]
        one, two = self.frames[first], self.frames[second]
        both = (one + two) / 2
        self.ended, self.changed = first, (one - two).norm(dim=-1)[0]
        self.frames.index_copy_(0, second, both)
        self.there.index_fill_(0, first, False)
        self.following.index_copy_(0, before, second)
        self.preceding.index_copy_(0, second, before)
        self.merges.index_add_(0, self.clip[first], torch.full_like(first, -1))
        self.likeness.index_fill_(0, first, -torch.inf)
        self._compare(before, second)
        self._compare(second, after)

    def _compare(self, first: Tensor, second: Tensor) -> None:
        likeness = cosine_similarity(self.frames[first], self.frames[second], dim=-1).mean(1)
        end = len(self.frames) - 1
        self.likeness.index_copy_(0, first, likeness.masked_fill((first == end) | (second == end), -torch.inf))
