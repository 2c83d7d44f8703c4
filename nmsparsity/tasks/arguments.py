"""The command line and configuration of ``nmsparsity train``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from lightning.pytorch import Trainer

from nmsparsity.integrations.lightning import SparsityCallback
from nmsparsity.tasks.classification import ClassificationTask
from nmsparsity.tasks.data import ImageData

TRAIN = """
Train a classifier, dense or N:M sparse from scratch.

A recipe is a YAML file; several are laid over each other, and any field can be set by name:

  nmsparsity train --config recipes/classification/fashion_mnist_2of4.yaml
  nmsparsity train --config recipes/classification/cifar10_2of4.yaml --sparsity.pattern 1:8
  nmsparsity train --config my.yaml --sparsity.method ste --trainer.max_epochs 3 --seed 1
  torchrun --nproc_per_node 8 -m nmsparsity train --config recipes/classification/resnet50_2of4.yaml

The same command again goes on where it was interrupted. What a run leaves in its folder:
config.yaml (all fields resolved), history.csv, last.ckpt, best.ckpt, result.json.
--trainer.fast_dev_run 2 tries a recipe for two steps and leaves nothing.
"""

EVALUATE = """
Count a trained network's answers on the whole validation set.

  nmsparsity evaluate runs/cifar10_2of4/seed0                # a run folder: its best epoch
  nmsparsity evaluate runs/cifar10_2of4/seed0/last.ckpt
  nmsparsity evaluate model.safetensors --data.root /data    # a packed file

Model and data are those of the training, which are written in the file; every field of data and
trainer can be overridden.
"""

OURS = {"callbacks", "enable_checkpointing", "default_root_dir"}
TRAINER = {
    "trainer.logger": False,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_model_summary": False,
}
PLACES = {"config", "name", "run_dir", "ckpt_path", "file"}


def train_parser() -> ArgumentParser:
    """Everything a training can be told."""
    parser = _parser("train", "nmsparsity train --config RECIPE [--FIELD VALUE ...]", TRAIN)
    parser.add_argument("--config", action="config", help="a recipe; several are overlaid")
    parser.add_argument("--name", type=str | None, help="of the run; default: the recipes'")
    parser.add_argument("--run_dir", type=str | None, help="default: runs/<name>/seed<seed>")
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        help="go on from this checkpoint, even with other settings; 'last': the run folder's own",
    )
    parser.add_class_arguments(SparsityCallback, "sparsity")
    _add_task_data_trainer(parser)
    return parser


def evaluate_parser(known: dict[str, Any]) -> ArgumentParser:
    """Everything an evaluation can be told; ``known`` is what the file says."""
    parser = _parser("evaluate", "nmsparsity evaluate FILE [--FIELD VALUE ...]", EVALUATE)
    parser.add_argument("file", help="a run folder, a checkpoint or a packed file")
    _add_task_data_trainer(parser)
    parser.set_defaults(_flat(known))
    return parser


def _parser(command: str, usage: str, description: str) -> ArgumentParser:
    class Formatter(DefaultHelpFormatter):
        """Keep the line breaks of the examples."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return text.strip()

    return ArgumentParser(
        prog=f"nmsparsity {command}",
        usage=usage,
        description=description,
        formatter_class=Formatter,
    )


def _add_task_data_trainer(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_class_arguments(ClassificationTask, "task")
    parser.add_class_arguments(ImageData, "data")
    # fail_untyped: some arguments of the Trainer have no type; they go through as they are.
    parser.add_class_arguments(Trainer, "trainer", skip=OURS, fail_untyped=False, instantiate=False)
    parser.set_defaults(TRAINER)
    parser.link_arguments("seed", "data.seed")
    for name in ("classes", "in_channels"):
        parser.link_arguments(f"data.{name}", f"task.{name}", apply_on="instantiate")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name, two levels deep: what is deeper is one value."""
    return {
        f"{part}.{name}" if isinstance(values, Mapping) else part: value
        for part, values in settings.items()
        for name, value in (values.items() if isinstance(values, Mapping) else [(part, values)])
    }


def settings(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """The resolved configuration as plain values, without where it came from and where it runs."""
    plain: dict[str, Any] = yaml.safe_load(parser.dump(config))
    return {key: value for key, value in plain.items() if key not in PLACES}
