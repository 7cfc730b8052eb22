"""Many questions about the same videos: the vision tower runs once, then each question chooses its own video tokens, or all share one choice and the
cache of the language model.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache

from .._compat import CACHE, cache_of, with_cache_name
from ..compressors.base import Compressor, Scores
from ..prompt import EncodedVideos, Prompt, VideoSpan
from ..ratio import one_per_video
from ..utils.chat import ids_of_texts
from .cache_record import CacheRecord
from .inputs import asked_ratio, effective_settings, embedding_arguments
from .wrapped import AnsweringModel


@dataclass(frozen=True, eq=False)
class KeptBefore(Compressor):
    """The choice of an earlier prompt with the same videos.

    Args:
        keeps: bool `(T, P)` of every video, in order.
    """

    keeps: tuple[Tensor, ...]

    name: ClassVar[str] = "kept before"
    exact_count = False
    count_rule = "as the earlier prompt"

    @property
    def part(self) -> float:
        """Of all tokens, those kept."""
        return sum(int(keep.sum()) for keep in self.keeps) / sum(keep.numel() for keep in self.keeps)

    def select(self, prompt: Prompt, span: VideoSpan, scores: Scores | None, budget: int | None) -> Tensor:
        """Return the same tokens."""
        number = next(i for i, video in enumerate(prompt.layout.videos) if video is span)
        return self.keeps[number].to(prompt.inputs_embeds.device)


class VideoSession:
    """Questions about videos that are encoded already; made by `model.session(...)`.

    A session belongs to one caller at a time; any number of sessions may share a model, which knows of none.

    Args:
        model: a wrapped model.
        encoded: the videos, from `model.encode_videos`.
        processor: of the model, for `ask`.
        keep_selection: choose video tokens for the first prompt alone. Later prompts keep that choice, and what they have in common with the prompt
            before stays in the cache. One prompt at a time then.
        conversation: whether later questions of `ask` see the earlier ones and their answers.
        retention_ratio: as in `generate`, where a call does not say otherwise.
        compressor: as in `generate`, where a call does not say otherwise.

    Attributes:
        encoded: the videos.
        messages: the conversation so far, as chat messages.
        cache: with `keep_selection`, the cache of the last prompt and its answer; else None.
    """

    def __init__(
        self,
        model: AnsweringModel,
        encoded: EncodedVideos,
        processor: Any = None,
        *,
        keep_selection: bool = False,
        conversation: bool = False,
        retention_ratio: "float | Sequence[float] | None" = None,
        compressor: "str | Compressor | None" = None,
    ):
        self.model = model
        self.encoded = encoded
        self.processor = processor
        self.keep_selection = keep_selection
        self.conversation = conversation
        self.settings = {"retention_ratio": retention_ratio, "compressor": compressor}
        self.messages: list[dict[str, Any]] = []
        self.cache: DynamicCache | None = None
        self._sequence: Tensor | None = None
        self._kept: KeptBefore | None = None
        self._choice: dict[str, Any] = {}

    def reset(self) -> None:
        """Forget the questions, the choice of tokens and the cache; the videos stay encoded."""
        self.messages = []
        self.cache = self._sequence = self._kept = None

    # ---------------------------------------------------------------- words

    def ask(self, question: "str | Sequence[str]", **kwargs: Any) -> Any:
        """Answer a question about the videos, or several at once, each in a prompt of its own.

        Args:
            question: one, or a list, which is answered as one batch (not in a conversation, and not with `keep_selection`).
            **kwargs: for `generate`, such as `max_new_tokens` or `retention_ratio`.

        Returns:
            The answer, or a list of them; with `num_return_sequences` over 1, a list in the place of each answer, the first of which a conversation
            goes on from.

        Raises:
            ValueError: an empty question, no processor, or several questions where one prompt follows the other.
        """
        if not isinstance(question, Sequence):
            raise ValueError(f"A question is a {type(question).__name__}: give a text, or a list of texts.")
        questions = [question] if isinstance(question, str) else list(question)
        if not questions or not all(isinstance(words, str) and words.strip() for words in questions):
            raise ValueError("The question is empty: ask something about the video.")
        if self.conversation and len(questions) > 1:
            raise ValueError(
                "Several questions at once have no order: ask them one by one, or without conversation=True."
            )
        chats = [self._chat(words) for words in questions]
        prompt = self.prompt(chats)
        outputs = self.generate(**prompt, **kwargs)
        sequences = outputs if isinstance(outputs, Tensor) else outputs.sequences
        made = sequences[:, prompt["input_ids"].shape[1] :]
        words = [text.strip() for text in self.processor.batch_decode(made, skip_special_tokens=True)]
        each = len(words) // len(questions)
        answers: list[Any] = [words[i : i + each] if each > 1 else words[i] for i in range(0, len(words), each)]
        if self.conversation:
            answer = {"role": "assistant", "content": [{"type": "text", "text": words[0]}]}
            self.messages = [*chats[0], answer]
        return answers[0] if isinstance(question, str) else answers

    def prompt(self, chats: "list[list[dict[str, Any]]]") -> dict[str, Tensor]:
        """Turn chats with the session's videos into what `generate` takes: `input_ids` and `attention_mask`, `(B, L)` padded on the left, and token types.

        Args:
            chats: one list of messages a row; a `{"type": "video"}` without a path stands for each video, in order.
        """
        if self.processor is None:
            raise ValueError(
                "Questions in words need a processor: give one to `session`, or use `generate` with token ids."
            )
        config, tokenizer = self.model.backbone.config, self.processor.tokenizer
        texts = [self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        if self.model.family.words_around_frames:
            texts = [self._with_words(text) for text in texts]
        rows = ids_of_texts(tokenizer, texts)
        if not self.model.family.words_around_frames:
            rows = [self._with_placeholders(row, self.model.family.video_token_id(config)) for row in rows]
        longest = max(map(len, rows))
        pad = tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        prompt = {"input_ids": ids, "attention_mask": mask}
        if "mm_token_type_ids" in embedding_arguments(self.model.backbone, self.model.family):
            is_video, _ = self.model.family.places(config, ids, {})
            prompt["mm_token_type_ids"] = 2 * (is_video & mask.bool()).long()
        device = self.model.backbone.get_input_embeddings().weight.device
        return {name: value.to(device) for name, value in prompt.items()}

    def _chat(self, question: str) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        earlier = self.messages if self.conversation else []
        if not earlier:
            content = [{"type": "video"} for _ in range(len(self.encoded))] + content
        return [*earlier, {"role": "user", "content": content}]

    def _with_placeholders(self, row: list[int], video: int) -> list[int]:
        """Ids with one placeholder a video to ids with one per token, as the processor makes them."""
        self._check_count(row.count(video))
        trailing = self.model.family.trailing_tokens
        counts = iter([t * h * w + trailing for t, h, w in self.encoded.grids])
        return [token for word in row for token in ([video] * next(counts) if word == video else [word])]

    def _with_words(self, text: str) -> str:
        """Return a chat's text with one placeholder a video to the processor's: the words around its frames, and a placeholder a token."""
        first, *rest = text.split(self.processor.video_token)
        self._check_count(len(rest))
        if self.encoded.metadata is None and self.model.family.words_have_times:
            raise ValueError(
                "The times of the videos' frames are not known, and the prompt needs them: give the file, or the processor's video_metadata beside "
                "the pixels (return_metadata=True)."
            )
        for number, part in enumerate(rest):
            settings = {name: rows[[number]] for name, rows in self.encoded.inputs.items()}
            inputs = self.model.family.inputs_of_words(settings, self.encoded.grids[number])
            if self.encoded.metadata is not None:
                # The processor writes into it.
                inputs["video_metadata"] = [copy.deepcopy(self.encoded.metadata[number])]
            first += self.processor.words_of_video(inputs, number) + part
        return first

    def _check_count(self, found: int) -> None:
        if found != len(self.encoded):
            raise ValueError(
                f"The chat has {found} video placeholders, the session {len(self.encoded)} video(s): name each of them once, in order."
            )

    # ---------------------------------------------------------------- tokens

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate as `model.generate` does, with the videos already encoded.

        Args:
            input_ids: `(B, L)`, prompts that each hold the session's videos, in order, as the processor lays them out.
            attention_mask: `(B, L)`, 0 at padding.
            **kwargs: as for `model.generate`; the processor's inputs of the videos may be among them, and are not looked at.

        Raises:
            ValueError: placeholders that are not those of the session's videos; with `keep_selection`, several prompts, beams or sequences,
                a cache of the caller's, or another ratio or method than the choice was made with.
        """
        kwargs = self.model.family.without_videos(kwargs)
        for name, value in self.settings.items():
            if kwargs.get(name) is None:
                kwargs[name] = value
        configs = (kwargs.get("generation_config"), self.model.backbone.generation_config)
        kwargs["retention_ratio"] = asked_ratio(kwargs["retention_ratio"], *configs)
        each = one_per_video(kwargs["retention_ratio"])
        if each is not None:
            kwargs["retention_ratio"] = each * len(input_ids) if len(each) == len(self.encoded) else each
        kwargs["encoded_videos"] = self.encoded.take(list(range(len(self.encoded))) * len(input_ids))
        if not self.keep_selection:
            return self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        return self._generate_on(input_ids, attention_mask, kwargs)

    def _generate_on(self, input_ids: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> Any:
        """One prompt, with the choice of the first and the cache of the one before as far as they agree."""
        kwargs = with_cache_name(kwargs)
        settings = effective_settings(self.model.backbone, kwargs.get("generation_config"), kwargs)
        for name, value, off in (
            (CACHE, kwargs.get(CACHE), None),
            ("cache_implementation", settings.cache_implementation, None),
            ("num_beams", settings.num_beams, 1),
            ("num_return_sequences", settings.num_return_sequences, 1),
        ):
            if value not in (None, off):
                raise ValueError(
                    f"{name}={value!r} does not go with keep_selection=True, which holds the cache of one sequence: leave it out, or make a session "
                    "without."
                )
        if len(input_ids) != 1:
            raise ValueError(
                f"keep_selection=True holds the cache of one prompt, and {len(input_ids)} are given: ask one by one, or make a session without."
            )
        choice = {name: kwargs[name] for name in self.settings}
        if self._kept is not None:
            for name, value in choice.items():
                if value != self._choice[name]:
                    raise ValueError(
                        f"{name}={value!r} comes after the tokens were chosen with {name}={self._choice[name]!r}, and keep_selection=True keeps that choice: "
                        "call reset() first, or make a session without."
                    )
            kwargs |= {"compressor": self._kept, "retention_ratio": self._kept.part}
        cache = self._usable_cache(input_ids)
        if cache is not None:
            kwargs["retention_ratio"] = ()  # what is new has no video
        # A call that fails leaves a cache of unknown contents.
        self.cache = self._sequence = None
        if cache is None:
            cache = DynamicCache(config=self.model.backbone.config.get_text_config(decoder=True))
        kwargs |= {CACHE: cache, "return_dict_in_generate": True}
        outputs = self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        left = cache_of(outputs)
        record = CacheRecord.of(left)
        if record is not None:
            if self._kept is None:
                self._kept, self._choice = KeptBefore(self._keeps(input_ids, kwargs, record.places[0])), choice
            self.cache, self._sequence = left, outputs.sequences[0]
        return outputs if settings.return_dict_in_generate else outputs.sequences

    def _usable_cache(self, input_ids: Tensor) -> DynamicCache | None:
        """Return the cache, cut back to what the prompt before has in common with this one; None if that does not hold the videos."""
        cache, before = self.cache, self._sequence
        record = None if cache is None else CacheRecord.of(cache)
        if cache is None or before is None or record is None:
            return None
        now = input_ids[0].to(before)
        length = min(len(now) - 1, len(before), record.num_places)
        differs = (now[:length] != before[:length]).nonzero()
        common = int(differs[0]) if len(differs) else length
        if bool(self.model.family.places(self.model.backbone.config, now[None], {})[0][:, common:].any()):
            return None
        stays = int((record.places[0] < common).sum())
        if stays < record.places.shape[1]:
            cache.crop(stays - record.places.shape[1])
        return cache

    def _keeps(self, input_ids: Tensor, inputs: dict[str, Any], places: Tensor) -> tuple[Tensor, ...]:
        """Which tokens of each video are among the kept places."""
        mask = torch.ones_like(input_ids)
        spans = self.model.family.layout(self.model.backbone.config, input_ids, mask, inputs).videos
        return tuple(
            torch.isin(span.positions, places.cpu()).view(span.num_frames, span.tokens_per_frame) for span in spans
        )
