"""Classifiers by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nmsparsity.tasks.models import SMALL, classifier
from nmsparsity.tasks.schedule import warmup_cosine


@pytest.mark.parametrize("name", SMALL)
def test_small_resnets_have_the_layers_of_their_name(name: str) -> None:
    model = classifier(name, classes=7, in_channels=1, width=4)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    on_the_path = [m for m in convolutions if m.kernel_size == (3, 3)]
    assert len(on_the_path) + 1 == int(name.removeprefix("small_resnet"))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_stem_stride_halves_the_maps() -> None:
    images, maps = torch.zeros(2, 3, 32, 32), []
    for stride in (1, 2):
        model = classifier("small_resnet8", classes=2, width=4, stem_stride=stride)
        model.stages[0].register_forward_hook(lambda module, given, out: maps.append(out.shape[2]))
        model(images)
    assert maps == [32, 16]


@pytest.mark.parametrize("name", ["small_resnet8", "resnet18"])
def test_convolutions_start_from_he_normal_fan_out(name: str) -> None:
    torch.manual_seed(0)
    model = classifier(name, classes=10)
    largest = max(
        (m for m in model.modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel()
    )
    want = math.sqrt(2 / (largest.out_channels * math.prod(largest.kernel_size)))
    assert float(largest.weight.detach().std()) == pytest.approx(want, rel=0.02)


def test_torchvision_resnet_strides_in_the_3x3() -> None:
    block = classifier("resnet50", classes=10).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_timm() -> None:
    model = classifier("timm/resnet10t", classes=5, in_channels=1)
    assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 5)


def build(classes: int, in_channels: int, depth: int = 1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * in_channels * depth, classes))


def test_a_function_of_your_own() -> None:
    model = classifier("tests.test_tasks_models:build", classes=5, in_channels=2, depth=3)
    assert (model[1].in_features, model[1].out_features) == (24, 5)


@pytest.mark.parametrize(
    ("name", "channels", "said"),
    [
        ("resnet51", 3, "did you mean 'resnet50'"),
        ("smal_resnet8", 3, "did you mean 'small_resnet8'"),
        ("timm/resnet51", 3, "timm knows no model 'resnet51'; did you mean"),
        ("resnet18", 1, "torchvision classifiers take 3 channels, got 1"),
        ("tests.test_tasks_models:math.sqrt", 3, "has no attribute"),
    ],
)
def test_wrong_names(name: str, channels: int, said: str) -> None:
    with pytest.raises((ValueError, AttributeError), match=said):
        classifier(name, classes=10, in_channels=channels)


def test_warmup_and_cosine() -> None:
    shares = [warmup_cosine(step, total=100, warmup=20) for step in range(101)]
    assert shares[0] == 0.0
    assert shares[10] == 0.5
    assert max(shares) == shares[20] == 1.0
    assert shares[60] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0)
    assert shares[20:] == sorted(shares[20:], reverse=True)
