"""What a request asks for: how much of each video stays, and by which method."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..compressors import CaCoVid
from ..policies.settings import PolicySettings
from ..ratio import keeps_all, numbers, resolve
from ..utils.values import shown
from .methods import check_served

RATIO, METHOD = "retention_ratio", "compressor"
NAMES = (RATIO, METHOD)
"""What of `mm_processor_kwargs` is ours."""
SCOPE = "videos_kwargs"
"""Where else names may stand in it: videos are hashed with the keyword arguments of this scope."""
OURS = "cacovid"
"""With this begin the names under which the plugin hands on what is asked."""
_NEAR = 0.8


@dataclass(frozen=True)
class Asked:
    """A prompt whose videos are to be compressed.

    Attributes:
        method: name of a served method.
        ratios: one per video, in (0, 1].
        prompt: token ids with one placeholder per image and video.
        digests: vLLM's own hashes by modality, which do not know of the prompt.
    """

    method: str
    ratios: tuple[float, ...]
    prompt: tuple[int, ...] = ()
    digests: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def reads_question(self) -> bool:
        """Whether what stays depends on the text of the prompt."""
        return self.method == CaCoVid.name

    def identity(self, video_token: int) -> tuple[Any, ...]:
        """Return what the encoder's output for the prompt's media depends on.

        A method that is blind to the question knows the prompt up to its last video alone, so that questions behind it share the cache of keys and values.
        """
        seen = self.prompt if self.reads_question else self.prompt[: last_index(self.prompt, video_token) + 1]
        return self.method, self.ratios, seen, self.digests


def last_index(prompt: Sequence[int], token: int) -> int:
    """Where a token stands last; -1 if nowhere."""
    return max((place for place, found in enumerate(prompt) if found == token), default=-1)


def check_kwargs(given: Mapping[str, Any]) -> None:
    """Refuse `mm_processor_kwargs` by which something else is meant than they do: vLLM drops names that it does not know.

    Raises:
        ValueError: ours in the wrong place or mistyped, names that the plugin keeps for itself, or no names at all.
    """
    for place, inner in (("mm_processor_kwargs", given), (SCOPE, given.get(SCOPE))):
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise ValueError(f"{place}={shown(inner)} is not an object: give names and values.")
        for name in inner:
            if name in NAMES and place == SCOPE:
                raise ValueError(f"{SCOPE} has {name}: give it beside {SCOPE}.")
            if name not in NAMES and (near := difflib.get_close_matches(name.lower(), NAMES, 1, _NEAR)):
                raise ValueError(f"{place} has {shown(name)}: did you mean {near[0]}?")
            if name.startswith(OURS):
                raise ValueError(f"{place} has {shown(name)}, which is the plugin's own: leave it out.")


def check_ours_alone(given: Mapping[str, Any]) -> None:
    """Refuse settings of the stock processor in a request: vLLM looks at none of them, and its engine ends where the model does not fit.

    Raises:
        ValueError: naming the first.
    """
    if others := [name for name in given if name not in NAMES]:
        raise ValueError(
            f"mm_processor_kwargs has {shown(others[0])}, and a request may give {' and '.join(NAMES)} alone: leave it out, "
            "or start the server with --hf-overrides '{\"cacovid_request_sizes\": true}'."
        )


def asked_of(
    request: Mapping[str, Any], server: Mapping[str, Any], settings: PolicySettings | None, num_videos: int
) -> Asked | None:
    """Return what is asked for; None if all tokens stay.

    Args:
        request: its `mm_processor_kwargs`.
        server: those of the server, which count where the request says nothing.
        settings: of the checkpoint's policy; None if it has none.
        num_videos: of the prompt.

    Raises:
        ValueError: a ratio or a method that is not served.
    """
    found = {name: request.get(name, server.get(name)) for name in NAMES}
    method = found[METHOD]
    if method is not None:
        method = check_served(method, settings is not None)
    ratios = numbers(
        resolve(found[RATIO], settings or PolicySettings(), num_videos),
        "retention_ratio='auto' is not served by vLLM, which counts tokens before it sees the video: give a number in (0, 1].",
    )
    if not num_videos or keeps_all(ratios):
        return None
    return Asked(method or check_served(CaCoVid.name, settings is not None), ratios)


def check_prompt(
    prompt: Sequence[int], placeholders: Mapping[int, str], asked: Asked, settings: PolicySettings | None
) -> None:
    """Refuse prompts that cannot be compressed.

    Args:
        prompt: token ids with one placeholder per image and video.
        placeholders: modality by placeholder id.
        asked: what is to be done.
        settings: of the checkpoint's policy, if there is one.

    Raises:
        ValueError: the prompt ends inside a video, or does not hold what the policy reads.
    """
    if prompt and placeholders.get(prompt[-1]) == "video":
        raise ValueError(
            "The prompt ends inside a video, and the answer is read at its last token: put the question behind the video."
        )
    if not asked.reads_question or settings is None:
        return
    media = sum(token in placeholders for token in prompt)
    if settings.policy_attention in ("causal", "bidirectional") and media > 1:
        raise ValueError(
            f"The prompt has {media} images and videos, and a policy with policy_attention={settings.policy_attention!r} reads them all, of which vLLM "
            "shows one at a time. Ask about one video, or use a policy with 'question'."
        )
    if media == len(prompt) and settings.policy_attention != "none":
        raise ValueError("The prompt has no text, and the policy reads nothing else: add the question.")
