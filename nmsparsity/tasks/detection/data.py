"""DetectionData: COCO images and objects for Lightning, by folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from lightning.pytorch import LightningDataModule

from nmsparsity.tasks.batches import Batches, rank_and_world
from nmsparsity.tasks.detection.augment import Augmentation
from nmsparsity.tasks.detection.coco_set import CocoSet, Missing, read_coco
from nmsparsity.tasks.detection.loader import DetectionLoader
from nmsparsity.tasks.roots import MissingDataError, data_root


class DetectionData(LightningDataModule):
    """Images and objects as COCO has them: a folder of images and a json of each split.

    ``<source>/<split>/*.jpg`` with ``<source>/instances_<split>.json``, or that json in
    ``<source>/annotations/``. Both splits are checked before training (see `read_coco`), and what
    is left out is printed. Nothing is downloaded.

    Args:
        source: a folder under the data root, or any path.
        root: the folder of data sets; default ``$NMSPARSITY_DATA``, else ``~/.cache/nmsparsity``.
        train: the split to train on.
        val: the split to evaluate on.
        batch_size: images of one training step over all processes together.
        eval_batch_size: images of one evaluation step on each process.
        min_size: the shorter side images are brought to, in training and evaluation; None keeps
            them as they are.
        max_size: the longer side, at most.
        scale: training: the range of a random factor on that size.
        crop: training: side of a window cut at random after scaling; None takes whole images.
        flip: training: mirror half of the images left to right.
        vertical_flip: training: and upside down, where up means nothing, as in microscopy.
        missing: image files that are not there are an ``error``, or ``skip`` them, counted.
        check_images: compare the size of every image file with the json.
        workers: reading processes of each training process.
        seed: of order and augmentation.

    Attributes:
        masks: whether masks are read too, for instance segmentation.
    """

    masks = False

    def __init__(
        self,
        source: str = "coco",
        root: str | None = None,
        train: str = "train2017",
        val: str = "val2017",
        batch_size: int = 16,
        eval_batch_size: int = 1,
        min_size: int | None = 800,
        max_size: int = 1333,
        scale: tuple[float, float] = (1.0, 1.0),
        crop: int | None = None,
        flip: bool = True,
        vertical_flip: bool = False,
        missing: Missing = "error",
        check_images: bool = True,
        workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"min_size": min_size, "max_size": max_size, "crop": crop}
        counts = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, **sizes}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: want 1 or more")
        if workers < 0:
            raise ValueError(f"workers {workers}: want 0 or more")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale {scale}: want 0 < least <= largest")
        self.source, self.root, self.splits = source, root, (train, val)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.min_size, self.max_size = min_size, max_size
        self.augmentation = Augmentation(
            min_size, max_size, scale=scale, crop=crop, flip=flip, vertical_flip=vertical_flip
        )
        self.missing, self.check_images = missing, check_images
        self.workers, self.seed = workers, seed

    @property
    def categories(self) -> dict[int, str]:
        """Names by category id, of the evaluation split."""
        return dict(self.evaluation.categories)

    @cached_property
    def training(self) -> CocoSet:
        """The training split.

        Raises:
            ValueError: if its categories are not those of the evaluation split.
        """
        found = self._read(self.splits[0])
        if found.categories != self.evaluation.categories:
            raise ValueError(
                f"categories of {found.source} {dict(found.categories)} are not those of "
                f"{self.evaluation.source} {dict(self.evaluation.categories)}; want one list"
            )
        return found

    @cached_property
    def evaluation(self) -> CocoSet:
        """The evaluation split."""
        return self._read(self.splits[1])

    def setup(self, stage: str) -> None:
        """Read and check, before anything else happens."""
        found = [self.training, self.evaluation] if stage == "fit" else [self.evaluation]
        if rank_and_world()[0] == 0:
            for part in found:
                print(part)
        if stage == "fit" and not self.training.object_count:
            raise ValueError(
                f"{self.training.source}: no object to learn from in {len(self.training.photos):,} "
                "images (crowds are not trained on); want a json with some"
            )

    def train_dataloader(self) -> Batches:
        return DetectionLoader(
            self.training,
            self._share(),
            self.augmentation,
            masks=self.masks,
            workers=self.workers,
            seed=self.seed,
        )

    def val_dataloader(self) -> Batches:
        return DetectionLoader(
            self.evaluation, self.eval_batch_size, None, masks=False, workers=self.workers
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

    def _read(self, split: str) -> CocoSet:
        folder = data_root(self.root) / self.source
        if not folder.is_dir() and Path(self.source).is_dir():
            folder = Path(self.source)
        name = f"instances_{split}.json"
        file = next((f for f in (folder / name, folder / "annotations" / name) if f.exists()), None)
        if file is None or not (folder / split).is_dir():
            raise MissingDataError(
                self.source,
                folder / split,
                f"Want the images {self.source}/{split}/* and their objects {self.source}/{name} "
                f"or {self.source}/annotations/{name}, in COCO's format.",
            )
        found = read_coco(
            file, folder / split, missing=self.missing, check_images=self.check_images
        )
        if self.masks and not found.has_masks:
            raise ValueError(
                f"{file}: objects without a mask (segmentation): instance segmentation cannot be "
                "learned from it; use a recipe of kind detection"
            )
        return found


class SegmentationData(DetectionData):
    """The same with masks: every object needs one."""

    masks = True
