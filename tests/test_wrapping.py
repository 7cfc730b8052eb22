"""`from_backbone` around models in every state: it works there, it leaves the model as it was, and threads may share it."""

import contextlib
import copy
import gc
import sys
import threading
import warnings
import weakref

import pytest
import torch
from helpers.models import (
    BY_NAME,
    FAMILIES,
    PROMPTS,
    RAGGED,
    Video,
    attending_layer,
    family_of,
    masked_inputs,
    prompt_inputs,
    stock_inputs,
    stock_model,
    tower,
)
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, GenerationConfig, LlavaOnevisionModel

from cacovid_hf import CaCoVidForConditionalGeneration

NEW_TOKENS = 5


def generated(model, inputs, **settings):
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **settings)


def tokens_equal_the_oracle(ours, stock, plain, inputs, retention_ratio=0.25):
    """Ours around `stock` against `stock` with masked keys; `plain` is any model of the same config, for the positions."""
    kept = ours.compress(**inputs, retention_ratio=retention_ratio).kept_indices
    tokens = generated(ours, inputs, retention_ratio=retention_ratio)
    return torch.equal(tokens, generated(stock, masked_inputs(plain, inputs, kept)))


# ---------------------------------------------------------------- left as it was


def attention_implementations(config):
    subs = {name: found for name in config.sub_configs if (found := getattr(config, name)) is not None}
    return config._attn_implementation, {name: attention_implementations(sub) for name, sub in subs.items()}


def state_of(model) -> dict:
    """Everything about a model that wrapping and using it must not change."""
    return {
        "attention": attention_implementations(model.config),
        "config": model.config.to_dict(),
        "config object": id(model.config),
        "text config object": id(model.config.get_text_config()),
        "generation config": model.generation_config.to_dict(),
        "generation config object": id(model.generation_config),
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "buffers": {name: tensor.clone() for name, tensor in model.named_buffers()},
        "requires_grad": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {name: number_of_hooks(module) for name, module in model.named_modules()},
        "rope_deltas": copy.deepcopy(getattr(model.model, "rope_deltas", None)),
        "threads": threading.active_count(),
    }


def number_of_hooks(module) -> int:
    return sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks"))


def assert_same(state, before):
    assert state.keys() == before.keys()
    for name, value in state.items():
        if name in ("weights", "buffers"):
            assert value.keys() == before[name].keys()
            for key, tensor in value.items():
                assert tensor.dtype == before[name][key].dtype
                assert torch.equal(tensor, before[name][key]), key
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, before[name])
        else:
            assert value == before[name], name


@contextlib.contextmanager
def broken(module):
    """`module` raises in here, as it would when memory runs out."""

    def fail(*args):
        raise RuntimeError("out of memory")

    handle = module.register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def bad_ratio(model, inputs):
    for call in (model.compress, model.generate, model):
        with pytest.raises(ValueError, match="retention_ratio"):
            call(**inputs, retention_ratio=1.5)


def failure_in(part):
    def use(model, inputs):
        for call in (model.compress, model.generate, model)[0 if part == "vision" else 1 :]:
            module = model.backbone.lm_head if part == "head" else tower(model.backbone)
            with broken(module), pytest.raises(RuntimeError, match="out of memory"):
                call(**inputs, retention_ratio=0.25)

    return use


USES = {
    "nothing": lambda model, inputs: None,
    "compress": lambda model, inputs: model.compress(**inputs, retention_ratio=0.25),
    "forward": lambda model, inputs: model(**inputs, retention_ratio=0.25, labels=inputs["input_ids"]),
    "generate": lambda model, inputs: generated(model, inputs, retention_ratio=0.25),
    "static cache": lambda model, inputs: generated(
        model,
        inputs,
        retention_ratio=0.25,
        cache_implementation="static",
        prefill_chunk_size=5 if family_of(model.backbone).splits_prefill else None,
    ),
    "beams": lambda model, inputs: generated(model, inputs, retention_ratio=0.25, num_beams=2),
    "settings of its own": lambda model, inputs: model.generate(
        **inputs, retention_ratio=0.25, generation_config=GenerationConfig(max_new_tokens=3, do_sample=True)
    ),
    "other method": lambda model, inputs: generated(model, inputs, retention_ratio=0.25, compressor="uniform"),
    "bad ratio": bad_ratio,
    "failure in the vision tower": failure_in("vision"),
    "failure behind the language model": failure_in("head"),
}
STATES = {
    "sdpa": dict(attention="sdpa"),
    "eager": dict(attention="eager"),
    "mixed attention": dict(attention={"text_config": "eager", "vision_config": "sdpa"}),
    "bfloat16": dict(dtype=torch.bfloat16),
    "float16": dict(dtype=torch.float16),
    "training": dict(training=True),
}


def model_in_state(family, attention="sdpa", dtype=torch.float32, training=False):
    model = stock_model(family, "sdpa", dtype)
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    if training:
        # Half frozen, half training, as while tuning a language model under a frozen tower.
        model.train()
        tower(model).eval().requires_grad_(False)
        attending_layer(model.get_decoder()).requires_grad_(False)
    return model


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_use_leaves_the_model_as_it_was(family, state):
    stock = model_in_state(family, **STATES[state])
    inputs = prompt_inputs(stock, RAGGED)
    with torch.no_grad():
        logits = stock(**stock_inputs(stock, inputs)).logits
    if BY_NAME[family].mrope:
        # State of the stock model, as an earlier stock call leaves it.
        stock.model.rope_deltas = torch.tensor([[-5], [-6], [-7]])
    before = state_of(stock)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    for use in USES.values():
        use(model, inputs)
        assert_same(state_of(stock), before)
    with torch.no_grad():
        assert torch.equal(stock(**stock_inputs(stock, inputs)).logits, logits)
    assert {weight.dtype for weight in model.policy.parameters()} == {stock.dtype}
    assert (model.dtype, model.device, model.can_generate()) == (stock.dtype, stock.device, True)
    assert model.training == model.policy.training == stock.training


@pytest.mark.parametrize("family", FAMILIES)
def test_wrapping_holds_nothing_of_a_call(family):
    """Two models of ours around one backbone, with their own policies and defaults, do not know of each other."""
    stock = stock_model(family)
    inputs = prompt_inputs(stock, RAGGED)
    one = CaCoVidForConditionalGeneration.from_backbone(stock)
    other = CaCoVidForConditionalGeneration.from_backbone(stock, retention_ratio=0.5, policy_attention="causal")
    expected = (
        generated(one, inputs, retention_ratio=0.25),
        generated(other, inputs),
        generated(stock, stock_inputs(stock, inputs)),
    )
    attributes = {name: sorted(vars(module)) for name, module in one.named_modules()}
    for _ in range(2):
        assert torch.equal(generated(other, inputs), expected[1])
        assert torch.equal(generated(one, inputs, retention_ratio=0.25), expected[0])
        assert torch.equal(generated(one, inputs), expected[2])
    assert {name: sorted(vars(module)) for name, module in one.named_modules()} == attributes


@pytest.mark.parametrize("family", FAMILIES)
def test_compressing_draws_no_random_numbers_and_keeps_the_inputs(family):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, RAGGED)
    copies = {name: tensor.clone() for name, tensor in inputs.items()}
    random = torch.get_rng_state()
    model.compress(**inputs, retention_ratio=0.25)
    model(**inputs, retention_ratio=0.25)
    generated(model, inputs, retention_ratio=0.25)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, copies[name]) for name, tensor in inputs.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_config_is_the_backbones(family):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    assert model.generation_config is stock.generation_config
    model.generation_config = GenerationConfig(max_new_tokens=2, pad_token_id=0, suppress_tokens=[110, 111])
    assert stock.generation_config.max_new_tokens == 2
    assert model.generation_config is stock.generation_config
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    tokens = model.generate(**inputs, retention_ratio=0.25)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 2
    with pytest.raises(AttributeError):
        model.hf_device_map  # noqa: B018 (loaded without one)


# ---------------------------------------------------------------- dispatched, adapted, quantised


def device_maps(stock):
    decoder = next(name for name, part in stock.named_modules() if part is stock.get_decoder())
    parts = ["lm_head", f"{decoder}.embed_tokens", f"{decoder}.norm", f"{decoder}.rotary_emb"]
    parts += [f"{decoder}.layers.{i}" for i in range(3)]
    vision, held = [], family_of(stock).held
    for name, part in stock.model.named_children():
        if part is not stock.get_decoder():
            is_split = any(one.startswith(f"model.{name}.") for one in held)
            vision += [f"model.{name}.{inner}" for inner, _ in part.named_children()] if is_split else [f"model.{name}"]
    # The newline is a parameter of the model itself, which accelerate would not bring back from disk.
    everywhere = {**dict.fromkeys([*parts, *vision], "cpu"), "model.image_newline": "cpu"}
    return {
        "layers on disk": {
            **everywhere,
            f"{decoder}.layers.0": "disk",
            f"{decoder}.layers.2": "disk",
        },
        "embeddings and vision on disk": {
            **everywhere,
            **dict.fromkeys([f"{decoder}.embed_tokens", *(name for name in vision if name not in held)], "disk"),
        },
    }


@pytest.mark.filterwarnings("ignore:The following device_map keys")
@pytest.mark.parametrize("placement", ["one device", "layers on disk", "embeddings and vision on disk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dispatched_by_accelerate(family, placement, tmp_path):
    pytest.importorskip("accelerate")
    plain = stock_model(family)
    plain.save_pretrained(tmp_path / "model")
    device_map = {"": "cpu"} if placement == "one device" else device_maps(plain)[placement]
    stock = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload", dtype=torch.float32
    )
    on_disk = {name for name, weight in stock.named_parameters() if weight.is_meta}
    assert bool(on_disk) == (placement != "one device")
    options = {}
    if placement == "layers on disk" and "mlp.experts" in dict(attending_layer(plain.get_decoder()).named_modules()):
        with pytest.raises(ValueError, match=r"experts of the language model are offloaded .* policy_type='light'"):
            CaCoVidForConditionalGeneration.from_backbone(stock)
        options = {"policy_type": "light"}
    reference = CaCoVidForConditionalGeneration.from_backbone(plain, **options)
    model = CaCoVidForConditionalGeneration.from_backbone(stock, **options)
    for name, weight in reference.policy.layer.state_dict().items():
        torch.testing.assert_close(model.policy.layer.state_dict()[name], weight, atol=1e-5, rtol=0, msg=name)
    model.policy.load_state_dict(reference.policy.state_dict())

    inputs = prompt_inputs(plain, RAGGED)
    assert torch.equal(
        generated(model, inputs, retention_ratio=0.25), generated(reference, inputs, retention_ratio=0.25)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs, retention_ratio=0.25).logits, reference(**inputs, retention_ratio=0.25).logits
        )
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    if placement != "one device":
        assert model.hf_device_map == stock.hf_device_map == device_map
    assert {name for name, weight in stock.named_parameters() if weight.is_meta} == on_disk


def with_lora(stock, dropout=0.0):
    peft = pytest.importorskip("peft")
    # Of GLM's experts these adapters take every down_proj for the experts' own parameters.
    mlp = "" if stock.config.model_type == "glm4v_moe" else "|down_proj"
    config = peft.LoraConfig(
        target_modules=rf".*(language|text)_model.*(q_proj|v_proj{mlp})",
        init_lora_weights=False,
        r=4,
        lora_dropout=dropout,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(stock, config)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_peft(family, training):
    plain = stock_model(family)
    inputs = prompt_inputs(plain, RAGGED)
    adapted = with_lora(stock_model(family), dropout=0.5).train(training)
    before = state_of(adapted.get_base_model())
    model = CaCoVidForConditionalGeneration.from_backbone(adapted)
    assert model.backbone is adapted.get_base_model()
    layer = attending_layer(model.get_decoder())
    parts = dict(layer.named_modules())
    # Where there are experts, their weights are parameters of one module, which these adapters leave alone.
    mlp = {"mlp.down_proj", "mlp.shared_expert.down_proj"} & parts.keys()
    mlp = {name for name in mlp if hasattr(parts[name], "get_base_layer")}
    for name in ("self_attn.q_proj", "self_attn.v_proj", *mlp):
        linear = parts[name]
        merged = linear.get_base_layer().weight + linear.get_delta_weight("default")
        ours = model.policy.layer.get_submodule(name).weight
        if merged.shape != ours.shape:  # the model's gate lies beside the queries
            continue
        torch.testing.assert_close(ours, merged, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.policy.layer.self_attn.k_proj.weight, layer.self_attn.k_proj.weight)
    assert_same(state_of(adapted.get_base_model()), before)

    adapted.eval()
    assert tokens_equal_the_oracle(model, adapted, plain, inputs)
    assert not torch.equal(
        generated(model, inputs, retention_ratio=0.25),
        generated(CaCoVidForConditionalGeneration.from_backbone(plain, model.policy), inputs, retention_ratio=0.25),
    )


# Settings of the language model. Gemma's router is a linear layer, the others are a parameter.
WITH_EXPERTS = {
    "qwen3_vl_moe": {},
    "qwen3_5_moe": {},
    "gemma4": dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
}


@pytest.mark.parametrize("around", ["one parameter", "experts and router"])
@pytest.mark.parametrize("family", WITH_EXPERTS)
@pytest.mark.spread(1)
def test_adapters_on_the_parameters_of_experts(family, around):
    """The policy starts from what the layer computes with, and the layer is left as it was."""
    peft = pytest.importorskip("peft")
    targets, changed = ["experts.down_proj"], {"down_proj"}
    if around != "one parameter":
        targets += ["experts.gate_up_proj", *(["mlp.gate.weight"] if family != "gemma4" else [])]
        changed |= {"gate_proj", "up_proj", *(["weight"] if family != "gemma4" else [])}
    settings = peft.LoraConfig(target_parameters=targets, target_modules=[], init_lora_weights=False, r=2)
    adapted = peft.get_peft_model(stock_model(family, **WITH_EXPERTS[family]), settings)
    before = state_of(adapted.get_base_model())

    def layer_of(model):
        return CaCoVidForConditionalGeneration.from_backbone(model).policy.layer

    plain, ours = layer_of(stock_model(family, **WITH_EXPERTS[family])), layer_of(adapted)
    assert_same(state_of(adapted.get_base_model()), before)
    merged = layer_of(adapted.merge_and_unload())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight, merged.get_parameter(name), atol=1e-5, rtol=0)
        part, _, last = name.rpartition(".")
        is_changed = last in changed and part.endswith((".experts", ".router"))
        assert torch.equal(weight, plain.get_parameter(name)) != is_changed, name


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_adapters_and_nothing_else(family):
    adapted = with_lora(stock_model(family)).train()
    model = CaCoVidForConditionalGeneration.from_backbone(adapted)
    inputs = prompt_inputs(model.backbone, RAGGED, padding_side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    outputs = model(**inputs, labels=labels, retention_ratio=0.25)
    outputs.loss.backward()
    for name, weight in model.backbone.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) == ("lora_" in name), name
    assert all(weight.grad is None for weight in model.policy.parameters())

    # The loss is that of the masked uncompressed model, where no label is that of a dropped token.
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for row, places in enumerate(outputs.kept_indices):
        kept[row, places[places >= 0]] = True
    masked = masked_inputs(stock_model(family), inputs, outputs.kept_indices)
    with torch.no_grad():
        logits = adapted(**masked).logits
    losses = []
    for row in range(len(labels)):
        places = kept[row].nonzero()[:, 0]
        losses.append(F.cross_entropy(logits[row, places[:-1]], labels[row, places[1:]], reduction="none"))
    torch.testing.assert_close(outputs.loss.detach(), torch.cat(losses).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_around_the_wrapper(family, tmp_path):
    """PEFT calls `forward` with every name of its own, most of them None."""
    peft = pytest.importorskip("peft")
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(family))
    plain_policy = copy.deepcopy(model.policy)
    inputs = prompt_inputs(model.backbone, RAGGED)
    none = dict.fromkeys(("inputs_embeds", "past_key_values", "position_ids", "mm_encoder_outputs"))
    how = dict(labels=inputs["input_ids"], retention_ratio=0.25)
    torch.testing.assert_close(model(**inputs, **how, **none).loss, model(**inputs, **how).loss)
    expected = generated(model, inputs, retention_ratio=0.25)
    assert torch.equal(generated(model, inputs, retention_ratio=0.25, **none, assistant_model=None), expected)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    tuned(**inputs, **how).loss.backward()
    weight = attending_layer(model.get_decoder()).self_attn.q_proj.lora_B.default.weight
    assert bool(weight.grad.any())
    assert torch.equal(generated(tuned, inputs, retention_ratio=0.25), expected)
    with torch.no_grad():
        weight.normal_(std=3.0)
    untuned, expected = expected, generated(tuned, inputs, retention_ratio=0.25)
    assert not torch.equal(untuned, expected)
    tuned.save_pretrained(tmp_path)
    fresh = CaCoVidForConditionalGeneration.from_backbone(stock_model(family), policy=plain_policy)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(generated(again, inputs, retention_ratio=0.25), expected)


@pytest.mark.parametrize("case", ["many frames", "encoded videos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_input_embeddings(family, case):
    """`enable_input_require_grads`, as gradient checkpointing of adapters wants it: the embeddings are then a leaf."""
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model(family))
    inputs = prompt_inputs(model.backbone, [[3, Video(66 if case == "many frames" else 4), 6]])
    how = dict(labels=inputs["input_ids"], retention_ratio=0.3)
    expected = model(**inputs, **how).loss
    if case == "encoded videos":
        how["encoded_videos"] = model.encode_videos(**inputs)
        inputs = BY_NAME[family].without_videos(inputs)
    model.backbone.requires_grad_(False)
    attending_layer(model.get_decoder()).self_attn.q_proj.requires_grad_(True)
    model.backbone.enable_input_require_grads()
    loss = model.train()(**inputs, **how).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert bool(attending_layer(model.get_decoder()).self_attn.q_proj.weight.grad.any())


@pytest.mark.parametrize("family", FAMILIES)
def test_learned_prompts_are_refused(family):
    peft = pytest.importorskip("peft")
    prompted = peft.get_peft_model(
        stock_model(family), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    with pytest.raises(ValueError, match="learns prompts"):
        CaCoVidForConditionalGeneration.from_backbone(prompted)


def quanto():
    pytest.importorskip("optimum.quanto")
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


def torchao():
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def bitsandbytes_int8():
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    # Without a threshold: with one, which features are outliers depends on all rows of a product, dropped tokens included.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=VISION)


def bitsandbytes_nf4():
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=VISION,
    )


# The tiny towers are narrower than a block of bitsandbytes.
VISION = ["model.vision_tower", "model.visual", "model.multi_modal_projector", "lm_head"]
# How far a dequantised weight may be off, as a share of the largest weight.
QUANTISED = {quanto: 0.02, torchao: 0.02, bitsandbytes_int8: 0.02, bitsandbytes_nf4: 0.2}


@pytest.mark.parametrize("quantisation", QUANTISED, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised(family, quantisation, tmp_path):
    settings = quantisation()
    plain = stock_model(family, intermediate_size=128)
    plain.save_pretrained(tmp_path)
    stock = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    ).eval()
    stock.generation_config = plain.generation_config
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    # Whose parts are those of the stock layer: tests/policies/test_stock_layers.py.
    exact = CaCoVidForConditionalGeneration.from_backbone(plain).policy.layer.state_dict()
    assert {weight.dtype for weight in model.policy.parameters()} == {torch.float32}
    for name, weight in model.policy.layer.state_dict().items():
        assert type(weight) is torch.Tensor
        assert (weight - exact[name]).abs().max() <= QUANTISED[quantisation] * exact[name].abs().max(), name
    assert not torch.equal(model.policy.layer.self_attn.q_proj.weight, exact["self_attn.q_proj.weight"])
    inputs = prompt_inputs(plain, RAGGED)
    assert tokens_equal_the_oracle(model, stock, plain, inputs)


# ---------------------------------------------------------------- threads


@pytest.fixture
def restless_interpreter():
    """Switches between threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_share_a_model(family, restless_interpreter):
    stock = stock_model(family)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    batch, single = prompt_inputs(stock, RAGGED), prompt_inputs(stock, PROMPTS["two videos"], seed=3)
    ratios = [0.1, 0.25, 0.5]

    def compressing(ratio):
        compressed = model.compress(**single, retention_ratio=ratio)
        return [compressed.kept_indices, compressed.inputs_embeds]

    tasks = {
        "generate": lambda step: [generated(model, batch, retention_ratio=ratios[step % 3])],
        "compress": lambda step: compressing(ratios[(step + 1) % 3]),
        "forward": lambda step: [model(**single, retention_ratio=ratios[(step + 2) % 3]).logits],
        "stock generate": lambda step: [generated(stock, stock_inputs(stock, single))],
    }
    with torch.no_grad():
        expected = {name: [task(step) for step in range(3)] for name, task in tasks.items()}
    # Stock code keeps hooks of its own for the hidden states of a vision tower.
    hooks = {name: number_of_hooks(module) for name, module in stock.named_modules()}
    failures: list[str] = []
    start = threading.Barrier(len(tasks))

    @torch.no_grad()
    def work(name):
        start.wait()
        for step in range(12):
            try:
                results = tasks[name](step)
            except Exception as error:
                failures.append(f"{name}, step {step}: {error!r}")
                return
            if not all(torch.equal(a, b) for a, b in zip(results, expected[name][step % 3], strict=True)):
                failures.append(f"{name}, step {step}: another result")

    threads = [threading.Thread(target=work, args=(name,)) for name in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {name: number_of_hooks(module) for name, module in stock.named_modules()} == hooks


def test_a_dropped_wrapper_frees_its_policy_and_not_the_backbone():
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    generated(model, inputs, retention_ratio=0.25)
    policy = weakref.ref(model.policy)
    del model
    gc.collect()
    assert policy() is None
    assert generated(stock, stock_inputs(stock, inputs)).shape[1] == inputs["input_ids"].shape[1] + NEW_TOKENS


def test_the_wrapper_dispatched_by_accelerate():
    """Hooks on every part of the wrapper, and a policy that was offloaded with it."""
    import accelerate

    plain = CaCoVidForConditionalGeneration.from_backbone(stock_model("qwen2_5_vl"))
    inputs = prompt_inputs(plain.backbone, RAGGED)
    expected = generated(plain, inputs, retention_ratio=0.25)
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model("qwen2_5_vl"), policy=copy.deepcopy(plain.policy))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accelerate.dispatch_model(model, {"backbone": "cpu", "policy": "cpu"}, force_hooks=True)
    assert model.hf_device_map == model.backbone.hf_device_map == {"": "cpu"}
    assert torch.equal(generated(model, inputs, retention_ratio=0.25), expected)
    accelerate.cpu_offload(plain, execution_device="cpu")
    with pytest.raises(ValueError, match="offload the backbone alone"):
        generated(plain, inputs, retention_ratio=0.25)


class WithDeepStack(LlavaOnevisionModel):
    """A stand-in for families whose vision tower also reaches the layers of the language model."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs, deepstack_visual_embeds=[torch.ones(1)])


def test_what_a_compressed_prompt_cannot_carry_is_refused():
    """The seam would lose it without a sign."""
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    model.compress(**inputs, retention_ratio=0.25)
    stock.model.__class__ = WithDeepStack
    for call in (model.compress, model, model.generate):
        with pytest.raises(ValueError, match="also gives its language model deepstack_visual_embeds"):
            call(**inputs, retention_ratio=0.25)
    assert number_of_hooks(stock.get_decoder()) == 0
