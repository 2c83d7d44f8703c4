"""Engines that run a step again and again: tensors in, tensors out, some of them growing.

A step takes and gives a list, the state; what comes out goes in again. Every engine is given the
same module, and what it holds between steps stays in its own kind of array.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nmsparsity.bench.engines import exported, quiet
from nmsparsity.bench.flat import Flat

State = list[Any]
Step = Callable[[State], State]
Start = Callable[[nn.Module, Sequence[Tensor], Sequence[int], int], Step]


def by_torch(
    model: nn.Module, example: Sequence[Tensor], growing: Sequence[int], threads: int
) -> Step:
    model = copy.deepcopy(model)
    return lambda state: list(model(*state))


def by_compile(
    model: nn.Module, example: Sequence[Tensor], growing: Sequence[int], threads: int
) -> Step:
    """Nothing is compiled before the first step."""
    compiled = torch.compile(copy.deepcopy(model), dynamic=True, options={"freezing": True})

    def step(state: State) -> State:
        for number in growing:
            if state[number].shape[2] > 1:
                torch._dynamo.mark_dynamic(state[number], 2)
        with quiet():
            return list(compiled(*state))

    return step


def _exported(model: nn.Module, example: Sequence[Tensor], growing: Sequence[int]) -> bytes:
    sizes = {f"input{number}": {2: "length"} for number in growing}
    return exported(Flat(model, tuple(example)), sizes)


def by_onnxruntime(
    model: nn.Module, example: Sequence[Tensor], growing: Sequence[int], threads: int
) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        _exported(model, example, growing), options, providers=["CPUExecutionProvider"]
    )
    names = [f"input{number}" for number in range(len(example))]
    return lambda state: session.run(None, dict(zip(names, _arrays(state), strict=True)))


def by_openvino(
    model: nn.Module, example: Sequence[Tensor], growing: Sequence[int], threads: int
) -> Step:
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    built = core.compile_model(core.read_model(_exported(model, example, growing)), "CPU", config)
    request = built.create_infer_request()

    def step(state: State) -> State:
        given = {f"input{number}": x for number, x in enumerate(_arrays(state))}
        done = request.infer(given, share_inputs=True)
        return [done[index] for index in range(len(built.outputs))]

    return step


def _arrays(state: State) -> list[np.ndarray]:
    return [x.numpy() if isinstance(x, Tensor) else x for x in state]


STARTS: dict[str, Start] = {
    "torch": by_torch,
    "compile": by_compile,
    "onnxruntime": by_onnxruntime,
    "openvino": by_openvino,
}
