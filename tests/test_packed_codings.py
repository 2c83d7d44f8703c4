"""Position codings: by hand on tiny groups, by property on all others."""

import itertools
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparsity.packed import bits
from nmsparsity.packed.bitmask import Bitmask
from nmsparsity.packed.codings import CODINGS, position_bytes, smallest
from nmsparsity.packed.combinadic import Combinadic
from nmsparsity.packed.index import Index
from nmsparsity.pattern import Pattern


def mask_of(m, *groups):
    """The mask ``[groups, m]`` that keeps these positions."""
    mask = np.zeros((len(groups), m), bool)
    for row, positions in zip(mask, groups, strict=True):
        row[list(positions)] = True
    return mask


def as_bytes(number, length):
    return list(number.to_bytes(length, "little"))


def test_bits_are_a_little_endian_stream():
    assert bits.pack(np.array([1, 2, 3], np.uint8), 3).tolist() == as_bytes(1 + 2 * 8 + 3 * 64, 2)
    wide = np.array([2**44 - 1, 5], np.uint64)
    assert bits.pack(wide, 44).tolist() == as_bytes(2**44 - 1 + (5 << 44), 11)
    assert bits.unpack(bits.pack(wide, 44), 2, 44).tolist() == wide.tolist()


@pytest.mark.parametrize(
    ("width", "dtype"),
    [*((w, np.uint8) for w in (1, 2, 7, 8)), *((w, np.uint64) for w in (1, 2, 8, 9, 31, 63, 64))],
)
def test_bits_round_trip_at_every_width(width, dtype):
    numbers = np.array([0, 2**width - 1, 2 ** (width - 1), 1, 0], dtype)
    stream = bits.pack(numbers, width)
    assert len(stream) == bits.size(5, width) == -(-5 * width // 8)
    assert bits.unpack(stream, 5, width).tolist() == numbers.tolist()


def test_bits_of_no_width_and_no_numbers():
    assert len(bits.pack(np.zeros(3, np.uint64), 0)) == 0
    assert bits.unpack(np.zeros(0, np.uint8), 3, 0).tolist() == [0, 0, 0]
    assert len(bits.pack(np.zeros(0, np.uint64), 44)) == 0
    assert bits.unpack(np.zeros(0, np.uint8), 0, 44).tolist() == []


def test_bitmask_by_hand():
    mask = mask_of(4, (0, 3), (1, 2), (2, 3))
    assert Bitmask().encode(mask, 2).tolist() == [0b0110_1001, 0b1100]
    assert (Bitmask().decode(np.array([0b0110_1001, 0b1100], np.uint8), 3, 2, 4) == mask).all()


def test_index_by_hand():
    assert Index().encode(mask_of(4, (0, 3), (1, 2)), 2).tolist() == [0b10_01_11_00]
    assert Index().encode(mask_of(5, (4,), (0,), (1,)), 1).tolist() == as_bytes(4 + 64, 2)


def test_combinadic_by_hand():
    ranks = {(0, 1): 0, (0, 2): 1, (1, 2): 2, (0, 3): 3, (1, 3): 4, (2, 3): 5}
    for positions, rank in ranks.items():
        assert Combinadic().encode(mask_of(4, positions), 2).tolist() == as_bytes(rank, 6)
    mask = mask_of(4, (0, 3), (2, 3), *[(0, 1)] * 15, (1, 2))
    assert Combinadic().encode(mask, 2).tolist() == as_bytes(3 + 5 * 6 + (2 << 44), 11)


def test_combinadic_rank_is_the_sum_of_binomials():
    groups = list(itertools.combinations(range(9), 4))
    numbers = Combinadic().numbers(mask_of(9, *groups), 4)
    fields = Combinadic().fields(4, 9)
    ranks = [sum(comb(p, j) for j, p in enumerate(group, 1)) for group in groups]
    lots = itertools.zip_longest(*[iter(ranks)] * fields.groups, fillvalue=0)
    want = [sum(rank * 126**i for i, rank in enumerate(lot)) for lot in lots]
    assert numbers.tolist() == want
    assert sorted(ranks) == list(range(126))


@pytest.mark.parametrize(
    ("text", "groups", "width"),
    [("2:4", 17, 44), ("1:5", 3, 7), ("1:4", 1, 2), ("3:3", 1, 0), ("32:64", 1, 61)],
)
def test_how_many_groups_share_a_number(text, groups, width):
    pattern = Pattern.parse(text)
    fields = Combinadic().fields(pattern.n, pattern.m)
    assert (fields.groups, fields.width) == (groups, width)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 32, 48, 64])
def test_combinadic_stays_near_the_bound(m):
    for n in range(1, m):
        fields, bound = Combinadic().fields(n, m), log2(comb(m, n))
        assert bound - 1e-9 <= fields.width / fields.groups < bound * 1.03
        assert fields.width <= 64


def test_combinadic_passes_on_what_64_bits_cannot_hold():
    assert Combinadic().fields(64, 128) is None
    assert smallest(100, Pattern(64, 128)).name == "bitmask"
    with pytest.raises(ValueError, match="'combinadic' cannot write 64:128"):
        Combinadic().encode(np.ones((1, 128), bool), 64)


def test_smallest_prefers_the_simplest_of_equals():
    assert smallest(1, Pattern(2, 4)).name == "bitmask"
    assert smallest(999, Pattern(1, 4)).name == "index"
    assert smallest(999, Pattern(2, 4)).name == "combinadic"
    assert smallest(0, Pattern(2, 4)).name == "bitmask"
    assert position_bytes(17, Pattern(2, 4)) == 6


@pytest.mark.parametrize("name", list(CODINGS))
@pytest.mark.parametrize("m", [*range(1, 17), 24, 32, 40, 48, 63, 64])
def test_round_trip_of_every_n(name, m):
    random = np.random.default_rng(m)
    for n in range(1, m + 1):
        mask = random.random((41, m)).argsort(axis=1) < n
        assert (CODINGS[name].decode(CODINGS[name].encode(mask, n), 41, n, m) == mask).all()


@settings(deadline=None)
@given(st.data(), st.sampled_from(list(CODINGS)), st.integers(1, 64), st.integers(0, 60))
def test_round_trip(data, name, m, groups):
    n = data.draw(st.integers(1, m))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    order = random.random((groups, m)).argsort(axis=1)
    mask, coding = order < n, CODINGS[name]
    stream = coding.encode(mask, n)
    assert len(stream) == coding.fields(n, m).nbytes(groups)
    assert (coding.decode(stream, groups, n, m) == mask).all()


@pytest.mark.parametrize("name", list(CODINGS))
@pytest.mark.parametrize("text", ["2:4", "3:5", "100:256"])
def test_round_trip_over_several_blocks(name, text):
    pattern, coding = Pattern.parse(text), CODINGS[name]
    if coding.fields(pattern.n, pattern.m) is None:
        assert name == "combinadic"
        return
    groups = 5 * 2**20 // (2 * pattern.m) + 3
    mask = np.random.default_rng(0).random((groups, pattern.m)).argsort(axis=1) < pattern.n
    stream = coding.encode(mask, pattern.n)
    assert (coding.decode(stream, groups, pattern.n, pattern.m) == mask).all()
    # One stream, whatever the blocks: the same bytes as encoding everything at once.
    fields = coding.fields(pattern.n, pattern.m)
    assert (bits.pack(coding.numbers(mask, pattern.n), fields.width) == stream).all()


@pytest.mark.parametrize(
    ("name", "stream", "groups", "n", "m", "message"),
    [
        ("bitmask", [0b0111], 1, 2, 4, "a bitmask with 3 bits set, want 2"),
        ("bitmask", [0b0001], 1, 2, 4, "a bitmask with 1 bits set, want 2"),
        ("bitmask", [0b1_0011], 1, 2, 4, "bits after the last position are not zero"),
        ("bitmask", [0b0011, 0], 1, 2, 4, "2 bytes of positions, want 1"),
        ("index", [5], 1, 1, 5, "index 5 in a group of 5"),
        ("index", [0b01_10], 1, 2, 4, "indices that do not increase"),
        ("index", [0b01_01], 1, 2, 4, "indices that do not increase"),
        ("index", [0b1_10_01], 1, 2, 4, "bits after the last position are not zero"),
        ("index", [], 1, 2, 4, "0 bytes of positions, want 1"),
        ("combinadic", as_bytes(6, 6), 1, 2, 4, "the number 6, want less than 6"),
        ("combinadic", as_bytes(36, 6), 2, 2, 4, "the number 36, want less than 36"),
        ("combinadic", as_bytes(6**17, 6), 17, 2, 4, "want less than 16926659444736"),
        ("combinadic", as_bytes(6**17 << 44, 11), 34, 2, 4, "want less than 16926659444736"),
        ("combinadic", as_bytes(6**17, 11), 18, 2, 4, "want less than 16926659444736"),
        ("combinadic", as_bytes(6 << 44, 11), 18, 2, 4, "the number 6, want less than 6"),
        ("combinadic", as_bytes(1 << 44, 6), 17, 2, 4, "bits after the last position"),
    ],
)
def test_streams_that_no_mask_leads_to(name, stream, groups, n, m, message):
    with pytest.raises(ValueError, match=message):
        CODINGS[name].decode(np.array(stream, np.uint8), groups, n, m)
