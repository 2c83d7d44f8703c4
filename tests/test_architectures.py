"""Real architectures compute with their masked weights, train one step by the book, and verify.

The truth is a copy of the model, made before `sparsify`, whose weights are masked and stepped by
equation 9 of arXiv 2102.04010, with plain loops and plain SGD.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision.models as vision
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

import nmsparsity as nm
from nmsparsity.sites import Site, sites

LR, DECAY = 0.05, 0.5


def images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(1))


@dataclass
class Case:
    """A model, what goes in, and the weights that must be sparse or stay dense."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    sparse: int
    dense: dict[str, str]


def swin() -> nn.Module:
    return vision.SwinTransformer(
        [4, 4], 16, [1, 2], [2, 2], [4, 4], num_classes=8, stochastic_depth_prob=0.0
    )


def vit() -> nn.Module:
    model = vision.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=8)
    nn.init.normal_(model.heads.head.weight)  # it starts at zero, and so would every output
    return model


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=48,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 48, "n_positions": 16}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0))


class Attention(nn.Module):
    """Keys and values of other widths than the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, kdim=8, vdim=12, batch_first=True)
        self.head = nn.Linear(16, 8)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.head(self.attention(query, key, value)[0])


class Recurrent(nn.Module):
    """Recurrent layers of every kind, and a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.cell = nn.LSTMCell(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.gru(self.lstm(x)[0])[0][:, -1])[0])


def convolutions(dims: int) -> nn.Module:
    conv, transposed = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
    return nn.Sequential(
        conv(8, 16, 3),
        nn.ReLU(),
        conv(16, 16, 3, groups=2, padding=1),
        transposed(16, 8, 2),
        transposed(8, 16, 2, groups=2),
        conv(16, 16, 1, groups=16),
    )


def volume(dims: int) -> tuple[Tensor]:
    return (torch.randn(2, 8, *[5] * dims, generator=torch.Generator().manual_seed(1)),)


IMAGE = "the first convolution, on 3 image channels"
HEAD = "the final classifier"
CASES = {
    "resnet18": Case(
        lambda: vision.resnet18(num_classes=8),
        lambda: (images(),),
        19,
        {"conv1.weight": IMAGE, "fc.weight": HEAD},
    ),
    "mobilenet_v2": Case(
        lambda: vision.mobilenet_v2(num_classes=8, width_mult=0.25, dropout=0.0),
        lambda: (images(),),
        34,
        {"features.0.0.weight": IMAGE, "classifier.1.weight": HEAD},
    ),
    "vit_b_16, small": Case(
        vit,
        lambda: (images(),),
        8,
        {"conv_proj.weight": IMAGE, "heads.head.weight": HEAD},
    ),
    "swin_t, small": Case(
        swin,
        lambda: (images(),),
        13,
        {"features.0.0.weight": IMAGE, "head.weight": HEAD},
    ),
    "timm vit": Case(
        lambda: timm.create_model("test_vit", img_size=32, num_classes=8),
        lambda: (images(),),
        24,
        {"patch_embed.proj.weight": IMAGE, "head.weight": HEAD},
    ),
    "timm resnet": Case(
        lambda: timm.create_model("test_resnet", num_classes=8),
        lambda: (images(),),
        14,
        {"conv1.0.weight": IMAGE, "fc.weight": HEAD},
    ),
    "bert": Case(
        bert,
        lambda: (tokens(),),
        13,
        {"classifier.weight": HEAD},
    ),
    "gpt2": Case(
        gpt2,
        lambda: (tokens(),),
        8,
        {"lm_head.weight": "a tied weight: other layers use the same parameter"},
    ),
    "attention of three widths": Case(
        Attention,
        lambda: (torch.ones(2, 3, 16), torch.rand(2, 5, 8), torch.rand(2, 5, 12)),
        4,
        {"head.weight": HEAD},
    ),
    "recurrent": Case(
        Recurrent,
        lambda: (torch.rand(2, 5, 8),),
        12,
        {"head.weight": HEAD},
    ),
    "convolutions 1d": Case(lambda: convolutions(1), lambda: volume(1), 4, {}),
    "convolutions 2d": Case(lambda: convolutions(2), lambda: volume(2), 4, {}),
    "convolutions 3d": Case(lambda: convolutions(3), lambda: volume(3), 4, {}),
}


def output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    out = model(*inputs)
    return out if isinstance(out, Tensor) else out.logits


def mask(weight: Tensor, site: Site) -> Tensor:
    """2 of 4 along the input, by sorting; inputs first in transposed layers and ``Conv1D``."""
    input_first = (
        "Transpose" in type(site.module).__name__ or type(site.module).__name__ == "Conv1D"
    )
    input_dim = 0 if input_first else 1
    moved = weight.detach().abs().movedim(input_dim, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, 4)
    rank = groups.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (rank < 2).reshape(moved.shape).movedim(-1, input_dim)


def by_the_book(
    plain: nn.Module, names: list[str], inputs: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """One step of equation 9 on a plain model, which it leaves masked; the new dense weights."""
    layout = {site.name: site for site in sites(plain)}
    weights = dict(plain.named_parameters())
    dense = {name: p.detach().clone() for name, p in weights.items()}
    first = {name: mask(dense[name], layout[name]) for name in names}
    with torch.no_grad():
        for name in names:
            weights[name].mul_(first[name])
    output(plain, inputs).float().pow(2).mean().backward()
    with torch.no_grad():
        for name, weight in weights.items():
            grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            if name in first:
                grad = grad + DECAY * ~first[name] * dense[name]
            new = dense[name] = dense[name] - LR * grad
            weight.copy_(new * mask(new, layout[name]) if name in first else new)
    return dense


def sparsified(model: nn.Module) -> tuple[torch.optim.Optimizer, nm.Sparsifier]:
    optimizer = torch.optim.SGD(model.parameters(), LR)
    return optimizer, nm.sparsify(model, optimizer, "2:4", decay=DECAY)


@pytest.mark.parametrize("kind", CASES)
def test_one_step_by_the_book(kind: str) -> None:
    case = CASES[kind]
    torch.manual_seed(0)
    model = case.make()
    inputs = case.inputs()
    plain = copy.deepcopy(model)
    dense = output(model.eval(), inputs).detach()
    optimizer, sparsifier = sparsified(model)
    report = sparsifier.report()
    assert len(report.sparse) == case.sparse
    why = {row.name: row.reason for row in report.rows}
    assert {name: why[name] for name in case.dense} == case.dense
    assert all(row.density == 0.5 for row in report.sparse)
    assert not torch.allclose(output(model, inputs).detach(), dense)

    output(model.train(), inputs).float().pow(2).mean().backward()
    optimizer.step()
    expected = by_the_book(plain.train(), list(sparsifier.weights()), inputs)
    assert nm.verify(model).ok
    assert nm.verify(plain, dict.fromkeys(sparsifier.weights(), "2:4")).ok
    for name, weight in plain.named_parameters():
        assert_close(model.get_parameter(name), weight, rtol=1e-4, atol=1e-6)
    with sparsifier.dense_weights():
        for name, weight in expected.items():
            assert_close(model.get_parameter(name).detach(), weight, rtol=1e-4, atol=1e-6)
    for mode in (model, plain):
        mode.eval()
    with torch.no_grad():
        assert_close(output(model, inputs), output(plain, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fast_path_of_the_encoder_computes_with_sparse_weights(
    norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    optimizer, sparsifier = sparsified(model)
    assert len(sparsifier.weights()) == 8
    x = torch.randn(2, 5, 16)
    model(x).pow(2).mean().backward()
    optimizer.step()
    slow = model(x).detach()

    calls = []
    fast = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *a: calls.append(1) or fast(*a)
    )
    with torch.no_grad():
        assert_close(model.eval()(x), slow, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
    assert nm.verify(model).ok


def test_the_fast_path_of_attention_computes_with_sparse_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 2))
    sparsified(model)
    x = torch.randn(2, 5, 16)
    slow = model[0](x, x, x)[0].detach()
    calls = []
    fast = torch._native_multi_head_attention
    monkeypatch.setattr(
        torch, "_native_multi_head_attention", lambda *a: calls.append(1) or fast(*a)
    )
    with torch.no_grad():
        assert_close(model.eval()[0](x, x, x)[0], slow, rtol=1e-4, atol=1e-5)
    assert calls


def test_standardized_convolutions_are_refused_with_the_reason() -> None:
    sizes = {"channels": [128], "stem_chs": 32, "num_classes": 0}
    model = timm.models.resnetv2.ResNetV2([1], **sizes)
    with pytest.raises(ValueError, match=r"no weight of the model can be 2:4: .*standardizes"):
        sparsified(model)


def test_a_classifier_by_convolution_stays_dense() -> None:
    report = nm.prune(vision.squeezenet1_1(num_classes=8), "2:4")
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["classifier.1.weight"] == "the final classifier"


def test_tied_embeddings_stay_tied_and_dense() -> None:
    torch.manual_seed(0)
    model = gpt2()
    sparsified(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert bool((model.lm_head.weight != 0).all())


def test_tied_embeddings_become_sparse_when_asked_for_once() -> None:
    torch.manual_seed(0)
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    sparsifier = nm.sparsify(model, optimizer, "2:4", include="lm_head")
    output(model, (tokens(),)).pow(2).mean().backward()
    optimizer.step()
    assert sparsifier.report().ok
    assert model.lm_head.weight is model.transformer.wte.weight
    assert nm.Pattern(2, 4).holds(model.transformer.wte.weight)


def test_adapters_with_a_frozen_body() -> None:
    """What is frozen is reported and left as it is."""
    torch.manual_seed(0)
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    _, sparsifier = sparsified(model)
    frozen = [row.name for row in sparsifier.report().rows if "frozen" in row.reason]
    assert len(frozen) == 6
    assert all("layer.0." in name for name in frozen)
    assert len(sparsifier.weights()) == 7
