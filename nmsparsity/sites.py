"""Where a model has weights that can be N:M."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim.swa_utils import AveragedModel

from nmsparsity.layout import Layout, input_first

_WRAPPERS = (DistributedDataParallel, DataParallel, AveragedModel)
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, eq=False)
class Site:
    """One weight of a model, and how its layer lays it out."""

    name: str
    module_name: str
    module: nn.Module
    attribute: str
    layout: Layout
    parents: tuple[nn.Module, ...] = ()

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that the module holds now."""
        parameter = self.module._parameters[self.attribute]
        assert parameter is not None
        return parameter

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)


@dataclass(frozen=True)
class Unfit:
    """A weight matrix that no pattern can be put on, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, DDP, DataParallel or AveragedModel wrappers."""
    while True:
        inner = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def canonical(name: str) -> str:
    """A name without what wrappers of submodules (``torch.compile``, checkpointing) put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def sites(model: nn.Module) -> list[Site]:
    """Every weight of the model that a pattern can be put on, in the order of registration.

    `nn.Linear`, convolutions and transposed convolutions of 1 to 3 dimensions, the projections of
    `nn.MultiheadAttention`, recurrent layers and cells, and Hugging Face ``Conv1D``, with their
    subclasses.

    >>> [site.name for site in sites(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))]
    ['0.weight']
    """
    return [found for found in _scan(model) if isinstance(found, Site)]


def unfit(model: nn.Module) -> list[Unfit]:
    """The model's other weights of two dimensions or more, each with the reason.

    The class of a layer may give one for its weight: ``why_unfit``.
    """
    return [found for found in _scan(model) if isinstance(found, Unfit)]


def _scan(model: nn.Module) -> Iterator[Site | Unfit]:
    modules = dict(unwrap(model).named_modules())
    for module_name, module in modules.items():
        if why := getattr(type(module), "why_unfit", ""):
            name = _join(canonical(module_name), "weight")
            yield Unfit(name, tuple(module.weight.shape), why)  # type: ignore[union-attr, operator]
            continue
        places, parents = _places(module), _parents(module_name, modules)
        for attribute, layout in places.items():
            yield from _look(canonical(module_name), module, attribute, layout, parents)
        for attribute, parameter in module._parameters.items():
            if attribute not in places and parameter is not None and _is_matrix(parameter):
                name = _join(canonical(module_name), attribute)
                _refuse_lazy(name, parameter)
                yield Unfit(name, tuple(parameter.shape), _why_unfit(module, attribute))


def _look(
    module_name: str,
    module: nn.Module,
    attribute: str,
    layout: Layout,
    parents: tuple[nn.Module, ...],
) -> Iterator[Site | Unfit]:
    name, parameter = _join(module_name, attribute), module._parameters.get(attribute)
    _refuse_lazy(name, parameter)
    if parameter is None:
        held = getattr(module, attribute, None)
        if isinstance(held, torch.Tensor):
            reason = "its weight is computed from others (parametrization or weight norm)"
            yield Unfit(name, tuple(held.shape), reason)
    elif not parameter.is_floating_point() or parameter.itemsize < 2:
        yield Unfit(name, tuple(parameter.shape), f"its dtype {parameter.dtype} cannot be ranked")
    elif parameter.dim() < 2:
        yield Unfit(name, tuple(parameter.shape), "it is no matrix here: a flattened shard?")
    else:
        yield Site(name, module_name, module, attribute, layout, parents)


def _parents(name: str, modules: dict[str, nn.Module]) -> tuple[nn.Module, ...]:
    """The modules around one, without the model itself."""
    parts = name.split(".")
    paths = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return tuple(modules[path] for path in paths if path in modules)


def _refuse_lazy(name: str, parameter: nn.Parameter | None) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(f"layer {name!r} has no shape yet: run the model once, then call again")


def _places(module: nn.Module) -> dict[str, Layout]:
    """The weights of one module by attribute, each with its layout."""
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return {"weight": Layout()}
    if isinstance(module, _TRANSPOSED):
        return {"weight": Layout(input_dim=0, conv_groups=module.groups)}
    if isinstance(module, nn.MultiheadAttention):
        return {name: Layout() for name in _ATTENTION if module._parameters.get(name) is not None}
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return {
            name: Layout()
            for name in module._parameters
            if name.startswith("weight_") and not _is_part(module, name)
        }
    if input_first(module):
        return {"weight": Layout(input_dim=0)}
    return {}


def _is_part(module: nn.Module, attribute: str) -> bool:
    """Whether another weight of the module is computed from this one, as from ``weight_v``."""
    base = attribute.rpartition("_")[0]
    return base not in module._parameters and isinstance(vars(module).get(base), torch.Tensor)


def _is_matrix(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter) or (
        parameter.dim() >= 2 and parameter.is_floating_point()
    )


def _why_unfit(module: nn.Module, attribute: str) -> str:
    if _is_part(module, attribute) or isinstance(module, ParametrizationList):
        return (
            "the layer's weight is computed from it (parametrization, weight norm or torch's "
            "pruning): make that permanent first"
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "an embedding table is looked up, not multiplied"
    return f"{type(module).__name__} is not a layer whose input dimension is known"


def _join(module_name: str, attribute: str) -> str:
    return f"{module_name}.{attribute}" if module_name else attribute
