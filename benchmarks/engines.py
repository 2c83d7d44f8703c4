"""The dense engines that packed layers and models are compared with."""

from __future__ import annotations

import importlib
import importlib.util
import io
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Run = Callable[[], Tensor]
NAMES = ("onnxruntime", "openvino")


def installed(name: str) -> bool:
    """Whether an engine, and what brings models to it, is there."""
    return all(importlib.util.find_spec(needed) for needed in ("onnx", name))


def versions(*others: str) -> str:
    """The versions of the engines, and of other packages, that are installed."""
    found = [name for name in (*NAMES, *others) if importlib.util.find_spec(name)]
    said = [f"{name} {importlib.import_module(name).__version__}" for name in found]
    return ", ".join(said) or "No other engine installed"


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of a call; every round lets each of them run for about 2 ms."""
    repeats = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, int(2e-3 / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


def exported(model: nn.Module, x: Tensor) -> bytes:
    """The model as ONNX."""
    file = io.BytesIO()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX does not know that operator.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), file, dynamo=False)
    torch.backends.mha.set_fastpath_enabled(True)
    return file.getvalue()


def by_onnxruntime(model: bytes, x: Tensor, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def by_openvino(model: bytes, x: Tensor, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))

    def run() -> Tensor:
        request.infer()
        return torch.from_numpy(np.asarray(request.get_output_tensor().data))

    return run


ENGINES = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}
