"""Calls on compressed prompts: what a backbone and its policy do together, whoever holds them.

`CaCoVidForConditionalGeneration` is one holder; the code that a checkpoint carries for stock models is another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._compat import CACHE, cache_of, drop_cache, with_cache_name
from ..backbones import Backbone, backbone_family
from ..backbones.base import FRAMES_PER_CHUNK
from ..compressors import CaCoVid, Check, Compressor, resolve_compressor
from ..policies.base import Policy
from ..prompt import CompressedPrompt, EncodedVideos, Prompt, gather, kept_indices
from ..ratio import AutoBudget, Ratio, keeps_all, retention_ratios, with_auto
from .inputs import check_windows, embedding_arguments, stock_attention_mask, take_embedding_arguments
from .long_video import check_frames_per_chunk, collect
from .stock import (
    REFUSED_ARGUMENTS,
    check_generation,
    check_generation_inside,
    effective_settings,
    generate_compressed,
)
from .turns import cached_length, compress_turn, forget, is_recorded, record


class Compressing:
    """`compress` and `generate` of whatever holds a backbone, a policy and settings.

    Attributes:
        backbone: a stock model of a supported family.
        policy: made for it.
        config: has `retention_ratio`, the `auto_` settings, `contribution_share`, `frame_cap` and `scope` (see `CaCoVidConfig`).
    """

    backbone: Any
    policy: Policy
    config: Any

    @property
    def family(self) -> Backbone:
        """How prompts of this backbone are laid out."""
        return backbone_family(self.backbone.config)

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
            retention_ratio: fraction of each video's tokens kept, one number or one a video (in prompt order, row by row); `"auto"` keeps
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
        method = self.resolve_compressor(compressor)
        if encoded_videos is not None:
            inputs = self._with_encoded(encoded_videos, inputs)
        prompt, check = self._compress(input_ids, attention_mask, retention_ratio, method, inputs)
        check.settle()
        return prompt

    def _compress(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        retention_ratio: "Ratio | Sequence[Ratio] | None",
        method: Compressor,
        inputs: dict[str, Any],
    ) -> tuple[CompressedPrompt, Check]:
        """As `compress`; what only a device knows to be wrong is left to the check, lest the host wait for it."""
        ratio = self._ratio(retention_ratio)
        check_windows(self.backbone.config, input_ids.shape[1])
        method.check(self, retention_ratios(ratio, len(self.family.grids(self.backbone.config, inputs))))
        prompt = self.embed(input_ids, attention_mask, with_tower_attention=method.reads_tower, **inputs)
        return self._cut(prompt, ratio, method)

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
        self._check_inputs(inputs)
        if attention_mask is None:
            attention_mask = stock_attention_mask(input_ids, self.backbone.generation_config)
        if encoded_videos is not None:
            if with_tower_attention:
                raise ValueError(
                    "What the vision tower attended to is not known of encoded videos: give the pixels, or choose a method that does not read it."
                )
            inputs = self._with_encoded(encoded_videos, inputs)
        layout = self.family.layout(self.backbone.config, input_ids, attention_mask, inputs)
        return self.family.embed(
            self.backbone, layout, input_ids, attention_mask, inputs, with_tower_attention=with_tower_attention
        )

    def compress_prompt(
        self,
        prompt: Prompt,
        *,
        retention_ratio: "Ratio | Sequence[Ratio] | None" = None,
        compressor: "str | Compressor | None" = None,
    ) -> CompressedPrompt:
        """Drop video tokens of prompts that are embedded already; arguments, result and errors as in `compress`."""
        check_windows(self.backbone.config, prompt.input_ids.shape[1])
        shorter, check = self._cut(prompt, self._ratio(retention_ratio), self.resolve_compressor(compressor))
        check.settle()
        return shorter

    def _cut(self, prompt: Prompt, ratio: Any, method: Compressor) -> tuple[CompressedPrompt, Check]:
        layout = prompt.layout
        found = method.compress(prompt, self, retention_ratios(ratio, len(layout.videos)))
        check = Check(method.name, found.videos, found.budgets)
        if not check.waits:
            check.settle()
        keeps = [video.keep for video in found.videos]
        indices = kept_indices(layout, keeps, found.budgets).to(prompt.input_ids.device)
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
        self._check_inputs(inputs)
        method = self.resolve_compressor(compressor)
        if attention_mask is None:
            attention_mask = stock_attention_mask(input_ids, self.backbone.generation_config)
        if encoded_videos is not None:
            inputs = self._with_encoded(encoded_videos, inputs)
        layout = self.family.layout(self.backbone.config, input_ids, attention_mask, inputs)
        lengths = layout.valid.sum(dim=1).tolist()
        ratios = retention_ratios(self._ratio(retention_ratio), len(layout.videos))
        for span, ratio in zip(layout.videos, ratios, strict=True):
            budget = None if isinstance(ratio, AutoBudget) else method.budget(span, ratio)
            if budget is None:
                raise ValueError(
                    f"How many tokens compressor {method.name!r} keeps at retention_ratio={retention_ratio!r} is decided by the video's content: give a number "
                    "as retention_ratio, and a method that keeps to it."
                )
            lengths[span.row] -= span.num_tokens - budget
        return lengths

    @torch.no_grad()
    def encode_videos(
        self,
        *,
        frames_per_chunk: int | None = FRAMES_PER_CHUNK,
        device: "torch.device | str | None" = None,
        **inputs: Any,
    ) -> EncodedVideos:
        """Run the vision tower once, for any number of prompts: `generate(**inputs_without_pixels, encoded_videos=encoded)`.

        Args:
            frames_per_chunk: so many frames (Qwen2.5-VL: temporal steps of two) of a video go through the tower at a time, which bounds its
                memory; None: all of them. Both towers look at one at a time, so the features are the same up to rounding.
            device: where the features are to wait, such as `"cpu"`; None: where they are made. They take `N * D` numbers in the
                model's dtype.
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
        chunks = family.encode(self.backbone, inputs, frames_per_chunk)
        sizes = [t * h * w + family.trailing_tokens for t, h, w in grids]
        settings = {n: torch.as_tensor(inputs[n]) for n in family.video_settings if inputs.get(n) is not None}
        return EncodedVideos(tuple(grids), collect(chunks, sizes, device), settings)

    def _check_inputs(self, inputs: dict[str, Any]) -> None:
        if unknown := sorted(set(inputs) - embedding_arguments(self.backbone)):
            raise ValueError(
                f"{', '.join(unknown)} is no input of {type(self.backbone).__name__}: give what the processor returned, and check for typos."
            )

    def _with_encoded(self, encoded: EncodedVideos, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a call whose videos are encoded."""
        if given := [name for name in self.family.video_inputs if inputs.get(name) is not None]:
            raise ValueError(
                f"The videos are given twice, as encoded_videos and as {', '.join(given)}: leave out the pixels."
            )
        return {**inputs, **encoded.inputs, "encoded_videos": encoded}

    def _ratio(self, retention_ratio: Any) -> Any:
        """What a call asks for, the config's default, or everything."""
        config = self.config
        if retention_ratio is None:
            retention_ratio = 1.0 if config.retention_ratio is None else config.retention_ratio
        return with_auto(retention_ratio, AutoBudget(config.auto_floor, config.auto_cap, config.auto_threshold))

    def _drops_nothing(self, retention_ratio: Any, input_ids: Tensor | None, inputs: dict[str, Any]) -> bool:
        """Whether a call is the backbone's own: everything kept, or no video in it."""
        if isinstance(retention_ratio, (list, tuple, np.ndarray)) or (
            isinstance(retention_ratio, Tensor) and retention_ratio.ndim
        ):
            retention_ratios(self._ratio(retention_ratio), len(self.family.video_grids(self.backbone.config, inputs)))
        if self.family.is_padded(inputs):
            return False  # the stock forward takes clips of one length
        if keeps_all(self._ratio(retention_ratio)):
            return True
        if any(inputs.get(name) is not None for name in self.family.video_inputs):
            return False
        return input_ids is None or not bool((input_ids == self.backbone.config.video_token_id).any())

    def stock_generate(self, **arguments: Any) -> Any:
        """The backbone's own `generate`."""
        return self.backbone.generate(**arguments)

    def resolve_compressor(self, compressor: "str | Compressor | None") -> Compressor:
        """A method by name or instance; None and `"cacovid"` are the policy with the config's settings."""
        if compressor is None or compressor == CaCoVid.name:
            return CaCoVid(self.config.contribution_share, self.config.frame_cap, self.config.scope)
        return resolve_compressor(compressor)

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
        kwargs = with_cache_name(kwargs)
        arguments = {**kwargs, **{name: value for name, value in named.items() if value is not None}}
        for source in (generation_config, self.backbone.generation_config):
            if retention_ratio is None:  # servers pass on a generation config and nothing else
                retention_ratio = getattr(source, "retention_ratio", None)
        method = self.resolve_compressor(compressor)
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        cache = kwargs.get(CACHE)
        straight = encoded_videos is None and not is_recorded(cache)
        if straight and self._drops_nothing(retention_ratio, input_ids, kwargs):
            return self.stock_generate(**arguments)
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("The prompt is given twice, as the first argument and as input_ids: give one of them.")

        settings = effective_settings(self.backbone, generation_config, kwargs)
        check_generation(settings, arguments)
        if method.inside_llm:
            check_generation_inside(method.name, settings, arguments)
        if input_ids is None:
            raise ValueError("input_ids are missing: pass everything that the processor returned.")
        check_windows(self.backbone.config, input_ids.shape[1] + (settings.max_new_tokens or 0))
        attention_mask = arguments.pop("attention_mask", None)
        if attention_mask is None:
            attention_mask = stock_attention_mask(input_ids, settings)
        for name in ("inputs", "input_ids", "generation_config", *REFUSED_ARGUMENTS):  # what is refused may be None
            arguments.pop(name, None)
        inputs_of_prompt = take_embedding_arguments(self.backbone, arguments)
        if encoded_videos is not None:
            inputs_of_prompt = self._with_encoded(encoded_videos, inputs_of_prompt)
        how: dict[str, Any] = dict(retention_ratio=retention_ratio, compressor=method)
        check: Check | None = None
        if cached_length(cache):
            prompt = compress_turn(self, cache, input_ids, attention_mask, inputs_of_prompt, **how)
        else:
            prompt, check = self._compress(input_ids, attention_mask, retention_ratio, method, inputs_of_prompt)
        if cache is not None:
            forget(cache)
        with method.inside(self, prompt, retention_ratios(self._ratio(retention_ratio), len(prompt.videos))):
            outputs = generate_compressed(
                self.backbone,
                self.stock_generate,
                prompt,
                input_ids,
                settings,
                generation_config,
                arguments,
                check,
                method.inside_llm,
            )
        if method.inside_llm:
            # Nothing can go on from a cache whose layers differ in length.
            if not isinstance(outputs, Tensor):
                drop_cache(outputs)
            return outputs
        sequences = outputs if isinstance(outputs, Tensor) else outputs.sequences
        if not isinstance(outputs, Tensor):
            cache = cache_of(outputs)
        if cache is not None:
            forget(cache)
            if (settings.num_beams or 1) == 1:
                record(cache, prompt, sequences, input_ids.shape[1])
        return outputs
