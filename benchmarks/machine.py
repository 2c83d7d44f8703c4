"""What a measurement was made on: see `nmsparsity.bench.machine`."""

from nmsparsity.bench.machine import machine, memory_gib, processor

__all__ = ["machine", "memory_gib", "processor"]
