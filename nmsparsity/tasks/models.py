"""Classifiers by name: the small ResNets, torchvision's, timm's, your own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from nmsparsity.registry import near
from nmsparsity.tasks.resnet import SmallResNet, he_init

SMALL = {
    "small_resnet8": (1, 1, 1),
    "small_resnet10": (1, 1, 1, 1),
    "small_resnet14": (2, 2, 2),
    "small_resnet18": (2, 2, 2, 2),
    "small_resnet20": (3, 3, 3),
    "small_resnet32": (5, 5, 5),
    "small_resnet56": (9, 9, 9),
}


def classifier(name: str, classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """A new classifier with random weights.

    Args:
        name: ``"small_resnet8"`` and its family, a torchvision classifier (``"resnet50"``), a timm
            one (``"timm/vit_small_patch16_224"``), or ``"package.module:function"``, which is
            called with the other arguments by name.
        classes: how many classes.
        in_channels: 3 for colour, 1 for grey images (small ResNets and timm only).
        options: the model's own arguments: ``width``, ``stem_stride`` of the small ResNets.

    torchvision ResNets are version 1.5 (the stride is in the 3x3 convolution) and start from He's
    normal distribution with ``fan_out``, which is torchvision's own default.

    Raises:
        ValueError: if no such classifier is known (near names are offered), or it does not take
            these options.

    >>> classifier("small_resnet8", classes=10, width=8).fc
    Linear(in_features=32, out_features=10, bias=True)
    """
    try:
        return _build(name, classes, in_channels, options)
    except TypeError as error:
        given = f" with model_options {options}" if options else ""
        raise ValueError(f"model {name!r}{given} cannot be made: {error}") from error


def _build(name: str, classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    if name in SMALL:
        return SmallResNet(SMALL[name], classes=classes, in_channels=in_channels, **options)
    if ":" in name:
        return _imported(name, classes, in_channels, options)
    if name.startswith("timm/"):
        return _timm(name.removeprefix("timm/"), classes, in_channels, options)
    return _torchvision(name, classes, in_channels, options)


def _imported(name: str, classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    module, function = name.split(":", 1)
    try:
        build = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model {name!r}: {error}; want 'package.module:function' on the Python path "
            "(PYTHONPATH=. for a module in this folder)"
        ) from error
    model = build(classes=classes, in_channels=in_channels, **options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: want a torch.nn.Module, got {type(model).__name__}")
    return model


def _torchvision(name: str, classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(
            f"model {name!r} is neither a small ResNet ({', '.join(SMALL)}) nor a torchvision "
            f"classifier{near(name, [*SMALL, *known])}; for timm write 'timm/{name}'"
        )
    if in_channels != 3:
        raise ValueError(
            f"model {name!r}: torchvision classifiers take 3 channels, got {in_channels}; "
            "choose a small ResNet or a timm model for grey images"
        )
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    return he_init(model) if name.startswith(("resnet", "resnext", "wide_resnet")) else model


def _timm(name: str, classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm knows no model {name!r}{near(name, timm.list_models())}")
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=classes, in_chans=in_channels, **options
    )
    return model
