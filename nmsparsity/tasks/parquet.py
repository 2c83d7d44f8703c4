"""Labelled images in parquet files, as the Hugging Face hub stores them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmsparsity.tasks.image_set import ImageSet


def image_and_label(features: Any, where: str) -> tuple[str, str]:
    """The names of the image and the label column among `datasets.Features`.

    Raises:
        ValueError: unless there is one image column and one column of class labels (or one
            named ``label``).
    """
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(labels) > 1 and "label" in labels:
        labels = ["label"]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{where}: want one Image column and one ClassLabel column, found {kinds}; "
            "name them with --data.image_column and --data.label_column"
        )
    return images[0], labels[0]


def to_tensor(image: Any, grey: bool = False) -> Tensor:
    """A PIL image as uint8 ``[height, width, channels]``: 1 channel if grey, else 3."""
    values = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(values.reshape(*values.shape[:2], 1 if grey else 3))


def stack(images: Iterable[Any], labels: Sequence[int], classes: Any, where: str) -> ImageSet:
    """PIL images of one size and their labels as an `ImageSet`; grey if the first one is.

    Args:
        classes: their names; None numbers them.
        where: the images come from, for the error message.

    Raises:
        ValueError: if the images differ in size.
    """
    tensors: list[Tensor] = []
    grey = False
    for image in images:
        grey = image.mode in ("1", "L") if not tensors else grey
        tensors.append(to_tensor(image, grey))
    sizes = {tuple(tensor.shape) for tensor in tensors}
    if len(sizes) != 1:
        raise ValueError(
            f"{where}: images of {len(sizes)} sizes cannot be kept as one tensor; "
            "set --data.image_size to read and crop them one by one"
        )
    names = classes or [str(index) for index in range(max(labels) + 1)]
    return ImageSet(torch.stack(tensors), torch.tensor(labels), tuple(names))


def read_parquet(
    folder: Path,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSet:
    """All images of one split (``train-*.parquet``) decoded into memory.

    Raises:
        ValueError: if the columns cannot be told or the images differ in size.
    """
    import pyarrow.parquet as pq
    from datasets import Features
    from PIL import Image

    table = pq.read_table([str(path) for path in sorted(folder.glob(f"**/{split}-*.parquet"))])
    features = Features.from_arrow_schema(table.schema)
    if image_column is None or label_column is None:
        found = image_and_label(features, str(folder))
        image_column, label_column = image_column or found[0], label_column or found[1]
    images = (Image.open(io.BytesIO(row["bytes"])) for row in table[image_column].to_pylist())
    names = getattr(features[label_column], "names", None)
    return stack(images, table[label_column].to_pylist(), names, str(folder))
