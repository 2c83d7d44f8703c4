"""What a sparsifier needs to know of an optimizer."""

from __future__ import annotations

from torch.optim import Optimizer


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse what is no optimizer, and wrappers whose hooks would never run.

    Raises:
        TypeError: for anything else than a `torch.optim.Optimizer`.
        ValueError: for a wrapper that never called ``Optimizer.__init__``.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer {type(optimizer).__name__}: want a torch.optim.Optimizer; "
            "call sparsify(model, optimizer, pattern)"
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise ValueError(
            f"optimizer {type(optimizer).__name__} only wraps another one, and its hooks would "
            "not run: give the inner one, often optimizer.optimizer"
        )


def groups_by_parameter(optimizer: Optimizer) -> dict[int, int]:
    """The index of the parameter group of every parameter, by the identity of the parameter."""
    return {
        id(parameter): index
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
