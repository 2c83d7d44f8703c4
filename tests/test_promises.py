"""What is promised about a weight, and for how long."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

from nmsparsity import Pattern
from nmsparsity.promises import claim, claimed, declare, declared, release, withdraw
from nmsparsity.sites import Site, sites


class Keeper:
    """Something that may keep a parameter N:M."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.pending = ""


class Equal(nn.Linear):
    """All are equal, and none can be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)


def site(module: nn.Module | None = None) -> Site:
    return sites(nn.Linear(4, 4) if module is None else module)[0]


def promised(module: nn.Module) -> Pattern | None:
    return declared().get(id(module.weight))


def test_a_promise_belongs_to_one_module() -> None:
    one, other = site(), site()
    assert promised(one.module) is None
    declare({one: Pattern(2, 4)})
    assert promised(one.module) == Pattern(2, 4)
    assert promised(other.module) is None
    assert promised(copy.deepcopy(one.module)) is None


def test_modules_are_told_apart_that_are_equal_and_cannot_be_hashed() -> None:
    # Not by `sites`: torch's own named_modules() wants a hash.
    one, other = (Site("", "", Equal(4, 4), "weight", site().layout) for _ in range(2))
    assert one.module == other.module
    declare({one: Pattern(2, 4)})
    assert promised(one.module) == Pattern(2, 4)
    assert promised(other.module) is None
    withdraw([other])
    assert promised(one.module) == Pattern(2, 4)


def test_the_last_promise_counts() -> None:
    one = site()
    declare({one: Pattern(2, 4)})
    declare({one: Pattern(1, 4)})
    assert promised(one.module) == Pattern(1, 4)


@pytest.mark.parametrize("first", [0, 1])
def test_a_tied_parameter_has_one_promise_under_all_its_names(first: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    one, other = sites(model)[first], sites(model)[1 - first]
    declare({one: Pattern(2, 4)})
    assert promised(model[0]) == promised(model[1]) == Pattern(2, 4)
    declare({other: Pattern(1, 4)})
    assert promised(model[0]) == promised(model[1]) == Pattern(1, 4)
    declare({one: Pattern(3, 4)})
    assert promised(model[0]) == promised(model[1]) == Pattern(3, 4)
    withdraw([other])
    assert promised(model[0]) is None


def test_the_weights_of_one_module_have_a_promise_each() -> None:
    first, second = sites(nn.RNN(4, 4))
    declare({first: Pattern(2, 4), second: Pattern(1, 4)})
    withdraw([first])
    assert id(first.parameter) not in declared()
    assert declared()[id(second.parameter)] == Pattern(1, 4)


def test_a_promise_outlives_a_replaced_parameter() -> None:
    one = site()
    before = one.parameter
    declare({one: Pattern(2, 4)})
    one.module.weight = nn.Parameter(torch.ones(4, 4))
    assert promised(one.module) == Pattern(2, 4)
    assert id(before) not in declared()


def test_a_place_without_a_parameter_has_no_promise_to_show() -> None:
    one, other = site(), site()
    declare({one: Pattern(2, 4), other: Pattern(2, 4)})
    for each in (one, other):
        nn.utils.parametrizations.weight_norm(each.module)
    withdraw([one])
    withdraw([one])
    for each in (one, other):
        nn.utils.parametrize.remove_parametrizations(each.module, "weight")
    assert promised(one.module) is None
    assert promised(other.module) == Pattern(2, 4)


def test_a_promise_keeps_nothing_alive() -> None:
    one = site()
    keeper = Keeper(one.parameter)
    declare({one: Pattern(2, 4)})
    claim(keeper)
    gone = [weakref.ref(one.module), weakref.ref(one.parameter), weakref.ref(keeper)]
    del one, keeper
    gc.collect()
    assert [each() for each in gone] == [None] * 3


def test_a_promise_is_no_part_of_the_model() -> None:
    one = site()
    before = set(one.module.__dict__), set(one.parameter.__dict__)
    declare({one: Pattern(2, 4)})
    assert (set(one.module.__dict__), set(one.parameter.__dict__)) == before
    file = io.BytesIO()
    torch.save(one.module, file)
    file.seek(0)
    assert promised(torch.load(file, weights_only=False)) is None


def test_a_promise_does_not_hinder_torch_from_swapping_the_tensor() -> None:
    one = site()
    declare({one: Pattern(2, 4)})
    claim(keeper := Keeper(one.parameter))
    torch.utils.swap_tensors(one.parameter, nn.Parameter(torch.ones(4, 4, dtype=torch.float64)))
    assert one.parameter.dtype == torch.float64
    assert promised(one.module) == Pattern(2, 4)
    assert id(keeper.parameter) == id(one.parameter)
    assert id(one.parameter) in claimed()


def test_a_claim_ends_with_its_keeper() -> None:
    parameter = site().parameter
    assert id(parameter) not in claimed()
    keeper = Keeper(parameter)
    claim(keeper)
    assert id(parameter) in claimed()
    del keeper
    gc.collect()
    assert id(parameter) not in claimed()


def test_what_a_keeper_keeps_nobody_else_promises_or_withdraws() -> None:
    one = site()
    declare({one: Pattern(2, 4)})
    claim(keeper := Keeper(one.parameter))
    declare({one: Pattern(1, 4)})
    withdraw([one])
    assert promised(one.module) == Pattern(2, 4)
    for _ in range(2):
        release(keeper)
        withdraw([one])
        assert promised(one.module) is None
        assert id(one.parameter) not in claimed()
