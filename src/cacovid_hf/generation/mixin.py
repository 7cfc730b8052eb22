"""Calls on compressed prompts: what a backbone and its policy do together, whoever holds them.

`CaCoVidForConditionalGeneration` is one holder; the code that a checkpoint carries for stock models is another.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._compat import CACHE, cache_of, drop_cache, with_cache_name
from ..backbones.base import FRAMES_PER_CHUNK, Backbone
from ..backbones.loaded import taking_embeddings
from ..compressors import Check, Compressor, resolve_compressor
from ..policies.base import Policy
from ..prompt import CompressedPrompt, EncodedVideos, Prompt, gather, kept_indices
from ..ratio import AutoBudget, Ratio, resolve
from .cache_record import CacheRecord, remember_turn
from .call import PreparedCall, complete_inputs, prepare_call, prompt_inputs, ratios_unless_stock
from .inputs import asked_ratio, cached_length, check_length, effective_settings, without_own_inputs
from .long_video import check_frames_per_chunk, join_chunks
from .refused import check_generation, without_prompt
from .stock import generate_compressed
from .turns import compress_turn


class CompressedGenerationMixin:
    """`compress` and `generate` of whatever holds a backbone, a policy and settings.

    Attributes:
        backbone: a stock model of a supported family.
        policy: made for it.
        config: has `retention_ratio`, `keep_frame_words`, the `auto_` settings, `contribution_share`, `frame_cap` and `scope` (see `CaCoVidConfig`).
    """

    backbone: Any
    policy: Policy
    config: Any

    @property
    def family(self) -> Backbone:
        """How prompts of this backbone are laid out."""
        raise NotImplementedError(f"{type(self).__name__} does not say its family.")

    def compress(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        retention_ratio: "Ratio | Sequence[Ratio] | None" = None,
        compressor: "str | Compressor | None" = None,
        encoded_videos: EncodedVideos | None = None,
        **inputs: Any,
    ) -> CompressedPrompt:
        """Embed a batch of prompts and drop video tokens.

        Args:
            input_ids: `(B, L)`, with the video placeholders of the processor.
            attention_mask: `(B, L)`, 0 at padding on either side; None as in stock generation: padding ids are padding.
            retention_ratio: fraction of each video's tokens kept, one number or one per video (in prompt order, row by row); `"auto"` keeps
                those that score above the config's `auto_threshold`, within its bounds, an `AutoBudget` within its own; None takes the
                config's, which may be None too: keep all.
            compressor: a method's name or an instance with its settings; None is the policy with the config's settings.
            encoded_videos: the videos from `encode_videos`, in place of their pixel inputs.
            **inputs: everything else that the processor returned, and `position_ids` if the prompt has its own.

        Returns:
            What the backbone's `generate` takes, where each token stood, and the scores of each video.

        Raises:
            ValueError: placeholders that do not fit the pixel inputs, a ratio outside (0, 1], an unknown method, scores that are not finite.
        """
        call = self._prepare(input_ids, attention_mask, inputs, encoded_videos, retention_ratio, compressor)
        prompt, check = self._compress(call)
        check.settle()
        return prompt

    def _compress(self, call: PreparedCall) -> tuple[CompressedPrompt, Check]:
        """As `compress`; what only a device knows to be wrong is left to the check, so that the host does not wait for it."""
        prompt = call.inputs.embed(call.layout, call.method.reads_tower)
        return self._select(prompt, call.ratios, call.method)

    def _prepare(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        inputs: dict[str, Any],
        encoded_videos: EncodedVideos | None,
        retention_ratio: Any,
        compressor: Any,
    ) -> PreparedCall:
        """Return the arguments of `compress` as a prepared call."""
        given = complete_inputs(self, input_ids, attention_mask, inputs, encoded_videos)
        ratios = resolve(retention_ratio, self.config, given.num_videos)
        return prepare_call(self, given, self.resolve_compressor(compressor), ratios)

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        with_tower_attention: bool = False,
        encoded_videos: EncodedVideos | None = None,
        **inputs: Any,
    ) -> Prompt:
        """Embed a batch of prompts by the backbone's own forward, vision included: what `compress_prompt` cuts, again and again.

        Args:
            input_ids: `(B, L)`, with the video placeholders of the processor.
            attention_mask: `(B, L)`, 0 at padding on either side; None as in stock generation: padding ids are padding.
            with_tower_attention: also record what the vision tower attends to, for methods with `reads_tower`.
            encoded_videos: the videos from `encode_videos`, in place of their pixel inputs.
            **inputs: everything else that the processor returned, and `position_ids` if the prompt has its own.

        Raises:
            ValueError: placeholders that do not fit the pixel inputs, or an unknown input.
        """
        given = complete_inputs(self, input_ids, attention_mask, inputs, encoded_videos)
        return given.embed(given.layout(), with_tower_attention)

    def compress_prompt(
        self,
        prompt: Prompt,
        *,
        retention_ratio: "Ratio | Sequence[Ratio] | None" = None,
        compressor: "str | Compressor | None" = None,
    ) -> CompressedPrompt:
        """Drop video tokens of prompts that are embedded already; arguments, result and errors as in `compress`."""
        check_length(self.backbone.config, prompt.input_ids.shape[1])
        method = self.resolve_compressor(compressor)
        ratios = resolve(retention_ratio, self.config, len(prompt.layout.videos))
        shorter, check = self._select(prompt, ratios, method)
        check.settle()
        return shorter

    def _select(
        self, prompt: Prompt, ratios: tuple[float | AutoBudget, ...], method: Compressor
    ) -> tuple[CompressedPrompt, Check]:
        layout = prompt.layout
        found = method.compress(prompt, self, ratios)
        check = Check(method.name, found.videos, found.budgets)
        if not check.waits:
            check.settle()
        keeps = [video.keep for video in found.videos]
        indices = kept_indices(layout, keeps, found.budgets, self.config.keep_frame_words)
        indices = indices.to(prompt.input_ids.device)
        pad_token_id = self.backbone.generation_config.pad_token_id or 0
        return gather(found.prompt, indices, found.videos, pad_token_id=pad_token_id), check

    def kept_lengths(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        retention_ratio: "float | Sequence[float] | None" = None,
        compressor: "str | Compressor | None" = None,
        encoded_videos: EncodedVideos | None = None,
        **inputs: Any,
    ) -> list[int]:
        """How many positions of each prompt the language model will read, known before anything is computed: what to batch prompts by.

        With `keep_frame_words=False`, at most so many.

        The rows of a compressed batch are padded to the longest of them; prompts of like length together waste little (see
        `cacovid_hf.prompt.batches_by_length`).

        Args:
            input_ids: `(B, L)`, with the video placeholders of the processor.
            attention_mask: `(B, L)`, 0 at padding; None as in stock generation.
            retention_ratio: as in `compress`, numbers only.
            compressor: as in `compress`.
            encoded_videos: as in `compress`.
            **inputs: as in `compress`.

        Raises:
            ValueError: a number of tokens that only their scores or their content decide (`"auto"`, and some published methods), and what `compress`
                raises of inputs and ratios.
        """
        call = self._prepare(input_ids, attention_mask, inputs, encoded_videos, retention_ratio, compressor)
        lengths = call.layout.valid.sum(dim=1).tolist()
        for span, ratio in zip(call.layout.videos, call.ratios, strict=True):
            budget = None if isinstance(ratio, AutoBudget) else call.method.budget(span, ratio)
            if budget is None:
                raise ValueError(
                    f"How many tokens compressor {call.method.name!r} keeps at retention_ratio={retention_ratio!r} is decided by the video's content: "
                    "give a number as retention_ratio, and a method that keeps to it."
                )
            lengths[span.row] -= span.num_tokens - budget
        return lengths

    @torch.no_grad()
    def encode_videos(
        self,
        *,
        frames_per_chunk: int | None = FRAMES_PER_CHUNK,
        device: "torch.device | str | None" = None,
        with_tower_attention: bool = False,
        **inputs: Any,
    ) -> EncodedVideos:
        """Run the vision tower once, for any number of prompts: `generate(**inputs_without_pixels, encoded_videos=encoded)`.

        Args:
            frames_per_chunk: so many frames (temporal steps, of two where patches have two) of a video go through the tower at a time, which bounds its
                memory; None: all of them. Towers look at one at a time, so the features are the same up to rounding.
            device: where the features are to wait, such as `"cpu"`; None: where they are made. They take `N * D` numbers in the
                model's dtype.
            with_tower_attention: also keep what the vision tower attends to, for methods with `reads_tower`, brought down to tokens.
            **inputs: what the processor returned; pixels may lie on any device, and go to the model's a chunk at a time.

        Raises:
            ValueError: there are no videos among the inputs, or a chunk of less than one frame.
        """
        check_frames_per_chunk(frames_per_chunk)
        family, config = self.family, self.backbone.config
        grids = family.video_grids(config, inputs)
        if not grids:
            raise ValueError(
                "There are no videos to encode among the inputs: pass everything that the processor returned for a prompt with a video."
            )
        sizes = [t * h * w + family.trailing_tokens for t, h, w in grids]
        settings = {n: torch.as_tensor(inputs[n]) for n in family.video_settings if inputs.get(n) is not None}
        metadata = None if inputs.get("video_metadata") is None else tuple(inputs["video_metadata"])
        chunks: Iterable[Tensor]
        if not with_tower_attention:
            chunks = family.encode(self.backbone, inputs, frames_per_chunk)
            return EncodedVideos(tuple(grids), join_chunks(chunks, sizes, device), settings, metadata=metadata)
        chunks, attention = family.encode_with_attention(self.backbone, inputs, frames_per_chunk)
        tower = tuple(of_video.to(device) for of_video in attention)
        return EncodedVideos(tuple(grids), join_chunks(chunks, sizes, device), settings, tower, metadata)

    def stock_generate(self, **arguments: Any) -> Any:
        """Return the backbone's own `generate`."""
        return taking_embeddings(self.backbone).generate(**arguments)

    def resolve_compressor(self, compressor: "str | Compressor | None") -> Compressor:
        """Return a method by name or instance; None and `"cacovid"` are the policy with the config's settings."""
        return resolve_compressor(compressor, self.config)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config=None,
        logits_processor=None,
        stopping_criteria=None,
        prefix_allowed_tokens_fn=None,
        synced_gpus: bool | None = None,
        assistant_model=None,
        streamer=None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        custom_generate=None,
        *,
        retention_ratio: "Ratio | Sequence[Ratio] | None" = None,
        compressor: "str | Compressor | None" = None,
        encoded_videos: EncodedVideos | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate from the video tokens that contribute; otherwise as `generate` of the backbone.

        At ratio 1.0, or without a video in the prompt, the call goes straight to `backbone.generate`. Returned sequences start with the
        caller's prompt; streamers, stopping criteria and logits processors see it too. Attentions, hidden states and the cache that
        `return_dict_in_generate` returns are those of the compressed prompt.

        A conversation goes on as with a stock model: give the ids of all of it and the cache of the turn before as `cache`, or `past_key_values` (a
        `DynamicCache` or `StaticCache`), with the pixel inputs of the whole conversation or of the new turn. The videos of a new turn
        are compressed, with the new turn alone before the policy's eyes; what is cached stays as it is.

        Args:
            retention_ratio: fraction of each video's tokens kept, in (0, 1], `"auto"` or an `AutoBudget` (see `compress`): one, or one a
                video in prompt order. None takes `retention_ratio` of a given `generation_config`, then of the model's, then the config's default,
                which may be None too: keep all.
            compressor: a method's name or an instance with its settings; None is the policy.
            encoded_videos: the videos from `encode_videos`, in place of their pixel inputs.
            **kwargs: and the other arguments: as in transformers.

        Raises:
            ValueError: a ratio outside (0, 1], inputs that do not fit, or an argument that does not work from a compressed prompt (the
                message says which and why).
        """
        named = {
            "inputs": inputs,
            "generation_config": generation_config,
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "synced_gpus": synced_gpus,
            "assistant_model": assistant_model,
            "streamer": streamer,
            "negative_prompt_ids": negative_prompt_ids,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "custom_generate": custom_generate,
        }
        arguments = with_cache_name(kwargs) | {name: value for name, value in named.items() if value is not None}
        retention_ratio = asked_ratio(retention_ratio, generation_config, self.backbone.generation_config)
        return self._generate(arguments, retention_ratio, self.resolve_compressor(compressor), encoded_videos)

    def _generate(
        self, arguments: dict[str, Any], retention_ratio: Any, method: Compressor, encoded_videos: EncodedVideos | None
    ) -> Any:
        """`generate` of the arguments that are given, by name."""
        cache, generation_config = arguments.get(CACHE), arguments.get("generation_config")
        given = prompt_inputs(self.backbone, self.family, arguments, encoded_videos)
        later = CacheRecord.has_record(cache)  # whose ratios are of what is new alone
        ratios = () if later else ratios_unless_stock(given, retention_ratio, self.config)
        if ratios is None:
            return self.stock_generate(**without_own_inputs(given.family, arguments))
        settings = effective_settings(self.backbone, generation_config, arguments)
        goes_on = cached_length(cache) > 0
        check_generation(settings, arguments, method, given.family, self.backbone.config)

        given = given.completed(settings)
        new_tokens = settings.max_new_tokens or 0
        check: Check | None = None
        if goes_on:
            check_length(self.backbone.config, given.input_ids.shape[1] + new_tokens)
            prompt = compress_turn(self, cache, given, retention_ratio=retention_ratio, compressor=method)
        else:
            prompt, check = self._compress(prepare_call(self, given, method, ratios, new_tokens))
        if cache is not None:
            CacheRecord.mark_unknown(cache)
        with (
            given.family.handed_over(self.backbone, prompt.kept_indices, prompt.extra),
            method.inside(self, prompt, ratios),
        ):
            outputs = generate_compressed(
                self.backbone,
                given.family,
                self.stock_generate,
                prompt,
                given.input_ids,
                settings,
                generation_config,
                without_prompt(arguments, given.others),
                check,
                method.inside_llm,
            )
        left = cache if isinstance(outputs, Tensor) else cache_of(outputs)
        if not method.inside_llm:
            remember_turn(left, prompt, outputs, given.input_ids, settings)
        elif not isinstance(outputs, Tensor):
            drop_cache(outputs)  # its layers differ in length, so that nothing can go on from it
        return outputs
