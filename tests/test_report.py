"""Reports and `verify`: is it really N:M, which groups are not, and what is dense and why."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import nmsparsity as nm
from nmsparsity.report import Report, Row, describe
from nmsparsity.targets import select


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))


def pruned(pattern: str = "2:4") -> nn.Sequential:
    model = mlp()
    nm.prune(model, pattern)
    return model


# Does it hold?


def test_one_weight_too_many_is_found_and_named() -> None:
    model = pruned()
    weight = model[2].weight
    group = weight.detach()[3, 4:8]
    with torch.no_grad():
        group[group == 0] = torch.tensor([1.0, 0.0])
    report = nm.verify(model)
    assert not report.ok
    row = next(row for row in report.rows if row.name == "2.weight")
    assert (row.bad_groups, row.groups) == (1, 16)
    assert row.reason == "group 1 of row 3, position 0 has 3 nonzeros, 2:4 allows 2"
    assert "1 do NOT hold, first '2.weight'" in report.summary
    assert row.reason in str(report)


def test_the_position_in_the_kernel_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 1))
    nm.prune(model, {"0": "2:4"})
    with torch.no_grad():
        model[0].weight[2, 4:8, 1, 2] = 1.0
    (row,) = nm.verify(model).sparse
    assert row.reason == "group 1 of row 2, position 5 has 4 nonzeros, 2:4 allows 2"


def test_a_bad_short_group_is_found() -> None:
    model = nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 2))
    nm.prune(model, {"0": "1:4"}, remainder="pad")
    with torch.no_grad():
        model[0].weight[1, 4:] = 1.0
    (row,) = nm.verify(model).sparse
    assert (row.groups, row.bad_groups) == (8, 1)
    assert row.reason.startswith("group 1 of row 1, position 0 has 3 nonzeros, 1:4 allows 1")


def test_nan_counts_as_a_nonzero() -> None:
    model = pruned()
    with torch.no_grad():
        model[0].weight[0, :4] = float("nan")
    assert nm.verify(model).rows[0].bad_groups == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_what_is_not_finite_does_not_hold(value: float, pattern: str | None) -> None:
    model = pruned()
    with torch.no_grad():
        model[0].weight[model[0].weight != 0] = value
    report = nm.verify(model, pattern)
    assert not report.ok
    assert (report.rows[0].bad_groups, report.rows[0].groups) == (16, 16)
    assert "group 0 of row 0, position 0 has NaN or infinity" in report.summary


def test_a_single_number_that_is_not_finite_is_found() -> None:
    model = pruned()
    with torch.no_grad():
        kept = model[2].weight[5].nonzero()[-1]
        model[2].weight[5, kept] = float("inf")
    report = nm.verify(model)
    assert [row.bad_groups for row in report.rows] == [0, 1, 0]
    assert report.rows[1].reason.startswith("group 1 of row 5, position 0 has NaN or infinity")


def test_fewer_than_n_hold_too() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:, 0] = 1.0
    (row,) = nm.verify(model, {"0": "2:4"}).sparse
    assert (row.bad_groups, row.density) == (0, 1 / 8)


def test_negative_zero_is_a_zero() -> None:
    model = pruned()
    with torch.no_grad():
        model[0].weight.copy_(torch.where(model[0].weight == 0, -0.0, model[0].weight))
    assert nm.verify(model).ok


# Against which pattern?


def test_a_given_pattern_is_what_must_hold() -> None:
    model = pruned("2:4")
    assert nm.verify(model, "2:4").ok
    assert nm.verify(model, "3:4").ok
    assert nm.verify(model, "4:8").ok
    assert not nm.verify(model, "1:4").ok
    assert not nm.verify(model, {"0": "2:4", "2": "1:4"}).ok
    assert nm.verify(model, nm.Pattern(2, 4)).ok


def test_a_given_pattern_is_for_the_layers_that_prune_chooses() -> None:
    model = nn.Sequential(nn.Linear(10, 32), nn.Linear(32, 32), nn.Linear(32, 2))
    pruned_rows = nm.prune(model, "2:4").rows
    report = nm.verify(model, "2:4")
    assert report.ok
    assert {row.name: row.pattern for row in report.rows} == {
        row.name: row.pattern for row in pruned_rows
    }
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["0.weight"] == "10 weights along the input axis are no multiple of 4"


def test_a_padded_layer_is_one_of_them_if_it_was_promised() -> None:
    model = nn.Sequential(nn.Linear(10, 32), nn.Linear(32, 2))
    nm.prune(model, "2:4", remainder="pad")
    assert nm.verify(model, "2:4").ok
    with torch.no_grad():
        model[0].weight[0, :4] = 1.0
    assert not nm.verify(model, "2:4").ok


def test_verify_takes_the_axis_as_prune_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    nm.prune(model, "2:4", axis="kernel")
    assert not nm.verify(model, "2:4").ok
    report = nm.verify(model, "2:4", axis="kernel")
    assert report.ok
    assert report.rows[0].axis == "kernel"
    with pytest.raises(ValueError, match="axis 'kernel' without a pattern: give both"):
        nm.verify(model, axis="kernel")


def test_without_a_pattern_promises_count() -> None:
    model = pruned("1:4")
    with torch.no_grad():
        model[0].weight.copy_(nm.Pattern(2, 4).mask(torch.rand(8, 8)).float())
    report = nm.verify(model)
    assert [row.pattern for row in report.sparse] == ["1:4", "1:4"]
    assert not report.ok


def test_without_promises_the_zeros_speak() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
    nm.prune(model, {"0": "2:4"})
    report = nm.verify(copy.deepcopy(model))
    assert report.ok
    assert [(row.name, row.pattern) for row in report.sparse] == [("0.weight", "2:4")]
    reasons = {row.name: row.reason for row in report.rows if row.pattern is None}
    assert reasons["2.weight"] == "dense: it shows no pattern"


def test_a_dense_model_is_not_ok_and_says_so() -> None:
    report = nm.verify(mlp())
    assert not report.ok
    assert report.summary == "0 of 3 weights are N:M (0.0% of elements): nothing here is sparse"
    assert not nm.verify(nn.ReLU()).ok


def test_verify_takes_rules_and_refuses_those_that_match_nothing() -> None:
    with pytest.raises(ValueError, match=r"rule '9' matches no layer; known: 0, 2, 3"):
        nm.verify(mlp(), {"9": "2:4"})


def test_verify_changes_nothing_and_asks_for_no_gradient() -> None:
    model = pruned()
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    nm.verify(model)
    nm.verify(model, "2:4")
    assert [p._version for p in model.parameters()] == versions
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_wrappers_are_looked_through() -> None:
    model = pruned()
    assert nm.verify(nn.DataParallel(model)).ok
    assert nm.verify(torch.compile(model, backend="eager")).rows[0].name == "0.weight"


def test_a_model_on_meta_has_nothing_to_verify() -> None:
    model = nn.Sequential(nn.Linear(8, 8, device="meta"), nn.Linear(8, 2, device="meta"))
    with pytest.raises(ValueError, match=r"'0\.weight' .*meta device"):
        nm.verify(model)


# The report itself.


def test_every_weight_has_one_row() -> None:
    model = nn.Sequential(mlp(), nn.Embedding(4, 8), nn.LSTM(8, 8), nn.Bilinear(8, 8, 4))
    for report in (nm.prune(model, "2:4", include="0"), nm.verify(model), nm.verify(model, "2:4")):
        names = [row.name for row in report.rows]
        matrices = {name for name, p in model.named_parameters() if p.dim() >= 2}
        assert len(names) == len(matrices)
        assert set(names) == matrices
        assert all(row.reason for row in report.rows if row.pattern is None)


def test_sparse_weights_come_first() -> None:
    patterns = [row.pattern for row in nm.verify(pruned()).rows]
    assert patterns == ["2:4", "2:4", None]


def test_the_table_by_hand() -> None:
    text = str(nm.prune(mlp(), {"0": "2:4"}))
    assert text.splitlines() == [
        "weight    shape  pattern  axis   density  holds  why",
        "--------  -----  -------  -----  -------  -----  --------------------------",
        "0.weight  8x8    2:4      input    0.500  yes",
        "2.weight  8x8    dense                           no pattern is given for it",
        "3.weight  2x8    dense                           no pattern is given for it",
        "1 of 3 weights are N:M (44.4% of elements); all hold",
    ]


def test_json_reads_back() -> None:
    report = nm.verify(pruned())
    rows = json.loads(report.to_json())
    assert [row["name"] for row in rows] == [row.name for row in report.rows]
    assert rows[0] | {"shape": (8, 8)} == {
        "name": "0.weight",
        "shape": (8, 8),
        "pattern": "2:4",
        "axis": "input",
        "density": 0.5,
        "bad_groups": 0,
        "groups": 16,
        "reason": "",
        "repeats": False,
    }


class Tied(nn.Module):
    """A tied pair, a computed weight, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.body = nn.Linear(8, 8, bias=False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8, bias=False))
        self.decoder = nn.Linear(8, 16, bias=False)
        self.decoder.weight = self.embedding.weight


def test_no_element_is_counted_twice() -> None:
    model = Tied()
    matrices = sum(p.numel() for p in model.parameters())
    for report in (nm.prune(model, {"body": "2:4"}), nm.verify(model), nm.verify(model, "2:4")):
        counted = [row for row in report.rows if not row.repeats]
        assert sum(row.size for row in counted) == matrices
        assert {row.name for row in report.rows if row.repeats} in (
            {"decoder.weight", "normed.weight"},
            {"embedding.weight", "normed.weight"},
        )
        assert f"({64 / matrices:.1%} of elements)" in report.summary


def test_an_empty_report_prints() -> None:
    assert "0 of 0 weights" in str(Report([]))
    assert not Report([]).ok


def test_a_row_knows_its_size() -> None:
    assert Row("a", (8, 4, 3, 3), None, None, 1.0).size == 288
    assert Row("a", (), None, None, 1.0).size == 1


def test_describe_counts_the_zeros_of_a_short_group() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    selection = select(model, {"0": "2:4"}, remainder="pad")
    report = describe(selection.targets, selection.skipped)
    assert (report.rows[0].groups, report.rows[0].bad_groups) == (8, 4)
