"""The layers that stay dense unless they are asked for."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile

from torch import Tensor, nn

from nmsparsity.sites import Site, unwrap

_IMAGE_CHANNELS = 3
_STANDARDIZED = ("StdConv2d", "ScaledStdConv2d")


def exceptions(model: nn.Module, found: list[Site]) -> dict[str, str]:
    """The name of every weight that is dense by default, with the reason.

    The first convolution when it reads an image of up to 3 channels, the final classifiers,
    depthwise convolutions, tied weights, convolutions that standardize their weight (zeros do
    not survive that), and what a module names itself in an attribute ``dense_by_default``,
    ``{name of a layer inside it: reason}``.
    """
    reasons = dict(_first_convolution(found)) | _classifier(model, found)
    reasons |= _named(model, found)
    for site in found:
        reason = _depthwise(site) or _standardized(site)
        if reason is not None:
            reasons[site.name] = reason
    return reasons | _tied(model, found)


def _named(model: nn.Module, found: list[Site]) -> dict[str, str]:
    """What modules say of layers inside them."""
    reasons = {}
    for name, module in unwrap(model).named_modules():
        for inner, reason in getattr(module, "dense_by_default", {}).items():
            reasons[f"{name}.{inner}".lstrip(".")] = reason
    return {s.name: reasons[s.module_name] for s in found if s.module_name in reasons}


def _first_convolution(found: list[Site]) -> dict[str, str]:
    for site in found:
        if site.layout.input_dim == 1 and len(site.shape) > 2:
            channels = site.shape[1]
            if channels <= _IMAGE_CHANNELS and getattr(site.module, "groups", 1) == 1:
                return {site.name: f"the first convolution, on {channels} image channels"}
            return {}
    return {}


def _classifier(model: nn.Module, found: list[Site]) -> dict[str, str]:
    """The last layer if linear or a 1x1 convolution, but not in a stack of equal blocks.

    Nor the output of an attention. With it the heads beside it, those of distillation, say.
    """
    if len(found) < 2 or not _maps_channels(found[-1]):
        return {}
    if isinstance([unwrap(model), *found[-1].parents][-1], nn.MultiheadAttention):
        return {}
    if _in_stack(unwrap(model), found[-1].module_name):
        return {}
    heads = list(takewhile(lambda site: _is_beside(model, site, found[-1]), reversed(found[:-1])))
    if len(heads) + 1 == len(found):
        heads = []
    return {site.name: "the final classifier" for site in (*reversed(heads), found[-1])}


def _is_beside(model: nn.Module, site: Site, last: Site) -> bool:
    """Whether a layer is a head beside the last one: of the same features, and cannot feed it."""
    path, last_path = site.module_name.split("."), last.module_name.split(".")
    pairs = list(zip(path, last_path, strict=False))
    different = [depth for depth, (one, other) in enumerate(pairs) if one != other]
    if len(path) != len(last_path) or len(different) != 1 or not _maps_channels(site):
        return False
    parent = unwrap(model).get_submodule(".".join(path[: different[0]]))
    if isinstance(parent, (nn.Sequential, nn.ModuleList)):
        return False
    return site.shape[1] == last.shape[1] != site.shape[0]


def _maps_channels(site: Site) -> bool:
    """Whether it is linear, or a convolution that does the same at every pixel."""
    one_by_one = site.layout.input_dim == 1 and set(site.shape[2:]) == {1}
    return isinstance(site.module, nn.Linear) or (
        one_by_one and getattr(site.module, "groups", 1) == 1
    )


def _in_stack(model: nn.Module, name: str) -> bool:
    """Whether a parent of this module has siblings of its own type, as encoder layers have."""
    path = name.split(".")[:-1]
    parent = model
    for part in path:
        child = getattr(parent, part)
        alike = sum(type(unwrap(s)) is type(unwrap(child)) for s in parent.children())
        if isinstance(parent, (nn.ModuleList, nn.Sequential)) and alike > 1:
            return True
        parent = child
    return False


def _depthwise(site: Site) -> str | None:
    groups = getattr(site.module, "groups", 1)
    if groups > 1 and site.layout.length(site.shape, "input") == 1:
        return "a depthwise convolution: one input channel per filter"
    return None


def _standardized(site: Site) -> str | None:
    if any(kind.__name__.startswith(_STANDARDIZED) for kind in type(site.module).__mro__):
        return "it standardizes its weight in every forward: zeros would not stay zeros"
    return None


def _tied(model: nn.Module, found: list[Site]) -> dict[str, str]:
    uses = Counter(
        memory(parameter)
        for module in unwrap(model).modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return {
        site.name: "a tied weight: other layers use the same parameter"
        for site in found
        if uses[memory(site.parameter)] > 1
    }


def memory(parameter: Tensor) -> tuple[str, int]:
    """What two parameters have in common when they are one, or views of the same values."""
    if type(parameter) is not nn.Parameter or parameter.is_meta or not parameter.numel():
        return "parameter", id(parameter)
    return "memory", parameter.data_ptr()
