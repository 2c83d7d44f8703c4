"""What is promised about a parameter, and for how long."""

from __future__ import annotations

import copy
import gc
import weakref

import torch
from torch import nn

from nmsparsity import Pattern
from nmsparsity.promises import claim, claimed, declare, declared, withdraw


class Keeper:
    """Something that may keep a parameter N:M."""


def test_a_promise_belongs_to_one_parameter() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    assert declared(parameter) is None
    declare(parameter, Pattern(2, 4))
    assert declared(parameter) == Pattern(2, 4)
    assert declared(nn.Parameter(torch.ones(4, 4))) is None
    assert declared(copy.deepcopy(parameter)) is None


def test_the_last_promise_counts() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    declare(parameter, Pattern(2, 4))
    declare(parameter, Pattern(1, 4))
    assert declared(parameter) == Pattern(1, 4)


def test_a_promise_keeps_no_parameter_alive() -> None:
    parameter, keeper = nn.Parameter(torch.ones(4, 4)), Keeper()
    declare(parameter, Pattern(2, 4))
    claim(parameter, keeper)
    gone = weakref.ref(parameter)
    del parameter
    gc.collect()
    assert gone() is None


def test_a_claim_ends_with_its_keeper() -> None:
    parameter, keeper = nn.Parameter(torch.ones(4, 4)), Keeper()
    assert not claimed(parameter)
    claim(parameter, keeper)
    assert claimed(parameter)
    del keeper
    gc.collect()
    assert not claimed(parameter)


def test_withdraw_ends_both_and_may_be_said_twice() -> None:
    parameter, keeper = nn.Parameter(torch.ones(4, 4)), Keeper()
    declare(parameter, Pattern(2, 4))
    claim(parameter, keeper)
    for _ in range(2):
        withdraw(parameter)
        assert declared(parameter) is None
        assert not claimed(parameter)
