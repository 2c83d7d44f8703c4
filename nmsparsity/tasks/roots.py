"""Where data sets lie on this computer."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "NMSPARSITY_DATA"


def data_root(root: str | Path | None = None) -> Path:
    """The folder of data sets: ``root``, else ``$NMSPARSITY_DATA``, else ``~/.cache/nmsparsity``.

    >>> str(data_root("datasets"))
    'datasets'
    """
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "nmsparsity"


class MissingDataError(FileNotFoundError):
    """A data set is not where it was looked for; the message says where to get it."""

    def __init__(self, name: str, looked: Path, remedy: str) -> None:
        super().__init__(
            f"data set {name!r}: nothing at {looked}. {remedy} Then set --data.root (or the "
            f"environment variable {VARIABLE}) to the folder that holds it."
        )
