"""N:M sparse neural networks: trained from scratch, stored packed.

At most N of every M consecutive weights are nonzero; N counts what is kept.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmsparsity.bench import benchmark
    from nmsparsity.compression import compress, compressed_report, decompress
    from nmsparsity.layout import Layout
    from nmsparsity.memory import keep_memory
    from nmsparsity.methods import Method, method
    from nmsparsity.micro_batches import MicroBatches
    from nmsparsity.packed import PackedWeight, load, save
    from nmsparsity.pattern import Pattern
    from nmsparsity.pruning import prune
    from nmsparsity.report import Report, verify
    from nmsparsity.sparsifier import Sparsifier, sparsify
    from nmsparsity.telemetry import Telemetry

__version__ = "0.1.0.dev0"

__all__ = [
    "Layout",
    "Method",
    "MicroBatches",
    "PackedWeight",
    "Pattern",
    "Report",
    "Sparsifier",
    "Telemetry",
    "benchmark",
    "compress",
    "compressed_report",
    "decompress",
    "keep_memory",
    "load",
    "method",
    "prune",
    "save",
    "sparsify",
    "verify",
]

_HOME = {
    "Layout": "layout",
    "Method": "methods",
    "MicroBatches": "micro_batches",
    "PackedWeight": "packed",
    "Pattern": "pattern",
    "Report": "report",
    "Sparsifier": "sparsifier",
    "Telemetry": "telemetry",
    "benchmark": "bench",
    "compress": "compression",
    "compressed_report": "compression",
    "decompress": "compression",
    "keep_memory": "memory",
    "load": "packed",
    "method": "methods",
    "prune": "pruning",
    "save": "packed",
    "sparsify": "sparsifier",
    "verify": "report",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `nmsparsity --help` does not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module 'nmsparsity' has no attribute {name!r}")
    return getattr(import_module(f"nmsparsity.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
