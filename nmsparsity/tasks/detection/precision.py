"""AveragePrecision: COCO's box and mask AP, every image counted once over all processes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nmsparsity.tasks.detection.coco_set import CocoSet
from nmsparsity.tasks.detection.masks import encode, encode_small

Result = dict[str, Any]
AREAS = {"": 0, "_small": 1, "_medium": 2, "_large": 3}
KINDS = {"bbox": "box", "segm": "mask"}


class AveragePrecision:
    """Collects detections and scores them as COCO does.

    All numbers are percentages: ``box_ap`` (mean over the IoUs 0.50 to 0.95), ``box_ap50``,
    ``box_ap75``, ``box_ap_small``, ``_medium``, ``_large`` (areas below 32^2, 96^2 and above), and
    ``box_ar``, ``box_ar1``, ``box_ar10`` and by size, the average recall of the best
    ``max_detections`` of an image; ``mask_...`` likewise. -1 where there is nothing to find, as in
    COCO's own tools. ``images`` is how many were counted.

    Args:
        data: images and objects; crowds are ignored as COCO does.
        masks: score masks too.
        max_detections: the best of an image that count; COCO's number is 100.
    """

    def __init__(self, data: CocoSet, *, masks: bool, max_detections: int = 100) -> None:
        self.data, self.max_detections = data, max_detections
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self.reset()

    def reset(self) -> None:
        """Forget everything collected."""
        self.results: list[Result] = []
        self.seen: list[int] = []

    def update(self, detections: Sequence[Mapping[str, Any]], images: Sequence[int]) -> None:
        """Collect one batch: what the detector said, and the numbers of the images."""
        for found, number in zip(detections, images, strict=True):
            photo = self.data.photos[number]
            self.seen.append(number)
            self.results += as_results(found, photo.id, list(self.data.categories))

    def gather(self, *, whole: bool = True) -> None:
        """Bring together what all processes collected, in the order of the images, in place.

        Args:
            whole: want every image; else only those that were seen are scored, for trying.

        Raises:
            RuntimeError: if an image was counted twice or not at all.
        """
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, (self.results, self.seen))
            self.results = [its for results, _ in parts for its in results]
            self.seen = [number for _, seen in parts for number in seen]
        if whole and sorted(self.seen) != list(range(len(self.data.photos))):
            raise RuntimeError(
                f"{len(self.seen)} images were counted, {len(set(self.seen))} different ones; "
                f"want each of the {len(self.data.photos)} of {self.data.source} once"
            )
        place = {photo.id: number for number, photo in enumerate(self.data.photos)}
        self.results.sort(key=lambda its: place[its["image_id"]])

    def compute(self) -> dict[str, float]:
        """Score what was collected."""
        truth = ground_truth(self.data, self.seen)
        scores: dict[str, float] = {}
        for kind in self.kinds:
            found = score(truth, self.results, kind, self.max_detections)
            scores |= {f"{KINDS[kind]}_{name}": value for name, value in found.items()}
        return {**scores, "images": len(self.seen)}


def as_results(found: Mapping[str, Any], image: int, categories: Sequence[int]) -> list[Result]:
    """One image's detections as entries of a COCO results json.

    Args:
        found: ``boxes`` ``[count, 4]`` as left, top, right, bottom; ``scores``; ``labels`` from 1;
            ``masks`` ``[count, 1, height, width]`` from 0 to 1, or ``small_masks`` and ``size`` as
            `Scaling` leaves them, or neither.
        image: its id.
        categories: the category ids in the order of the labels.
    """
    boxes = found["boxes"].double().cpu()
    sizes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    results = [
        {"image_id": image, "category_id": categories[label - 1], "bbox": box, "score": value}
        for box, value, label in zip(
            sizes, found["scores"].tolist(), found["labels"].tolist(), strict=True
        )
    ]
    masks = None
    if "masks" in found:
        masks = encode(found["masks"][:, 0] >= 0.5)
    elif "small_masks" in found:
        masks = encode_small(found["small_masks"], found["boxes"], found["size"])
    for result, mask in zip(results, masks or (), strict=masks is not None):
        result["segmentation"] = mask
    return results


def ground_truth(data: CocoSet, numbers: Sequence[int] | None = None) -> dict[str, Any]:
    """The images and objects as a COCO json, without what was left out; ids count from 1.

    Args:
        data: images and objects.
        numbers: of the images; default all.
    """
    photos = data.photos if numbers is None else [data.photos[n] for n in sorted(numbers)]
    notes: list[dict[str, Any]] = []
    ids = list(data.categories)
    for photo in photos:
        for its in photo.objects:
            left, top, right, bottom = its.box
            note = {
                "id": len(notes) + 1,
                "image_id": photo.id,
                "category_id": ids[its.label - 1],
                "bbox": [left, top, right - left, bottom - top],
                "area": its.area,
                "iscrowd": int(its.crowd),
            }
            outline = its.segmentation
            if outline is None and its.crowd:  # Any segmenter may find what it likes in its box.
                outline = [[left, top, right, top, right, bottom, left, bottom]]
            notes.append(note if outline is None else {**note, "segmentation": outline})
    return {
        "images": [
            {"id": p.id, "file_name": p.path.name, "width": p.width, "height": p.height}
            for p in photos
        ],
        "annotations": notes,
        "categories": [{"id": i, "name": name} for i, name in data.categories.items()],
    }


def score(
    truth: Mapping[str, Any], results: Sequence[Result], kind: str, max_detections: int = 100
) -> dict[str, float]:
    """AP and AR of a results json; ``kind`` is ``bbox`` or ``segm``."""
    from faster_coco_eval import COCO, COCOeval_faster

    return score_with(COCO, COCOeval_faster, truth, results, kind, max_detections)


def score_with(
    coco: Callable[..., Any],
    evaluator: Callable[..., Any],
    truth: Mapping[str, Any],
    results: Sequence[Result],
    kind: str,
    max_detections: int,
) -> dict[str, float]:
    """The same with the classes of a library like pycocotools."""
    # Neither takes ids of more than 53 bits.
    place = {image["id"]: number for number, image in enumerate(truth["images"], 1)}
    # With boxes beside the masks both would sort found masks into small and large by their boxes.
    unused = "bbox" if kind == "segm" else "segmentation"
    found = [
        {k: v for k, v in its.items() if k != unused} | {"image_id": place[its["image_id"]]}
        for its in results
    ]
    # Both libraries write into what they are given, and print.
    with contextlib.redirect_stdout(io.StringIO()):
        whole = coco()
        whole.dataset = {
            **truth,
            "annotations": [
                note | {"image_id": place[note["image_id"]]} for note in truth["annotations"]
            ],
            "images": [image | {"id": place[image["id"]]} for image in truth["images"]],
        }
        whole.createIndex()
        if found:
            answers = whole.loadRes(found)
        else:  # Which `loadRes` refuses.
            answers = coco()
            answers.dataset = {**whole.dataset, "annotations": []}
            answers.createIndex()
        counting = evaluator(whole, answers, kind)
        counting.params.maxDets = sorted({1, 10, max_detections})
        counting.evaluate()
        counting.accumulate()
    return _summary(counting.eval, max_detections)


def _summary(found: Mapping[str, Any], max_detections: int) -> dict[str, float]:
    """Means over what there is to find; precision is ``[IoU, recall, category, area, most]``."""
    precision, recall = np.asarray(found["precision"]), np.asarray(found["recall"])
    most = sorted({1, 10, max_detections})
    out = {f"ap{area}": _mean(precision[..., index, -1]) for area, index in AREAS.items()}
    out |= {"ap50": _mean(precision[0, ..., 0, -1]), "ap75": _mean(precision[5, ..., 0, -1])}
    out |= {f"ar{area}": _mean(recall[..., index, -1]) for area, index in AREAS.items()}
    for count in (1, 10):
        out[f"ar{count}"] = _mean(recall[..., 0, most.index(count)])
    return out


def _mean(values: np.ndarray[Any, Any]) -> float:
    there = values[values > -1]
    return 100 * float(there.mean()) if there.size else -1.0
