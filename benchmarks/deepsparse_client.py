"""DeepSparse as one more engine: it takes its turns in a process of its own.

python3.11 -m venv deepsparse && deepsparse/bin/pip install deepsparse==1.8.0 'numpy<2'
python benchmarks/layers.py --deepsparse deepsparse/bin/python
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nmsparsity.bench.engines import exported
from nmsparsity.bench.flat import Flat

_SERVER = Path(__file__).parent / "deepsparse_server.py"
_OPSET = 13  # the newest that DeepSparse 1.8.0 reads without a warning


class DeepSparse:
    """The server, as long as it is needed.

    Args:
        python: the interpreter of the environment that DeepSparse is installed in.
    """

    def __init__(self, python: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [python, str(_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, model: nn.Module, x: Tensor, threads: int) -> Timed:
        """Have it compile a model."""
        flat, folder = Flat(model, x), Path(self._folder.name)
        (folder / "model.onnx").write_bytes(exported(flat, opset=_OPSET))
        np.save(folder / "input.npy", x.numpy())
        request = {name: str(folder / f"{name}.npy") for name in ("input", "output")}
        said = self.ask(request | {"model": str(folder / "model.onnx"), "threads": threads})
        result = torch.from_numpy(np.load(folder / "output.npy"))
        return Timed(self, said["number"], result)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"DeepSparse ended, status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Timed:
    """A compiled model; called, it gives the result it gave at first."""

    def __init__(self, server: DeepSparse, number: int, result: Tensor) -> None:
        self._server, self._number, self._result = server, number, result

    def __call__(self) -> Tensor:
        return self._result

    def seconds(self, repeats: int) -> float:
        """How long so many runs take, measured where they happen."""
        said = self._server.ask({"number": self._number, "repeats": repeats})
        return float(said["seconds"])
