"""DetectionTask: a detector, its losses and its average precision, for Lightning."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor

from nmsparsity.tasks.detection.backbone import Backbone
from nmsparsity.tasks.detection.dataset import Batch
from nmsparsity.tasks.detection.detectors import Heads, Model, detector, samplers
from nmsparsity.tasks.detection.optimizer import StepSGD
from nmsparsity.tasks.detection.precision import AveragePrecision
from nmsparsity.tasks.detection.scaling import small_masks
from nmsparsity.tasks.memory_format import memory_format
from nmsparsity.tasks.task import Task

CATEGORIES = "categories.json"
BACKBONE, HEADS, OPTIMIZER = Backbone(), Heads(), StepSGD()


class DetectionTask(Task):
    """Trains a detector with torchvision's losses and scores it on the whole validation set.

    Logs ``train/loss`` and its terms, and COCO's numbers in percent, ``val/box_ap`` first (see
    `AveragePrecision`). Backbone, pyramid and heads can be N:M; the layers that give scores and
    boxes, and the first convolution, stay dense unless named.

    Args:
        model: ``faster_rcnn``, ``retinanet`` or ``fcos``.
        backbone: the ResNet below, and what it starts from.
        heads: widths of pyramid and heads.
        model_options: torchvision's own, such as ``box_score_thresh``.
        max_detections: the best of an image, for the detector and for AP.
        optimizer: SGD and its schedule.
        init_from: a checkpoint, packed file or run folder of a whole detector to start from.
        categories: names by id; taken from the data by the command line, as what follows.
        min_size, max_size: sides of images in evaluation.
        seed: of the anchors and proposals that are trained on.
        channels_last: keep the weights in channels-last memory: faster convolutions; left out
            where that is not safe (`memory_format`).
        attached: what a file of ours holds beside the weights.

    Attributes:
        counted: COCO's numbers of the last validation.
        results: the detections of the last validation, as in a COCO results json.
        best: the largest ``monitor`` of all epochs.
    """

    monitor = "box_ap"

    def __init__(
        self,
        model: Literal["faster_rcnn", "retinanet", "fcos"] = "faster_rcnn",
        backbone: Backbone = BACKBONE,
        heads: Heads = HEADS,
        model_options: dict[str, Any] | None = None,
        max_detections: int = 100,
        optimizer: StepSGD = OPTIMIZER,
        init_from: str | None = None,
        categories: dict[int, str] | None = None,
        min_size: int | None = 800,
        max_size: int = 1333,
        seed: int = 0,
        channels_last: bool = True,
        attached: dict[str, str] | None = None,
    ) -> None:
        super().__init__(init_from)
        if attached is not None and CATEGORIES in attached:
            learned = {int(key): its for key, its in json.loads(attached[CATEGORIES]).items()}
            if categories not in (None, learned):
                raise ValueError(
                    f"the data has the categories {categories}, the detector learned {learned}: "
                    "give the json the same ids and names, or train for the new ones with "
                    "--task.init_from"
                )
            categories = learned
        if not categories:
            raise ValueError(f"categories {categories}: want names by id, of one at least")
        for name in ("backbone", "heads", "min_size", "max_size", "max_detections"):
            if name in (model_options or {}):
                raise ValueError(
                    f"model_options have {name!r}, which is a setting of its own: "
                    f"--{'data' if name.endswith('_size') else 'task'}.{name}"
                )
        chosen: Model = model
        self.model = detector(
            chosen,
            len(categories),
            backbone,
            heads,
            min_size=min_size,
            max_size=max_size,
            max_detections=max_detections,
            **(model_options or {}),
        )
        # Convolutions hand the format of their weights on.
        form, self.note = memory_format(self.model, channels_last)
        self.model.to(memory_format=form)  # type: ignore[call-overload]
        self.categories, self.backbone, self.optimizer = categories, backbone, optimizer
        self.max_detections, self.seed = max_detections, seed
        self.best = -math.inf
        self.results: list[dict[str, Any]] = []
        self.precision: AveragePrecision | None = None

    def attachments(self) -> dict[str, str]:
        """The names of the categories."""
        return {CATEGORIES: json.dumps(self.categories, indent=1)}

    def configure_callbacks(self) -> list[Callback]:
        """Pictures and predictions at the end of a run."""
        from nmsparsity.tasks.detection.gallery import Gallery

        return [Gallery()]

    def setup(self, stage: str) -> None:
        """Load the backbone, or the whole detector, to start from.

        Raises:
            ValueError: for ``norm: sync`` on several processes without GPUs.
        """
        if stage == "fit":
            several = self.trainer.world_size > 1 and self.device.type == "cpu"
            if several and self.backbone.norm == "sync":
                raise ValueError(
                    "backbone.norm sync: torch's SyncBatchNorm runs on GPUs only; with several "
                    "processes on a CPU use batch (each normalises its own images) or frozen"
                )
            self.backbone.load(self.model.backbone)  # type: ignore[arg-type]
        super().setup(stage)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of each image ``[3, height, width]``, from 0 to 1; in evaluation."""
        found: list[dict[str, Tensor]] = self.model(images)
        return found

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, targets = batch
        numbers = [int(target["image"]) for target in targets]
        for place, sampler in enumerate(samplers(self.model)):
            sampler.keys = [(self.seed, self.current_epoch, n, place) for n in numbers]
        losses = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
            raise ValueError(
                f"the loss is not finite after {self.global_step} steps ({terms}): lower "
                "--task.optimizer.lr, lengthen its warmup_epochs, or set "
                "--trainer.gradient_clip_val"
            )
        for name, value in {"loss": loss, **losses}.items():
            shown = {"prog_bar": name == "loss", "batch_size": len(images)}
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, **shown)
        return loss

    def on_validation_epoch_start(self) -> None:
        data = self.trainer.datamodule.evaluation  # type: ignore[attr-defined]
        masks = self.monitor.startswith("mask")
        self.precision = AveragePrecision(data, masks=masks, max_detections=self.max_detections)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        assert self.precision is not None
        images, targets = batch
        with small_masks(self.model):
            found = self(images)
        self.precision.update(found, [int(target["image"]) for target in targets])

    def on_validation_epoch_end(self) -> None:
        assert self.precision is not None
        trainer = self.trainer
        options: Any = trainer
        # Lightning: 1 is one batch, 1.0 all of them.
        share = options.limit_val_batches
        whole = isinstance(share, float) and share == 1.0
        self.precision.gather(whole=whole and not options.fast_dev_run)
        self.counted, self.results = self.precision.compute(), self.precision.results
        logged = dict(self.counted)
        if trainer.state.fn == "fit":
            self.best = max(self.best, self.counted[self.monitor])
            logged[f"best_{self.monitor}"] = self.best
        for name, value in logged.items():
            # Every process has counted all of them.
            self.log(
                f"val/{name}", float(value), prog_bar=name == self.monitor, rank_zero_only=True
            )

    def result(self) -> dict[str, Any]:
        """COCO's numbers of the last validation, and the best of all."""
        return {**self.counted, f"best_{self.monitor}": self.best}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.best = checkpoint.get("best", -math.inf)


class SegmentationTask(DetectionTask):
    """Trains Mask R-CNN; scores boxes and masks, ``val/mask_ap`` first. Otherwise DetectionTask.

    Args:
        model: ``mask_rcnn``.
    """

    monitor = "mask_ap"

    def __init__(
        self,
        model: Literal["mask_rcnn"] = "mask_rcnn",
        attached: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, attached=attached, **options)  # type: ignore[arg-type]
