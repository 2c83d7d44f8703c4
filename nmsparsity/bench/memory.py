"""What memory of this process something takes, from Linux' own books."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
T = TypeVar("T")


@dataclass(frozen=True)
class Footprint:
    """Bytes by which the process grew; None where the system does not tell.

    Attributes:
        resident: what stays once an engine has taken over the model and run it once.
        peak: the most there was at any time of a run, counted from before the engine was there.
    """

    resident: int | None = None
    peak: int | None = None


def footprint(start: Callable[[], T], run: Callable[[T], object]) -> tuple[T, Footprint]:
    """Start something, run it once, and see how the process grew.

    >>> made, grown = footprint(lambda: bytearray(2**24), lambda made: bytes(made))
    >>> grown.peak is None or grown.peak > 2**24
    True
    """
    before = settled()
    made = start()
    run(made)
    resident = settled()
    if before is None or resident is None or not reset_peak():
        run(made)
        return made, Footprint()
    run(made)
    return made, Footprint(max(0, resident - before), max(0, highest() - before))


def settled() -> int | None:
    """Resident bytes, after what is free was given back; None where the system does not tell."""
    gc.collect()
    # Another C library keeps its own counsel.
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _kibibytes("VmRSS") if _STATUS.exists() else None


def reset_peak() -> bool:
    """Start the peak anew from here; whether that can be done."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def highest() -> int:
    """The most resident bytes there were since `reset_peak`, on a system that tells."""
    return _kibibytes("VmHWM")


def _kibibytes(name: str) -> int:
    """A line of the status, such as ``VmRSS:  1234 kB``, in bytes."""
    found = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(next(found).split()[1])
