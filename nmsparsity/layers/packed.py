"""What all packed layers are: a packed weight in a kernel's run-time form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nmsparsity.kernels.base import KERNELS, Kernel
from nmsparsity.kernels.epilogue import check_activation, finish
from nmsparsity.kernels.op import apply, traced, watched
from nmsparsity.kernels.op import weight as dense_weight
from nmsparsity.kernels.problem import Problem, memory_format
from nmsparsity.layers.lazy_weight import LazyWeight
from nmsparsity.layers.plain import restore, skeleton
from nmsparsity.layers.stored import KEYS, from_state, to_state
from nmsparsity.layout import input_first
from nmsparsity.packed.weight import PackedWeight

_REMADE = (
    "_tile_names",
    "_buffers",
    "_run",
    "_compiled_call_impl",
)  # not copied and pickled: made of the weight


class PackedLayer(nn.Module):
    """A layer whose weight is packed; for inference.

    The kernel's run-time form is held in the buffers ``tile0``, ``tile1``, ... and never saved: a
    ``state_dict`` and a pickle hold the storage form (values and positions), which any kernel on
    any machine can read. ``forward`` takes a residual, and the name of an activation
    (`nmsparsity.kernels.epilogue`) of the sum; called with its input alone it is the plain layer.

    Args:
        plain: the layer it stands for; its settings and its bias are kept.
        problem: what is fixed about the multiplication.
        weight: the packed weight, ``[out, in, ...]``.
        kernel: the name of the kernel.

    Raises:
        ValueError: naming the layer, when the kernel refuses it.
    """

    why_unfit = "it is packed: nmsparsity.decompress gives a model with plain layers"
    problem: Problem
    kernel_name: str

    def __init__(
        self,
        plain: nn.Module,
        problem: Problem,
        weight: PackedWeight,
        kernel: str = "reference",
    ) -> None:
        super().__init__()
        self.__dict__["_plain"] = skeleton(plain)
        self.kernel_name = kernel
        held = plain._parameters["weight"]
        assert held is not None
        self._shape, self._input_first = tuple(held.shape), input_first(plain)
        bias = plain._parameters.get("bias")
        frozen = None if bias is None else nn.Parameter(bias.detach().clone(), False)
        self.register_parameter("bias", frozen)
        self._tile(problem, weight)
        self.eval()

    @property
    def kernel(self) -> Kernel:
        """The kernel in use."""
        return KERNELS[self.kernel_name]

    @property
    def tiles(self) -> tuple[Tensor, ...]:
        """The weight in the kernel's run-time form."""
        return tuple([self._buffers[name] for name in self._tile_names])  # type: ignore[misc]

    @property
    def packed(self) -> PackedWeight:
        """The weight in storage form."""
        return self.kernel.untile(self.problem, self.tiles)

    @property
    def weight(self) -> Tensor:
        """The dense weight, laid out as the plain layer has it; unpacked anew when it is used."""
        if traced():
            return self._laid_out(dense_weight(self.tiles, self._text, self.kernel_name))
        device = self.tiles[0].device
        return LazyWeight(self._shape, self.problem.dtype, device, self.unpacked)

    def unpacked(self) -> Tensor:
        """The dense weight, laid out as the plain layer has it."""
        return self._laid_out(self.packed.unpack().to(self.tiles[0].device))

    def _laid_out(self, weight: Tensor) -> Tensor:
        return weight.t().contiguous() if self._input_first else weight.reshape(self._shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the weight in run-time form."""
        return sum(tile.nbytes for tile in self.tiles)

    @property
    def dense_nbytes(self) -> int:
        """The bytes of the dense weight."""
        return self.packed.dense_nbytes

    def plain(self) -> nn.Module:
        """The plain layer again, with the same weight."""
        bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone(), False)
        return restore(self.__dict__["_plain"], self.unpacked(), bias)

    def multiply(self, x: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        """``activation(x @ weight + bias + residual)`` for an input as the kernel wants it.

        A residual of another shape or dtype is broadcast and promoted as torch does it.
        """
        x = self._accepted(x)
        check_activation(self.problem.name, activation)
        if residual is None:
            return self._call(x, None, activation)
        if not _fits(residual, self.problem.output_shape(x.shape), x.dtype):
            return finish(self._call(x, None, "none"), activation, residual)
        return self._call(x, residual.contiguous(memory_format=memory_format(x)), activation)

    def _accepted(self, x: Tensor) -> Tensor:
        """The input, contiguous or ``channels_last``; under autocast in the weight's dtype."""
        if x.dtype is not self.problem.dtype:
            if not torch.is_autocast_enabled(x.device.type):
                raise ValueError(
                    f"layer {self.problem.name!r}: an input of {x.dtype}, want "
                    f"{self.problem.dtype}: cast the input, or the model before it is compressed"
                )
            x = x.to(self.problem.dtype)
        return x if x.is_contiguous() else x.contiguous(memory_format=memory_format(x))

    def lifted(self, x: Tensor, residual: Tensor | None, activation: str, *dims: int) -> Tensor:
        """`multiply` of an input that lacks these dimensions; the result lacks them too."""
        fits = residual is None or _has_rank(residual, x.dim())
        result = self.multiply(
            _unsqueeze(x, dims),
            None if residual is None or not fits else _unsqueeze(residual, dims),
            activation if fits else "none",
        )
        for dim in reversed(dims):
            result = result.squeeze(dim)
        return result if fits else finish(result, activation, residual)

    def _call(self, x: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        bias, buffers = self._parameters["bias"], self._buffers
        tiles = [buffers[name] for name in self._tile_names]
        if watched(x, residual, bias):
            names = (self._text, self.kernel_name, activation)
            return apply(x, tiles, bias, residual, *names)  # type: ignore[no-any-return]
        return self._run(tiles, x, bias, activation, residual)

    def _tile(self, problem: Problem, weight: PackedWeight) -> None:
        """Take on a weight, in place."""
        refusal = self.kernel.refuses(problem)
        if refusal is not None:
            raise ValueError(
                f"layer {problem.name!r}: kernel {self.kernel_name!r} refuses it: {refusal}"
            )
        for name in self.__dict__.get("_tile_names", ()):
            del self._buffers[name]
        self.problem, self._text = problem, problem.to_string()
        self._run = self.kernel.prepare(problem)
        tiles = self.kernel.tile(problem, weight)
        self._tile_names = tuple(f"tile{number}" for number in range(len(tiles)))
        for name, tile in zip(self._tile_names, tiles, strict=True):
            self.register_buffer(name, tile.to(problem.device), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        """Moves as a module does; a change of dtype converts the values and tiles them anew."""
        dtype = fn(torch.empty(0, dtype=self.problem.dtype)).dtype
        if dtype == self.problem.dtype:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        problem = replace(self.problem, dtype=dtype)
        refusal = self.kernel.refuses(problem)
        if refusal is not None:
            raise ValueError(
                f"layer {problem.name!r} stays {self.problem.dtype}: kernel {self.kernel_name!r} "
                f"would refuse it: {refusal}; decompress the model to cast it"
            )
        weight = self.packed
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tile(problem, replace(weight, values=weight.values.to(dtype)))
        return self

    def __getattr__(self, name: str) -> Any:
        """The settings of the plain layer, such as ``in_features`` and ``stride``."""
        settings = vars(self.__dict__["_plain"]) if "_plain" in self.__dict__ else {}
        if not name.startswith("_") and name in settings:
            return settings[name]
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        tiles = set(self._tile_names)
        buffers = {name: b for name, b in self._buffers.items() if name not in tiles}
        kept = {k: v for k, v in self.__dict__.items() if k not in _REMADE}
        return {**kept, "_buffers": buffers, "_stored": self.packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        weight = state.pop("_stored")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._non_persistent_buffers_set = set()
        self._tile(self.problem, weight)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        destination.update(to_state(f"{prefix}weight", self.packed))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        ours = {f"{prefix}weight.{key}" for key in KEYS}
        rest = {name: value for name, value in state_dict.items() if name not in ours}
        lists = (missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, *lists)  # type: ignore[no-untyped-call]
        missing = sorted(ours - state_dict.keys())
        missing_keys.extend(missing)
        if missing:
            return
        try:
            self._tile(self.problem, from_state(f"{prefix}weight", state_dict, self.problem))
        except ValueError as error:
            error_msgs.append(str(error))

    def extra_repr(self) -> str:
        share = self.nbytes / self.dense_nbytes
        said = f"{list(self.problem.shape)} {self.problem.pattern}, kernel={self.kernel_name}"
        return f"{said}, {self.nbytes:,} bytes ({share:.0%} of dense)"


def _has_rank(residual: object, rank: int) -> bool:
    """Traced sums may add a number, which is no tensor."""
    return isinstance(residual, Tensor) and residual.dim() == rank


def _fits(residual: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return isinstance(residual, Tensor) and residual.dtype is dtype and residual.shape == shape


def _unsqueeze(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    for dim in dims:
        x = x.unsqueeze(dim)
    return x
