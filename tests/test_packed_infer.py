"""The pattern that zeros show."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparsity.layout import Layout
from nmsparsity.packed import PackedWeight, infer
from nmsparsity.packed.infer import packed_bytes
from nmsparsity.pattern import Pattern


def sparse(shape, pattern, layout=None):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    return weight * pattern.mask(weight.abs(), layout)


@pytest.mark.parametrize("axis", ["input", "kernel"])
@pytest.mark.parametrize("text", ["1:2", "2:4", "1:4", "3:4", "4:8", "2:8", "1:16", "8:32", "2:5"])
def test_the_pattern_of_a_convolution_is_found_on_its_axis(text, axis):
    pattern = Pattern.parse(text, axis)
    assert infer(sparse((32, 160, 3, 3), pattern)) == pattern


@pytest.mark.parametrize("layout", [Layout(0), Layout(0, 2)])
@pytest.mark.parametrize("axis", ["input", "kernel"])
def test_the_pattern_of_other_layouts_is_found(layout, axis):
    pattern = Pattern(2, 4, axis)
    assert infer(sparse((64, 32, 2, 2), pattern, layout), layout) == pattern


def test_equal_axes_are_called_input():
    assert infer(sparse((8, 16), Pattern(2, 4, "kernel"))) == Pattern(2, 4)
    assert infer(sparse((8, 16, 1, 1), Pattern(2, 4, "kernel"))) == Pattern(2, 4)


def test_a_short_last_group_counts():
    weight = torch.zeros(4, 10)
    weight[:, ::4] = 1
    weight[0, 8:] = 1
    found = infer(weight)
    assert found is not None
    assert found.holds(weight)
    assert not Pattern(1, found.m).holds(weight) or found.n == 1


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(8, 8),
        torch.zeros(0, 8),
        torch.zeros(8, 0),
        torch.tensor([[1.0] * 64 + [0.0] * 2]),
        torch.ones(8, 8).index_fill(0, torch.tensor([3]), 0.0),
    ],
)
def test_no_pattern_where_none_makes_it_smaller(weight):
    assert infer(weight) is None


def test_a_weight_of_zeros_keeps_one_of_the_largest_group():
    assert infer(torch.zeros(64, 64)) == Pattern(1, 64)


def test_of_equal_sizes_the_smaller_m_and_the_input_axis_are_taken():
    assert infer(torch.zeros(3, 5)) == Pattern(1, 5)  # 1:6, 1:7 and 1:8 take three bits as well
    assert infer(torch.zeros(1, 64, 2)) == Pattern(1, 64)  # two groups on either axis


@settings(deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 70), st.sampled_from([1, 3]))
def test_what_is_found_holds_and_is_the_smallest(data, out, inputs, kernel):
    torch.manual_seed(data.draw(st.integers(0, 2**32)))
    weight = torch.randn(out, inputs, kernel)
    weight *= torch.rand(weight.shape) < data.draw(st.floats(0, 1))
    found, sizes = infer(weight), {None: weight.nbytes}
    for axis in ("input", "kernel"):
        for m in range(2, 65):
            fullest = int(Pattern(1, m, axis).counts(weight).max())
            pattern = Pattern(max(1, fullest), m, axis)
            sizes[pattern] = packed_bytes(weight, pattern, Layout())
    assert sizes[found] == min(sizes.values())
    if found is not None:
        packed = PackedWeight.pack(weight, found)
        assert packed.nbytes == sizes[found]
        assert torch.equal(packed.unpack(), weight)
