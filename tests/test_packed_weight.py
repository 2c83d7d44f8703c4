"""PackedWeight: what goes in comes out, and what is not N:M does not go in."""

import dataclasses
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparsity.layout import Layout
from nmsparsity.packed import PackedWeight
from nmsparsity.packed.groups import join, place, split
from nmsparsity.packed.weight import DTYPES
from nmsparsity.pattern import Pattern

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
CONV1D = Layout(input_dim=0)


def same_bits(one, other):
    return torch.equal(one.contiguous().view(BITS[one.itemsize]), other.view(BITS[other.itemsize]))


def test_values_and_positions_by_hand():
    weight = torch.tensor([[0.0, 1.5, 0.0, 2.5], [3.0, 0.0, 0.0, 4.0]])
    packed = PackedWeight.pack(weight, Pattern(2, 4))
    assert packed.values.tolist() == [[1.5, 2.5], [3.0, 4.0]]
    assert packed.coding == "bitmask"
    assert packed.positions.tolist() == [0b1001_1010]
    assert packed.indices().tolist() == [[1, 3], [0, 3]]
    assert (packed.nbytes, packed.dense_nbytes) == (17, 32)
    assert torch.equal(packed.unpack(), weight)


def test_groups_of_a_convolution_run_along_the_input_at_each_kernel_position():
    weight = torch.arange(2 * 4 * 2.0).reshape(2, 4, 1, 2)
    groups = split(weight, Pattern(2, 4), Layout())
    assert groups.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    assert torch.equal(join(groups, (2, 4, 1, 2), Pattern(2, 4), Layout()), weight)


def test_groups_along_the_kernel_axis_and_other_layouts():
    weight = torch.arange(16.0).reshape(4, 2, 2)
    kernel = Pattern(2, 4, "kernel")
    assert split(weight, kernel, Layout())[0].tolist() == [0, 1, 2, 3]
    assert split(weight, Pattern(2, 4), CONV1D)[:2].tolist() == [[0, 4, 8, 12], [1, 5, 9, 13]]
    assert split(weight, kernel, CONV1D)[0].tolist() == [0, 1, 4, 5]
    grouped = Layout(input_dim=0, conv_groups=2)
    assert split(weight, Pattern(1, 2), grouped)[0].tolist() == [0, 4]


def test_free_places_take_the_zeros_of_lowest_index():
    weight = torch.tensor([[0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    packed = PackedWeight.pack(weight, Pattern(2, 4))
    assert packed.indices().tolist() == [[0, 2], [0, 1]]
    assert packed.values.tolist() == [[0.0, 5.0], [0.0, 0.0]]


def test_a_short_last_group_is_completed_by_virtual_zeros():
    weight = torch.tensor([[1.0, 0.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 2.0, 3.0]])
    packed = PackedWeight.pack(weight, Pattern(2, 4))
    assert packed.values.tolist() == [[1, 2], [0, 0], [1, 2], [3, 0]]
    assert packed.indices().tolist() == [[0, 3], [0, 1], [1, 3], [0, 1]]
    assert torch.equal(packed.unpack(), weight)


def test_a_value_beyond_the_end_of_its_row_is_refused():
    weight = torch.tensor([[1.0, 0.0, 0.0, 2.0, 3.0]])
    packed = PackedWeight.pack(weight, Pattern(2, 4), name="head.weight")
    packed.values[1, 1] = 7
    with pytest.raises(ValueError, match=r"^head\.weight: a value beyond the end of its row"):
        packed.unpack()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_bits_are_exact_and_negative_zero_becomes_positive(dtype):
    info = torch.finfo(dtype)
    row = [info.tiny, -info.max, info.smallest_normal / 2, -0.0, 1 / 3, -0.0, -0.0, -0.0]
    weight = torch.tensor([row], dtype=dtype)
    restored = PackedWeight.pack(weight, Pattern(3, 4)).unpack()
    assert same_bits(restored, torch.where(weight == 0, torch.zeros_like(weight), weight))
    assert not torch.signbit(restored[0, 3:4]).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_refused_by_name(bad):
    weight = torch.zeros(2, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match=r"^block\.fc\.weight .*NaN or infinity"):
        PackedWeight.pack(weight, Pattern(2, 4), name="block.fc.weight")
    packed = PackedWeight.pack(torch.ones(2, 1), Pattern(1, 1), name="block.fc.weight")
    packed.values[0] = bad
    with pytest.raises(ValueError, match=r"^block\.fc\.weight .*NaN or infinity"):
        packed.unpack()


@pytest.mark.parametrize(
    ("shape", "at", "pattern", "layout", "where"),
    [
        ((8, 16), (5, slice(4, 7)), Pattern(2, 4), Layout(), "row 5, group 1 has 3"),
        ((4, 8, 3, 3), (2, slice(4, 8), 1, 2), Pattern(2, 4), Layout(), None),
        ((4, 8, 3, 3), (2, 1), Pattern(2, 4, "kernel"), Layout(), "filter 2, group 2 has 3"),
        ((16, 8), (slice(4, 7), 5), Pattern(2, 4), CONV1D, "column 5, group 1 has 3"),
    ],
)
def test_a_weight_that_is_not_n_m_is_refused_with_the_first_bad_group(
    shape, at, pattern, layout, where
):
    weight = torch.zeros(shape)
    weight[at] = 1.0
    where = where or r"filter 2, kernel position \(1, 2\), group 1 has 4"
    with pytest.raises(ValueError, match=rf"^layer1.weight \[.* is not 2:4 .*: {where} nonzeros"):
        PackedWeight.pack(weight, pattern, layout, "layer1.weight")


def test_the_refusal_counts_the_bad_groups_and_changes_nothing():
    weight = torch.ones(2, 8)
    with pytest.raises(ValueError, match=r"4 of 4 groups have more than 2\); packing never prunes"):
        PackedWeight.pack(weight, Pattern(2, 4))
    assert torch.equal(weight, torch.ones(2, 8))


def test_place_in_a_grouped_transposed_convolution():
    layout = Layout(input_dim=0, conv_groups=2)
    shape, pattern = (8, 3, 1, 2), Pattern(1, 2)
    weight = torch.zeros(shape)
    weight[6:8, 2, 0, 1] = 1
    bad = int(pattern.counts(weight, layout).gt(1).sum())
    groups = (split(weight, pattern, layout) != 0).sum(1)
    index = int(groups.argmax())
    assert bad == 1
    assert place(index, shape, pattern, layout) == (
        "convolution group 1, filter 2, kernel position (0, 1), group 1"
    )


@pytest.mark.parametrize(
    ("weight", "pattern", "layout", "message"),
    [
        (torch.zeros(8), Pattern(2, 4), Layout(), "two dimensions or more"),
        (torch.zeros(2, 4, dtype=torch.int32), Pattern(2, 4), Layout(), "dtype torch.int32"),
        (torch.zeros(2, 512), Pattern(2, 512), Layout(), "groups of up to 256"),
        (torch.zeros(6, 4), Pattern(2, 4), Layout(0, 4), "do not divide into 4"),
        (torch.zeros(6, 4), Pattern(2, 4), Layout(2, 1), "input_dim 0 or 1"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(weight, pattern, layout, message):
    with pytest.raises(ValueError, match=f"^conv.weight.*{message}"):
        PackedWeight.pack(weight, pattern, layout, "conv.weight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": torch.zeros(3, 2)}, r"values of shape \[3, 2\], want \[2, 2\]"),
        ({"values": torch.zeros(2, 2, dtype=torch.int8)}, "dtype torch.int8"),
        ({"positions": torch.zeros(2, dtype=torch.uint8)}, "2 bytes of positions do not fit"),
        ({"positions": torch.zeros(1, dtype=torch.int8)}, "positions are torch.int8"),
        ({"positions": torch.zeros(1, 1, dtype=torch.uint8)}, "positions are torch.uint8 of shape"),
        ({"pattern": Pattern(1, 4)}, r"values of shape \[2, 2\], want \[2, 1\]"),
        ({"shape": (2, 5)}, "values of shape"),
        ({"shape": (-2, -4)}, "not the shape of a tensor"),
        ({"shape": (2**40, 2**40)}, "not the shape of a tensor"),
        ({"shape": (8,)}, "two dimensions"),
        ({"coding": "bitmsk"}, "^weight: unknown position coding 'bitmsk'.*did you mean 'bitmask'"),
        ({"coding": "combinadic"}, "do not fit 2 groups of 2:4 in coding 'combinadic'"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, message):
    packed = PackedWeight.pack(torch.tensor([[0, 1.0, 0, 2], [3, 0, 0, 0]]), Pattern(2, 4))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(packed, **changes)


def test_bad_positions_are_refused_by_name():
    packed = PackedWeight.pack(torch.eye(4), Pattern(2, 4), name="fc.weight")
    packed.positions[0] = 0xFF
    with pytest.raises(ValueError, match=r"^fc\.weight: a bitmask with 4 bits set"):
        packed.unpack()
    with pytest.raises(ValueError, match=r"^fc\.weight: a bitmask"):
        packed.indices()


def test_parameters_views_and_channels_last_are_packed_as_they_read():
    weight = torch.randn(8, 8, 3, 3)
    weight = (weight * Pattern(2, 4).mask(weight.abs())).to(memory_format=torch.channels_last)
    packed = PackedWeight.pack(torch.nn.Parameter(weight), Pattern(2, 4))
    assert not packed.values.requires_grad
    assert torch.equal(packed.unpack(), weight)
    assert torch.equal(PackedWeight.pack(weight[::2], Pattern(2, 4)).unpack(), weight[::2])


@pytest.mark.parametrize("shape", [(0, 2**60), (2**60, 0), (2**30, 0, 2**30), (0, 4, 2**59)])
@pytest.mark.parametrize("layout", [Layout(), CONV1D])
@pytest.mark.parametrize("axis", ["input", "kernel"])
def test_absurd_shapes_without_elements_take_no_memory(shape, layout, axis):
    empty = torch.zeros(0, 2), torch.zeros(0, dtype=torch.uint8)
    packed = PackedWeight(*empty, Pattern(2, 4, axis), layout, shape, "bitmask")
    assert packed.unpack().shape == shape


def test_repr_says_what_it_is():
    text = repr(PackedWeight.pack(torch.zeros(2, 4), Pattern(2, 4), name="fc.weight"))
    assert text == (
        "PackedWeight(fc.weight [2, 4] torch.float32, 2:4 along input, bitmask, 17 of 32 bytes)"
    )


shapes = st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple)


@settings(deadline=None)
@given(st.data(), shapes, st.sampled_from(DTYPES), st.sampled_from([(1, 1), (0, 1), (0, 2)]))
def test_round_trip(data, shape, dtype, layout):
    layout = Layout(*layout)
    if layout.conv_groups == 2:
        shape = (2 * shape[0], *shape[1:])
    m = data.draw(st.integers(1, 12) | st.sampled_from([16, 32, 64, 200]))
    pattern = Pattern(
        data.draw(st.integers(1, m)), m, data.draw(st.sampled_from(["input", "kernel"]))
    )
    torch.manual_seed(data.draw(st.integers(0, 2**32)))
    weight = torch.randn(shape).to(dtype) * pattern.mask(torch.randn(shape), layout)
    weight *= torch.rand(shape) < data.draw(st.sampled_from([0.0, 0.7, 1.0]))
    packed = PackedWeight.pack(weight, pattern, layout)
    assert packed.values.dtype == dtype
    assert packed.dense_nbytes == prod(shape) * dtype.itemsize
    assert same_bits(packed.unpack(), weight + 0)
    again = PackedWeight.pack(packed.unpack(), pattern, layout)
    assert torch.equal(again.positions, packed.positions)
    assert same_bits(again.values, packed.values)


def test_a_pattern_may_be_text() -> None:
    weight = torch.eye(8)
    packed = PackedWeight.pack(weight, "1:8")
    assert packed.pattern == Pattern(1, 8)
    assert torch.equal(packed.unpack(), weight)
    with pytest.raises(ValueError, match="pattern '1-8': want 'N:M'"):
        PackedWeight.pack(weight, "1-8")
