"""The public face of the package."""

import subprocess
import sys


def test_names_stay_what_they_are_at_every_use() -> None:
    code = (
        "import nmsparsity as nm, nmsparsity.pruning as package\n"
        "first = [getattr(nm, name) for name in nm.__all__]\n"
        "assert first == [getattr(nm, name) for name in nm.__all__]\n"
        "assert callable(nm.prune) and callable(nm.method)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
