"""What a command line means by MODEL: a model, and inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmsparsity.bench.detectors import PREFIX, is_detector, random_detector, trained_detector
from nmsparsity.bench.translators import ENGINES, LOOP, is_translator, trained_translator
from nmsparsity.promises import declare
from nmsparsity.sites import sites
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.kinds import DEFAULT
from nmsparsity.tasks.models import classifier

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Subject:
    """A model to measure, and what it takes.

    Attributes:
        name: for people.
        model: in eval mode.
        shape: of one input, without the batch; None where ``inputs`` are given.
        inputs: all arguments, where the model came with them.
        batches: inputs by the size of the batch, where they are no tensor of random numbers.
        engines: those that can run it; None: it may be tried with all.
        why: no others can.
    """

    name: str
    model: nn.Module
    shape: tuple[int, ...] | None = None
    inputs: Any = None
    batches: Callable[[int], Any] | None = None
    engines: tuple[str, ...] | None = None
    why: str = ""

    @property
    def has_batches(self) -> bool:
        """Whether there are inputs of any number."""
        return self.shape is not None or self.batches is not None

    def batch(self, size: int) -> Any:
        """Inputs, the same at every call: random numbers, images for a detector, sentences."""
        if self.batches is not None:
            return self.batches(size)
        if self.shape is None:
            return self.inputs
        return torch.randn(size, *self.shape, generator=torch.Generator().manual_seed(0))


def subject(text: str, shape: tuple[int, ...] | None = None) -> Subject:
    """Find what is meant by a word on the command line.

    Args:
        text: a run folder, checkpoint or packed file of this project's training; or
            ``package.module:function``; or a torchvision classifier (``resnet50``), a timm one
            (``timm/vit_small_patch16_224``), a small ResNet, a detector on ResNet-50
            (``detection/faster_rcnn``, ``mask_rcnn``, ``retinanet``, ``fcos``): random weights.
        shape: of one input, without the batch, instead of what is known.

    Raises:
        FileNotFoundError: for a path where nothing is.
        ValueError: where model or input are unknown, and what to give then.
    """
    if Path(text).exists():
        return _of_file(text, shape)
    if text.startswith(PREFIX):
        name, detector, image = random_detector(text, shape)
        return Subject(name, detector, batches=_list_of(image))
    if ("/" in text and not text.startswith("timm/")) or text.endswith((".ckpt", ".safetensors")):
        raise FileNotFoundError(f"{text}: no such file or run folder")
    if ":" in text:
        return _of_function(text, shape)
    model = classifier(text, _IMAGENET_CLASSES)
    return Subject(text, model.eval(), shape or _image(model))


def _of_file(path: str, shape: tuple[int, ...] | None) -> Subject:
    checkpoint = Checkpoint.read(path)
    config = checkpoint.config or {}
    if is_detector(config):
        found, detector, image = trained_detector(path, shape)
        return Subject(found, detector, batches=_list_of(image))
    if is_translator(config):
        translator, batches = trained_translator(checkpoint)
        name = f"greedy translation by {path}"
        return Subject(name, translator, batches=batches, engines=ENGINES, why=LOOP)
    task = config.get("task", {})
    name = task.get("model")
    if not isinstance(name, str) or config.get("kind", DEFAULT) != DEFAULT:
        raise ValueError(
            f"{checkpoint.path}: it does not say which classifier its weights are of; give "
            "package.module:function, which makes the model and loads them"
        )
    given = task.get("model_options") or {}
    classes, channels = _sizes(checkpoint, name, given)
    model = classifier(name, classes, channels, **given)
    checkpoint.load_into(model)
    known = {**checkpoint.patterns, **{n: its.pattern for n, its in checkpoint.packed.items()}}
    declare({site: known[site.name] for site in sites(model) if site.name in known})
    shape = shape or _of_data(checkpoint.path, config.get("data") or {}, channels)
    return Subject(f"{name} of {path}", model.eval(), shape)


def _list_of(image: Callable[[int], Tensor]) -> Callable[[int], list[Tensor]]:
    """What a detector takes: a list of images."""
    return lambda size: [image(number) for number in range(size)]


def _sizes(checkpoint: Checkpoint, name: str, options: Mapping[str, Any]) -> tuple[int, int]:
    """Classes and channels: the rows of the last weight, the inputs of the first convolution.

    Files do not keep the order of the model, so one without memory says which weights these are.
    """
    with torch.device("meta"):
        sketch = classifier(name, _IMAGENET_CLASSES, **options)
    weights = {key: x for key, x in sketch.named_parameters() if x.dim() > 1}
    kernels = [key for key, x in weights.items() if x.dim() == 4]
    found = [checkpoint.tensors.get(key) for key in (list(weights)[-1], *kernels[:1])]
    if len(found) < 2 or found[0] is None or found[1] is None:
        raise ValueError(
            f"{checkpoint.path}: its weights are not those of a {name!r}; give "
            "package.module:function, which makes the model and loads them"
        )
    return found[0].shape[0], found[1].shape[1]


def _of_data(path: Path, data: Mapping[str, Any], channels: int) -> tuple[int, ...]:
    """The shape of an image: written in the configuration, or that of the data set."""
    if data.get("image_size"):
        return (channels, data["image_size"], data["image_size"])
    from nmsparsity.tasks.data import ImageData

    try:
        images, _ = next(iter(ImageData(**data).val_dataloader()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: the size of its images is that of data set {data.get('source')!r}, which "
            f"cannot be read here; give --input, such as --input {channels}x32x32 ({error})"
        ) from error
    return tuple(images.shape[1:])


def _of_function(text: str, shape: tuple[int, ...] | None) -> Subject:
    module, _, function = text.partition(":")
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model {text!r}: {error}; want 'package.module:function' on the Python path "
            "(PYTHONPATH=. for a module in this folder)"
        ) from error
    made = make()
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {text!r}: want a torch.nn.Module or a pair of one and its inputs, got "
            f"{type(model).__name__}"
        )
    if inputs is None and shape is None:
        raise ValueError(
            f"model {text!r} came without inputs: give --input, such as --input 3x224x224, or "
            "return a pair of model and inputs"
        )
    return Subject(text, model.eval(), shape, inputs)


def _image(model: nn.Module) -> tuple[int, ...]:
    """The image a classifier takes: what timm notes, else that of ImageNet."""
    noted = getattr(model, "pretrained_cfg", None) or {}
    size: tuple[int, ...] = tuple(noted.get("input_size", (3, 224, 224)))
    return size
