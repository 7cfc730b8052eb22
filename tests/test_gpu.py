"""The oracle on a CUDA device in bfloat16, and what must not depend on the device; needs torch, transformers and pytest alone."""

import copy
import importlib.util

import pytest
import torch
from helpers.models import FAMILIES, PROMPTS, masked_inputs, prompt_inputs, stock_model

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.compressors.tools.selection import select_tokens
from cacovid_hf.policies.settings import SCOPES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")
NEW_TOKENS = 6


@pytest.fixture(autouse=True)
def _exact_matrix_products():
    """No TF32 in the float32 comparisons."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on_cuda(inputs):
    return {name: value.to(CUDA) for name, value in inputs.items()}


def oracle_inputs(stock, inputs, kept_indices):
    """Worked out on the CPU, where positions cost nothing."""
    on_cpu = {name: value.cpu() for name, value in inputs.items()}
    return on_cuda(masked_inputs(stock, on_cpu, kept_indices.cpu()))


def generated(model, inputs, **settings):
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **settings)


def last_logits(model, inputs, **settings):
    with torch.no_grad():
        return model(**inputs, **settings).logits[:, -1].float()


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_in_float32(family, prompt):
    stock = stock_model(family).to(CUDA)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = on_cuda(prompt_inputs(stock, PROMPTS[prompt]))
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    masked = oracle_inputs(stock, inputs, kept)
    torch.testing.assert_close(
        last_logits(model, inputs, retention_ratio=0.25), last_logits(stock, masked), atol=1e-3, rtol=1e-3
    )
    assert torch.equal(generated(model, inputs, retention_ratio=0.25), generated(stock, masked))


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_in_bfloat16(family, prompt, attention):
    """Flash attention has the real kernels here; the oracle stays on sdpa, which takes masked keys."""
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    stock = stock_model(family, dtype=torch.bfloat16).to(CUDA)
    backbone = copy.deepcopy(stock)
    if attention != "sdpa":
        backbone.set_attn_implementation(attention)
    model = CaCoVidForConditionalGeneration.from_backbone(backbone)
    inputs = on_cuda(prompt_inputs(stock, PROMPTS[prompt]))
    kept = model.compress(**inputs, retention_ratio=0.25).kept_indices
    masked = oracle_inputs(stock, inputs, kept)
    ours, reference = last_logits(model, inputs, retention_ratio=0.25), last_logits(stock, masked)
    # Rounding of bfloat16 (8 bits) over the layers, far below what the dropped tokens change.
    assert (ours - reference).abs().max() < 0.05 * reference.abs().max()
    assert (ours - last_logits(stock, inputs)).abs().max() > 0.2 * reference.abs().max()

    # Every token that ours decodes is the oracle's best, or as good as it within that rounding, at its own place.
    tokens = generated(model, inputs, retention_ratio=0.25)[:, -NEW_TOKENS:]
    outputs = generated(stock, masked, return_dict_in_generate=True, output_logits=True)
    same = torch.ones(len(tokens), dtype=torch.bool, device=CUDA)
    for step, logits in enumerate(outputs.logits):
        chosen = logits.float().gather(1, tokens[:, step : step + 1])[:, 0]
        best = outputs.sequences[:, -NEW_TOKENS + step]
        best_logits = logits.float().gather(1, best[:, None])[:, 0]
        assert bool((chosen >= best_logits - 0.1 * logits.float().abs().max())[same].all()), step
        same &= tokens[:, step] == best


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_device_and_dtype_of_what_is_returned(family, dtype):
    stock = stock_model(family, dtype=dtype).to(CUDA)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = on_cuda(prompt_inputs(stock, PROMPTS["ragged batch"]))
    assert (model.device.type, model.dtype) == ("cuda", dtype)
    assert {(weight.device.type, weight.dtype) for weight in model.policy.parameters()} == {("cuda", dtype)}
    compressed = model.compress(**inputs, retention_ratio=0.25)
    for tensor in (*compressed.model_inputs().values(), compressed.kept_indices):
        assert tensor.device == inputs["input_ids"].device
    assert compressed.inputs_embeds.dtype == dtype
    for video in compressed.videos:
        assert video.keep.device.type == video.token_scores.device.type == video.frame_scores.device.type == "cuda"
        assert video.keep.dtype == torch.bool
        assert video.token_scores.dtype == video.frame_scores.dtype == torch.float32
    outputs = model(**inputs, retention_ratio=0.25, labels=inputs["input_ids"])
    assert outputs.loss.device.type == outputs.logits.device.type == outputs.kept_indices.device.type == "cuda"
    assert generated(model, inputs, retention_ratio=0.25).device == inputs["input_ids"].device


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_scores_and_masks_as_on_the_cpu(family):
    stock = stock_model(family)
    on_cpu = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    expected = on_cpu.compress(**inputs, retention_ratio=0.25)
    on_gpu = CaCoVidForConditionalGeneration.from_backbone(copy.deepcopy(stock).to(CUDA), copy.deepcopy(on_cpu.policy))
    found = on_gpu.compress(**on_cuda(inputs), retention_ratio=0.25)
    for video, reference in zip(found.videos, expected.videos, strict=True):
        torch.testing.assert_close(video.token_scores.cpu(), reference.token_scores, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(video.frame_scores.cpu(), reference.frame_scores, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("levels", [2, 5, 10_000])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.9])
def test_the_same_scores_give_the_same_mask_on_any_device(ratio, levels, scope):
    """Promise 5: few levels mean many ties."""
    generator = torch.Generator().manual_seed(levels)
    for frames, tokens in ((1, 9), (8, 4), (32, 196)):
        token_scores = torch.randint(levels, (frames, tokens), generator=generator).float() / levels
        frame_scores = torch.randint(levels, (frames,), generator=generator).float() / levels
        on_cpu = select_tokens(token_scores, frame_scores, ratio, scope=scope)
        on_gpu = select_tokens(token_scores.to(CUDA), frame_scores.to(CUDA), ratio, scope=scope)
        assert on_gpu.device.type == "cuda"
        assert torch.equal(on_gpu.cpu(), on_cpu)


def test_the_same_call_gives_the_same_tokens():
    stock = stock_model("llava_onevision", dtype=torch.bfloat16).to(CUDA)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = on_cuda(prompt_inputs(stock, PROMPTS["ragged batch"]))
    tokens = [generated(model, inputs, retention_ratio=0.25) for _ in range(3)]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])
