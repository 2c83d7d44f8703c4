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
torch.ones(2**24)
before = faults()
for _ in range(5):
    torch.ones(2**23)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told")
def test_blocks_of_32_mib_are_not_mapped_anew() -> None:
    counts = [
        int(subprocess.run([sys.executable, "-c", COUNT, word], capture_output=True).stdout)
        for word in ("keep", "do not")
    ]
    kept, anew = counts
    assert kept < 1000 < 5 * 2**13 // 2 < anew
