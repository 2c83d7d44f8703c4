"""How fast a packed model is, beside dense engines on the same machine."""

from nmsparsity.bench.engines import ENGINES
from nmsparsity.bench.measure import benchmark
from nmsparsity.bench.result import Benchmark, Row

__all__ = ["ENGINES", "Benchmark", "Row", "benchmark"]
