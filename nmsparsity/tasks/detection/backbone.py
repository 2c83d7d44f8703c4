"""Backbones: ResNets that give the features of several stages, with a pyramid on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from nmsparsity.registry import near
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.models import SMALL, classifier
from nmsparsity.tasks.resnet import SmallResNet

Norm = Literal["frozen", "batch", "sync"]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


@dataclass(frozen=True)
class Backbone:
    """Which ResNet a detector stands on, and how it starts.

    Args:
        name: ``resnet18``, 34, 50, 101 of torchvision, or a small one (``small_resnet10``).
        options: of a small ResNet: ``width``, ``stem_stride``.
        init_from: a trained classifier to start from: a checkpoint, packed file or run folder of
            ours, dense or N:M, or a state_dict file of torchvision's. Its classifying layer is
            left out.
        norm: ``frozen`` batch norms (constants), ``batch``, or ``sync`` over all processes;
            default as in torchvision: frozen when started from a trained one, else batch.
        trainable_layers: stages that are trained, from the last; the stem counts as one. Default
            as in torchvision: 3 when started from a trained one, else all.
        levels: stages, from 1, whose features go into the pyramid; default the model's own.
    """

    name: str = "resnet50"
    options: dict[str, Any] | None = None
    init_from: str | None = None
    norm: Norm | None = None
    trainable_layers: int | None = None
    levels: list[int] | None = None

    def build(self, pyramid: int, levels: Sequence[int], extra: ExtraFPNBlock) -> BackboneWithFPN:
        """The network, with random weights; `load` puts the trained ones in.

        Args:
            pyramid: channels of every level.
            levels: the stages used where ``self.levels`` does not say.
            extra: what makes the levels above the last stage.

        Raises:
            ValueError: for an unknown name, stages that do not exist, and for random weights that
                would be frozen.
        """
        body = self._body()
        stages = list(self.levels or levels)
        if not stages or not all(1 <= stage <= len(body.widths) for stage in stages):
            raise ValueError(
                f"backbone levels {stages}: {self.name} has the stages 1 to {len(body.widths)}"
            )
        if stages != sorted(set(stages)):
            raise ValueError(f"backbone levels {stages}: want rising numbers, each once")
        names = {body.stage_names[stage - 1]: str(n) for n, stage in enumerate(stages)}
        widths = [body.widths[stage - 1] for stage in stages]
        network = body.network
        _choose_norm(network, self.norm or ("frozen" if self.init_from else "batch"))
        self._freeze(network, [*reversed(body.stage_names), *body.stem_names])
        if isinstance(network, SmallResNet):
            return _PyramidOnSmall(network, names, widths, pyramid, extra)
        return BackboneWithFPN(network, names, widths, pyramid, extra)

    def load(self, backbone: BackboneWithFPN) -> None:
        """Put the weights of ``init_from`` into it, in place; nothing without one.

        Raises:
            ValueError: naming what does not fit.
        """
        if self.init_from is None:
            return
        found = Checkpoint.read(self.init_from)
        own = backbone.body.state_dict()
        left = {name for name in found.tensors if name.startswith("fc.")}
        # Frozen batch norms count no batches.
        left |= {n for n in found.tensors if n.endswith("num_batches_tracked") and n not in own}
        # Stages above the last level are not built.
        built = {_stage(name) for name in own}
        above = {stage for name in found.tensors if (stage := _stage(name)) and stage not in built}
        left |= {name for name in found.tensors if _stage(name) in above}
        tensors = {name: value for name, value in found.tensors.items() if name not in left}
        Checkpoint(found.path, tensors).load_into(backbone.body)

    def _body(self) -> _Body:
        if self.name in SMALL:
            network = classifier(self.name, 1, **(self.options or {}))
            assert isinstance(network, SmallResNet)
            count = len(network.stages)
            widths = [_outputs(network.stages[index]) for index in range(count)]
            return _Body(network, [f"stages.{i}" for i in range(count)], ["conv1", "bn1"], widths)
        if self.name not in RESNETS:
            known = [*RESNETS, *SMALL]
            raise ValueError(
                f"backbone {self.name!r}: want one of {', '.join(known)}{near(self.name, known)}"
            )
        if self.options:
            raise ValueError(f"backbone options {self.options}: {self.name} has none")
        network = classifier(self.name, 1)
        stages = [f"layer{number}" for number in range(1, 5)]
        widths = [_outputs(network.get_submodule(stage)) for stage in stages]
        return _Body(network, stages, ["conv1", "bn1"], widths)

    def _freeze(self, network: nn.Module, parts: Sequence[str]) -> None:
        """Freeze all but the last ``trainable_layers`` parts; conv1 and bn1 are one."""
        most = len(parts) - 1
        asked = self.trainable_layers
        count = asked if asked is not None else (min(3, most) if self.init_from else most)
        if not 0 <= count <= most:
            raise ValueError(f"trainable_layers {count}: {self.name} has 0 to {most}")
        if count < most and self.init_from is None:
            raise ValueError(
                f"trainable_layers {count} of {most}: random weights would be frozen; give "
                "backbone.init_from, or leave it out"
            )
        trained = [*parts[:count], *(parts[most:] if count == most else ())]
        for name, parameter in network.named_parameters():
            if not any(name.startswith(f"{part}.") for part in trained):
                parameter.requires_grad_(False)


@dataclass(frozen=True)
class _Body:
    network: nn.Module
    stage_names: list[str]
    stem_names: list[str]
    widths: list[int]


class SmallBody(nn.Module):
    """The stem and the stages of a SmallResNet up to the last that is used; gives the features of
    some.

    Its weights have the names they have in the classifier.
    """

    def __init__(self, network: SmallResNet, names: dict[str, str]) -> None:
        super().__init__()
        last = max(int(name.split(".")[1]) for name in names)
        self.conv1, self.bn1, self.stages = network.conv1, network.bn1, network.stages[: last + 1]
        self.names = names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features by level, of images ``[batch, 3, height, width]``."""
        out = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        found = {}
        for name, stage in self.stages.named_children():
            out = stage(out)
            if f"stages.{name}" in self.names:
                found[self.names[f"stages.{name}"]] = out
        return found


class _PyramidOnSmall(BackboneWithFPN):  # type: ignore[misc]
    """torchvision's pyramid on a SmallBody."""

    def __init__(
        self,
        network: SmallResNet,
        names: dict[str, str],
        widths: list[int],
        pyramid: int,
        extra: ExtraFPNBlock,
    ) -> None:
        children = {name: name for name, _ in list(network.named_children())[:1]}
        super().__init__(network, children, widths, pyramid, extra)
        self.body = SmallBody(network, names)


def pool_above() -> ExtraFPNBlock:
    """One more level by pooling: of the R-CNNs."""
    return LastLevelMaxPool()


def convolutions_above(pyramid: int) -> ExtraFPNBlock:
    """Two more levels by strided convolutions: of RetinaNet and FCOS."""
    return LastLevelP6P7(pyramid, pyramid)


def _stage(name: str) -> str | None:
    """The stage a weight belongs to: ``layer3`` or ``stages.2``; None for others."""
    parts = name.split(".")
    if parts[0] == "stages":
        return ".".join(parts[:2])
    return parts[0] if parts[0].startswith("layer") else None


def _outputs(stage: nn.Module) -> int:
    """The channels a stage gives: those of its last norm."""
    norms = [module for module in stage[-1].children() if isinstance(module, nn.BatchNorm2d)]  # type: ignore[index]
    return int(norms[-1].num_features)


def _choose_norm(network: nn.Module, norm: Norm) -> None:
    """Replace every batch norm, in place."""
    if norm == "batch":
        return
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _other_norm(child, norm))


def _other_norm(norm: nn.BatchNorm2d, kind: Norm) -> nn.Module:
    if kind == "sync":
        return nn.SyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    frozen: nn.Module = FrozenBatchNorm2d(norm.num_features, norm.eps)
    return frozen
