"""Models with sparse weights to models with packed layers, and back."""

from nmsparsity.compression.compressed import compress
from nmsparsity.compression.decompressed import decompress
from nmsparsity.compression.report import CompressedReport, CompressedRow, compressed_report

__all__ = ["CompressedReport", "CompressedRow", "compress", "compressed_report", "decompress"]
