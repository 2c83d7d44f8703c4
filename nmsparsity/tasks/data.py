"""ImageData: labelled images of any size for Lightning, by name or folder."""

from __future__ import annotations

from functools import cached_property

from lightning.pytorch import LightningDataModule

from nmsparsity.tasks.batches import Batches
from nmsparsity.tasks.image_set import ImageSet
from nmsparsity.tasks.memory_loader import MemoryLoader
from nmsparsity.tasks.photos import PhotoSet, read_photos
from nmsparsity.tasks.sources import read_small_images


class ImageData(LightningDataModule):
    """Labelled images: small ones kept in memory, large ones read and cropped by workers.

    Nothing is downloaded: a set that is not there is an error that says where to get it.

    Args:
        source: a folder under the data root, or any path: Fashion-MNIST's four idx files, parquet
            files ``train-*`` and ``test-*`` or ``validation-*``, or ``train/<class>/`` and
            ``val/<class>/`` of photos. For large images also a name of the Hugging Face hub whose
            set is in the cache of `datasets`.
        root: the folder of data sets; default ``$NMSPARSITY_DATA``, else ``~/.cache/nmsparsity``.
        image_size: None for small images of one size, decoded once and kept in memory. A number
            for large photos, read one by one and cropped to it.
        batch_size: images of one training step over all processes together.
        padding: small images: pixels added at each border before the random crop.
        flip: mirror half of the training images left to right.
        held_out: small images: evaluate on so many of the training images, and train on the others
            only, to choose hyperparameters without the test set.
        resize: large photos: the shorter side before the centre crop in evaluation.
        lighting: large photos: strength of "PCA lighting", 0 for none.
        workers: large photos: reading processes of each training process.
        image_column: parquet files: the column of images, found by its type when not given.
        label_column: parquet files: the column of labels, likewise.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        source: str = "cifar10",
        root: str | None = None,
        image_size: int | None = None,
        batch_size: int = 128,
        padding: int = 4,
        flip: bool = True,
        held_out: int = 0,
        resize: int = 256,
        lighting: float = 0.1,
        workers: int = 8,
        image_column: str | None = None,
        label_column: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        least = {"batch_size": 1, "padding": 0, "held_out": 0, "resize": 1, "workers": 0}
        given = {"padding": padding, "held_out": held_out, "resize": resize, "workers": workers}
        for name, value in {"batch_size": batch_size, **given, "image_size": image_size}.items():
            if value is not None and value < least.get(name, 1):
                raise ValueError(f"{name} {value}: want {least.get(name, 1)} or more")
        if image_size is not None and held_out:
            raise ValueError(f"held_out {held_out}: only for small images (image_size unset)")
        self.source, self.root, self.image_size = source, root, image_size
        self.batch_size, self.padding, self.flip = batch_size, padding, flip
        self.held_out, self.resize, self.lighting = held_out, resize, lighting
        self.workers, self.seed = workers, seed
        self.image_column, self.label_column = image_column, label_column

    @property
    def classes(self) -> int:
        """How many classes the set has."""
        data = self._small[0] if self.image_size is None else self._large
        return len(data.classes)

    @property
    def in_channels(self) -> int:
        """3 for colour, 1 for grey images."""
        return self._small[0].images.shape[3] if self.image_size is None else 3

    @cached_property
    def _small(self) -> tuple[ImageSet, ImageSet]:
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        training, evaluation = read_small_images(self.source, self.root, **columns)
        return training.split(self.held_out) if self.held_out else (training, evaluation)

    @cached_property
    def _large(self) -> PhotoSet:
        return read_photos(self.source, self.root, self.image_column, self.label_column)

    def train_dataloader(self) -> Batches:
        return self._batches(train=True)

    def val_dataloader(self) -> Batches:
        return self._batches(train=False)

    def _batches(self, train: bool) -> Batches:
        if self.image_size is None:
            mean, std = self._small[0].moments()
            return MemoryLoader(
                self._small[0 if train else 1],
                self._share(),
                mean,
                std,
                train=train,
                padding=self.padding,
                flip=self.flip,
                seed=self.seed,
            )
        return self._photo_batches(self.image_size, train)

    def _photo_batches(self, size: int, train: bool) -> Batches:
        from nmsparsity.tasks.transforms import evaluation_transform, training_transform
        from nmsparsity.tasks.worker_loader import WorkerLoader

        if train:
            pairs, transform = self._large.training, training_transform(size, self.lighting)
        else:
            pairs, transform = self._large.evaluation, evaluation_transform(size, self.resize)
        return WorkerLoader(
            pairs, transform, self._share(), train=train, workers=self.workers, seed=self.seed
        )

    def _share(self) -> int:
        """Images of a step on each process."""
        world = self.trainer.world_size if self.trainer else 1
        if self.batch_size % world:
            raise ValueError(
                f"batch_size {self.batch_size} is of all processes together: "
                f"want a multiple of the {world} there are"
            )
        return self.batch_size // world
