"""The dense engines that a packed model is compared with."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from nmsparsity.bench.flat import Flat, call, tensors
from nmsparsity.layers.fast_path import without_fast_paths
from nmsparsity.registry import Registry

ENGINES: Registry[Engine] = Registry("engine")
Run = Callable[[], Any]
E = TypeVar("E", bound="Engine")


class Engine(ABC):
    """One way to run a dense model.

    Attributes:
        name: what it is called.
        packages: what has to be installed besides torch.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    def missing(self) -> str | None:
        """How to get it, where it is not there; None when it is."""
        lacking = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if not lacking:
            return None
        return f"not installed: pip install {' '.join(lacking)}, or 'nmsparsity[bench]'"

    def load(self) -> None:
        """Import what it needs, so that memory counted from here is the model's."""
        for name in self.packages:
            importlib.import_module(name)

    @abstractmethod
    def start(self, model: nn.Module, inputs: Any, threads: int) -> Run:
        """Take over a model in eval mode, unchanged; what runs it once, with so many threads.

        Raises:
            Exception: of any kind, where the engine cannot run this model.
        """


def engine(cls: type[E]) -> type[E]:
    """A decorator that registers the one object of an engine's class under its name."""
    ENGINES.register(cls.name)(cls())
    return cls


@engine
class Torch(Engine):
    """torch as it is."""

    name = "torch"

    def start(self, model: nn.Module, inputs: Any, threads: int) -> Run:
        model = copy.deepcopy(model)
        return lambda: call(model, inputs)


@engine
class ChannelsLast(Engine):
    """torch with weights and images in channels-last memory."""

    name = "channels_last"

    def start(self, model: nn.Module, inputs: Any, threads: int) -> Run:
        # A detector makes its batch of images itself.
        if not (isinstance(inputs, list) and all(x.dim() == 3 for x in tensors(inputs))):
            inputs = last(inputs)
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return lambda: call(model, inputs)


@engine
class Compile(Engine):
    """torch.compile, weights frozen: the strongest setting it has for inference on a CPU."""

    name = "compile"

    def start(self, model: nn.Module, inputs: Any, threads: int) -> Run:
        compiled = torch.compile(copy.deepcopy(model), options={"freezing": True})
        with quiet():
            call(compiled, inputs)  # type: ignore[arg-type]
        return lambda: call(compiled, inputs)  # type: ignore[arg-type]


@engine
class OnnxRuntime(Engine):
    """ONNX Runtime on the CPU; its threads wait asleep, since others take turns with them."""

    name = "onnxruntime"
    packages = ("onnx", "onnxruntime")

    def start(self, model: nn.Module, inputs: Any, threads: int) -> Run:
        import onnxruntime

        flat = Flat(model, inputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            exported(flat), options, providers=["CPUExecutionProvider"]
        )
        taken = {one.name for one in session.get_inputs()}
        feed = {name: x.numpy() for name, x in named(flat.tensors).items() if name in taken}
        return lambda: [torch.from_numpy(y) for y in session.run(None, feed)]


@engine
class OpenVino(Engine):
    """OpenVINO on the CPU, in fp32."""

    name = "openvino"
    packages = ("onnx", "openvino")

    def start(self, model: nn.Module, inputs: Any, threads: int) -> Run:
        import openvino

        flat = Flat(model, inputs)
        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        built = core.compile_model(core.read_model(exported(flat)), "CPU", config)
        request = built.create_infer_request()
        taken = {name for one in built.inputs for name in one.get_names()}
        for name, x in named(flat.tensors).items():
            if name in taken:
                request.set_tensor(name, openvino.Tensor(x.numpy(), shared_memory=True))
        results = range(len(built.outputs))

        def run() -> list[Tensor]:
            request.infer()
            return [
                torch.from_numpy(np.asarray(request.get_output_tensor(i).data)) for i in results
            ]

        return run


def last(inputs: Any) -> Any:
    """The inputs with all images, tensors of four dimensions, in channels-last memory.

    Raises:
        ValueError: when there is none.
    """
    if not any(x.dim() == 4 for x in tensors(inputs)):
        raise ValueError("it is for images, and no input has four dimensions")
    return _pytree.tree_map(
        lambda x: (
            x.contiguous(memory_format=torch.channels_last)
            if isinstance(x, Tensor) and x.dim() == 4
            else x
        ),
        inputs,
    )


def named(values: list[Tensor]) -> dict[str, Tensor]:
    """The names that inputs have in an exported model."""
    return {f"input{number}": x.contiguous() for number, x in enumerate(values)}


def exported(
    flat: Flat,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    opset: int | None = None,
) -> bytes:
    """A model as ONNX; ``dynamic`` names the sizes that may change, ``opset`` its version."""
    names, file = named(flat.tensors), io.BytesIO()
    with quiet(), without_fast_paths():
        torch.onnx.export(
            flat.eval(),
            tuple(names.values()),
            file,  # type: ignore[arg-type]
            dynamo=False,
            input_names=list(names),
            dynamic_axes=dynamic,
            opset_version=opset,
        )
    return file.getvalue()


def versions(*packages: str) -> str:
    """The versions of the engines, and of other packages, that are installed."""
    found = [n for n in ("onnxruntime", "openvino", *packages) if importlib.util.find_spec(n)]
    said = [f"{name} {importlib.import_module(name).__version__}" for name in found]
    return ", ".join(said) or "no other engine installed"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of exporters and compilers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
