"""Predictions on images of any kind: what ``nmsparsity predict`` does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.detection.data import DetectionData
from nmsparsity.tasks.detection.draw import draw, save_image, side_by_side
from nmsparsity.tasks.detection.gallery import grid, write_results
from nmsparsity.tasks.detection.pixels import read_image
from nmsparsity.tasks.detection.precision import as_results
from nmsparsity.tasks.detection.scaling import small_masks
from nmsparsity.tasks.detection.task import CATEGORIES
from nmsparsity.tasks.kinds import kind

ABOUT = """
Find objects on images with a trained detector or segmenter, and draw them.

  nmsparsity predict runs/bccd_2of4/seed0 photo.jpg another.jpg -o drawn
  nmsparsity predict model.safetensors photo.jpg --json found.json       # a packed file
  nmsparsity predict runs/bccd_dense/seed0 photo.jpg --compare runs/bccd_2of4/seed0
  nmsparsity predict runs/bccd_dense/seed0 --compare runs/bccd_2of4/seed0 --grid 8

Without images, validation images of the training are drawn as one picture: the truth, what the
first finds, what the second finds.
"""


def detector_of(path: str) -> tuple[nn.Module, dict[int, str], dict[str, Any]]:
    """The detector in a file, ready to run; the names of its categories; its configuration.

    Raises:
        ValueError: if it is not of a detection training of this project.
    """
    checkpoint = Checkpoint.read(path)
    config = checkpoint.config or {}
    if CATEGORIES not in checkpoint.attachments:
        raise ValueError(
            f"{checkpoint.path}: want a detector or segmenter of this project's training"
        )
    its = kind(config["kind"])
    parser = ArgumentParser()
    parser.add_class_arguments(its.task, "task", skip={"attached"})
    sizes = {name: config["data"][name] for name in ("min_size", "max_size")}
    built = parser.parse_object({"task": {**config["task"], **sizes}})
    built.task["attached"] = checkpoint.attachments
    task: Any = parser.instantiate(built).task
    checkpoint.load_into(task.model)
    return task.model.eval(), task.categories, config


@torch.no_grad()
def predict(words: Sequence[str]) -> list[Path]:
    """Draw, as the arguments say; the pictures that were written."""
    options = _parse(words)
    found = [detector_of(path) for path in (options.file, options.compare) if path is not None]
    if len({json.dumps(categories) for _, categories, _ in found}) > 1:
        raise ValueError(f"{options.file} and {options.compare} find different categories")
    models, folder = [model for model, _, _ in found], Path(options.output)
    for place in (folder, *([Path(options.json).parent] if options.json else [])):
        place.mkdir(parents=True, exist_ok=True)
    if not options.images:
        return [_grid(models, found[0][2], options, folder)]
    names = list(found[0][1].values())
    written: list[Path] = []
    results, lost = [], []
    for number, place in enumerate(_files(options.images), 1):
        try:
            pixels = read_image(place)
        except (OSError, ValueError) as error:
            lost.append(str(error))
            continue
        answers = [_find(model, pixels) for model in models]
        pictures = [draw(pixels, a, names, threshold=options.threshold) for a in answers]
        picture = pictures[0] if len(pictures) == 1 else side_by_side([pictures], pixels.shape[1])
        target = folder / f"{place.stem}.png"
        if target in written or target.resolve() == place.resolve():
            raise ValueError(f"{target} would be written over; give another -o, or other names")
        save_image(picture, target)
        written.append(target)
        results += [
            {"file_name": str(place), **entry}
            for entry in as_results(answers[0], number, list(found[0][1]))
        ]
    if options.json:
        write_results(results, Path(options.json))
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(lost) + len(written)} images could not be read, the others are "
            f"in {folder}: {'; '.join(lost[:5])}{'; ...' if len(lost) > 5 else ''}"
        )
    return written


def _files(places: Sequence[str]) -> list[Path]:
    """The images; of a folder, those in it whose name says that they are some."""
    from PIL import Image

    Image.init()
    endings = {ending for ending, name in Image.EXTENSION.items() if name in Image.OPEN}
    files: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            files.append(place)
            continue
        found = [file for file in sorted(place.iterdir()) if file.suffix.lower() in endings]
        if not found:
            raise ValueError(f"{place}: no image file in this folder")
        files += found
    return files


def _find(model: nn.Module, pixels: Tensor) -> dict[str, Any]:
    image = functional.to_dtype(pixels, torch.float32, scale=True).as_subclass(Tensor)
    with small_masks(model):
        (found,) = model([image])
    return dict(found)


def _grid(models: list[nn.Module], config: Any, options: Any, folder: Path) -> Path:
    """Validation images of the training."""
    target = folder / "grid.png"
    data = data_of(config, options.root).evaluation
    save_image(grid(models, data, options.grid, options.threshold), target)
    return target


def data_of(config: Mapping[str, Any], root: str | None = None) -> DetectionData:
    """The data of a training, by its configuration; ``root`` says where they lie now."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind(config["kind"]).data, "data")
    given = {**config["data"], **({} if root is None else {"root": root})}
    found: DetectionData = parser.instantiate(parser.parse_object({"data": given})).data
    return found


def _parse(words: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="nmsparsity predict",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="a run folder (its best epoch), a checkpoint or a packed file")
    parser.add_argument("images", nargs="*", help="image files, or folders of them")
    parser.add_argument("-o", "--output", default="predictions", help="folder of the pictures")
    parser.add_argument("--compare", help="a second detector, drawn beside the first")
    parser.add_argument(
        "--threshold", type=ClosedUnitInterval, default=0.5, help="least score drawn, 0 to 1"
    )
    parser.add_argument("--json", help="also write all detections of the first, as COCO results")
    parser.add_argument(
        "--grid", type=PositiveInt, default=6, help="without images: how many of them"
    )
    parser.add_argument("--root", help="without images: the folder of data sets")
    return parser.parse_args(list(words))
