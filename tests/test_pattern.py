"""What N:M means, against groups written down index by index."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmsparsity import Layout, Pattern

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def groups(shape: tuple[int, ...], pattern: Pattern, layout: Layout) -> list[list[tuple[int, ...]]]:
    """Every group as the indices of its weights, in order: the definition, loop by loop."""
    kernel = list(itertools.product(*map(range, shape[2:])))
    rows = []
    if layout.input_dim == 1:
        rows_of = [[(o, i) for i in range(shape[1])] for o in range(shape[0])]
    else:
        share = shape[0] // layout.conv_groups
        rows_of = [
            [(g * share + i, o) for i in range(share)]
            for g in range(layout.conv_groups)
            for o in range(shape[1])
        ]
    for row in rows_of:
        if pattern.axis == "kernel":
            rows.append([(*place, *k) for place in row for k in kernel])
        else:
            rows.extend([[(*place, *k) for place in row] for k in kernel])
    m = pattern.m
    return [row[start : start + m] for row in rows for start in range(0, len(row), m)]


def reference(scores: Tensor, pattern: Pattern, layout: Layout) -> Tensor:
    """The mask by sorting every group in Python."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for group in groups(tuple(scores.shape), pattern, layout):
        best = sorted(range(len(group)), key=lambda j: (-float(scores[group[j]]), j))
        for j in best[: pattern.n]:
            mask[group[j]] = True
    return mask


@st.composite
def cases(draw: st.DrawFn, most: int = 64) -> tuple[Tensor, Pattern, Layout]:
    """Scores full of ties and zeros, any pattern, any layout, whole groups or not."""
    m = draw(st.integers(1, most))
    pattern = Pattern(draw(st.integers(1, m)), m, draw(st.sampled_from(["input", "kernel"])))
    conv_groups = draw(st.sampled_from([1, 1, 2, 3]))
    layout = draw(st.sampled_from([Layout(), Layout(input_dim=0, conv_groups=conv_groups)]))
    length = draw(st.one_of(st.integers(1, 9), st.sampled_from([m, 2 * m, m + 1])))
    inputs = length * layout.conv_groups
    outputs = draw(st.integers(1, 3))
    kernel = draw(st.sampled_from([(), (1,), (3,), (2, 2), (1, 2, 2)]))
    shape = (inputs, outputs, *kernel) if layout.input_dim == 0 else (outputs, inputs, *kernel)
    seed, kind = draw(st.integers(0, 2**31)), draw(st.sampled_from(["ties", "zeros", "random"]))
    g = torch.Generator().manual_seed(seed)
    if kind == "random":
        scores = torch.randn(shape, generator=g)
    else:
        scores = torch.randint(0, 1 if kind == "zeros" else 3, shape, generator=g).float()
    return scores.to(draw(st.sampled_from(FLOATS))), pattern, layout


@settings(max_examples=120, deadline=None, derandomize=True)
@given(cases())
def test_the_mask_is_the_n_largest_of_every_group(case: tuple[Tensor, Pattern, Layout]) -> None:
    scores, pattern, layout = case
    mask = pattern.mask(scores, layout)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, reference(scores, pattern, layout))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(most=16))
def test_counts_are_those_of_the_mask(case: tuple[Tensor, Pattern, Layout]) -> None:
    scores, pattern, layout = case
    mask = pattern.mask(scores, layout)
    every = groups(tuple(scores.shape), pattern, layout)
    expected = sorted(min(pattern.n, len(group)) for group in every)
    assert sorted(pattern.counts(mask, layout).flatten().tolist()) == expected
    assert pattern.holds(scores * mask, layout)
    assert pattern.length(scores, layout) * _rows(scores, pattern, layout) == scores.numel()
    assert pattern.divides(scores, layout) == all(len(group) == pattern.m for group in every)


def _rows(scores: Tensor, pattern: Pattern, layout: Layout) -> int:
    shape = tuple(scores.shape)
    outer = shape[0] if layout.input_dim == 1 else shape[1] * layout.conv_groups
    return outer * (1 if pattern.axis == "kernel" else math.prod(shape[2:]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(most=12), st.integers(0, 10**6))
def test_one_weight_too_many_does_not_hold(
    case: tuple[Tensor, Pattern, Layout], choice: int
) -> None:
    scores, pattern, layout = case
    crowded = [g for g in groups(tuple(scores.shape), pattern, layout) if len(g) > pattern.n]
    weight = pattern.mask(scores, layout).float()
    if not crowded:
        assert pattern.holds(torch.ones(scores.shape), layout)
        return
    group = crowded[choice % len(crowded)]
    weight[next(place for place in group if weight[place] == 0)] = 1.0
    assert not pattern.holds(weight, layout)


def test_by_hand_along_the_input() -> None:
    scores = torch.tensor(
        [
            [4.0, 3.0, 2.0, 1.0],
            [1.0, 1.0, 1.0, 1.0],
            [0.0, 0.0, 0.0, 0.0],
            [1.0, 5.0, 5.0, 5.0],
        ]
    )
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    assert torch.equal(Pattern(2, 4).mask(scores), expected)


def test_by_hand_along_the_input_of_a_transposed_layout() -> None:
    scores = torch.tensor([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 9.0]])
    expected = torch.tensor([[1, 1], [1, 0], [0, 0], [0, 1]]).bool()
    assert torch.equal(Pattern(2, 4).mask(scores, Layout(input_dim=0)), expected)


def test_by_hand_in_the_order_of_one_filter() -> None:
    scores = torch.arange(8.0).reshape(1, 2, 2, 2)
    kernel = Pattern(1, 4, "kernel").mask(scores)
    assert kernel.nonzero().tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    inputs = Pattern(1, 2, "input").mask(scores)
    assert torch.equal(inputs[0, 1], torch.ones(2, 2).bool())


def test_groups_never_cross_filters() -> None:
    weight = torch.ones(2, 2, 3, 3)
    counts = Pattern(1, 4, "kernel").counts(weight)
    assert counts.flatten().tolist() == [4, 4, 4, 4, 2] * 2


def test_a_short_last_group_keeps_at_most_n() -> None:
    mask = Pattern(2, 4).mask(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]))
    assert mask.tolist() == [[False, False, True, True, False, True, True]]
    assert Pattern(2, 4).mask(torch.ones(1, 5)).tolist() == [[True, True, False, False, True]]
    assert Pattern(1, 64).mask(torch.tensor([[0.0, 1.0, 1.0]])).tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_ranked_as_fp32_ranks_it(dtype: torch.dtype) -> None:
    scores = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for pattern in (Pattern(2, 4), Pattern(3, 16), Pattern(1, 64)):
        assert torch.equal(pattern.mask(scores), pattern.mask(scores.float()))


def test_float64_is_ranked_in_full() -> None:
    close = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert Pattern(1, 2).mask(close).tolist() == [[False, True]]


@pytest.mark.parametrize("axis", ["input", "kernel"])
def test_memory_format_does_not_matter(axis: str) -> None:
    plain = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    strided = torch.empty(16, 16, 3, 3)[::2, ::2]
    strided.copy_(plain)
    pattern = Pattern(2, 4, axis)  # type: ignore[arg-type]
    expected = pattern.mask(plain)
    assert torch.equal(pattern.mask(plain.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(pattern.mask(strided), expected)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0), (4, 0, 3, 3)])
def test_empty_weights(shape: tuple[int, ...]) -> None:
    empty = torch.empty(shape)
    for axis in ("input", "kernel"):
        pattern = Pattern(2, 4, axis)  # type: ignore[arg-type]
        assert pattern.mask(empty).shape == empty.shape
        assert pattern.holds(empty)
        assert pattern.divides(empty)


def test_masks_carry_no_gradient_and_leave_the_scores_alone() -> None:
    scores = torch.randn(4, 8, requires_grad=True)
    before = scores.detach().clone()
    assert not Pattern(2, 4).mask(scores).requires_grad
    assert torch.equal(scores.detach(), before)


def test_negative_scores_rank_below_zero() -> None:
    assert Pattern(2, 4).mask(torch.tensor([[-1.0, 0.0, -3.0, -2.0]])).tolist() == [
        [True, True, False, False]
    ]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 64).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))))
def test_parse_reads_what_str_writes(counts: tuple[int, int]) -> None:
    n, m = counts
    for axis in ("input", "kernel"):
        pattern = Pattern(n, m, axis)  # type: ignore[arg-type]
        assert Pattern.parse(str(pattern), axis=axis) == pattern  # type: ignore[arg-type]
    assert Pattern.parse(f" {n} : {m} ") == Pattern(n, m)
    assert pattern.density == n / m
    assert pattern.dense == (n == m)


def test_parse_of_a_pattern_changes_the_axis_only_when_told() -> None:
    kernel = Pattern(2, 4, "kernel")
    assert Pattern.parse(kernel) is kernel
    assert Pattern.parse(kernel, axis="input") == Pattern(2, 4, "input")
    assert Pattern.parse("2:4").axis == "input"


@pytest.mark.parametrize(
    "text", ["2-4", "", "2", "2:", ":4", "2:4:8", "a:b", "-1:4", "2.0:4", "5:4", "0:4", "0:0"]
)
def test_a_wrong_pattern_is_shown_beside_a_right_one(text: str) -> None:
    with pytest.raises(ValueError, match="want 'N:M' with 0 < N <= M, for example '2:4'") as error:
        Pattern.parse(text)
    assert f"pattern {text!r}" in str(error.value)


@pytest.mark.parametrize("given", [None, 2, (2, 4), 0.5, True, b"2:4"])
def test_a_pattern_that_is_no_text_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match=r"pattern .*want 'N:M'"):
        Pattern.parse(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [(True, 4), (2.0, 4), ("2", "4"), (2, None), (3, 2), (-1, 4)])
def test_counts_are_whole_numbers_in_order(counts: tuple[object, object]) -> None:
    with pytest.raises(ValueError, match="N weights of every M are kept"):
        Pattern(*counts)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", ["channel", "", None, 1])
def test_an_unknown_axis_names_the_two_known(axis: object) -> None:
    with pytest.raises(ValueError, match=f"axis {axis!r}: want 'input' or 'kernel'"):
        Pattern(2, 4, axis)  # type: ignore[arg-type]


def test_patterns_are_values() -> None:
    assert len({Pattern(2, 4), Pattern(2, 4), Pattern(2, 4, "kernel"), Pattern(4, 8)}) == 3
    with pytest.raises(AttributeError):
        Pattern(2, 4).n = 3  # type: ignore[misc]
