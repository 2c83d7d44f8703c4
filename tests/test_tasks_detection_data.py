"""COCO sets: checked before training; batches that are repeatable and resumable."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.testing import assert_close
from torchvision import tv_tensors
from torchvision.models.detection.roi_heads import paste_masks_in_image

from nmsparsity.tasks.detection.augment import Augmentation
from nmsparsity.tasks.detection.coco_set import read_coco
from nmsparsity.tasks.detection.data import DetectionData, SegmentationData
from nmsparsity.tasks.detection.dataset import Detections
from nmsparsity.tasks.detection.loader import by_shape
from nmsparsity.tasks.detection.masks import decode, encode, encode_small
from nmsparsity.tasks.detection.outlines import read_runs
from nmsparsity.tasks.detection.pixels import read_image
from nmsparsity.tasks.roots import MissingDataError
from tests.coco_images import edit, write_coco


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set")


def polygon(x: float):
    return lambda c: c["annotations"][0].update(segmentation=[[0, 0, x, 9, 3, 3]])


def read(folder: Path, split: str = "train", **options):
    return read_coco(folder / f"instances_{split}.json", folder / split, **options)


def data(folder: Path, kind=DetectionData, **options) -> DetectionData:
    settings = {"train": "train", "val": "val", "workers": 0, "batch_size": 2, "min_size": None}
    return kind(str(folder), **{**settings, **options})


def test_what_a_json_holds(folder: Path) -> None:
    found = read(folder, "val")
    assert found.categories == {3: "square", 7: "disc"}
    assert list(found.categories) == [3, 7], "labels follow the ids, not the order of the file"
    assert [photo.id for photo in found.photos] == [100, 103, 106, 109, 112]
    assert found.photos[0].objects == ()
    crowd = found.photos[1].objects[-1]
    assert (crowd.crowd, crowd.label, crowd.box) == (True, 2, (0.0, 0.0, 20.0, 96.0))
    assert found.has_masks
    assert "5 images (1 without objects)" in str(found)
    assert "1 crowds" in str(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["images"].append(dict(c["images"][0])), "ids of images stand twice: 100"),
        (lambda c: c["annotations"][1].update(id=10), "ids of annotations stand twice: 10"),
        (lambda c: c["categories"][0].update(id=3), "ids of categories stand twice: 3"),
        (lambda c: c["annotations"][0].update(image_id=5), "image_id that is not in images: 10"),
        (lambda c: c["annotations"][0].update(category_id=1), "category_id that is not in"),
        (lambda c: c["images"][0].update(width=97), r"0.png is \(96, 64\), the json says \(97"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), r"annotation 10 has the bbox \[1, 2\]"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]), "annotation 10 has a pol"),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [9, 9], "counts": "0"}),
            r"annotation 10 has a mask of \[height, width\] \[9, 9\], its image is \[64, 96\]",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [64, 96], "counts": [9, 9]}),
            "annotation 10 has a mask of 18 pixels, its image has 6144; mend",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [64, 96], "counts": "06"}),
            "annotation 10 has a mask of 6 pixels",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [64, 96], "counts": [-1]}),
            "a mask whose counts are no run lengths",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [64, 96], "counts": "06P"}),
            "a mask whose counts are no run lengths",
        ),
        (lambda c: c["annotations"][0].update(segmentation="x"), "segmentation 'x': want polygons"),
        (polygon(float("nan")), "annotation 10 has a polygon with coordinates that are no numbers"),
        (
            polygon(1e30),
            r"annotation 10 has a polygon that reaches far out of its image \(0, 1e\+30",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[float("nan"), 0, 5, 5]),
            r"annotation 10 has the bbox \[nan, 0, 5, 5\]",
        ),
        (lambda c: c["annotations"][0].update(bbox="four"), "annotation 10 has the bbox four"),
        (
            lambda c: c["annotations"][0].update(area=float("inf")),
            "annotation 10 has the area inf",
        ),
        (lambda c: c["images"][0].update(id="a"), r"images\[0\] has the id 'a': want a whole"),
        (lambda c: c["annotations"][0].update(iscrowd="0"), "has the iscrowd '0': want 0 or 1"),
        (lambda c: c["images"][0].update(file_name=5), r"has the file_name 5: want a text"),
        (lambda c: c["images"][0].update(width=96.5), r"images\[0\] has the width 96.5: want a"),
        (lambda c: c["annotations"].insert(0, [1]), r"annotations\[0\] is \[1\]: want an object"),
        (lambda c: c["images"][0].pop("width"), r"images\[0\] has no width"),
        (lambda c: c.pop("categories"), "no COCO json"),
    ],
)
def test_what_cannot_be_mended_is_an_error(change, said: str, folder: Path) -> None:
    edit(folder / "instances_train.json", change)
    with pytest.raises(ValueError, match=said):
        read(folder)


def test_damaged_files_are_errors(folder: Path) -> None:
    (folder / "train" / "0.png").write_text("no image")
    with pytest.raises(ValueError, match=r"0\.png is no image"):
        read(folder)
    (folder / "instances_train.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        read(folder)


def test_what_is_left_out_is_listed(folder: Path) -> None:
    def change(content):
        content["annotations"][0]["bbox"] = [10, 10, 0, 5]
        content["annotations"][1]["bbox"] = [-500, 0, 20, 20]
        content["annotations"][2]["bbox"] = [-5, 10, 20, 20]
        content["annotations"][3]["segmentation"] = [[1, 1, 5, 1, 9, 1]]
        content["annotations"][4]["segmentation"] = {"size": [64, 96], "counts": [6144]}

    whole = read(folder)
    edit(folder / "instances_train.json", change)
    found = read(folder)
    assert [reason for reason, _ in found.skipped] == [
        "box without area",
        "box outside its image",
        "box over the border (clipped)",
        "mask without area",
        "mask without area",
    ]
    count = sum(len(p.objects) for p in found.photos)
    assert count == sum(len(p.objects) for p in whole.photos) - 4
    assert "1 x box without area: annotation 10" in str(found)
    boxes = [its.box for photo in found.photos for its in photo.objects]
    assert (0.0, 10.0, 15.0, 30.0) in boxes


def test_a_file_name_may_begin_with_a_dot(folder: Path) -> None:
    edit(folder / "instances_train.json", lambda c: c["images"][0].update(file_name="./0.png"))
    assert len(read(folder).photos) == 8


def test_missing_images(folder: Path) -> None:
    (folder / "train" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images .* not there: 2.png.*--data.missing"):
        read(folder)
    found = read(folder, missing="skip")
    assert found.skipped == (("image file missing", "2.png"),)
    assert len(found.photos) == 7


def test_a_set_that_is_not_there_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"instances_val.json .*COCO's format"):
        _ = data(tmp_path / "nothing").evaluation


def test_splits_with_other_categories_are_refused(folder: Path) -> None:
    edit(folder / "instances_val.json", lambda c: c["categories"][0].update(name="ring"))
    with pytest.raises(ValueError, match=r"categories of .*disc.* are not those of .*ring"):
        _ = data(folder).training


def test_segmentation_wants_masks(tmp_path: Path) -> None:
    boxes = write_coco(tmp_path / "boxes", masks=False)
    assert len(data(boxes).training.photos) == 8
    with pytest.raises(ValueError, match="objects without a mask"):
        _ = data(boxes, SegmentationData).training


def test_what_is_skipped_is_printed_before_training(folder: Path, capsys) -> None:
    edit(folder / "instances_train.json", lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 0]))
    data(folder).setup("fit")
    said = capsys.readouterr().out
    assert "1 x box without area" in said
    assert "instances_val.json: 5 images" in said, "counted, too, where nothing is skipped"


def test_nothing_to_learn_from_ends_before_training(folder: Path) -> None:
    edit(folder / "instances_train.json", lambda c: c["annotations"].clear())
    data(folder).setup("validate")
    with pytest.raises(
        ValueError, match=r"instances_train.json: no object to learn from in 8 images"
    ):
        data(folder).setup("fit")


def test_masks_of_polygons_run_lengths_and_back() -> None:
    square = decode([[1, 1, 4, 1, 4, 3, 1, 3]], 5, 6)
    expected = torch.zeros(5, 6, dtype=torch.uint8)
    expected[1:3, 1:4] = 1
    assert torch.equal(square, expected)
    assert torch.equal(decode(encode(square[None])[0], 5, 6), expected)
    # Down the columns: 5 zeros, then from the second column on.
    assert torch.equal(decode({"size": [5, 6], "counts": [6, 2, 3, 2, 3, 2, 12]}, 5, 6), expected)


def test_run_lengths_are_read_as_they_are_written() -> None:
    torch.manual_seed(0)
    masks = torch.rand(20, 40, 30) < torch.linspace(0, 1, 20)[:, None, None]
    for mask, its in zip(masks, encode(masks), strict=True):
        columns = mask.T.flatten().int()
        ends = torch.cat([torch.tensor([0]), columns]).diff().nonzero()[:, 0].tolist()
        places = [0, *ends, 1200]
        assert read_runs(its["counts"]) == [b - a for a, b in pairwise(places)]


def test_small_masks_are_those_torchvision_pastes() -> None:
    torch.manual_seed(0)
    masks, corners = torch.rand(60, 1, 28, 28), torch.rand(60, 2) * torch.tensor([50.0, 37.0])
    masks = functional.avg_pool2d(masks, 5, 1, 2)
    boxes = torch.cat([corners, corners + torch.rand(60, 2) * 30], 1)
    boxes = torch.minimum(boxes, torch.tensor([50.0, 37.0, 50.0, 37.0]))
    boxes[0], boxes[1], boxes[2] = torch.tensor([[0, 0, 50, 37], [0, 0, 0, 0], [50, 37, 50, 37.0]])
    pasted = paste_masks_in_image(masks, boxes, (37, 50))[:, 0] >= 0.5
    assert 0.2 < pasted[0].float().mean() < 0.8
    assert encode_small(masks, boxes, (37, 50)) == encode(pasted)
    assert encode_small(masks[:0], boxes[:0], (37, 50)) == []


def test_targets_follow_the_image(folder: Path) -> None:
    """The box of every mask is the box, whatever was done to the image."""
    augmentation = Augmentation(64, 128, scale=(0.5, 2.0), crop=48, flip=True, vertical_flip=True)
    found = Detections(read(folder), augmentation, masks=True, key=(0, 1))
    seen = 0
    for index in range(len(found)):
        image, target = found[index]
        assert image.shape == (3, 48, 48)
        assert 0 <= image.min() <= image.max() <= 1
        for box, mask, label in zip(
            target["boxes"], target["masks"], target["labels"], strict=True
        ):
            rows, columns = mask.nonzero().unbind(1)
            tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            # A cut disc may end before its box does.
            slack = 3.0 if label == 1 else 14.0
            assert (box - tight).abs().max() <= slack
            red, _, blue = (image * mask).sum((1, 2))
            if mask.sum() > 50 and len(target["boxes"]) == 1:
                assert (red > blue) == (label == 1)
            seen += 1
    assert seen > 5


def test_crowds_are_not_trained_on(folder: Path) -> None:
    found = read(folder, "val")
    _, target = Detections(found, Augmentation(None, 999, flip=False), masks=True)[1]
    assert len(target["boxes"]) == len(found.photos[1].objects) - 1


def test_images_without_objects_have_empty_targets(folder: Path) -> None:
    _, target = Detections(read(folder, "val"), Augmentation(None, 9), masks=True)[0]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 64, 96)


def test_flip_by_hand() -> None:
    boxes = tv_tensors.BoundingBoxes([[1.0, 2.0, 3.0, 5.0]], format="XYXY", canvas_size=(8, 10))
    image = tv_tensors.Image(torch.arange(80, dtype=torch.uint8).reshape(1, 8, 10))
    flipping = Augmentation(None, 9)
    torch.manual_seed(0)
    for _ in range(8):
        out, target = flipping(image, {"boxes": boxes, "labels": torch.tensor([1])})
        flipped = torch.equal(out, image.flip(2))
        expected = [7.0, 2.0, 9.0, 5.0] if flipped else [1.0, 2.0, 3.0, 5.0]
        assert target["boxes"].tolist() == [expected]


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 1000, 30_000, 65_535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[:, 0].tolist() == [[0, 0, 1, 3, 117, 255]] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_image_is_read(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 4), "white").convert(mode).save(file)
    assert read_image(file).tolist() == torch.full((3, 4, 5), 255).tolist()


def test_images_that_cannot_be_read_are_named(folder: Path) -> None:
    file = folder / "train" / "0.png"
    Image.new("F", (96, 64)).save(file.with_suffix(".tif"))
    with pytest.raises(ValueError, match=r"0\.tif has pixels of mode 'F'.*want 8 or 16 bits"):
        read_image(file.with_suffix(".tif"))
    edit(folder / "instances_train.json", lambda c: c["images"][0].update(file_name="0.tif"))
    with pytest.raises(ValueError, match=r"0\.tif has pixels of mode 'F'"):
        read(folder)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(OSError, match=r"0\.png: not to be read as an image \("):
        read_image(file)


def test_grey_images_become_colour(folder: Path) -> None:
    with Image.open(folder / "train" / "0.png") as image:
        image.convert("L").save(folder / "train" / "0.png")
    image, _ = Detections(read(folder), None, masks=False)[0]
    assert image.shape[0] == 3


def epoch(loader, number: int):
    loader.set_epoch(number)
    return [
        (image, target)
        for images, targets in loader
        for image, target in zip(images, targets, strict=True)
    ]


def assert_same(one, other) -> None:
    assert len(one) == len(other)
    for (image, target), (again, repeated) in zip(one, other, strict=True):
        assert torch.equal(image, again)
        assert_close(target, repeated, rtol=0, atol=0)


def test_epochs_are_repeatable_and_differ(folder: Path) -> None:
    options = {"min_size": 64, "scale": (0.8, 1.2), "crop": 40}
    first = epoch(data(folder, SegmentationData, **options).train_dataloader(), 1)
    torch.manual_seed(5)
    workers = data(folder, SegmentationData, workers=1, **options).train_dataloader()
    assert_same(first, epoch(workers, 1))
    other = epoch(workers, 2)
    assert any(
        a.shape != b.shape or not torch.equal(a, b)
        for (a, _), (b, _) in zip(first, other, strict=True)
    )


def test_an_interrupted_epoch_goes_on(folder: Path) -> None:
    loader = data(folder, batch_size=3, min_size=64, scale=(0.8, 1.2)).train_dataloader()
    whole = epoch(loader, 3)
    for _ in loader:
        state = loader.state_dict()
        break
    again = data(folder, batch_size=3, min_size=64, scale=(0.8, 1.2)).train_dataloader()
    again.load_state_dict(state)
    assert_same(whole[3:], epoch(again, 3))


def test_batches_are_of_one_shape_but_the_last(folder: Path) -> None:
    loader = data(folder).train_dataloader()
    photos = loader.data.photos
    for number in range(4):
        loader.set_epoch(number)
        plan = loader.plan()
        assert len(plan) == len(loader) == 4
        together = torch.cat(plan).tolist()
        assert len(set(together)) == len(together)
        mixed = [
            b for b in plan if len({photos[i].width > photos[i].height for i in b.tolist()}) > 1
        ]
        assert len(mixed) <= 1


def test_groups_by_hand() -> None:
    groups = by_shape(torch.tensor([4, 0, 3, 1, 2]), [True, True, False, False, True], 2)
    assert [g.tolist() for g in groups] == [[4, 0], [3, 2]] or [g.tolist() for g in groups] == [
        [4, 0],
        [2, 3],
    ]
    assert by_shape(torch.tensor([0]), [True], 2) == []


def test_evaluation_gives_every_image_once_in_order(folder: Path) -> None:
    loader = data(folder, eval_batch_size=2).val_dataloader()
    numbers = [int(target["image"]) for _, targets in loader for target in targets]
    assert numbers == [0, 1, 2, 3, 4]


def test_settings_are_checked() -> None:
    for wrong in ({"batch_size": 0}, {"crop": 0}, {"scale": (0.0, 1.0)}, {"workers": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DetectionData(**wrong)


def test_the_shared_sets_are_whole() -> None:
    """The real ones, where they are."""
    import os

    root = Path(os.environ.get("NMSPARSITY_DATA", "nowhere"))
    if not (root / "bccd").is_dir():
        pytest.skip("bccd is not there")
    found = read_coco(root / "bccd" / "instances_val.json", root / "bccd" / "val")
    raw = json.loads((root / "bccd" / "instances_val.json").read_text())
    assert len(found.photos) == len(raw["images"]) == 87
    assert sum(len(p.objects) for p in found.photos) == len(raw["annotations"])


def test_images_behind_a_link_to_a_folder_are_there(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    name = read(folder).photos[0].path.name
    (folder / "train" / name).rename(folder / "elsewhere" / name)
    (folder / "train" / "link").symlink_to(folder / "elsewhere")
    edit(
        folder / "instances_train.json",
        lambda c: next(i for i in c["images"] if i["file_name"] == name).update(
            file_name=f"link/{name}"
        ),
    )
    assert len(read(folder, missing="skip").photos) == 8
