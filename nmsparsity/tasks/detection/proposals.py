"""Proposals: the regions that an R-CNN looks at more closely."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers


class Proposals(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's network, which in evaluation decodes boxes after it has chosen the best.

    torchvision decodes one for every anchor, tens of thousands, and keeps a few hundred.
    """

    @staticmethod
    def take_over(network: nn.Module) -> None:
        """Make a network of torchvision's one of these, in place; it has the same attributes."""
        network.__class__ = Proposals

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Boxes ``[count, 4]`` of every image, and in training the losses."""
        if self.training:
            trained: tuple[list[Tensor], dict[str, Tensor]] = super().forward(
                images, features, targets
            )
            return trained
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        counts = [its[0].numel() for its in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        anchors = self.anchor_generator(images, maps)
        scores = objectness.view(len(anchors), -1)
        chosen = self._get_top_n_idx(scores, counts)
        corners = chosen[..., None].expand(-1, -1, 4)
        boxes = self.box_coder.decode(
            deltas.view(len(anchors), -1, 4).gather(1, corners).flatten(0, 1),
            [its[places] for its, places in zip(anchors, chosen, strict=True)],
        )
        left = [min(self.pre_nms_top_n(), count) for count in counts]
        found, _ = self.filter_proposals(
            boxes.view(len(anchors), -1, 4), scores.gather(1, chosen), images.image_sizes, left
        )
        return found, {}
