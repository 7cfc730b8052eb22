"""From a conversation to the model's inputs: fetching, decoding, tokenizing, all of it in a thread and within limits."""

import contextlib
import dataclasses
import io
import threading
from collections.abc import Iterator
from typing import Any

from jinja2 import TemplateError
from transformers import BatchFeature

from cacovid_hf.utils.chat import chat_inputs
from cacovid_hf.video.addresses import AddressRules, address_rules, opened_address, shown
from cacovid_hf.video.limits import ReadingLimits, reading_limits
from cacovid_hf.video.messages import VideoAddress, follow_messages
from cacovid_hf.video.reader import settings_of

from .errors import Refused
from .interrupts import Interrupt, RequestGuard
from .limits import Limits

_SILENCE = 10.0  # seconds without a byte of a download
_CHARACTERS = 32  # a position; no tokenizer puts so many into each
_WAIT = 0.1


class Reader:
    """Makes inputs of conversations.

    Args:
        processor: of the model, reading video files.
        positions: of the model.
        limits: of the server.
    """

    def __init__(self, processor: Any, positions: int, limits: Limits):
        self.processor, self.positions, self.limits = processor, positions, limits
        self.readers, self.decoders = threading.Semaphore(limits.readers), threading.Semaphore(limits.decoders)
        self.rules = AddressRules(
            private=limits.private_addresses,
            hosts=limits.media_hosts,
            folders=limits.media_folders,
            max_bytes=limits.download,
            max_seconds=limits.reading_seconds,
            timeout=_SILENCE,
        )
        self.reading = ReadingLimits(
            max_pixels=limits.frame_pixels,
            max_picture_pixels=limits.frame_pixels,
            max_sampled_pixels=limits.held_pixels,
        )

    def read(self, conversation: list[dict[str, Any]], interrupt: Interrupt) -> BatchFeature:
        """Return the inputs of a conversation.

        Args:
            conversation: messages whose contents are lists of parts.
            interrupt: ends it.

        Raises:
            Refused: what the client can put right.
            Interrupted: the client has gone.
        """
        guard = RequestGuard(interrupt, self.limits.reading_seconds, self.limits.held_pixels)
        try:
            followed = follow_messages(conversation, bounds_refused=self.processor.video_processor.bounds_refused)
            self._check(followed)
            with self._fetched(followed, guard) as (named, contents):
                inputs = self._inputs(named, contents, guard)
        except (ValueError, OSError, TemplateError) as error:
            raise Refused(str(error), param="messages") from error
        length = inputs["input_ids"].shape[1]
        if length >= self.positions:
            raise Refused(
                f"The prompt has {length} tokens and the model {self.positions} positions for it and its answer: send a shorter one.",
                param="messages",
            )
        return inputs

    def _check(self, conversation: list[dict[str, Any]]) -> None:
        """Count and bound what a conversation has, before any of it is read."""
        parts = [part for message in conversation for part in message["content"]]
        for kind, limit in (("video", self.limits.videos), ("image", self.limits.images)):
            count = sum(part["type"] == kind for part in parts)
            if count > limit:
                raise ValueError(f"The request has {count} {kind}s, over this server's limit of {limit}.")
        characters = sum(len(part["text"]) for part in parts if part["type"] == "text")
        if characters > _CHARACTERS * self.positions:
            raise ValueError(
                f"The prompt has {characters} characters, and the model {self.positions} positions: send a shorter one."
            )
        for part in parts:
            if part["type"] == "text":
                for mark in (self.processor.video_token, self.processor.image_token):
                    if mark in part["text"]:
                        raise ValueError(f"A text holds {mark!r}, which stands for what is shown: leave it out.")
                continue
            address = part.get(part["type"])
            if not isinstance(address, str):
                given = "nothing" if address is None else f"a JSON {type(address).__name__}"
                raise ValueError(f"The address of a part of type {part['type']!r} is {given}: give a text.")
            frames = settings_of(address).num_frames
            if frames is not None and frames > self.limits.frames:
                raise ValueError(f"{frames} frames of a video are over this server's limit of {self.limits.frames}.")
            for name, value in settings_of(address).pixels.items():
                # Frames are enlarged to the smallest size, and made smaller than the largest.
                most = (
                    self.limits.held_pixels // self.limits.frames if name == "min_pixels" else self.limits.frame_pixels
                )
                if value > most:
                    raise ValueError(f"{name}={value} beside a video is over this server's limit of {most}.")

    @contextlib.contextmanager
    def _fetched(
        self, conversation: list[dict[str, Any]], guard: RequestGuard
    ) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Within the block: the conversation with names for addresses, and what each name stands for."""
        contents: dict[str, Any] = {}
        left = self.limits.download
        with contextlib.ExitStack() as files, reading_limits(self.reading, guard):
            if any(part["type"] != "text" for message in conversation for part in message["content"]):
                files.enter_context(_slot(self.readers, guard))

            def named(part: dict[str, Any]) -> dict[str, Any]:
                nonlocal left
                kind = part["type"]
                if kind == "text":
                    return part
                guard.going_on()
                address = part[kind]
                name = f"{shown(address)} ({kind} {len(contents) + 1})"
                with address_rules(dataclasses.replace(self.rules, max_bytes=left)):
                    content = contents[name] = files.enter_context(opened_address(address))
                if not isinstance(content, str):
                    left -= content.seek(0, io.SEEK_END)
                return {"type": kind, kind: VideoAddress(name, settings_of(address)) if kind == "video" else name}

            yield (
                [{**message, "content": [named(part) for part in message["content"]]} for message in conversation],
                contents,
            )

    def _inputs(self, conversation: list[dict[str, Any]], contents: dict[str, Any], guard: RequestGuard) -> Any:
        with contextlib.ExitStack() as held:
            if contents:
                held.enter_context(_slot(self.decoders, guard))
            held.enter_context(address_rules(AddressRules(private=False, hosts=(), folders=(), contents=contents)))
            return chat_inputs(self.processor, conversation)


@contextlib.contextmanager
def _slot(slots: threading.Semaphore, guard: RequestGuard) -> Iterator[None]:
    """One of the slots for the block, in which a stage of reading begins."""
    while not slots.acquire(timeout=_WAIT):
        guard.start()  # waiting for others is not its own time
        guard.going_on()
    try:
        guard.start()
        yield
    finally:
        slots.release()


def positions_of(model: Any, limits: Limits) -> int:
    """How many tokens a prompt and its answer may have together."""
    return limits.positions or model.config.get_text_config(decoder=True).max_position_embeddings
