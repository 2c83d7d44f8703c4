"""Layouts: `fold` and `unfold` are inverse, and rows are what a layer contracts over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from nmsparsity import Layout, Pattern
from nmsparsity.sites import sites

LAYERS = {
    "linear": (lambda: nn.Linear(8, 3), (8,)),
    "conv1d": (lambda: nn.Conv1d(8, 3, 2), (8, 4)),
    "conv2d": (lambda: nn.Conv2d(8, 3, 2), (8, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(4, 3, 2), (4, 3, 3, 3)),
    "grouped": (lambda: nn.Conv2d(8, 6, 2, groups=2), (8, 3, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(8, 3, 2), (8, 4)),
    "transposed2d": (lambda: nn.ConvTranspose2d(8, 3, 2), (8, 3, 3)),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 3, 2), (4, 3, 3, 3)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(8, 6, 2, groups=2), (8, 3, 3)),
    "transposed1d grouped": (lambda: nn.ConvTranspose1d(12, 6, 3, groups=3), (12, 5)),
    "hugging face": (lambda: Conv1D(3, 8), (8,)),
}


@pytest.mark.parametrize("axis", ["input", "kernel"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_row_feeds_one_output(kind: str, axis: str) -> None:
    """What the layout calls a row is summed into one output: asked of autograd, not of indices."""
    make, inputs = LAYERS[kind]
    torch.manual_seed(0)
    layer = make()
    (site,) = sites(layer)
    weight = site.parameter
    ids = torch.arange(weight.numel()).reshape(weight.shape)
    rows = site.layout.fold(ids, axis).transpose(1, 2).flatten(0, 1)
    assert rows.numel() == weight.numel()
    out = layer(torch.rand(1, *inputs) + 0.5)
    # The middle of the output sees every kernel position.
    middle = out[(0, slice(None), *(size // 2 for size in out.shape[2:]))]
    summed = [
        {int(i) for i in torch.autograd.grad(y, weight, retain_graph=True)[0].flatten().nonzero()}
        for y in middle
    ]
    for row in rows.tolist():
        assert sum(set(row) <= ids_of for ids_of in summed) == 1
    if axis == "kernel" or weight.dim() == 2:
        assert sorted(map(sorted, summed)) == sorted(map(sorted, rows.tolist()))


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if "conv" in kind or "tr" in kind])
def test_the_input_axis_stays_at_one_kernel_position(kind: str) -> None:
    (site,) = sites(LAYERS[kind][0]())
    shape = site.shape
    kernel = torch.arange(torch.Size(shape[2:]).numel()).reshape(1, 1, *shape[2:]).expand(shape)
    rows = site.layout.fold(kernel, "input")
    assert rows.shape[1] == site.layout.length(shape, "input")
    assert torch.equal(rows.amin(1), rows.amax(1))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    outer=st.integers(0, 3),
    inner=st.integers(0, 4),
    kernel=st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]),
    conv_groups=st.integers(1, 3),
    input_dim=st.sampled_from([0, 1]),
    axis=st.sampled_from(["input", "kernel"]),
)
def test_unfold_undoes_fold(
    outer: int, inner: int, kernel: tuple[int, ...], conv_groups: int, input_dim: int, axis: str
) -> None:
    layout = Layout(input_dim, conv_groups)
    shape = (inner * conv_groups, outer, *kernel) if input_dim == 0 else (outer, inner, *kernel)
    weight = torch.arange(torch.Size(shape).numel()).reshape(shape)
    rows = layout.fold(weight, axis)
    assert rows.dim() == 3
    assert rows.shape[1] == layout.length(shape, axis)
    assert_close(layout.unfold(rows, shape, axis), weight, rtol=0, atol=0)


def test_fold_by_hand() -> None:
    weight = torch.arange(8).reshape(2, 2, 2)
    assert Layout().fold(weight, "input").tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert Layout().fold(weight, "kernel").tolist() == [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]
    rows = Layout(input_dim=0).fold(weight, "kernel")
    assert rows.squeeze(2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    rows = Layout(input_dim=0, conv_groups=2).fold(weight, "kernel")
    assert rows.squeeze(2).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_convolution_groups_do_not_divide_an_ordinary_input() -> None:
    assert Layout(1, 4).length((8, 2, 3, 3), "input") == 2
    assert Layout(0, 4).length((8, 2, 3, 3), "input") == 2
    assert Layout(0, 4).length((8, 2, 3, 3), "kernel") == 18


def test_fold_of_contiguous_memory_is_a_view() -> None:
    for layout in (Layout(), Layout(input_dim=0)):
        weight = torch.zeros(4, 4, 3, 3)
        layout.fold(weight, "input").fill_(1.0)
        assert bool(weight.all())


@pytest.mark.parametrize("layout", [Layout(), Layout(input_dim=0)])
@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_vector_has_no_groups(layout: Layout, shape: tuple[int, ...]) -> None:
    for call in (Pattern(2, 4).mask, Pattern(2, 4).holds, Pattern(2, 4).divides):
        with pytest.raises(ValueError, match=r"weight \[4?\]: want two dimensions or more"):
            call(torch.zeros(shape), layout)
