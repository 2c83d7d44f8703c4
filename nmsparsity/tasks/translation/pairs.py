"""Pairs: the sentences of two languages, aligned, from parquet files, text files or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsparsity.tasks.photos import load_without_network
from nmsparsity.tasks.roots import data_root

SPLITS = {"validation": ("validation", "valid", "val", "dev"), "train": ("train",)}


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations.

    Raises:
        ValueError: unless there are as many of the one as of the other.

    >>> len(Pairs(["a house"], ["ein Haus"]))
    1
    """

    sources: list[str]
    targets: list[str]
    where: str = "pairs"

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.targets):
            raise ValueError(
                f"{self.where}: {len(self.sources):,} lines on one side, {len(self.targets):,} on "
                "the other; want one translation in the same line of each"
            )

    def __len__(self) -> int:
        return len(self.sources)


def read_pairs(source: str, root: str | Path | None, split: str, languages: list[str]) -> Pairs:
    """One split of a set that is on this computer; nothing is downloaded.

    Args:
        source: a folder, under the data root or any path: with text files ``<split>.<language>``,
            a sentence a line; or with parquet files ``<split>-*`` that have a column
            ``translation`` of one text by language. Else a set of the Hugging Face hub that
            `datasets` has in its cache, as ``name`` or ``name:configuration``.
        root: see :func:`nmsparsity.tasks.roots.data_root`.
        split: ``"train"``, ``"validation"``, ``"test"`` or another.
        languages: of the sentence and of its translation.

    Raises:
        MissingDataError: if it is not there: where to get it, what to set.
        ValueError: for lines without a counterpart or a set without these languages.
    """
    folder = data_root(root) / source
    if not folder.is_dir() and Path(source).is_dir():
        folder = Path(source)
    for name in SPLITS.get(split, (split,)):
        files = [folder / f"{name}.{language}" for language in languages]
        if all(file.is_file() for file in files):
            sources, targets = (lines_of(read_utf8(file)) for file in files)
            return Pairs(sources, targets, " and ".join(map(str, files)))
        if parquet := sorted(folder.glob(f"**/{name}-*.parquet")):
            return _from_parquet(parquet, languages)
    if folder.is_dir():
        raise ValueError(
            f"{folder}: no {split}-*.parquet and no {split}.{languages[0]} with "
            f"{split}.{languages[1]} in it"
        )
    return _from_hub(source, folder, split, languages)


def read_utf8(file: Path) -> str:
    """A text file as it stands, every carriage return included; a byte order mark is no text.

    Raises:
        ValueError: naming the first line that is no UTF-8.
    """
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}: line {line} is not UTF-8 (byte 0x{content[error.start]:02x}); convert the "
            "file, as by 'iconv -f ISO-8859-1 -t UTF-8'"
        ) from None


def lines_of(text: str) -> list[str]:
    """The lines of a text.

    They end in line feeds alone: other characters that Unicode lets break lines would shift one
    language against the other.

    >>> lines_of("one\\r\\ntwo \\u2028 three\\n")
    ['one', 'two \\u2028 three']
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _from_parquet(files: list[Path], languages: list[str]) -> Pairs:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(files[0].parent)
    table = pa.concat_tables([pq.read_table(str(file)) for file in files])
    if "translation" not in table.column_names:
        raise ValueError(
            f"{where}: want a column 'translation', found {', '.join(table.column_names)}"
        )
    return _columns(table["translation"].to_pylist(), languages, where)


def _from_hub(source: str, looked: Path, split: str, languages: list[str]) -> Pairs:
    name, _, configuration = source.partition(":")
    remedy = (
        f"Get its parquet files by 'hf download {name} --repo-type dataset --local-dir "
        f"DATA/NAME', or make text files {split}.{languages[0]} and {split}.{languages[1]}."
    )
    data = load_without_network(source, looked, remedy, name, *filter(None, [configuration]))
    if split not in data:
        raise ValueError(f"data set {source!r}: no split {split!r} among {', '.join(data)}")
    return _columns(data[split]["translation"], languages, source)


def _columns(rows: Any, languages: list[str], where: str) -> Pairs:
    try:
        texts = [dict(row or {}) for row in rows]
    except (TypeError, ValueError):
        raise ValueError(f"{where}: 'translation' is no column of texts by language") from None
    known = next(filter(None, texts), dict.fromkeys(languages))
    if missing := [language for language in languages if language not in known]:
        raise ValueError(f"{where}: no {' and no '.join(missing)} among {', '.join(known)}")
    # A missing text is an empty one: counted and dropped as such.
    sides = [[text.get(language) or "" for text in texts] for language in languages]
    if odd := [text for side in sides for text in side if not isinstance(text, str)]:
        raise ValueError(f"{where}: want texts in 'translation', found {odd[0]!r}")
    return Pairs(sides[0], sides[1], where)
