"""The shared library of csrc/: found, loaded, its instruction set chosen."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nmsparsity.native.product import Product

_ISAS = ("avx512", "avx2", "portable")
_NAMES = {"darwin": "lib{}.dylib", "win32": "{}.dll"}


class WeightStruct(ctypes.Structure):
    """`nms_weight` of csrc/nmsparsity.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("dense", "sparse", "mask", "grad")),
        *((name, ctypes.c_int64) for name in ("outer", "length", "inner")),
        *((name, ctypes.c_int32) for name in ("n", "m", "dtype", "is_signed")),
        ("alpha", ctypes.c_float),
        ("bad", ctypes.c_int32),
        ("nonzeros", ctypes.c_int64),
        ("first_chunk", ctypes.c_int64),
    )


def available() -> bool:
    """Whether the native kernel can be used; says once, by a warning, when it is not installed.

    The environment variable ``NMSPARSITY_ISA`` forces a code path: ``portable``, ``avx2``,
    ``avx512``, or ``reference`` for plain torch, without a warning.

    Raises:
        ValueError: when ``NMSPARSITY_ISA`` is none of these.
        RuntimeError: when this machine does not have the one it asks for.
    """
    return _library() is not None


@cache
def isa() -> str:
    """The instruction set in use: ``"avx512"``, ``"avx2"``, ``"portable"`` or ``"reference"``."""
    library = _library()
    return "reference" if library is None else str(library.nms_isa().decode())


def isas() -> list[str]:
    """The instruction sets this machine can use, the best first; empty without a library."""
    library = _library()
    if library is None:
        return []
    now = library.nms_isa()
    known = [name for name in _ISAS if library.nms_choose(name.encode()) == 0]
    library.nms_choose(now)
    return known


def choose(name: str) -> None:
    """Use this instruction set from here on, ``""`` for the best one: for tests and benchmarks.

    Raises:
        ValueError: when there is no such instruction set.
        RuntimeError: when this machine does not have it, or there is no native kernel.
    """
    library = _library()
    if library is None:
        raise RuntimeError(f"instruction set {name!r}: there is no native kernel here")
    _choose(library, name)


@cache
def built() -> int:
    """When the library's file was written, in nanoseconds: another build may be faster."""
    path = _find()
    return path.stat().st_mtime_ns if path else 0


@cache
def lanes() -> int:
    """Rows of a block of a packed weight, under the instruction set in use; 0 without a library."""
    library = _library()
    return 0 if library is None else int(library.nms_lanes())


def multiply(product: Any) -> None:
    """Write ``y`` of a `Product`, or of a reference to one, for which calls are cheaper.

    Every pointer must be good for the sizes, which are not checked again.
    """
    status = _library().nms_multiply(product)  # type: ignore[union-attr]
    if status:
        raise RuntimeError(f"nms_multiply failed with status {status}: please report this")


def call(function: str, *arguments: Any) -> None:
    """Run a function of csrc/nmsparsity.h or csrc/product.h."""
    status = getattr(_library(), function)(*arguments)
    if status:
        raise RuntimeError(f"{function} failed with status {status}: please report this")


@cache
def _library() -> ctypes.CDLL | None:
    """The library, with its instruction set chosen and torch's threads, or None."""
    name = os.environ.get("NMSPARSITY_ISA", "")
    if name not in ("", "reference", *_ISAS):
        raise ValueError(f"NMSPARSITY_ISA={name!r}: want {', '.join(_ISAS)}, reference, or nothing")
    if name == "reference":
        return None
    path = _find()
    if path is None:
        warnings.warn(
            "nmsparsity was installed without its native kernels (they need GCC or Clang; MSVC "
            "cannot compile them): torch does the work, with the same results and slower; install "
            "it again with CXX=g++ or CXX=clang++, or set NMSPARSITY_ISA=reference to do without",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    library = ctypes.CDLL(str(path))
    library.nms_isa.restype = ctypes.c_char_p
    for function in (library.nms_abi, library.nms_product_abi, library.nms_lanes):
        function.restype = ctypes.c_int64
    sizes = (library.nms_abi(), library.nms_product_abi())
    if sizes != (ctypes.sizeof(WeightStruct), ctypes.sizeof(Product)):
        raise RuntimeError(f"{path} is of another version of nmsparsity: install it again")
    for function in (library.nms_project, library.nms_add_term):
        function.argtypes = (ctypes.POINTER(WeightStruct), ctypes.c_int64)
    library.nms_multiply.argtypes = (ctypes.POINTER(Product),)
    library.nms_set_parallel_for.argtypes = (ctypes.c_void_p,)
    library.nms_set_parallel_for(_parallel_for())
    _choose(library, name)
    return library


def _choose(library: ctypes.CDLL, name: str) -> None:
    status = library.nms_choose(name.encode())
    for kept in (isa, lanes):
        kept.cache_clear()
    if status == -2:
        raise ValueError(f"instruction set {name!r}: want one of {', '.join(_ISAS)}")
    if status:
        raise RuntimeError(f"instruction set {name!r}: this machine does not have it")


def _find() -> Path | None:
    """The library beside this file; an editable install has a second folder for it."""
    file = _NAMES.get(sys.platform, "lib{}.so").format("nmsparsity")
    places = [Path(folder) / file for folder in sys.modules["nmsparsity.native"].__path__]
    return next((place for place in places if place.exists()), None)


def _parallel_for() -> int | None:
    """The address of torch's own parallel loop; older ones do not have it: one thread then."""
    file = _NAMES.get(sys.platform, "lib{}.so").format("torch_cpu")
    place = Path(torch.__file__).parent / "lib" / file
    try:
        function = ctypes.CDLL(str(place) if place.exists() else file).torch_parallel_for
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value
