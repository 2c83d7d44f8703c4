"""Real architectures: packed, they compute what they computed before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models as vision
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import nmsparsity as nm
from nmsparsity.compression import compressed
from nmsparsity.kernels.choose import Choice, Example
from nmsparsity.layers import PackedLayer


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(batch: int = 2) -> Tensor:
    return torch.randint(1, 48, (batch, 12), generator=torch.Generator().manual_seed(1))


def vit() -> nn.Module:
    model = vision.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=8)
    nn.init.normal_(model.heads.head.weight)  # it starts at zero, and so would every output
    return model


def swin() -> nn.Module:
    sizes = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": [4, 4]}
    return vision.SwinTransformer([4, 4], **sizes, num_classes=8)


def bert() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=48, intermediate_size=64, **sizes))


def gpt2() -> GPT2LMHeadModel:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 48, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 48}
    return LlamaForCausalLM(LlamaConfig(**sizes, **more, bos_token_id=0, eos_token_id=0))


def t5() -> T5ForConditionalGeneration:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=48, **sizes, decoder_start_token_id=0))


@dataclass
class Case:
    """A model, what goes in, how many layers are packed, and what is fused how often."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    packed: int
    fused: dict[str, int]


CASES = {
    "resnet18": Case(
        lambda: vision.resnet18(num_classes=8),
        images,
        19,
        {"batch norm": 19, "residual": 8, "relu": 16},
    ),
    "resnet50": Case(
        lambda: vision.resnet50(num_classes=8, width_per_group=4),
        images,
        52,
        {"batch norm": 52, "residual": 16, "relu": 48},
    ),
    "mobilenet_v2": Case(
        lambda: vision.mobilenet_v2(num_classes=8, width_mult=0.25),
        images,
        34,
        {"batch norm": 34, "residual": 11},
    ),
    "vit_b_16, small": Case(vit, images, 12, {"residual": 2, "gelu": 2}),
    "timm vit": Case(
        lambda: timm.create_model("test_vit", img_size=32, num_classes=8),
        images,
        24,
        {"residual": 12, "gelu": 6},
    ),
    "timm resnet": Case(
        lambda: timm.create_model("test_resnet", num_classes=8),
        images,
        14,
        {"batch norm": 14, "residual": 4, "relu": 11},
    ),
    "timm efficientnet": Case(
        lambda: timm.create_model("test_efficientnet", num_classes=8),
        images,
        14,
        {"batch norm": 10, "silu": 8},
    ),
    "swin_t, small": Case(swin, images, 7, {"residual": 3, "gelu": 3}),
    "bert": Case(bert, lambda: {"input_ids": tokens()}, 12, {"gelu": 2, "residual": 4}),
    "gpt2": Case(gpt2, lambda: {"input_ids": tokens()}, 8, {"gelu_tanh": 2}),
    "t5": Case(
        t5,
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens()},
        16,
        {"relu": 2},
    ),
    "llama": Case(llama, lambda: {"input_ids": tokens()}, 14, {"silu": 2}),
}


def sparse(make: Callable[[], nn.Module]) -> nn.Module:
    """A model pruned to 2:4, with batch norms that do something."""
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    nm.prune(model, "2:4")
    return model


@torch.no_grad()
def output(model: nn.Module, inputs: Any) -> Tensor:
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return out if isinstance(out, Tensor) else out[0]


def counts(model: nn.Module) -> dict[str, int]:
    fused = [what for row in nm.compressed_report(model).rows for what in row.fused]
    return {what: fused.count(what) for what in set(fused)}


@pytest.mark.parametrize("traced_with_inputs", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_packed_models_compute_the_same(kind: str, traced_with_inputs: bool) -> None:
    case = CASES[kind]
    model, inputs = sparse(case.make), case.inputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = output(model, inputs)
    packed = nm.compress(model, inputs if traced_with_inputs else None, backend="reference")
    assert sum(isinstance(module, PackedLayer) for module in packed.modules()) == case.packed
    assert counts(packed) == case.fused
    assert_close(output(packed, inputs), expected, rtol=1e-5, atol=1e-5)

    for name, tensor in model.state_dict().items():
        assert_close(tensor, before[name], rtol=0, atol=0)
    plain = nm.decompress(packed)
    assert not any(isinstance(module, PackedLayer) for module in plain.modules())
    assert_close(output(plain, inputs), expected, rtol=1e-5, atol=1e-5)
    assert nm.verify(plain).ok
    assert len(nm.verify(plain).sparse) == len(nm.verify(model).sparse)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("cache", [False, True])
def test_generation_gives_the_same_tokens(make: Callable[[], Any], cache: bool) -> None:
    model: Any = sparse(make)
    packed: Any = nm.compress(model, {"input_ids": tokens(1)}, backend="reference")
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": cache, "pad_token_id": 0}
    expected = model.generate(tokens(1), **options)
    assert expected.shape[1] > 12
    assert torch.equal(packed.generate(tokens(1), **options), expected)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_function_shows_how_the_model_is_used(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The prompt once and one token seven times: both count, as often as they happen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[list[Example]] = []

    def fastest(problem: Any, weight: Any, bias: Any, examples: Any, *rest: Any) -> Choice:
        seen.append(examples)
        return Choice("reference")

    monkeypatch.setattr(compressed, "fastest", fastest)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    model: Any = sparse(make)
    packed: Any = nm.compress(model, lambda m: m.generate(tokens(1), **options))
    assert {tuple((e.shape[:2], e.calls) for e in examples) for examples in seen} == {
        (((1, 12), 1), ((1, 1), 7))
    }
    assert type(packed) is type(model)
    assert torch.equal(packed.generate(tokens(1), **options), model.generate(tokens(1), **options))
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_a_function_may_use_more_than_the_forward() -> None:
    model: Any = sparse(lambda: timm.create_model("test_resnet", num_classes=8))
    packed: Any = nm.compress(model, lambda m: m.forward_features(images()), backend="reference")
    expected, found = model.forward_features(images()), packed.forward_features(images())
    assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    rows = {row.layer: row for row in nm.compressed_report(packed).rows}
    assert rows["layer1.0.conv1"].fused == ("batch norm", "relu")
    assert type(packed) is type(model)


def test_gradients_reach_the_input() -> None:
    model, x = sparse(CASES["resnet18"].make), images().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    packed = nm.compress(model, images(), backend="reference")
    (found,) = torch.autograd.grad(packed(x).sum(), x)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_depthwise_convolutions_stay_dense_with_the_reason() -> None:
    model = sparse(CASES["mobilenet_v2"].make)
    rows = {row.layer: row for row in nm.compressed_report(nm.compress(model)).rows}
    row = rows["features.1.conv.0.0.weight"]
    assert (row.kernel, row.pattern, row.reason) == (None, None, "dense: it shows no pattern")


def test_plain_weights_come_back_bit_for_bit() -> None:
    for kind in ("vit_b_16, small", "bert", "gpt2", "llama"):
        model = sparse(CASES[kind].make)
        plain = nm.decompress(nm.compress(model, backend="reference"))
        state = plain.state_dict()
        assert set(state) == set(model.state_dict())
        for name, tensor in model.state_dict().items():
            assert_close(state[name], tensor, rtol=0, atol=0)
