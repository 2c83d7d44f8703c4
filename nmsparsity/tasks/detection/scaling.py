"""Scaling: how images are brought to the network's size, and detections back to the image's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from nmsparsity.tasks.detection.augment import fit_size


class Scaling(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform of its detectors, with two choices more.

    Args:
        min_size, max_size: sides of images in evaluation; ``min_size`` None keeps their size.
        mean, std: of each channel.

    Attributes:
        paste: whether masks ``[count, 1, height, width]`` are made in the size of the image; else
            detections have ``small_masks`` ``[count, 1, side, side]``, spread over their boxes, and
            ``size``, the image's height and width. 300 masks of a photo of 12 million pixels are
            14 GB; see `small_masks`.
    """

    def __init__(
        self, min_size: int | None, max_size: int, mean: list[float], std: list[float]
    ) -> None:
        super().__init__(min_size or 1, max_size, mean, std, _skip_resize=True)
        self.keep_size, self.paste = min_size is None, True

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The image in the network's size, then normalised: that is a quarter of the pixels where
        torchvision, which normalises first, has all of them. Both are linear, and commute."""
        height, width = image.shape[-2:]
        if self.keep_size:
            return super().normalize(image), target
        if min(height, width) * self.max_size < max(height, width) and not self.training:
            # torchvision's rule would leave nothing of it: one side is thinner than a pixel then.
            size = fit_size(height, width, self.min_size[0], self.max_size)
            image = functional.interpolate(image[None], size, mode="bilinear")[0]
        else:
            image, target = super().resize(image, target)
        return super().normalize(image), target

    def normalize(self, image: Tensor) -> Tensor:
        """Left to `resize`."""
        return image

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections in the pixels of the image."""
        small = [] if self.paste else [its.pop("masks") for its in result if "masks" in its]
        done: list[dict[str, Any]] = super().postprocess(result, image_shapes, original_image_sizes)
        if small:
            for its, masks, size in zip(done, small, original_image_sizes, strict=True):
                its |= {"small_masks": masks, "size": size}
        return done


@contextmanager
def small_masks(network: nn.Module) -> Iterator[None]:
    """Within it, a detector leaves its masks as small as its head made them."""
    scaling: Any = network.transform
    scaling.paste = False
    try:
        yield
    finally:
        scaling.paste = True
