"""Small labelled images by name or folder, read into memory."""

from __future__ import annotations

from pathlib import Path

from nmsparsity.tasks.idx import read_idx
from nmsparsity.tasks.image_set import ImageSet
from nmsparsity.tasks.parquet import read_parquet, stack
from nmsparsity.tasks.photos import Pairs, PhotoSet, read_photos
from nmsparsity.tasks.roots import MissingDataError, data_root

HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
EVALUATION_SPLITS = ("validation", "val", "test")


def read_fashion_mnist(folder: Path) -> tuple[ImageSet, ImageSet]:
    """Training and test images of Fashion-MNIST (arXiv 1708.07747) from its four idx files."""
    return _idx_pair(folder, "train"), _idx_pair(folder, "t10k")


def _idx_pair(folder: Path, split: str) -> ImageSet:
    images = read_idx(_either(folder / f"{split}-images-idx3-ubyte"))
    labels = read_idx(_either(folder / f"{split}-labels-idx1-ubyte"))
    return ImageSet(images.unsqueeze(-1), labels.long(), FASHION)


def _either(path: Path) -> Path:
    """The file, or else its gzipped form."""
    return path if path.exists() else path.with_name(f"{path.name}.gz")


def read_small_images(
    source: str,
    root: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[ImageSet, ImageSet]:
    """The training and the evaluation images of a set, decoded into memory.

    Args:
        source: a folder, under the data root or any path: Fashion-MNIST's idx files, parquet files
            ``train-*.parquet`` and ``test-*`` or ``validation-*``, or whatever
            :func:`nmsparsity.tasks.photos.read_photos` reads.
        root: see :func:`nmsparsity.tasks.roots.data_root`.
        image_column, label_column: of parquet files; found by their type when not given.

    Raises:
        MissingDataError: if it is not there: where to get it, what to set.
        ValueError: if the images differ in size.
    """
    folder = data_root(root) / source
    if not folder.is_dir():
        folder = Path(source)
    if any(folder.glob("train-images-idx3-ubyte*")):
        return read_fashion_mnist(folder)
    columns = (image_column, label_column)
    for split in EVALUATION_SPLITS:
        if all(any(folder.glob(f"**/{part}-*.parquet")) for part in ("train", split)):
            return read_parquet(folder, "train", *columns), read_parquet(folder, split, *columns)
    try:
        photos = read_photos(source, root, *columns)
    except MissingDataError:
        raise MissingDataError(source, data_root(root) / source, _remedy(source)) from None
    return _in_memory(photos.training, photos, source), _in_memory(
        photos.evaluation, photos, source
    )


def _in_memory(pairs: Pairs, photos: PhotoSet, source: str) -> ImageSet:
    images, labels = zip(*(pairs[index] for index in range(len(pairs))), strict=True)
    return stack(images, labels, photos.classes, source)


def _remedy(source: str) -> str:
    if source == "fashion_mnist":
        return (
            "Get the four .gz files of https://github.com/zalandoresearch/fashion-mnist "
            "(or the Debian package dataset-fashion-mnist)."
        )
    name = HUB_NAMES.get(source, source)
    return (
        f"Get its parquet files, for example by 'hf download {name} --repo-type dataset "
        f"--local-dir DATA/{source}'."
    )
