"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch


def machine() -> list[str]:
    """Lines of Markdown: processor, cores, memory, system, versions."""
    version = sys.modules["nmsparsity"].__version__
    return [
        f"Machine: {processor()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB, "
        f"{platform.system()} {platform.machine()}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, nmsparsity {version}.",
    ]


def processor() -> str:
    """The processor's name and the vector instructions that matter here."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(
        line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = named.get("flags", "").split()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    family = f"family {named.get('cpu family', '?')} model {named.get('model', '?')}"
    return f"{named.get('model name', platform.machine())} ({family}, {vectors})"


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
