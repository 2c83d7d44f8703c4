"""Small generated image sets on disk, in every layout that the recipes read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nmsparsity.tasks.idx import write_idx

# Lightning 2.6 uses names that torch 2.14 has deprecated, and warns of few workers and batches.
lightning_warnings = [
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]


def pictures(count: int, size: int, channels: int, classes: int = 3, seed: int = 0):
    """Pictures ``[count, size, size, channels]`` whose brightness tells their class, and labels."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randint(0, 80, (count, size, size, channels), generator=draws)
    return (noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels


def write_idx_set(folder: Path, train: int = 96, test: int = 21, size: int = 8) -> Path:
    """Fashion-MNIST's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = pictures(count, size, 1, seed=seed)
        write_idx(images[..., 0], folder / f"{split}-images-idx3-ubyte.gz")
        write_idx(labels.to(torch.uint8), folder / f"{split}-labels-idx1-ubyte")
    return folder


def write_folders(folder: Path, train: int = 12, val: int = 6, size: int = 72) -> Path:
    """``train/<class>/*.png`` and ``val/<class>/*.png``, as ImageNet has them."""
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        images, labels = pictures(count, size, 3, seed=seed)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / f"class{int(label)}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy()).save(path)
    return folder


def png(image: torch.Tensor) -> bytes:
    """One picture ``[height, width, channels]`` as a file."""
    stream = io.BytesIO()
    Image.fromarray(np.squeeze(image.numpy(), 2) if image.shape[2] == 1 else image.numpy()).save(
        stream, "PNG"
    )
    return stream.getvalue()


def write_parquet(
    folder: Path, split: str, images: torch.Tensor, labels: torch.Tensor, *more: str
) -> Path:
    """Parquet with the columns ``img`` and ``label``, as the Hugging Face hub stores CIFAR-10.

    Further image columns with the same pictures are named by ``more``.
    """
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    folder.mkdir(parents=True, exist_ok=True)
    columns = ("img", *more)
    rows = {name: [{"bytes": png(image), "path": None} for image in images] for name in columns}
    rows["label"] = labels.tolist()
    features = Features({name: ImageFeature() for name in columns})
    features["label"] = ClassLabel(names=["a", "b", "c"])
    Dataset.from_dict(rows, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder
