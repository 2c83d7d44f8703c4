"""Detectors by name: torchvision's Faster and Mask R-CNN, RetinaNet and FCOS, of any width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from nmsparsity.registry import near
from nmsparsity.tasks.detection.backbone import Backbone, convolutions_above, pool_above
from nmsparsity.tasks.detection.proposals import Proposals
from nmsparsity.tasks.detection.sampling import SeededSampler
from nmsparsity.tasks.detection.scaling import Scaling

Model = Literal["faster_rcnn", "mask_rcnn", "retinanet", "fcos"]

_BOXES = (
    *("rpn.head.cls_logits", "rpn.head.bbox_pred"),
    *("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
)
_DENSE_HEADS = ("head.classification_head.cls_logits", "head.regression_head.bbox_reg")
PREDICTORS = {
    "faster_rcnn": _BOXES,
    "mask_rcnn": (*_BOXES, "roi_heads.mask_predictor.mask_fcn_logits"),
    "retinanet": _DENSE_HEADS,
    "fcos": (*_DENSE_HEADS, "head.regression_head.bbox_ctrness"),
}
"""The layers that give scores, boxes and masks: dense unless asked for. Everything else, backbone,
pyramid and heads, can be N:M. (Which layers arXiv 2102.04010 made sparse is not known.)"""


@dataclass(frozen=True)
class Heads:
    """Widths of what stands on the backbone; the defaults are torchvision's.

    Args:
        pyramid: channels of every pyramid level, and of RetinaNet's and FCOS's heads.
        box: R-CNNs: units of the two linear layers of the box head.
        mask: Mask R-CNN: channels of the mask head.
        mask_layers: Mask R-CNN: its 3x3 convolutions.
        anchor_sizes: one a pyramid level, in pixels of the image as the network sees it; default
            32, 64, ... FCOS has none.
    """

    pyramid: int = 256
    box: int = 1024
    mask: int = 256
    mask_layers: int = 4
    anchor_sizes: list[int] | None = None

    def __post_init__(self) -> None:
        widths = {name: getattr(self, name) for name in ("pyramid", "box", "mask", "mask_layers")}
        for name, value in widths.items():
            if value < 1:
                raise ValueError(f"heads.{name} {value}: want 1 or more")
        if any(size < 1 for size in self.anchor_sizes or ()):
            raise ValueError(f"heads.anchor_sizes {self.anchor_sizes}: want sizes of 1 or more")


def detector(
    model: Model,
    classes: int,
    backbone: Backbone,
    heads: Heads,
    *,
    min_size: int | None = 800,
    max_size: int = 1333,
    max_detections: int = 100,
    **options: Any,
) -> nn.Module:
    """A new detector with random weights; `Backbone.load` puts trained ones in.

    In training it takes images as the data made them; in evaluation it resizes them itself and
    gives boxes and masks in the pixels of the file.

    Args:
        model: ``faster_rcnn`` (arXiv 1506.01497), ``mask_rcnn`` (1703.06870), ``retinanet``
            (1708.02002) or ``fcos`` (1904.01355), on a feature pyramid (1612.03144).
        classes: categories, without the background.
        backbone, heads: what it is made of.
        min_size, max_size: sides of images in evaluation; ``min_size`` None keeps them.
        max_detections: the best of an image.
        options: torchvision's own, such as ``box_score_thresh``.

    Raises:
        ValueError: for options that torchvision's class does not have.

    >>> small = detector("faster_rcnn", 2, Backbone("small_resnet10", {"width": 8}), Heads(16, 32))
    >>> small.roi_heads.box_predictor.cls_score
    Linear(in_features=32, out_features=3, bias=True)
    """
    if model not in PREDICTORS:
        raise ValueError(f"model {model!r}: want one of {', '.join(PREDICTORS)}")
    if max_detections < 1:
        raise ValueError(f"max_detections {max_detections}: want 1 or more")
    two_stage = model.endswith("rcnn")
    extra = pool_above() if two_stage else convolutions_above(heads.pyramid)
    body = backbone.build(heads.pyramid, (1, 2, 3, 4) if two_stage else (2, 3, 4), extra)
    limit = "box_detections_per_img" if two_stage else "detections_per_img"
    common: dict[str, Any] = {limit: max_detections, **options}
    _check(model, options)
    network = _BUILD[model](body, classes, heads, _levels(backbone, two_stage), common)
    old = network.transform
    network.transform = Scaling(min_size, max_size, old.image_mean, old.image_std)
    if two_stage:
        Proposals.take_over(network.rpn)
    _seed_samplers(network)
    network.dense_by_default = dict.fromkeys(PREDICTORS[model], "a final predictor")
    return network  # type: ignore[no-any-return]


_OURS = ("num_classes", "min_size", "max_size", "detections_per_img", "box_detections_per_img")
"""Options of torchvision's that have a setting of their own here."""


def _check(model: Model, options: Mapping[str, Any]) -> None:
    """torchvision's classes take any option and ignore what they do not know."""
    known = [name for name in signature(_CLASSES[model]).parameters if "_" in name]
    known = [name for name in known if name not in _OURS]
    for name in options:
        if name not in known:
            raise ValueError(
                f"model {model!r} has no option {name!r}{near(name, known)}; known: "
                f"{', '.join(known)}"
            )


def samplers(network: nn.Module) -> list[SeededSampler]:
    """Those of a detector: of anchors, of proposals; none of RetinaNet and FCOS."""
    parts = [getattr(network, name, None) for name in ("rpn", "roi_heads")]
    return [part.fg_bg_sampler for part in parts if part is not None]


def _seed_samplers(network: Any) -> None:
    for name in ("rpn", "roi_heads"):
        if part := getattr(network, name, None):
            old = part.fg_bg_sampler
            part.fg_bg_sampler = SeededSampler(old.batch_size_per_image, old.positive_fraction)


def _levels(backbone: Backbone, two_stage: bool) -> int:
    """How many levels of the pyramid come from the backbone."""
    return len(backbone.levels) if backbone.levels else 4 if two_stage else 3


def _anchors(heads: Heads, count: int, octaves: int) -> AnchorGenerator:
    """Boxes of three shapes on every level; ``octaves`` sizes each."""
    bases = heads.anchor_sizes or [32 * 2**level for level in range(count)]
    if len(bases) != count:
        raise ValueError(f"anchor_sizes {bases}: want {count}, one a level of the pyramid")
    sizes = tuple(tuple(int(b * 2 ** (k / octaves)) for k in range(octaves)) for b in bases)
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * count)


def _pool(levels: int, size: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign([str(level) for level in range(levels)], size, sampling_ratio=2)


def _rcnn_parts(classes: int, heads: Heads, levels: int) -> dict[str, Any]:
    return {
        "rpn_anchor_generator": _anchors(heads, levels + 1, 1),
        "box_roi_pool": _pool(levels, 7),
        "box_head": TwoMLPHead(heads.pyramid * 49, heads.box),
        "box_predictor": FastRCNNPredictor(heads.box, classes + 1),
    }


def _faster_rcnn(
    body: BackboneWithFPN, classes: int, heads: Heads, levels: int, common: dict[str, Any]
) -> Any:
    return detection.FasterRCNN(body, **_rcnn_parts(classes, heads, levels), **common)


def _mask_rcnn(
    body: BackboneWithFPN, classes: int, heads: Heads, levels: int, common: dict[str, Any]
) -> Any:
    return detection.MaskRCNN(
        body,
        **_rcnn_parts(classes, heads, levels),
        mask_roi_pool=_pool(levels, 14),
        mask_head=MaskRCNNHeads(heads.pyramid, [heads.mask] * heads.mask_layers, 1),
        mask_predictor=MaskRCNNPredictor(heads.mask, heads.mask, classes + 1),
        **common,
    )


def _retinanet(
    body: BackboneWithFPN, classes: int, heads: Heads, levels: int, common: dict[str, Any]
) -> Any:
    anchors = _anchors(heads, levels + 2, 3)
    return detection.RetinaNet(body, classes + 1, anchor_generator=anchors, **common)


def _fcos(
    body: BackboneWithFPN, classes: int, heads: Heads, levels: int, common: dict[str, Any]
) -> Any:
    if heads.pyramid % 32 or heads.pyramid < 64:
        # A group of one channel has a single value on a level of one pixel.
        raise ValueError(
            f"pyramid {heads.pyramid}: FCOS normalises 32 groups of channels, want 64 or a larger "
            "multiple of 32"
        )
    if heads.anchor_sizes is not None:
        raise ValueError(f"anchor_sizes {heads.anchor_sizes}: FCOS has no anchors")
    sizes = tuple((8 * 2**level,) for level in range(levels + 2))
    points = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    return detection.FCOS(body, classes + 1, anchor_generator=points, **common)


_CLASSES = {
    "faster_rcnn": detection.FasterRCNN,
    "mask_rcnn": detection.MaskRCNN,
    "retinanet": detection.RetinaNet,
    "fcos": detection.FCOS,
}
_BUILD = {
    "faster_rcnn": _faster_rcnn,
    "mask_rcnn": _mask_rcnn,
    "retinanet": _retinanet,
    "fcos": _fcos,
}
