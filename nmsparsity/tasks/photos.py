"""Large photos by name or folder, opened one by one: ImageNet folders and Hugging Face sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsparsity.tasks.parquet import image_and_label
from nmsparsity.tasks.roots import MissingDataError, data_root

EVALUATION_SPLITS = ("validation", "val", "test")
Pairs = Sequence[tuple[Any, int]]


@dataclass(frozen=True)
class PhotoSet:
    """Training and evaluation pairs of image and label, and the names of the classes."""

    training: Pairs
    evaluation: Pairs
    classes: tuple[str, ...]


class HubPairs(Sequence[tuple[Any, int]]):
    """A split of a Hugging Face data set as pairs of image and label."""

    def __init__(self, split: Any, image: str, label: str) -> None:
        self.split, self.image, self.label = split, image, label

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Any) -> Any:
        row = self.split[index]
        return row[self.image], row[self.label]


def read_photos(
    source: str,
    root: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> PhotoSet:
    """A photo set that is on this computer; nothing is downloaded.

    Args:
        source: a folder, under the data root or any path: with ``train/<class>/*`` and
            ``val/<class>/*`` as ImageNet has them, or with parquet files. Else a name of the
            Hugging Face hub that `datasets` has in its cache already.
        root: see :func:`nmsparsity.tasks.roots.data_root`.
        image_column, label_column: of parquet files; found by their type when not given.

    Raises:
        MissingDataError: if it is not there: where to get it, what to set.
    """
    folder = data_root(root) / source
    if not folder.is_dir() and Path(source).is_dir():
        folder = Path(source)
    for split in ("val", "validation"):
        parts = (folder / "train", folder / split)
        if all(part.is_dir() and not any(part.glob("*.parquet")) for part in parts):
            return _image_folder(folder, split)
    if any(folder.glob("*-idx3-ubyte*")):
        raise ValueError(
            f"{folder}: small images of one size (idx files), which are kept in memory and not "
            "cropped: leave --data.image_size unset"
        )
    name = str(folder) if folder.is_dir() else source
    return _hub(source, name, data_root(root) / source, image_column, label_column)


def _image_folder(folder: Path, split: str) -> PhotoSet:
    from torchvision.datasets import ImageFolder

    training, evaluation = ImageFolder(str(folder / "train")), ImageFolder(str(folder / split))
    if training.classes != evaluation.classes:
        different = sorted(set(training.classes) ^ set(evaluation.classes))
        raise ValueError(
            f"{folder}: train and {split} differ in {len(different)} classes, first "
            f"{different[:3]}; each class wants a folder in both"
        )
    return PhotoSet(training, evaluation, tuple(training.classes))  # type: ignore[arg-type]


def _hub(
    source: str, name: str, looked: Path, image_column: str | None, label_column: str | None
) -> PhotoSet:
    remedy = (
        f"Get its parquet files by 'hf download {source} --repo-type dataset --local-dir "
        "DATA/NAME', or make folders train/<class>/ and val/<class>/ of photos."
    )
    data = load_without_network(source, looked, remedy, name)
    split = next((name for name in EVALUATION_SPLITS if name in data), None)
    if "train" not in data or split is None:
        raise ValueError(
            f"data set {source!r}: want a split 'train' and one of {EVALUATION_SPLITS}, found "
            f"{list(data)}"
        )
    features = data["train"].features
    if image_column is None or label_column is None:
        found = image_and_label(features, source)
        image_column, label_column = image_column or found[0], label_column or found[1]
    names = getattr(features[label_column], "names", None)
    classes = names or map(str, range(1 + max(data["train"][label_column])))
    return PhotoSet(
        HubPairs(data["train"], image_column, label_column),
        HubPairs(data[split], image_column, label_column),
        tuple(classes),
    )


def load_without_network(source: str, looked: Path, remedy: str, *name: str) -> Any:
    """`datasets.load_dataset` of a folder or of the hub's cache.

    Args:
        source: what was asked for, and
        looked: where it was looked for first, for the error message.
        remedy: where to get it.
        name: for `load_dataset`, with a configuration if any.

    Raises:
        MissingDataError: if it is not there.
    """
    from datasets import load_dataset

    try:
        with _offline():
            return load_dataset(*name)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise MissingDataError(
            source,
            looked,
            f"Nor is it in the cache of the Hugging Face `datasets` library ({error}). {remedy}",
        ) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Inside the block the Hugging Face libraries do not go to the network."""
    import datasets.config
    import huggingface_hub.constants

    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
