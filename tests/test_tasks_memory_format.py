"""The memory format of trainings: channels last, but where oneDNN overwrites memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmsparsity.tasks.classification import ClassificationTask
from nmsparsity.tasks.detection.backbone import Backbone
from nmsparsity.tasks.detection.task import DetectionTask
from nmsparsity.tasks.memory_format import memory_format

LAST = torch.channels_last


@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (nn.Conv2d(8, 16, 1, stride=2), torch.contiguous_format),
        (nn.Conv2d(15, 4, 1, stride=(1, 2)), torch.contiguous_format),
        (nn.Conv2d(16, 16, 1, stride=2), LAST),
        (nn.Conv2d(8, 16, 1), LAST),
        (nn.Conv2d(8, 16, 3, stride=2), LAST),
    ],
)
def test_strided_1x1_over_few_channels_stays_contiguous(
    layer: nn.Conv2d, form: torch.memory_format
) -> None:
    found, note = memory_format(nn.Sequential(layer), True)
    assert found is form
    assert note.startswith("channels_last is left out: 0 is a 1x1 conv") == (form is not LAST)
    assert memory_format(layer, False) == (torch.contiguous_format, "")


@pytest.mark.parametrize(("width", "last"), [(8, False), (16, True)])
def test_tasks_train_in_that_format(width: int, last: bool) -> None:
    options = {"width": width}
    classes = ClassificationTask("small_resnet8", options, classes=3)
    backbone = Backbone("small_resnet10", {"width": width}, levels=[2, 3, 4])
    boxes = DetectionTask(backbone=backbone, categories={1: "disc"}, min_size=64, max_size=96)
    for task in (classes, boxes):
        deep = [its.weight for its in task.model.modules() if isinstance(its, nn.Conv2d)]
        wide = [weight for weight in deep if weight.shape[1] > 1 and weight.shape[2] > 1]
        assert {w.is_contiguous(memory_format=LAST) for w in wide} == {last}
        assert bool(task.note) != last
    assert (classes.memory_format is LAST) == last
