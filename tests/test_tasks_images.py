"""Image sets: found, read, or missing with a word on where to get them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nmsparsity.tasks.data import ImageData
from nmsparsity.tasks.image_set import ImageSet
from nmsparsity.tasks.photos import read_photos
from nmsparsity.tasks.roots import MissingDataError, data_root
from nmsparsity.tasks.sources import read_small_images
from nmsparsity.tasks.transforms import Lighting, evaluation_transform, training_transform
from tests.images import pictures, write_folders, write_idx_set, write_parquet

EXCERPT = Path(__file__).parents[1] / "data" / "fashion_mnist"


def test_the_excerpt_of_fashion_mnist() -> None:
    training, evaluation = read_small_images(str(EXCERPT))
    assert training.images.shape == (10_000, 28, 28, 1)
    assert evaluation.images.shape == (2_000, 28, 28, 1)
    assert torch.equal(training.labels.bincount(), torch.full((10,), 1000))
    assert torch.equal(evaluation.labels.bincount(), torch.full((10,), 200))
    assert training.classes[9] == "Ankle boot"
    mean, std = training.moments()
    assert mean[0] == pytest.approx(0.286, abs=0.01)
    assert std[0] == pytest.approx(0.353, abs=0.01)


def test_cifar10_as_the_hub_stores_it() -> None:
    root = os.environ.get("NMSPARSITY_DATA", "")
    if not (Path(root) / "cifar10").is_dir():
        pytest.skip("cifar10 is not in $NMSPARSITY_DATA")
    data = ImageData("cifar10", root)
    assert (data.classes, data.in_channels) == (10, 3)
    batch, labels = next(iter(data.val_dataloader()))
    assert batch.shape == (128, 3, 32, 32)
    assert batch.mean().abs() < 0.2
    assert labels.unique().numel() == 10


@pytest.mark.parametrize("channels", [1, 3])
def test_parquet_columns_are_found_by_their_type(tmp_path: Path, channels: int) -> None:
    images, labels = pictures(12, 8, channels)
    write_parquet(tmp_path / "set", "train", images, labels)
    write_parquet(tmp_path / "set", "validation", images[:5], labels[:5])
    training, evaluation = read_small_images("set", tmp_path)
    assert torch.equal(training.images, images)
    assert torch.equal(training.labels, labels)
    assert (len(evaluation), training.classes) == (5, ("a", "b", "c"))


def test_parquet_of_many_sizes_needs_an_image_size(tmp_path: Path) -> None:
    small, labels = pictures(2, 8, 3)
    large, _ = pictures(2, 9, 3)
    write_parquet(tmp_path / "set", "test", small, labels)
    write_parquet(tmp_path / "set", "train", small, labels)
    write_parquet(tmp_path / "more", "train", large, labels)
    (tmp_path / "more" / "train-00000-of-00001.parquet").rename(
        tmp_path / "set" / "train-00001-of-00001.parquet"
    )
    with pytest.raises(ValueError, match=r"2 sizes .* set --data.image_size"):
        read_small_images("set", tmp_path)


def test_columns_can_be_named(tmp_path: Path) -> None:
    images, labels = pictures(3, 8, 3)
    folder = write_parquet(tmp_path / "set", "train", images, labels, "thumb")
    write_parquet(folder, "test", images, labels, "thumb")
    with pytest.raises(ValueError, match=r"name them with --data\.image_column"):
        read_small_images("set", tmp_path)
    training, _ = read_small_images("set", tmp_path, image_column="thumb", label_column="label")
    assert torch.equal(training.images, images)


def test_held_out_images_are_no_training_images(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "set", train=50)
    data = ImageData("set", str(tmp_path), batch_size=8, held_out=10)
    training, evaluation = data._small
    assert (len(training), len(evaluation)) == (40, 10)
    rows = torch.cat([training.images, evaluation.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 50
    with pytest.raises(ValueError, match="held_out 10: only for small images"):
        ImageData(image_size=32, held_out=10)


def test_folders_of_photos(tmp_path: Path) -> None:
    write_folders(tmp_path / "photos")
    data = ImageData("photos", str(tmp_path), image_size=32, batch_size=4, resize=40, workers=0)
    assert (data.classes, data.in_channels) == (3, 3)
    images, _ = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((4, 3, 32, 32), torch.float32)
    seen = torch.cat([labels for _, labels in data.val_dataloader()])
    assert torch.equal(seen.bincount(), torch.tensor([2, 2, 2]))


def test_folders_that_differ_in_classes(tmp_path: Path) -> None:
    write_folders(tmp_path / "photos")
    (tmp_path / "photos" / "train" / "class2").rename(tmp_path / "photos" / "train" / "class9")
    with pytest.raises(ValueError, match=r"2 classes, first \['class2', 'class9'\]"):
        read_photos("photos", tmp_path)


def test_photos_in_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images, labels = pictures(6, 40, 3)
    for split in ("train", "validation"):
        write_parquet(tmp_path / "set", split, images, labels)
    data = ImageData("set", str(tmp_path), image_size=32, batch_size=2, workers=0)
    assert data.classes == 3
    batch, _ = next(iter(data.train_dataloader()))
    assert batch.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("source", ["cifar10", "fashion_mnist", "nobody/nothing"])
@pytest.mark.parametrize("image_size", [None, 32])
def test_a_missing_set_says_where_to_get_it_and_nothing_is_downloaded(
    source: str, image_size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(MissingDataError) as caught:
        _ = ImageData(source, str(tmp_path), image_size=image_size).classes
    said = str(caught.value)
    assert str(tmp_path / source) in said
    assert "--data.root" in said
    assert "NMSPARSITY_DATA" in said
    assert "hf download" in said or "github.com/zalandoresearch" in said


def test_the_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMSPARSITY_DATA", "/from/variable")
    assert data_root("/given") == Path("/given")
    assert data_root() == Path("/from/variable")
    monkeypatch.delenv("NMSPARSITY_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_root() == Path("/cache/nmsparsity")


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(2, 4, 4, 1), torch.zeros(2), "want uint8"),
        (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(3), "want one for each of 2"),
        (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.tensor([0, 2]), "got 0 to 2"),
    ],
)
def test_an_image_set_is_checked(images: torch.Tensor, labels: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImageSet(images, labels.long(), ("a", "b"))


def test_lighting_moves_all_pixels_along_principal_colours() -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 6, 6)
    lighting = Lighting(0.1)
    shifts = torch.stack([(lighting(image) - image) for _ in range(4000)])
    assert torch.allclose(shifts, shifts[:, :, :1, :1].expand_as(shifts), atol=1e-6)
    covariance = shifts[:, :, 0, 0].T.cov()
    values = torch.linalg.eigvalsh(covariance).flip(0).sqrt() / 0.1
    torch.testing.assert_close(values, torch.tensor([0.2175, 0.0188, 0.0045]), rtol=0.05, atol=1e-4)


def test_transforms_give_the_size_and_scale() -> None:
    from PIL import Image

    white = Image.new("RGB", (90, 60), (255, 255, 255))
    for transform in (training_transform(32, 0.0), evaluation_transform(32, 40)):
        out = transform(white)
        assert out.shape == (3, 32, 32)
        want = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
        torch.testing.assert_close(out.mean((1, 2)), want)
