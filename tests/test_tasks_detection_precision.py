"""AP and AR: by hand, and against pycocotools on the same results json."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nmsparsity.tasks.detection.coco_set import CocoSet, Object, Photo, read_coco
from nmsparsity.tasks.detection.masks import decode, encode
from nmsparsity.tasks.detection.precision import (
    AveragePrecision,
    as_results,
    ground_truth,
    score,
    score_with,
)
from tests.coco_images import write_coco


def one_image(*boxes: tuple[float, float, float, float], crowd: bool = False) -> CocoSet:
    objects = tuple(
        Object(1, box, (box[2] - box[0]) * (box[3] - box[1]), crowd, None) for box in boxes
    )
    return CocoSet(Path("x.json"), (Photo(5, Path("5.png"), 200, 200, objects),), {9: "a"}, ())


def found(*rows: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """left, top, right, bottom, score."""
    values = torch.tensor(rows).reshape(-1, 5)
    labels = torch.ones(len(rows), dtype=torch.int64)
    return {"boxes": values[:, :4], "scores": values[:, 4], "labels": labels}


def precision(data: CocoSet, *rows: tuple[float, ...], **options) -> dict[str, float]:
    counting = AveragePrecision(data, masks=False, **options)
    counting.update([found(*rows)], [0])
    counting.gather()
    return counting.compute()


def test_by_hand() -> None:
    data = one_image((0, 0, 100, 100), (100, 100, 150, 150))
    perfect = precision(data, (0, 0, 100, 100, 0.9), (100, 100, 150, 150, 0.8))
    assert perfect["box_ap"] == perfect["box_ar"] == pytest.approx(100)
    assert perfect["box_ap_small"] == -1, "there is nothing small"
    assert perfect["images"] == 1
    # IoU 0.8: right at 0.50 to 0.80, which are 7 of the 10.
    worse = precision(one_image((0, 0, 100, 100)), (0, 0, 80, 100, 0.9))
    assert worse["box_ap"] == pytest.approx(70)
    assert (worse["box_ap50"], worse["box_ap75"]) == (100, 100)
    # One of two is found: precision 1 up to recall 0.5, which are 51 of 101 points.
    half = precision(data, (0, 0, 100, 100, 0.9))
    assert half["box_ap"] == pytest.approx(100 * 51 / 101)
    assert half["box_ar"] == pytest.approx(50)
    # A wrong one before: precision 1/2 everywhere.
    wrong = precision(one_image((0, 0, 50, 50)), (100, 100, 150, 150, 0.9), (0, 0, 50, 50, 0.8))
    assert wrong["box_ap"] == pytest.approx(50)
    assert wrong["box_ar1"] == pytest.approx(0)
    assert wrong["box_ar10"] == pytest.approx(100)


def test_nothing_found_and_nothing_there() -> None:
    assert precision(one_image((0, 0, 50, 50)))["box_ap"] == 0
    assert precision(one_image())["box_ap"] == -1
    # A box of 50 x 50 is a medium one: of the other sizes there is nothing to find.
    missed = precision(one_image((0, 0, 50, 50)))
    found = precision(one_image((0, 0, 50, 50)), (100, 100, 120, 120, 0.9))
    assert missed == found
    assert (missed["box_ap_medium"], missed["box_ap_small"], missed["box_ar_large"]) == (0, -1, -1)


def test_crowds_are_ignored() -> None:
    data = one_image((0, 0, 50, 50))
    crowd = Object(1, (100, 100, 200, 200), 10_000.0, True, None)
    photo = data.photos[0]
    both = CocoSet(
        data.source,
        (Photo(photo.id, photo.path, 200, 200, (*photo.objects, crowd)),),
        data.categories,
        (),
    )
    rows = ((110, 110, 130, 130, 0.9), (0, 0, 50, 50, 0.8))
    assert precision(both, *rows)["box_ap"] == pytest.approx(100)
    assert precision(data, *rows)["box_ap"] == pytest.approx(50)


def test_more_detections_than_coco_counts() -> None:
    boxes = [(10.0 * i, 10.0 * k, 10.0 * i + 9, 10.0 * k + 9) for i in range(15) for k in range(10)]
    rows = [(*box, 0.9) for box in boxes]
    assert precision(one_image(*boxes), *rows)["box_ar"] == pytest.approx(100 * 100 / 150)
    more = precision(one_image(*boxes), *rows, max_detections=300)
    assert more["box_ar"] == more["box_ap"] == pytest.approx(100)


def test_every_image_once() -> None:
    data = one_image((0, 0, 50, 50))
    counting = AveragePrecision(data, masks=False)
    with pytest.raises(RuntimeError, match=r"0 images were counted.*each of the 1"):
        counting.gather()
    counting.update([found()], [0])
    counting.update([found()], [0])
    with pytest.raises(RuntimeError, match="2 images were counted, 1 different"):
        counting.gather()


def noisy(data: CocoSet, seed: int = 0) -> list[dict]:
    """Shifted truths, wrong ones, missing ones, with masks."""
    draws = np.random.default_rng(seed)
    results = []
    for photo in data.photos:
        boxes, labels, masks = [], [], []
        for its in photo.objects:
            if draws.random() < 0.2:
                continue
            left, top, right, bottom = its.box + draws.normal(0, 3, 4)
            boxes.append([left, top, max(right, left + 1), max(bottom, top + 1)])
            labels.append(its.label if draws.random() < 0.9 else 3 - its.label)
            shift = int(draws.integers(-3, 4))
            masks.append(decode(its.segmentation, photo.height, photo.width).roll(shift, 1))
        for _ in range(int(draws.integers(0, 3))):
            boxes.append([5, 5, 30, 30])
            labels.append(1)
            masks.append(torch.zeros(photo.height, photo.width, dtype=torch.uint8))
            masks[-1][5:30, 5:30] = 1
        if boxes:
            scores = torch.from_numpy(draws.random(len(boxes))).float()
            there = {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "scores": scores,
                "labels": torch.tensor(labels),
                "masks": torch.stack(masks)[:, None].float(),
            }
            results += as_results(there, photo.id, list(data.categories))
    return results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("most", [100, 2])
def test_pycocotools_says_the_same(kind: str, most: int, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder = write_coco(tmp_path / "set", val=12)
    data = read_coco(folder / "instances_val.json", folder / "val")
    truth, results = ground_truth(data), noisy(data)
    ours = score(truth, results, kind, most)
    theirs = score_with(COCO, COCOeval, truth, results, kind, most)
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert 5 < ours["ap"] < 95


def test_pycocotools_own_summary_says_the_same(tmp_path: Path, capsys) -> None:
    """Not through our means: the twelve numbers that it prints."""
    import json

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder = write_coco(tmp_path / "set", val=12)
    file = folder / "instances_val.json"
    data = read_coco(file, folder / "val")
    results = noisy(data)
    # With boxes it would take the areas of found masks from them.
    masks = [{k: v for k, v in its.items() if k != "bbox"} for its in results]
    (tmp_path / "results.json").write_text(json.dumps(masks))
    theirs = COCO(str(file))
    counting = COCOeval(theirs, theirs.loadRes(str(tmp_path / "results.json")), "segm")
    counting.evaluate()
    counting.accumulate()
    counting.summarize()
    ours = score(ground_truth(data), results, "segm")
    names = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
    names += ["ar1", "ar10", "ar", "ar_small", "ar_medium", "ar_large"]
    stats = [100 * value if value > -1 else -1 for value in counting.stats]
    assert [ours[name] for name in names] == pytest.approx(stats, abs=1e-3)


def test_areas_of_found_masks_are_theirs_not_their_boxes(tmp_path: Path) -> None:
    """A thin diagonal is small, though its box is large: as a wrong one it harms small objects."""
    outline = [[0.0, 0.0, 20.0, 0.0, 20.0, 20.0, 0.0, 20.0]]
    objects = (Object(1, (0, 0, 20, 20), 400.0, False, outline),)
    photo = Photo(2**60, Path("5.png"), 200, 200, objects)
    data = CocoSet(Path("x.json"), (photo,), {9: "a"}, ())
    masks = torch.zeros(2, 1, 200, 200)
    masks[0, 0, torch.arange(50, 200), torch.arange(50, 200)] = 1
    masks[1, 0, :20, :20] = 1
    there = found((50, 50, 200, 200, 0.9), (0, 0, 20, 20, 0.8)) | {"masks": masks}
    results = as_results(there, photo.id, [9])
    assert score(ground_truth(data), results, "segm")["ap_small"] == pytest.approx(50)
    assert score(ground_truth(data), results, "bbox")["ap_small"] == pytest.approx(100)
    assert results[0]["image_id"] == 2**60


def test_a_crowd_without_a_mask_is_its_box() -> None:
    outline = [[0.0, 0.0, 20.0, 0.0, 20.0, 20.0, 0.0, 20.0]]
    objects = (
        Object(1, (0, 0, 20, 20), 400.0, False, outline),
        Object(1, (100, 100, 150, 150), 2500.0, True, None),
    )
    photo = Photo(5, Path("5.png"), 200, 200, objects)
    data = CocoSet(Path("x.json"), (photo,), {9: "a"}, ())
    assert data.has_masks
    masks = torch.zeros(2, 1, 200, 200)
    masks[0, 0, 110:140, 110:140] = 1
    masks[1, 0, :20, :20] = 1
    there = found((110, 110, 140, 140, 0.9), (0, 0, 20, 20, 0.8)) | {"masks": masks}
    results = as_results(there, 5, [9])
    assert score(ground_truth(data), results, "segm")["ap"] == pytest.approx(100)


def test_results_are_coco_results() -> None:
    there = {**found((10, 20, 30, 60, 0.5)), "masks": torch.zeros(1, 1, 70, 50)}
    there["masks"][0, 0, 20:60, 10:30] = 0.7
    (result,) = as_results(there, 17, [9])
    assert result["bbox"] == [10, 20, 20, 40]
    assert (result["image_id"], result["category_id"], result["score"]) == (17, 9, 0.5)
    assert int(decode(result["segmentation"], 70, 50).sum()) == 800
    assert result["segmentation"] == encode(there["masks"][:, 0] >= 0.5)[0]
