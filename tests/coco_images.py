"""Small generated sets in COCO's format: squares and discs on noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask
from PIL import Image

CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 3, "name": "square"}]
SHAPES = ((96, 64), (64, 96), (80, 80))


def write_coco(
    folder: Path, train: int = 8, val: int = 5, *, masks: bool = True, shapes: Any = SHAPES
) -> Path:
    """``train`` and ``val``, folders and jsons; widths and heights in turn.

    The first validation image has no object, the second a crowd.
    """
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        draws = np.random.default_rng(seed)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            width, height = shapes[number % len(shapes)]
            identity = 100 + 3 * number
            pixels = draws.integers(0, 60, (height, width, 3), dtype=np.uint8)
            if split == "train" or number:
                for _ in range(int(draws.integers(1, 4))):
                    note = _object(draws, pixels, masks)
                    note |= {"id": len(content["annotations"]) + 10, "image_id": identity}
                    content["annotations"].append(note)
            if split == "val" and number == 1:
                content["annotations"].append(_crowd(identity, width, height))
            name = f"{number}.png"
            Image.fromarray(pixels).save(folder / split / name)
            size = {"width": width, "height": height}
            content["images"].append({"id": identity, "file_name": name, **size})
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def _object(draws: np.random.Generator, pixels: np.ndarray, masks: bool) -> dict[str, Any]:
    height, width, _ = pixels.shape
    side = int(draws.integers(16, 30))
    left, top = int(draws.integers(0, width - side)), int(draws.integers(0, height - side))
    square = bool(draws.integers(2))
    there = np.zeros((height, width), dtype=np.uint8)
    if square:
        there[top : top + side, left : left + side] = 1
        corners = [left, top, left + side, top, left + side, top + side, left, top + side]
        segmentation: Any = [list(map(float, corners))]
    else:
        rows, columns = np.ogrid[:height, :width]
        middle = (top + side / 2, left + side / 2)
        there[(rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < (side / 2) ** 2] = 1
        encoded = mask.encode(np.asfortranarray(there[..., None]))[0]
        counts = encoded["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        segmentation = {"size": [height, width], "counts": text}
    pixels[there > 0] = (230, 60, 60) if square else (60, 60, 230)
    note = {
        "category_id": 3 if square else 7,
        "bbox": [left, top, side, side],
        "area": float(there.sum()),
        "iscrowd": 0,
    }
    return {**note, "segmentation": segmentation} if masks else note


def _crowd(image: int, width: int, height: int) -> dict[str, Any]:
    """A crowd as COCO has them: run lengths as numbers."""
    counts = [0, 20 * height, height * (width - 20)]
    return {
        "id": 9000,
        "image_id": image,
        "category_id": 7,
        "bbox": [0, 0, 20, height],
        "area": 20.0 * height,
        "iscrowd": 1,
        "segmentation": {"size": [height, width], "counts": counts},
    }


def edit(file: Path, change: Any) -> None:
    """Change a json in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
