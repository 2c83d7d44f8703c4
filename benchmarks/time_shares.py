"""Where the time of a model goes: in its parts, in functions of torch between them, in Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

ATTENTION = torch.nn.functional.scaled_dot_product_attention


class Clock(TorchFunctionMode):
    """Seconds by kind: of the calls of given modules, and of torch's functions outside of them.

    Attributes:
        spent: by the kind of a module; ``"attention"`` and ``"other operations"`` of functions.
    """

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]]) -> None:
        super().__init__()
        self.spent = dict.fromkeys((*parts, "attention", "other operations"), 0.0)
        self._parts, self._since, self._inside = parts, 0.0, False
        self._hooks = ExitStack()

    def __enter__(self) -> Clock:
        for kind, modules in self._parts.items():
            for module in modules:
                for handle in (
                    module.register_forward_pre_hook(self._begin),
                    module.register_forward_hook(partial(self._end, kind)),
                ):
                    self._hooks.callback(handle.remove)
        super().__enter__()
        return self

    def __exit__(self, *why: Any) -> None:
        super().__exit__(*why)
        self._hooks.close()

    def _begin(self, *_: object) -> None:
        self._inside, self._since = True, time.perf_counter()

    def _end(self, kind: str, *_: object) -> None:
        self.spent[kind] += time.perf_counter() - self._since
        self._inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._inside:
            return func(*args, **(kwargs or {}))
        start = time.perf_counter()
        found = func(*args, **(kwargs or {}))
        kind = "attention" if func is ATTENTION else "other operations"
        self.spent[kind] += time.perf_counter() - start
        return found


def shares(
    parts: Mapping[str, Sequence[nn.Module]], run: Callable[[], object], times: int = 5
) -> dict[str, float]:
    """Shares of a run's time by kind; ``"Python"`` is what is left.

    Args:
        parts: modules by kind, none inside another.
        run: is called once before, unmeasured.
        times: how often it is measured. Measuring takes time itself, most of it Python's.
    """
    run()
    with Clock(parts) as clock:
        start = time.perf_counter()
        for _ in range(times):
            run()
        total = time.perf_counter() - start
    found = {kind: seconds / total for kind, seconds in clock.spent.items()}
    return {**found, "Python": 1 - sum(found.values())}
