"""Names for things, with errors that help."""

from __future__ import annotations

import pytest

from nmsparsity.registry import Registry, near


@pytest.fixture
def fruit() -> Registry[int]:
    registry = Registry[int]("fruit")
    registry.register("pear")(1)
    registry.register("apple")(2)
    return registry


def test_a_thing_is_found_under_its_name_and_returned_as_it_is(fruit: Registry[int]) -> None:
    thing = object()
    registry = Registry[object]("thing")
    assert registry.register("it")(thing) is thing
    assert registry["it"] is thing
    assert fruit["pear"] == 1


def test_names_come_sorted(fruit: Registry[int]) -> None:
    assert list(fruit) == ["apple", "pear"]
    assert "apple" in fruit
    assert "plum" not in fruit


def test_an_unknown_name_shows_the_known_and_the_near(fruit: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"^unknown fruit 'aple'; known: apple, pear; did you .*"):
        fruit["aple"]
    with pytest.raises(ValueError, match=r"^unknown fruit 'xyz'; known: apple, pear$"):
        fruit["xyz"]


def test_an_empty_registry_says_so_without_failing() -> None:
    with pytest.raises(ValueError, match="unknown nothing 'x'; known: "):
        Registry[int]("nothing")["x"]


def test_a_name_is_given_once(fruit: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"fruit 'pear' is registered already; choose another"):
        fruit.register("pear")
    assert fruit["pear"] == 1


def test_near_names_closest_first_and_at_most_three() -> None:
    known = ["layer1", "layer2", "layer3", "layer4", "head"]
    assert near("layer1x", known).startswith("; did you mean 'layer1', ")
    assert near("layer", known).count("'") == 6
    assert near("zzz", known) == ""
    assert near("a", []) == ""
