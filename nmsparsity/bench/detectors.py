"""What a command line means by a detector: a trained one, or one with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from nmsparsity.registry import near

if TYPE_CHECKING:
    from nmsparsity.tasks.detection.detectors import Model

PREFIX = "detection/"
_COCO = 80  # categories
_PHOTO = (3, 480, 640)


def trained_detector(
    path: str, shape: tuple[int, ...] | None
) -> tuple[str, nn.Module, Callable[[int], Tensor]]:
    """Its name, the detector in eval mode, and images by number.

    Args:
        path: a run folder, checkpoint or packed file.
        shape: of random images; None takes validation images of its data.

    Raises:
        ValueError: where the images cannot be read.
    """
    from nmsparsity.tasks.detection.predict import data_of, detector_of

    model, _, config = detector_of(path)
    name = f"{config['task'].get('model', 'mask_rcnn')} of {path}"
    if shape is not None:
        return name, model, _random(shape)
    from nmsparsity.tasks.detection.dataset import Detections

    try:
        images = Detections(data_of(config).evaluation, None, masks=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: the images to measure with are those of {config['data'].get('source')!r}, "
            f"which cannot be read here; set NMSPARSITY_DATA, or give --input, such as --input "
            f"3x480x640, for random ones ({error})"
        ) from error
    return name, model, lambda number: images[number % len(images)][0]


def random_detector(
    name: str, shape: tuple[int, ...] | None
) -> tuple[str, nn.Module, Callable[[int], Tensor]]:
    """A detector of full size on a ResNet-50 for COCO's 80 categories, with random weights.

    It finds next to nothing: what comes after the scores is hardly measured.

    Args:
        name: ``detection/faster_rcnn`` and so on.
        shape: of the images, which it does not resize; default 3x480x640.

    Raises:
        ValueError: for an unknown name.
    """
    from nmsparsity.tasks.detection.backbone import Backbone
    from nmsparsity.tasks.detection.detectors import PREDICTORS, Heads, detector

    kind = name.removeprefix(PREFIX)
    if kind not in PREDICTORS:
        known = [PREFIX + one for one in PREDICTORS]
        raise ValueError(f"model {name!r}: want one of {', '.join(known)}{near(name, known)}")
    torch.manual_seed(0)
    model = detector(cast("Model", kind), _COCO, Backbone("resnet50"), Heads(), min_size=None)
    return name, model.eval(), _random(shape or _PHOTO)


def is_detector(config: Mapping[str, Any]) -> bool:
    """Whether a file's configuration is that of a detector or segmenter."""
    return config.get("kind") in ("detection", "segmentation")


def _random(shape: tuple[int, ...]) -> Callable[[int], Tensor]:
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"--input {'x'.join(map(str, shape))}: want 3xHEIGHTxWIDTH for a detector")
    return lambda number: torch.rand(shape, generator=torch.Generator().manual_seed(number))
