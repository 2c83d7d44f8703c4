"""Machine translation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nmsparsity.tasks.kinds.base import Kind, not_validated
from nmsparsity.tasks.translation.data import TranslationData
from nmsparsity.tasks.translation.task import TranslationTask

TRAIN = """
Train a Transformer that translates, dense or N:M sparse from scratch.

A recipe is a YAML file; several are laid over each other, and any field can be set by name:

  nmsparsity train --config recipes/translation/multi30k_2of4.yaml
  nmsparsity train --config recipes/translation/multi30k_2of4.yaml --sparsity.pattern 1:8
  nmsparsity train --kind translation --name mine --data.source FOLDER --data.target_language fr
  torchrun --nproc_per_node 8 -m nmsparsity train --config recipes/translation/wmt14_2of4.yaml

The same command again goes on where it was interrupted. What a run leaves in its folder:
config.yaml (all fields resolved), tokenizer.json, history.csv, last.ckpt, best.ckpt, averaged.ckpt
(where averaging is on), translations-validation.tsv, result.json.
--trainer.fast_dev_run 2 tries a recipe for two steps and leaves nothing.
"""

EVALUATE = """
Translate a whole split and score it: BLEU and chrF of sacrebleu, loss, perplexity.

  nmsparsity evaluate runs/multi30k_2of4/seed0                   # averaged.ckpt, else best.ckpt
  nmsparsity evaluate runs/multi30k_2of4/seed0 --data.split test # and translations-test.tsv there
  nmsparsity evaluate model.safetensors --task.beam 1            # a packed file, greedily

Model, vocabulary and data are those of the training, which are written in the file; every field of
task, data and trainer can be overridden.
"""


def trained(result: Mapping[str, Any]) -> str:
    if "bleu" not in result:
        return not_validated(result)
    averaged = f", averaged {result['averaged_bleu']:.2f}" if "averaged_bleu" in result else ""
    return (
        f"BLEU {result['bleu']:.2f} (greedy) after {result['epochs']} epochs (best "
        f"{result['best_bleu']:.2f}{averaged}), {result['sentences']:,} sentences"
    )


def evaluated(counted: Mapping[str, Any]) -> str:
    return (
        f"BLEU {counted['bleu']:.2f}, chrF {counted['chrf']:.2f}, loss {counted['loss']:.4f}, "
        f"perplexity {counted['perplexity']:.2f}, {counted['sentences']:,} sentences, "
        f"{counted['decoded_per_second']:,.0f} tokens/s\n"
        f"BLEU|{counted['bleu_signature']}\nchrF2|{counted['chrf_signature']}"
    )


KIND = Kind(
    task=TranslationTask,
    data=TranslationData,
    links=("vocabulary", "max_length"),
    monitor="val/bleu",
    mode="max",
    train_help=TRAIN,
    evaluate_help=EVALUATE,
    trained=trained,
    evaluated=evaluated,
)
