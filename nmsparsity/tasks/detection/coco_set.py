"""CocoSet: the images and objects of a COCO json, checked before anything is trained on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from nmsparsity.tasks.detection.outlines import Segmentation, has_area, is_number, why_no_mask
from nmsparsity.tasks.detection.pixels import unknown_range

Missing = Literal["error", "skip"]
_TEXTS = ("file_name", "name")


@dataclass(frozen=True)
class Object:
    """One object of an image.

    Attributes:
        label: 1 to the number of categories, in the order of the category ids; 0 is background.
        box: ``(left, top, right, bottom)`` in pixels, inside the image.
        area: in pixels, as the file says; of the box where it says nothing.
        crowd: many objects in one region: never trained on, ignored when counting.
        segmentation: polygons or run lengths, as COCO writes them; None without a mask.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Segmentation | None


@dataclass(frozen=True)
class Photo:
    """One image: its id in the json, its file, its size in pixels, what is on it."""

    id: int
    path: Path
    width: int
    height: int
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class CocoSet:
    """Images with objects; ``str()`` counts them, and lists what was skipped and why.

    Attributes:
        photos: in the order of the json; those without an object too.
        categories: names by category id, in the order of the ids, which need not be contiguous.
        skipped: ``(reason, where)`` of everything that was left out or clipped.
    """

    source: Path
    photos: tuple[Photo, ...]
    categories: Mapping[int, str]
    skipped: tuple[tuple[str, str], ...]

    @property
    def has_masks(self) -> bool:
        """Whether every object but crowds has a mask."""
        objects = [its for photo in self.photos for its in photo.objects]
        return all(its.segmentation is not None for its in objects if not its.crowd)

    @property
    def object_count(self) -> int:
        """How many there are, without crowds."""
        return sum(not its.crowd for photo in self.photos for its in photo.objects)

    def __str__(self) -> str:
        crowds = sum(its.crowd for photo in self.photos for its in photo.objects)
        empty = sum(not photo.objects for photo in self.photos)
        lines = [
            f"{self.source}: {len(self.photos):,} images ({empty:,} without objects), "
            f"{self.object_count:,} objects of {len(self.categories)} categories, "
            f"{crowds:,} crowds"
        ]
        for reason, count in Counter(reason for reason, _ in self.skipped).items():
            where = [place for its, place in self.skipped if its == reason]
            more = f" and {count - 5} more" if count > 5 else ""
            lines.append(f"  {count:,} x {reason}: {', '.join(where[:5])}{more}")
        return "\n".join(lines)


def read_coco(
    file: str | Path, images: str | Path, *, missing: Missing = "error", check_images: bool = True
) -> CocoSet:
    """Read a COCO json and check it against the images, before a training depends on it.

    Left out and listed in ``skipped``: objects whose box or mask has no area or lies outside the
    image; boxes that reach over the border are clipped and listed.

    Args:
        file: ``instances_*.json``.
        images: the folder of its images.
        missing: image files that are not there are an ``error``, or ``skip`` them, listed too.
        check_images: compare every image's size with the json; only headers are read.

    Raises:
        FileNotFoundError: if the json is not there, or images.
        ValueError: for what cannot be repaired by leaving something out: no COCO json, ids twice
            or unknown, masks or images of another size than the json says.
    """
    file, images = Path(file), Path(images)
    content = _load(file)
    categories = {its["id"]: str(its["name"]) for its in sorted(content["categories"], key=_id)}
    _check_ids(file, content, categories)
    by_image: dict[int, list[dict[str, Any]]] = {}
    for note in content["annotations"]:
        by_image.setdefault(note["image_id"], []).append(note)
    labels = {identity: number for number, identity in enumerate(categories, 1)}
    skipped: list[tuple[str, str]] = []
    records = _present(file, images, content["images"], missing, skipped)
    if check_images:
        _check_sizes(file, images, records)
    photos = []
    for record in records:
        found = (_object(file, record, n, labels, skipped) for n in by_image.get(record["id"], ()))
        objects = tuple(its for its in found if its is not None)
        size = (record["width"], record["height"])
        photos.append(Photo(record["id"], images / record["file_name"], *size, objects))
    return CocoSet(file, tuple(photos), categories, tuple(skipped))


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: no JSON ({error})") from None
    wanted = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in wanted
    ):
        raise ValueError(f"{file}: no COCO json: want the lists {', '.join(wanted)}")
    fields = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id"),
        "categories": ("id", "name"),
    }
    for key, names in fields.items():
        for number, entry in enumerate(content[key]):
            place = f"{file}: {key}[{number}]"
            if not isinstance(entry, dict):
                raise ValueError(
                    f"{place} is {entry!r:.50}: want an object with {', '.join(names)}"
                )
            if lacking := [name for name in names if name not in entry]:
                raise ValueError(f"{place} has no {', '.join(lacking)}")
            for name in names:
                kind, what = (str, "text") if name in _TEXTS else (int, "whole number")
                if type(entry[name]) is not kind:
                    raise ValueError(f"{place} has the {name} {entry[name]!r}: want a {what}")
    return content


def _id(entry: Mapping[str, Any]) -> int:
    return int(entry["id"])


def _check_ids(file: Path, content: Mapping[str, Any], categories: Mapping[int, str]) -> None:
    """No id twice, none unknown."""
    for key in ("images", "annotations", "categories"):
        counts = Counter(entry["id"] for entry in content[key])
        _refuse(file, f"ids of {key} stand twice", [i for i, n in counts.items() if n > 1])
    known = {entry["id"] for entry in content["images"]}
    notes = content["annotations"]
    unknown = [n["id"] for n in notes if n["image_id"] not in known]
    _refuse(file, "annotations are of an image_id that is not in images", unknown)
    unknown = [n["id"] for n in notes if n["category_id"] not in categories]
    _refuse(file, "annotations are of a category_id that is not in categories", unknown)


def _refuse(file: Path, what: str, wrong: Sequence[object]) -> None:
    if wrong:
        more = ", ..." if len(wrong) > 5 else ""
        listed = ", ".join(map(str, wrong[:5]))
        raise ValueError(f"{file}: {len(wrong):,} {what}: {listed}{more}; mend the json")


def _present(
    file: Path,
    images: Path,
    records: Iterable[dict[str, Any]],
    missing: Missing,
    skipped: list[tuple[str, str]],
) -> list[dict[str, Any]]:
    """The records whose image is there."""
    found, lost = [], []
    for record in records:
        inside = PurePosixPath(record["file_name"])
        leads_out = inside.is_absolute() or ".." in inside.parts
        if not leads_out and (images / inside).is_file():
            found.append(record)
        else:
            lost.append(record["file_name"])
    if lost and (missing == "error" or not found):
        raise FileNotFoundError(
            f"{images}: {len(lost):,} images of {file.name} are not there: {', '.join(lost[:5])}"
            f"{', ...' if len(lost) > 5 else ''}; get them, or leave them out with "
            "--data.missing skip"
        )
    skipped += [("image file missing", name) for name in lost]
    return found


def _check_sizes(file: Path, images: Path, records: Iterable[Mapping[str, Any]]) -> None:
    from PIL import Image, UnidentifiedImageError

    wrong = []
    for record in records:
        size, name = (record["width"], record["height"]), record["file_name"]
        try:
            with Image.open(images / name) as image:
                real: object = image.size
                if why := unknown_range(image):
                    raise ValueError(f"{images / name} {why}")
        except UnidentifiedImageError:
            real = "no image"
        if real != size:
            wrong.append(f"{name} is {real}, the json says {size}")
    _refuse(file, "images are not of the size the json says", wrong)


def _object(
    file: Path,
    record: Mapping[str, Any],
    note: Mapping[str, Any],
    labels: Mapping[int, int],
    skipped: list[tuple[str, str]],
) -> Object | None:
    """The object of an annotation; None, and a line in ``skipped``, if there is nothing of it."""
    where, size = f"annotation {note['id']}", (record["width"], record["height"])
    segmentation = note.get("segmentation") or None
    if segmentation is not None and (why := why_no_mask(segmentation, *size)):
        raise ValueError(f"{file}: {where} has {why}; mend the json")
    if segmentation is not None and not has_area(segmentation):
        skipped.append(("mask without area", where))
        return None
    left, top, width, height = _box(file, where, note.get("bbox"))
    if not (width > 0 and height > 0):
        skipped.append(("box without area", where))
        return None
    inside = (max(left, 0.0), max(top, 0.0), min(left + width, size[0]), min(top + height, size[1]))
    if inside[2] - inside[0] <= 0 or inside[3] - inside[1] <= 0:
        skipped.append(("box outside its image", where))
        return None
    # COCO's own boxes are rounded to 2 digits.
    over = (inside[0] - left, inside[1] - top, left + width - inside[2], top + height - inside[3])
    if max(over) > 0.02:
        skipped.append(("box over the border (clipped)", where))
    crowd = note.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise ValueError(f"{file}: {where} has the iscrowd {crowd!r}: want 0 or 1")
    area = note.get("area", width * height)
    if not is_number(area):
        raise ValueError(f"{file}: {where} has the area {area!r}: want a number")
    return Object(labels[note["category_id"]], inside, float(area), bool(crowd), segmentation)


def _box(file: Path, where: str, box: Any) -> list[float]:
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise ValueError(f"{file}: {where} has the bbox {box}: want [left, top, width, height]")
    return [float(value) for value in box]
