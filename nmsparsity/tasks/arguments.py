"""The command line and configuration of ``nmsparsity train`` and ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from lightning.pytorch import Trainer

from nmsparsity.integrations.lightning import SparsityCallback
from nmsparsity.tasks.kinds import DEFAULT, KINDS, kind, listed
from nmsparsity.tasks.kinds.base import Kind

OURS = {"callbacks", "enable_checkpointing", "default_root_dir"}
TRAINER = {
    "trainer.logger": False,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_model_summary": False,
}
ATTACHED = "attached"
PLACES = {"config", "name", "run_dir", "ckpt_path", "file"}


def train_parser(name: str = DEFAULT) -> ArgumentParser:
    """Everything a training of this kind can be told."""
    its = kind(name)
    usage = "nmsparsity train [--kind KIND] --config RECIPE [--FIELD VALUE ...]"
    parser = _parser("train", usage, f"{its.train_help.rstrip()}\n\n{_about_kinds(name)}")
    parser.add_argument(
        "--kind", type=Literal[tuple(KINDS)], default=name, help="of the task; a recipe says it"
    )
    parser.add_argument("--config", action="config", help="a recipe; several are overlaid")
    parser.add_argument("--name", type=str | None, help="of the run; default: the recipes'")
    parser.add_argument("--run_dir", type=str | None, help="default: runs/<name>/seed<seed>")
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        help="go on from this checkpoint, even with other settings; 'last': the run folder's own",
    )
    parser.add_class_arguments(SparsityCallback, "sparsity")
    _add_task_data_trainer(parser, its)
    return parser


def evaluate_parser(known: dict[str, Any], name: str = DEFAULT) -> ArgumentParser:
    """Everything an evaluation can be told; ``known`` is what the file says."""
    its = kind(name)
    usage = "nmsparsity evaluate FILE [--FIELD VALUE ...]"
    parser = _parser("evaluate", usage, f"{its.evaluate_help.rstrip()}\n\n{_about_kinds(name)}")
    parser.add_argument("file", help="a run folder, a checkpoint or a packed file")
    _add_task_data_trainer(parser, its)
    parser.set_defaults(_flat(known))
    return parser


def _about_kinds(name: str) -> str:
    """Which fields are shown, and how to see others."""
    return (
        f"Kinds of tasks (--help --kind KIND shows the fields of that kind; here: {name}):\n"
        f"{listed()}"
    )


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


def _add_task_data_trainer(parser: ArgumentParser, its: Kind) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_class_arguments(its.task, "task", skip={ATTACHED})
    parser.add_class_arguments(its.data, "data", skip={ATTACHED})
    # fail_untyped: some arguments of the Trainer have no type; they go through as they are.
    parser.add_class_arguments(Trainer, "trainer", skip=OURS, fail_untyped=False, instantiate=False)
    parser.set_defaults(TRAINER)
    parser.link_arguments("seed", "data.seed")
    for name in its.links:
        parser.link_arguments(f"data.{name}", f"task.{name}", apply_on="instantiate")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name, two levels deep: what is deeper is one value."""
    return {
        f"{part}.{name}" if isinstance(values, Mapping) else part: value
        for part, values in settings.items()
        for name, value in (values.items() if isinstance(values, Mapping) else [(part, values)])
    }


def settings(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """The resolved configuration as plain values, without where it came from and where it runs.

    The default kind is left out, as in the files of before there were others.
    """
    plain: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_unset=False))
    if plain.get("kind") == DEFAULT:
        del plain["kind"]
    return {key: value for key, value in plain.items() if key not in PLACES}


def attach(config: Namespace, texts: Mapping[str, str], its: Kind) -> None:
    """Give task and data the texts that a checkpoint holds beside its weights, in place.

    They are no settings, so the parser does not know them.
    """
    for part, made in (("task", its.task), ("data", its.data)):
        if ATTACHED in signature(made).parameters:
            config[part][ATTACHED] = dict(texts)
