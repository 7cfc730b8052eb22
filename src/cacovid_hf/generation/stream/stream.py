"""`VideoStream`: frames are fed without an end, questions are asked at any time, and memory stays within its bound."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backbones import BACKBONES
from ...compressors.base import Compressor
from ...video.live import is_live, live_frames
from ..wrapped import AnsweringModel
from . import saving
from .features import FeatureMemory
from .files import frames_of_file, pictures_of, timed
from .groups import Memory
from .intake import Intake
from .keys import KeyValueMemory
from .prompts import Frame, words_of
from .questions import checked_arguments
from .settings import StreamSettings, is_count
from .steps import Before, Step

_ANY = "What is shown?"


class VideoStream:
    """A video without an end; made by `model.stream(...)`.

    Any number of streams may share a model, each from a thread of its own. One thread may feed a stream while others ask: a question reads a snapshot, so that it
    neither changes nor delays what is stored.

    Args:
        model: a wrapped model.
        processor: of the model, reading files.
        settings: of the stream.

    Attributes:
        settings: of the stream.
    """

    def __init__(self, model: AnsweringModel, processor: Any, settings: StreamSettings):
        family, config = model.family, model.backbone.config
        if family.words_around_frames or family.extra_width(config) or family.looked_up:
            raise ValueError(
                f"A stream of a {config.model_type!r} model is not supported, whose prompts have words between frames or features beside the embeddings. "
                f"Supported are {', '.join(one.model_type for one in BACKBONES.values() if not one.words_around_frames)}."
            )
        self.model, self.processor, self.settings = model, processor, settings
        standing = [words_of(model, processor, question) for question in settings.standing]
        self._intake = Intake(model, processor.video_processor, settings, standing)
        # What stands in front of the video is the same for every question.
        self._words = words_of(model, processor, _ANY)
        # An iterable that is fed may itself feed or reset: every frame reads the state anew.
        self._feeding, self._changing = threading.RLock(), threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything; the stream begins anew.

        An iterable that is being fed may call it between two of its pictures. From another thread it waits for the end of a `feed`.
        """
        with self._feeding, self._changing:
            self._before = Before()
            self._frame: Frame | None = None
            self._memory: Memory | None = None

    # ---------------------------------------------------------------- feeding

    def feed(self, frames: Any, timestamps: Any = None) -> int:
        """Take frames in: each goes through the vision tower as it comes, and what is kept of it is stored.

        Args:
            frames: a picture uint8 `(H, W, 3)` or of PIL, several `(n, H, W, 3)`, a path or address of a file (sampled at the stream's `fps`), a live address (until it ends, see `cacovid_hf.video.live`), or an iterable of pictures. Frames
                of another size than the first are scaled to it.
            timestamps: seconds of the pictures, one each (a number for a single picture), not before the last one's; None: `1 / fps` apart. Not with a file, whose frames
                have their times, counted on from the end of what came before.

        Returns:
            How many frames came in.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not pictures, an address that does not answer, times that go back or are not one each, or a memory that holds no frame.
        """
        count = 0
        with self._feeding:
            for picture, seconds in self._timed(frames, timestamps):
                self._feed(picture, seconds)
                count += 1
        return count

    def _feed(self, picture: np.ndarray, seconds: float | None) -> None:
        if seconds is None:
            last = self._before.last
            seconds = 0.0 if last is None else last + 1 / self.settings.fps
        before = self._intake.accept(self._before, picture, seconds)
        if not self._intake.is_complete(before):
            with self._changing:
                self._before = before
            return
        before, step, frame = self._intake.take(before, self._frame)
        memory = self._memory or self._new_memory(frame)
        group = memory.stored(step, memory.groups.items)
        # At once: between the two, a question or a saved file would have the step twice.
        with self._changing:
            memory.groups.add(group)
            self._before, self._frame, self._memory = before, frame, memory

    def _new_memory(self, frame: Frame) -> Memory:
        if self.settings.memory == "kv":
            return KeyValueMemory(self.model, self.settings, frame, self._words)
        return FeatureMemory(self.model, self.settings, frame)

    def _timed(self, frames: Any, timestamps: Any) -> Iterator[tuple[np.ndarray, float | None]]:
        if isinstance(frames, (str, os.PathLike)):
            if timestamps is not None:
                raise ValueError("A file has the times of its frames: leave out timestamps.")
            last = self._before.last
            begin = 0.0 if last is None else last + 1 / self.settings.fps
            address = os.fspath(frames)
            read = live_frames if is_live(address) else frames_of_file
            for picture, seconds in read(address, self.settings.fps):
                yield picture, begin + seconds
            return
        yield from timed(pictures_of(frames), timestamps)

    # ---------------------------------------------------------------- asking

    def ask(
        self,
        question: str,
        *,
        num_tokens: int | None = None,
        compressor: "str | Compressor | None" = None,
        **kwargs: Any,
    ) -> Any:
        """Answer a question about all that was seen so far, from what the memory holds of it.

        Args:
            question: in words.
            num_tokens: video tokens that the language model reads; None: as the settings say.
            compressor: of a memory of features, how they are chosen; None: as the settings say.
            **kwargs: for `generate`, such as `max_new_tokens`.

        Returns:
            The answer; a list of answers with `num_return_sequences` over 1.

        Raises:
            ValueError: there was no frame yet, an empty question, or settings out of range.
        """
        ids = self.generate(question, num_tokens=num_tokens, compressor=compressor, **kwargs)
        texts = [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
        return texts if len(texts) > 1 else texts[0]

    @torch.no_grad()
    def generate(
        self,
        question: str,
        *,
        num_tokens: int | None = None,
        compressor: "str | Compressor | None" = None,
        **kwargs: Any,
    ) -> Tensor:
        """Answer as `ask` does, with the new tokens alone, `(sequences, n)`."""
        arguments = checked_arguments(self.model, self.settings.memory, kwargs)
        words = words_of(self.model, self.processor, question)
        budget = self.settings.tokens_per_question if num_tokens is None else num_tokens
        if not is_count(budget):
            raise ValueError(f"num_tokens={budget!r}: give a whole number of tokens to read, at least 1.")
        memory, groups = self._snapshot()
        method = self.settings.compressor if compressor is None else compressor
        return memory.answer(words, groups, int(budget), method, arguments)

    def _snapshot(self) -> tuple[Memory, list[Any]]:
        """Return the memory and its groups as they are now; frames of a step that is not complete come last, for this question alone."""
        with self._changing:
            before, frame, memory = self._before, self._frame, self._memory
            groups = [] if memory is None else memory.groups.items
        if not before.num_frames:
            raise ValueError("The stream has no frame yet, so there is nothing to ask about: feed at least one.")
        if before.waiting:
            _, step, frame = self._intake.take(before, frame)
            memory = memory or self._new_memory(frame)
            groups = [*groups, memory.stored(step, groups)]
        assert memory is not None
        return memory, groups

    # ---------------------------------------------------------------- saving

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory and the state to one safetensors file, to go on with later (`model.load_stream`).

        Raises:
            ValueError: settings with an instance of a method, which a file cannot hold.
            OSError: the file cannot be written.
        """
        with self._changing:
            before, frame, memory = self._before, self._frame, self._memory
            groups = [] if memory is None else memory.groups.items
            made_room = 0 if memory is None else memory.groups.made_room
        described = saving.described_state(before, frame, made_room)
        described |= {"settings": self.settings.as_dict(), "model": self._model_size()}
        saving.write(Path(path), described, saving.tensors_of(before, frame, groups))

    @classmethod
    def load(cls, path: str | os.PathLike, model: AnsweringModel, processor: Any, device: Any = None) -> "VideoStream":
        """Load a saved stream, to be fed and asked as if it had never been put away.

        Args:
            path: of the file.
            model: a wrapped model, the one that the stream was made with.
            processor: of the model, reading files.
            device: where the memory lies from now on, such as `"cpu"`; None: as it was saved.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a saved stream, a damaged one, one of a model of another family or size, or a device that is not there.
        """
        described, tensors = saving.read(Path(path))
        with saving.whole(Path(path)):
            settings = dict(described["settings"]) | ({} if device is None else {"device": device})
            stream = cls(model, processor, StreamSettings(**settings))
            if described["model"] != stream._model_size():
                raise ValueError(
                    f"It was made with a model of {described['model']}, and this one is of {stream._model_size()}: load it with the same model."
                )
            stream._restore(described, tensors)
        return stream

    def _restore(self, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take on what was saved."""
        like = self.model.backbone.get_input_embeddings().weight
        before, frame, parts = saving.state_of(described, tensors, self._intake.per_step, self._intake.frame_of, like)
        memory = None
        if frame is not None:
            memory = self._new_memory(frame)
            count = self.settings.tokens_of(frame.size)
            nothing = Step(0, 0.0, like.new_zeros(count, like.shape[1]), torch.arange(count), torch.zeros(count))
            groups = saving.groups_of(parts, memory.stored(nothing, []).parts, before.num_steps, frame.size)
            where = self.settings.device or like.device
            memory.groups.restore([memory.group_of(part, where) for part in groups], described["made_room"])
        self._before, self._frame, self._memory = before, frame, memory

    def _model_size(self) -> list[Any]:
        config = self.model.backbone.config
        text = config.get_text_config()
        return [config.model_type, text.hidden_size, text.num_hidden_layers]

    # ---------------------------------------------------------------- what is held

    @property
    def num_frames(self) -> int:
        """Frames that came in, the ones that have left the memory among them."""
        return self._before.num_frames

    @property
    def num_groups(self) -> int:
        """Groups of tokens that the memory holds."""
        return len(self._groups())

    @property
    def num_resized(self) -> int:
        """Frames that had another size than the first and were scaled to it."""
        return self._before.resized

    def memory_bytes(self) -> int:
        """Return the bytes that the memory takes now, scales, places and times included; never over `max_memory`.

        Beside it a stream holds one step of state, see `state_bytes`.
        """
        memory = self._memory
        return 0 if memory is None else memory.num_bytes

    def state_bytes(self) -> int:
        """Return the bytes beside the memory: the last step's features, the frames of a step that is not complete, and `standing` prompts about one frame."""
        before = self._before
        features = 0 if before.features is None else before.features.nbytes
        return features + sum(picture.nbytes for picture in before.waiting) + self._intake.standing_bytes()

    def frame_numbers(self) -> list[int]:
        """Return the frame (temporal step) of every token that the memory holds, in order."""
        return [number for group in self._groups() for number in group.frames.tolist()]

    def held(self) -> list[tuple[float, float, int]]:
        """Return what the memory holds: for each group the seconds of its first and last frame, and how many tokens."""
        return [(float(g.seconds[0]), float(g.seconds[1]), len(g.places)) for g in self._groups()]

    def _groups(self) -> list[Any]:
        # Read once: another thread may reset the stream.
        memory = self._memory
        return [] if memory is None else memory.groups.items
