"""What is not installed, and how to get it."""

from __future__ import annotations

from importlib.util import find_spec


def need(*packages: str, extra: str = "train") -> None:
    """Check that packages are installed, without importing them.

    Raises:
        ValueError: naming those that are not, and the extra that brings them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"recipes need {', '.join(missing)}: pip install 'nmsparsity[{extra}]' (or in a clone "
            f"pip install '.[{extra}]')"
        )
