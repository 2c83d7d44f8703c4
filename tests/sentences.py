"""A small generated language and its translation, on disk in every layout that the task reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

NOUNS = {"man": "Mann", "dog": "Hund", "child": "Kind", "house": "Haus", "tree": "Bäumchen"}
VERBS = {"sees": "sieht", "finds": "findet", "loves": "liebt"}


def sentences(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """English sentences of 2 to 14 words, and German ones word by word."""
    draws = np.random.default_rng(seed)
    english, german = [], []
    for _ in range(count):
        pairs = [
            (list(words.items()))[draws.integers(len(words))]
            for _ in range(int(draws.integers(1, 8)))
            for words in (NOUNS, VERBS)
        ]
        english.append(" ".join(word for word, _ in pairs) + ".")
        german.append(" ".join(word for _, word in pairs) + ".")
    return english, german


def write_text(folder: Path, split: str, english: list[str], german: list[str]) -> None:
    """Two aligned text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for language, lines in (("en", english), ("de", german)):
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{split}.{language}").write_text(text, encoding="utf-8")


def write_parquet_pairs(folder: Path, split: str, english: list[str], german: list[str]) -> None:
    """A column ``translation``, as the Hugging Face hub stores WMT14."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"de": de, "en": en} for en, de in zip(english, german, strict=True)]
    pq.write_table(pa.table({"translation": rows}), folder / f"{split}-00000-of-00001.parquet")


def write_set(folder: Path, train: int = 120, validation: int = 13) -> None:
    """Text files of training, validation and test."""
    for seed, (split, count) in enumerate(
        {"train": train, "validation": validation, "test": validation}.items()
    ):
        write_text(folder, split, *sentences(count, seed))


def words(folder: Path, *more: str, epochs: int = 2, run: str = "run") -> list[str]:
    """The command line of a small training."""
    config = {
        "kind": "translation",
        "task": {
            "transformer": {
                **{"width": 32, "feed_forward": 64, "encoder_layers": 1, "decoder_layers": 2},
                **{"heads": 2, "dropout": 0.1},
            },
            "optimizer": {"lr": 5e-3, "schedule": "cosine", "warmup_steps": 3},
        },
        "sparsity": {"pattern": "2:4", "method_options": {"decay": 1e-4}, "print_report": False},
        "data": {
            **{"source": "set", "root": str(folder), "vocabulary_size": 300},
            **{"batch_tokens": 400, "max_length": 40},
        },
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "gradient_clip_val": 1.0,
        },
    }
    if not (folder / "set").exists():
        write_set(folder / "set")
    (folder / "translation.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "translation.yaml"), "--run_dir", str(folder / run), *more]
