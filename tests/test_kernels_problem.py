"""A problem as a text, its output shape, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nmsparsity.kernels import Problem
from nmsparsity.kernels.problem import memory_format
from nmsparsity.pattern import Pattern

LINEAR = Problem("linear", (8, 16), Pattern(2, 4), torch.float32, name="fc")
CONV = Problem("conv2d", (8, 4, 3, 2), Pattern(1, 4, "kernel"), torch.bfloat16, (2, 1), groups=2)


@pytest.mark.parametrize("problem", [LINEAR, CONV])
def test_a_text_and_back(problem: Problem) -> None:
    again = Problem.from_string(problem.to_string())
    assert again == problem
    assert again.name == problem.name
    assert hash(again) == hash(problem)
    assert Problem.from_string(again.to_string()) is again


def test_the_name_does_not_count() -> None:
    assert replace(LINEAR, name="other") == LINEAR
    assert replace(LINEAR, dtype=torch.float64) != LINEAR


@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_the_output_shape_is_that_of_torch(size: Any, kernel: Any, **geometry: Any) -> None:
    conv = nn.Conv2d(4, 6, kernel, groups=2, device="meta", **geometry)
    x = torch.empty(3, 4, *size, device="meta")
    shape = (6, 2, *kernel)
    problem = Problem("conv2d", shape, Pattern(1, 2), torch.float32, groups=2, **geometry)
    assert problem.output_shape(x.shape) == tuple(conv(x).shape)
    assert (problem.inputs, problem.outputs) == (4, 6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "conv3d"}, "kind 'conv3d': want"),
        ({"shape": (8, 16, 3)}, r"a linear weight of shape \[8, 16, 3\], want 2 dimensions"),
        ({"dtype": torch.int8}, "dtype torch.int8: kernels take"),
        ({"stride": (0, 1)}, r"stride \(0, 1\): want two whole numbers of at least 1"),
        ({"padding": (1,)}, r"padding \(1,\)"),
        ({"groups": 3}, "8 outputs do not divide into 3"),
    ],
)
def test_what_makes_no_sense_is_named(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=f"layer 'fc': .*{match}"):
        replace(LINEAR, **change)


@pytest.mark.parametrize(
    ("problem", "shape"),
    [
        (LINEAR, (2, 15)),
        (LINEAR, ()),
        (CONV, (8, 5, 5)),
        (CONV, (1, 4, 5, 5)),
        (CONV, (1, 8, 2, 5)),
    ],
)
def test_inputs_that_do_not_fit(problem: Problem, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="an input of shape"):
        problem.output_shape(shape)


def test_memory_formats() -> None:
    x = torch.zeros(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert memory_format(x) is torch.contiguous_format
    assert memory_format(last) is torch.channels_last
    assert memory_format(last[..., ::2]) is torch.contiguous_format
    assert memory_format(torch.zeros(2, 3).t()) is torch.contiguous_format
