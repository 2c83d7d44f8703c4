"""Plain-text tables."""

from __future__ import annotations

import pytest

from nmsparsity.table import table


def test_text_to_the_left_and_numbers_to_the_right() -> None:
    rows = [("fc", "7", "12.5%", "yes"), ("conv1", "1,000", "-", "")]
    lines = table(("layer", "bytes", "share", "holds"), rows).splitlines()
    assert lines == [
        "layer  bytes  share  holds",
        "-----  -----  -----  -----",
        "fc         7  12.5%  yes",
        "conv1  1,000      -",
    ]


def test_one_cell_of_text_puts_the_column_to_the_left() -> None:
    lines = table(("a", "bytes"), [("x", "12"), ("y", "about 3")]).splitlines()
    assert lines[2:] == ["x  12", "y  about 3"]


def test_signs_decimals_and_blanks_are_numbers() -> None:
    lines = table(("v",), [("-1.25",), ("+3",), ("",), ("-",), ("10,000.0%",)]).splitlines()
    assert [len(line) for line in lines[2:] if line] == [9] * 4


def test_without_rows_the_head_remains() -> None:
    assert table(("layer", "bytes"), []) == "layer  bytes\n-----  -----"


def test_no_line_ends_in_blanks() -> None:
    text = table(("a", "b"), [("x", ""), ("longer", "y")])
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("a", "b"), [("x",)])
