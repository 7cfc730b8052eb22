"""`CaCoVidForConditionalGeneration`: a stock video language model with a contribution policy in front of its prefill.

Composition: `backbone` is an untouched stock model of a supported family, `policy` scores its video tokens. A prompt is embedded by the stock code,
cut down to the tokens that are kept, and handed to the backbone's own `forward` or `generate` with original positions. Nothing of a
call stays on the model.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import AutoModelForImageTextToText, Cache, GenerationMixin, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from ._compat import (
    CACHE,
    AnyAttention,
    commit_of,
    note_commit,
    trainer_smooths_labels,
    with_cache_name,
)
from .backbones import Backbone, backbone_family
from .backbones.base import FRAMES_PER_CHUNK
from .backbones.delegation import DelegatesToBackbone
from .backbones.loaded import base_model, embedding_device
from .checkpoints import loading, saving
from .compressors import Compressor
from .configuration import CaCoVidConfig
from .generation.cache_record import CacheRecord, text_step
from .generation.call import all_places, kept_labels, prepare_call, prompt_inputs, ratios_unless_stock
from .generation.inputs import (
    cached_length,
    check_length,
    forward_arguments,
    take_embedding_arguments,
    without_own_inputs,
)
from .generation.long_video import encode_file
from .generation.mixin import CompressedGenerationMixin
from .generation.output import with_places
from .generation.refused import check_forward, check_gaps, check_hidden, check_session, without_prompt
from .generation.session import VideoSession
from .generation.stream.settings import StreamSettings
from .generation.stream.stream import VideoStream
from .hub.card import CardFacts
from .hub.push import PUSH_ARGUMENTS, PushOptions, check_pushable, modified, push, upload
from .hub.source import HUB_ARGUMENTS, Source, cached_commit
from .policies.base import Policy
from .policies.factory import check_policy_size, make_policy, untrained_policy
from .policies.settings import check_policy
from .processing import processor_of, with_video_reader
from .prompt import EncodedVideos
from .ratio import Ratio, resolve
from .utils.names import check_names

logger = logging.get_logger(__name__)


class CaCoVidForConditionalGeneration(  # type: ignore[misc]
    CompressedGenerationMixin, DelegatesToBackbone, AnyAttention, PreTrainedModel, GenerationMixin
):
    """A video language model that reads only the video tokens that contribute to the answer.

    Make one with `from_backbone` around a model in memory, or `from_pretrained`.

    Args:
        config: which backbone, which policy, which defaults.
        backbone: a loaded model of a supported family; None builds one with random weights from `config.backbone_config`.
        policy: its policy; None builds one with random weights.
    """

    config_class = CaCoVidConfig
    main_input_name = "input_ids"
    input_modalities = ["video", "image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def __init__(self, config: CaCoVidConfig, backbone: PreTrainedModel | None = None, policy: Policy | None = None):
        super().__init__(config)
        backbone_family(config.backbone_config)
        if backbone is None:
            backbone = AutoModelForImageTextToText.from_config(copy.deepcopy(config.backbone_config))
        if policy is None:
            policy = make_policy(config, backbone.config)
            policy.to(device=embedding_device(backbone), dtype=backbone.dtype)
        self.backbone = backbone
        self.policy = policy
        self.all_tied_weights_keys = {
            f"backbone.{name}": f"backbone.{other}" for name, other in backbone.all_tied_weights_keys.items()
        }
        self.training = backbone.training

    @property
    def family(self) -> Backbone:
        """How prompts of this backbone are laid out."""
        return backbone_family(self.backbone.config)

    # ---------------------------------------------------------------- making one

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        policy: "Policy | str | os.PathLike | None" = None,
        **policy_options: Any,
    ) -> "CaCoVidForConditionalGeneration":
        """Wrap a model that is already in memory: any dtype, device map or quantisation, or inside a `PeftModel`.

        The model is left as it was: weights, attention setting, `requires_grad`, training mode, generation config.

        Args:
            backbone: of a supported family; of a `PeftModel` the base model, in which the adapters work.
            policy: a policy, or the folder or Hub id of a checkpoint that holds one; None makes one whose layer is initialised from
                the LLM's layer 0, or its first layer that attends (dequantised to the policy's dtype), and whose heads are random.
            **policy_options: settings of `CaCoVidConfig`, such as `policy_type`, `policy_attention`, `retention_ratio`, `contribution_share`,
                `base_model_name_or_path`.

        Raises:
            ValueError: an unsupported family, a policy for another hidden size, or a layer that `policy_type="full"` does not imitate.
        """
        known = (*loading.CONFIG_OVERRIDES, *(HUB_ARGUMENTS if isinstance(policy, (str, os.PathLike)) else ()))
        check_names(policy_options, known, f"a setting of a CaCoVid model ({', '.join(loading.CONFIG_OVERRIDES)})")
        if policy is not None and not isinstance(policy, Policy):
            return cls.from_pretrained(policy, backbone=backbone, **policy_options)
        backbone = base_model(backbone)
        backbone_family(backbone.config)
        policy_options.setdefault("base_model_name_or_path", backbone.config.name_or_path or None)
        commit = commit_of(backbone.config) or cached_commit(backbone.config.name_or_path)
        policy_options.setdefault("base_model_revision", commit)
        if policy is not None:
            for option, value in (("policy_type", policy.policy_type), ("policy_attention", policy.attention)):
                asked = policy_options.setdefault(option, value)
                if asked != value:
                    raise ValueError(
                        f"{option}={asked!r} is asked for, and the given policy has {value!r}: leave the option out."
                    )
            check_policy_size(policy.config, backbone.config)
        config = CaCoVidConfig(backbone_config=backbone.config, **policy_options)
        if policy is None:
            policy = untrained_policy(backbone, config)
        policy.train(backbone.training).to(embedding_device(backbone))
        return cls(config, backbone, policy)

    def reset_policy(self, policy_attention: str | None = None, policy_type: str | None = None) -> None:
        """Replace the policy by an untrained one, as `from_backbone` makes it.

        Args:
            policy_attention: of the new policy; None: as before.
            policy_type: likewise.

        Raises:
            ValueError: an unknown attention or type, or two that do not go together.
        """
        config: Any = self.config
        kind = config.policy_type if policy_type is None else policy_type
        attention = config.policy_attention if policy_attention is None else policy_attention
        check_policy(kind, attention)
        config.policy_type, config.policy_attention = kind, attention
        self.policy = untrained_policy(self.backbone, config).train(self.training)
        config.policy_trained = False

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: CaCoVidConfig | None = None,
        backbone: Any = None,
        **kwargs: Any,
    ) -> "CaCoVidForConditionalGeneration":
        """Load a checkpoint: the policy alone (its backbone is then loaded by id and revision), or a self-contained one.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            config: overrides the checkpoint's.
            backbone: a loaded model, or the id or folder of one, to be used instead of the checkpoint's.
            **kwargs: as in transformers. `dtype`, `device_map`, `quantization_config`, `attn_implementation` and other loading settings
                reach the backbone; `revision` and `subfolder` concern this checkpoint alone; settings of `CaCoVidConfig` override the
                checkpoint's.

        Raises:
            OSError: files that are missing.
            ValueError: weights that are not safetensors, do not fit, or a backbone of another size; loading settings for a backbone that is loaded.
        """
        source = Source.of(pretrained_model_name_or_path, kwargs).pinned()
        overrides = {name: kwargs.pop(name) for name in loading.CONFIG_OVERRIDES if name in kwargs}
        given = backbone is not None and not isinstance(backbone, (str, os.PathLike))
        if given:
            loading.check_nothing_to_load(kwargs)
        config = loading.load_config(source, config, overrides)
        # Where its processor is, too.
        config.name_or_path = source.name
        note_commit(config, source.hub.get("revision"))
        backbone_family(config.backbone_config)
        policy = loading.load_policy(source, config)
        if not given:
            backbone = loading.load_backbone(config, source, backbone, kwargs)
        backbone = base_model(backbone)
        check_policy_size(config.get_text_config(), backbone.config)
        config.backbone_config = type(backbone.config).from_dict(backbone.config.to_dict())
        policy.config = backbone.config.get_text_config()
        policy.to(device=embedding_device(backbone), dtype=backbone.dtype)
        model = cls(config, backbone, policy)
        if given:
            policy.eval()
            return model
        return model.eval()

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        *,
        include_backbone: bool = False,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        card: "CardFacts | bool" = True,
        custom_generate: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the policy with the backbone's id, or (`include_backbone=True`) both in one self-contained folder.

        The folder holds `config.json`, `model.safetensors` (keys under `policy.`), the card `README.md` and `cacovid_auto.py` (by which the Auto
        classes find this package if `trust_remote_code=True`); a self-contained one also a folder `backbone`, which is a stock checkpoint.
        Whatever kills a save over an older checkpoint, the folder holds the old one or the new one. Other files in it stay.

        Args:
            save_directory: made if missing.
            include_backbone: whether to save the backbone's weights too.
            is_main_process: false on the processes that write nothing.
            state_dict: a state dict of this model, as a trainer gathers it; only the parts that are saved are taken from it.
            push_to_hub: whether to push what was saved; `repo_id` (default: the folder's name) and the other arguments of `push_to_hub`
                are then taken from `kwargs`.
            card: what the card says beside the config (see `CardFacts`); false writes none.
            custom_generate: whether to write the code for stock models too; it then looks for its policy in `save_directory`. A push always writes it.
            **kwargs: for the backbone's own `save_pretrained`, such as `max_shard_size`.

        Raises:
            ValueError: policy-only, and the backbone has no id; or a backbone with adapters is to be included; or an evaluation that the
                card cannot quote.
            OSError: the folder cannot be written.
        """
        pushing = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        check_names(kwargs, saving.SAVING_ARGUMENTS, "an argument of save_pretrained")
        if not is_main_process:
            return
        before = {}
        if push_to_hub:
            check_pushable(self.config, include_backbone)
            before = modified(Path(save_directory))
        saving.save(
            self,
            save_directory,
            include_backbone=include_backbone,
            state_dict=state_dict,
            card=card,
            custom_generate=custom_generate,
            backbone_kwargs=kwargs,
        )
        if push_to_hub:
            folder = Path(save_directory)
            repo_id = pushing.pop("repo_id", None) or folder.resolve().name
            processor = pushing.pop("processor", None)
            facts = card if isinstance(card, CardFacts) else None
            if processor is None or processor is True:
                processor = processor_of(self.config, pushing.get("token"))
            upload(folder, repo_id, PushOptions(processor=processor, card=facts, **pushing), before)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        include_backbone: bool = False,
        processor: "ProcessorMixin | bool | None" = None,
        card: "CardFacts | None" = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] | None = None,
        **saving: Any,
    ) -> CommitInfo:
        """Push the policy, or (`include_backbone=True`) a self-contained checkpoint, with processor, card and the code for stock models.

        One commit holds the checkpoint, a second one the folder `custom_generate`, stamped with the first. What others commit meanwhile is
        kept: their changes of the card too. A push that dies leaves whole commits only, and may be repeated.

        Args:
            repo_id: `user/name` or `name`; made if missing.
            include_backbone: whether to push the backbone's weights too.
            processor: pushed along; None is the one of the checkpoint (of the revision that this model was loaded from) or of the backbone. False
                pushes none, and leaves what the repository has.
            card: what the card says beside the config (see `CardFacts`).
            commit_message: `"Upload model"` by default.
            commit_description: of the commit.
            private: of a repository that is made now.
            token: None or true is the one that huggingface_hub knows.
            revision: branch, made if missing.
            create_pr: open a pull request instead.
            tags: more tags for the card.
            **saving: for the backbone's own `save_pretrained`, such as `max_shard_size`.

        Returns:
            The commit that holds the checkpoint.

        Raises:
            ValueError: policy-only, and the backbone is only a local folder.
            huggingface_hub.errors.HfHubHTTPError: the Hub refused.
        """
        options = PushOptions(
            processor=processor_of(self.config, token) if processor is None or processor is True else processor,
            card=card,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=tags,
        )
        return push(self, repo_id, options, include_backbone=include_backbone, **saving)

    def session(
        self,
        video: "str | os.PathLike | Sequence[str | os.PathLike] | EncodedVideos | None" = None,
        processor: Any = None,
        *,
        keep_selection: bool = False,
        conversation: bool = False,
        retention_ratio: "float | Sequence[float] | None" = None,
        compressor: "str | Compressor | None" = None,
        num_frames: int | None = None,
        frames_per_chunk: int | None = FRAMES_PER_CHUNK,
        device: "torch.device | str | None" = None,
        **inputs: Any,
    ) -> VideoSession:
        """Encode videos once, to ask many questions about them: `model.session("film.mp4", processor).ask("Who comes in?")`.

        Args:
            video: a file (path or http(s) address), several, or what `encode_videos` returned; None: see `inputs`.
            processor: of the model; needed for files and for `ask`.
            keep_selection: choose the video tokens for the first question alone and reuse the language model's cache for the others, or
                (False) choose anew for each question.
            conversation: whether later questions of `ask` see the earlier ones and their answers.
            retention_ratio: as in `generate`, for every question that does not say otherwise; of a list, one per video, for every question the same.
            compressor: as in `generate`, for every question that does not say otherwise.
            num_frames: at most so many frames of a file; None is the processor's setting.
            frames_per_chunk: see `encode_videos`; of a file, the next chunk is decoded while this one is encoded.
            device: where the encoded videos are to wait, such as `"cpu"`; None: where they are made.
            **inputs: in place of `video`, what the processor returned for a prompt with the videos.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a readable video, or arguments that do not fit.
        """
        if (video is None) == (not inputs):
            raise ValueError(
                "Give the videos once: files or encoded videos as `video`, or what the processor returned for them."
            )
        method = self.resolve_compressor(compressor)
        check_session(self.family, self.backbone.config, method, keep_selection, video)
        files = [video] if isinstance(video, (str, os.PathLike)) else video
        named = isinstance(files, Sequence) and all(isinstance(file, (str, os.PathLike)) for file in files)
        if files is not None and not named and not isinstance(files, EncodedVideos):
            raise ValueError(
                f"A session cannot open a {type(video).__name__}: give paths or addresses of videos, or what encode_videos returned."
            )
        num_videos = len(self.family.video_grids(self.backbone.config, inputs) if files is None else files)
        method.check(self, resolve(retention_ratio, self.config, num_videos))
        if files is None:
            options: dict[str, Any] = dict(frames_per_chunk=frames_per_chunk, device=device)
            encoded = self.encode_videos(with_tower_attention=method.reads_tower, **options, **inputs)
        elif isinstance(files, EncodedVideos):
            encoded = files
        else:
            if processor is None:
                raise ValueError(
                    "A video file needs a processor to be read: give processor=AutoProcessor.from_pretrained(...)."
                )
            options = dict(num_frames=num_frames, frames_per_chunk=frames_per_chunk, device=device)
            options["with_tower_attention"] = method.reads_tower
            encoded = EncodedVideos.joined(
                [encode_file(self, with_video_reader(processor).video_processor, file, **options) for file in files]
            )
        return VideoSession(
            self,
            encoded,
            None if processor is None else with_video_reader(processor),
            keep_selection=keep_selection,
            conversation=conversation,
            retention_ratio=retention_ratio,
            compressor=compressor,
        )

    def stream(self, processor: Any, **settings: Any) -> VideoStream:
        """Start a video without an end, in a memory that does not grow: `feed` it frames, `ask` it questions (docs/how_to/streams.md).

        Args:
            processor: of the model.
            **settings: see `StreamSettings`, such as `tokens_per_frame=50`, `memory="features"` or `"kv"`, and `max_memory`.

        Raises:
            ValueError: an unknown setting or one out of range, or a family that streams do not support.
        """
        check_names(settings, [field.name for field in fields(StreamSettings)], "a setting of a stream")
        return VideoStream(self, with_video_reader(processor), StreamSettings(**settings))

    def load_stream(self, path: "str | os.PathLike", processor: Any, device: Any = None) -> VideoStream:
        """Load what `VideoStream.save` wrote, to be fed and asked as if it had never been put away; errors as of `VideoStream.load`.

        Args:
            path: of the file.
            processor: of the model.
            device: where the memory lies from now on, such as `"cpu"`; None: as it was saved.
        """
        return VideoStream.load(path, self, with_video_reader(processor), device)

    # ---------------------------------------------------------------- training

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        retention_ratio: "Ratio | Sequence[Ratio] | None" = None,
        compressor: "str | Compressor | None" = None,
        encoded_videos: EncodedVideos | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute loss and logits of the compressed prompt.

        The selection is hard, so it gives the policy no gradient (the policy is trained by reinforcement learning); gradients do reach a
        backbone, or its adapters, that is being tuned on compressed prompts. Batches may be padded on either side; the compressed
        prompt is padded on the left.

        The cache of a compressed prompt remembers the uncompressed one: given back as `cache` (`past_key_values` before transformers 5.24) with the next tokens as `input_ids`
        (and an `attention_mask` of everything so far, or none), a loop of one's own makes the tokens that `generate` makes.

        Args:
            input_ids: `(B, L)`.
            attention_mask: `(B, L)`, 0 at padding; None: no padding.
            labels: `(B, L)`, -100 where no loss is taken; those of dropped tokens are dropped with them.
            retention_ratio: as in `generate`. At 1.0, or without a video, the call goes straight to the backbone.
            compressor: as in `generate`.
            encoded_videos: as in `generate`.
            **kwargs: everything else, as in the backbone's forward.

        Returns:
            `CaCoVidOutput` with `kept_indices` `(B, K)`; straight from the backbone, all places of the prompt.

        Raises:
            ValueError: unknown arguments, inputs that do not fit, or a call of a `Trainer` with `label_smoothing_factor`.
        """
        if labels is None and trainer_smooths_labels():
            raise ValueError(
                "label_smoothing_factor of Trainer compares the labels of the whole prompt with the logits of the compressed one: give Trainer "
                "compute_loss_func=CompressedLoss(label_smoothing=...) of cacovid_hf.training.compressed_loss instead."
            )
        if labels is None and self.training and torch.is_grad_enabled():
            logger.warning_once(
                "forward trains without labels, so that the loss is the caller's: the logits of a compressed prompt are shorter than its labels. "
                "Give Trainer compute_loss_func=CompressedLoss(...) of cacovid_hf.training.compressed_loss, or use outputs.kept_indices."
            )
        kwargs = with_cache_name(kwargs)
        self._check_names(kwargs)
        method = self.resolve_compressor(compressor)
        if CacheRecord.has_record(kwargs.get(CACHE)):
            return self._step(input_ids, attention_mask, labels, encoded_videos, kwargs)
        arguments = {**kwargs, "input_ids": input_ids, "attention_mask": attention_mask}
        given = prompt_inputs(self.backbone, self.family, arguments, encoded_videos)
        ratios = ratios_unless_stock(given, retention_ratio, self.config)
        if ratios is None:
            kwargs = without_own_inputs(given.family, kwargs)
            outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
            return with_places(outputs, all_places(input_ids), labels=labels)
        check_forward(self.backbone, {**kwargs, "labels": labels}, method, self.family)
        if method.inside_llm:
            kwargs["use_cache"] = False
        if attention_mask is None and input_ids is not None:
            given = replace(given, attention_mask=torch.ones_like(input_ids, dtype=torch.long))
        call = prepare_call(self, given.completed(), method, ratios)
        prompt, check = self._compress(call)
        labels = kept_labels(labels, prompt.kept_indices)
        with (
            given.family.handed_over(self.backbone, prompt.kept_indices, prompt.extra),
            method.inside(self, prompt, call.ratios) as layers,
        ):
            outputs = self.backbone(
                inputs_embeds=prompt.inputs_embeds,
                attention_mask=prompt.attention_mask,
                position_ids=prompt.position_ids,
                labels=labels,
                **given.family.stock_arguments(self.backbone, prompt.input_ids),
                **without_prompt(kwargs, given.others),
            )
        check.settle()
        values = outputs if isinstance(outputs, tuple) else outputs.values()
        for cache in (value for value in values if isinstance(value, Cache)):
            if cached_length(cache) < prompt.input_ids.shape[1]:
                continue  # with gradient checkpointing nothing is cached
            CacheRecord.remember(cache, prompt, given.input_ids, given.input_ids.shape[1])
        return with_places(outputs, prompt.kept_indices, layers, labels)

    def _check_names(self, kwargs: dict[str, Any]) -> None:
        """Raise a `ValueError` with the likeliest name, if an argument of `forward` is none of ours and none of the backbone's."""
        known = {"retention_ratio", "compressor", "encoded_videos", *forward_arguments(self.backbone, self.family)}
        # None is what a missing argument is, in any version.
        given = [name for name, value in kwargs.items() if value is not None]
        check_names(given, known, f"an argument of {type(self).__name__} or {type(self.backbone).__name__}")

    def _step(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        encoded_videos: EncodedVideos | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """Compute new text behind the cache of a compressed prompt, at the positions that follow the uncompressed one."""
        config, cache = self.backbone.config, kwargs[CACHE]
        if input_ids is None:
            raise ValueError("input_ids are missing: give the tokens that follow what the cache holds.")
        inputs = take_embedding_arguments(self.backbone, self.family, kwargs)
        placeholders = self.family.places(config, input_ids, inputs)
        pixels = [name for name in ("pixel_values", *self.family.video_inputs) if inputs.get(name) is not None]
        if encoded_videos is not None or pixels or any(bool(part.any()) for part in placeholders):
            raise ValueError(
                "The cache is of a compressed prompt, from which forward goes on with new text alone, and videos or images are given: give "
                "as input_ids the tokens that follow, or the whole conversation to generate."
            )
        step, record = text_step(cache, input_ids, attention_mask, inputs.get("position_ids"))
        check_length(config, record.num_places)
        check_gaps(config, step["attention_mask"])
        check_hidden(config, record.places[:, : -input_ids.shape[1]] >= 0, step["attention_mask"])
        CacheRecord.mark_unknown(cache)
        with self.family.handed_over(self.backbone, record.places, None):
            outputs = self.backbone(**step, labels=labels, **kwargs)
        record.store(cache)
        return with_places(outputs, record.places[:, -input_ids.shape[1] :])


AutoModelForImageTextToText.register(CaCoVidConfig, CaCoVidForConditionalGeneration, exist_ok=True)
