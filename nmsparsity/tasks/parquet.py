"""Labelled images in parquet files, as the Hugging Face hub stores them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

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


def decode(encoded: bytes, channels: int = 3) -> torch.Tensor:
    """An image file as uint8 ``[height, width, channels]``; grey for one channel."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        values = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(values.reshape(*values.shape[:2], channels))


def read_parquet(
    folder: Path,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    channels: int = 3,
) -> ImageSet:
    """All images of one split (``train-*.parquet``) decoded into memory.

    Raises:
        ValueError: if the columns cannot be told or the images differ in size.
    """
    import pyarrow.parquet as pq
    from datasets import Features

    table = pq.read_table([str(path) for path in sorted(folder.glob(f"**/{split}-*.parquet"))])
    features = Features.from_arrow_schema(table.schema)
    if image_column is None or label_column is None:
        found = image_and_label(features, str(folder))
        image_column, label_column = image_column or found[0], label_column or found[1]
    pictures = [decode(row["bytes"], channels) for row in table[image_column].to_pylist()]
    sizes = {tuple(picture.shape[:2]) for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(
            f"{folder}: images of {len(sizes)} sizes cannot be kept as one tensor; "
            "set --data.image_size to load them one by one"
        )
    labels = torch.tensor(table[label_column].to_pylist())
    names = getattr(features[label_column], "names", None)
    classes = names or [str(index) for index in range(int(labels.max()) + 1)]
    return ImageSet(torch.stack(pictures), labels, tuple(classes))
