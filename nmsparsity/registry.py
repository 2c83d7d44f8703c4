"""A name for a thing: lookup with an error that helps."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """``"; did you mean 'a', 'b'?"`` for the known names closest to this one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


class Registry(Generic[T]):
    """Things of one kind by name.

    >>> colours = Registry[int]("colour")
    >>> red = colours.register("red")(1)
    >>> colours["rde"]
    Traceback (most recent call last):
    ValueError: unknown colour 'rde'; known: red; did you mean 'red'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files a thing under a name; a name is given only once."""
        if name in self._things:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")

        def keep(thing: T) -> T:
            self._things[name] = thing
            return thing

        return keep

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            known = ", ".join(sorted(self._things))
            raise ValueError(f"unknown {self.kind} {name!r}; known: {known}{near(name, self)}")
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))
