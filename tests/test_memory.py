"""Freed memory stays with the process when asked to."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
import nmsparsity as nm
if sys.argv[1] == "keep":
    assert nm.keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
layers = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4)))
x = torch.randn(2**15, 256)
with torch.no_grad():
    for _ in range(3):
        layers(x)
    before = faults()
    for _ in range(5):
        layers(x)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told")
def test_few_activations_of_32_mib_are_mapped_anew() -> None:
    counts = [
        int(subprocess.run([sys.executable, "-c", COUNT, word], capture_output=True).stdout)
        for word in ("keep", "do not")
    ]
    kept, anew = counts
    assert kept < anew / 2  # what fits nowhere still comes from the system
