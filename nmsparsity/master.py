"""A master weight: the dense weight kept beside the sparse one in the model."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from nmsparsity import masks
from nmsparsity.layout import Layout
from nmsparsity.methods.base import Method, Stage, Step, Weight
from nmsparsity.pattern import Pattern
from nmsparsity.shards import (
    check_memory,
    check_shards,
    local_shard,
    overlaps_itself,
    total,
)
from nmsparsity.targets import Target

_Form: TypeAlias = tuple[torch.dtype, torch.device, tuple[int, ...]]


class MasterWeight:
    """One parameter that holds a sparse weight, and the dense weight that is trained.

    The parameter is *sparse* between optimizer steps and *dense* inside them. All work is in
    place on the local shard, without autograd.

    Attributes:
        released: the parameter holds the dense weight, for the optimizer or an averager.
        adopted: it holds what was written into it, which became the dense weight as it stood.
        written: it was written into before it was cast or moved.
        stage: where it stands in its training.
        is_new: nothing about it is known to the method yet.
        pending: why it is not N:M yet; empty when it is.
        lendable: whether its memory is its own, so that it may point to another one for a while.
    """

    def __init__(self, target: Target, method: Method) -> None:
        self.name = target.site.name
        self.site = target.site
        self.parameter: nn.Parameter = target.site.parameter
        self.pattern: Pattern = target.pattern
        self.layout: Layout = target.site.layout
        self.method = method
        self.stage = Stage(
            self.pattern.n,
            self.pattern.m,
            largest=lambda values: self.pattern.largest(values, self.layout),
            total=lambda summed: total(summed, self.parameter),
        )
        self.pending = ""
        check_memory(self.name, self.parameter)
        check_shards(self.name, self.parameter, self.layout, self.pattern)
        self.dense = self.local.clone(memory_format=torch.preserve_format)
        self._form = _form(self.local)
        self.mask: Tensor | None = None
        self._shown: Tensor | None = None
        self.released = self.adopted = self.written = False
        self.is_new = True
        self.lendable = True
        self._home: Tensor | None = None
        self._finite: Tensor | None = None

    @property
    def local(self) -> Tensor:
        """The parameter's own memory on this process, ``[out, in, ...]`` or a shard of it."""
        return local_shard(self.parameter)

    @property
    def memory(self) -> Tensor:
        """The same for keeping: a plain parameter itself, which follows ``.data = ...``."""
        return self.parameter if type(self.parameter) is nn.Parameter else self.local

    @property
    def grad(self) -> Tensor | None:
        return None if self.parameter.grad is None else local_shard(self.parameter.grad)

    def project(self) -> None:
        """Take a new mask of the dense weight; the parameter holds the sparse weight."""
        mask = self.new_mask()
        if self.is_new:
            self.stage.state.clear()
            self.method.start(self.dense, mask, self.stage)
            self.is_new = False
        self.show(mask)

    @property
    def rest(self) -> float:
        """The share of their value that pruned weights still have."""
        return self.stage.rest

    @property
    def now(self) -> Pattern:
        """The pattern that the stage has come to; ``pattern`` in the end."""
        return Pattern(self.stage.n, self.stage.m, self.pattern.axis)

    def show(self, mask: Tensor) -> None:
        """The parameter holds the sparse weight under this mask."""
        if self.method.keeps_mask:
            self.mask = mask
        if self.method.shows_mask or type(self.method).score is not Method.score:
            # It may draw lots: the mask in the model cannot be asked for again.
            self._shown = mask
        self.local.copy_(self.method.effective(self.dense, mask, self.stage))
        self.seal()

    def new_mask(self) -> Tensor:
        """The mask E of the dense weight as it is now."""
        score = self.method.score(self.dense, self.mask)
        self.check_finite(score)
        return masks.mask(score, self.now, self.layout)

    def current_mask(self) -> Tensor:
        """The mask E of the sparse weight in the model."""
        known = self._shown if self.mask is None else self.mask
        return self.new_mask() if known is None else known

    def ours(self) -> Tensor:
        """What we left in the parameter: the sparse weight, or what was adopted as it stood."""
        if self.released or self.adopted:
            return self.dense
        mask = self._shown if self.mask is None else self.mask
        if mask is None:
            mask = masks.mask(self.method.score(self.dense, None), self.now, self.layout)
        return self.method.effective(self.dense, mask, self.stage)

    def check_finite(self, score: Tensor) -> None:
        """Refuse NaN and infinity, naming the layer."""
        finite = torch.isfinite(score).all()
        if score.device.type != "cpu":
            # The answer of the step before: an accelerator need not be waited for.
            self._finite, finite = finite, self._finite
        if finite is not None and not finite:
            raise ValueError(
                f"layer {self.name!r} {list(score.shape)}: it has NaN or infinite weights, which "
                "have no rank; the training has diverged or the checkpoint is damaged"
            )

    def seal(self, kept: int | Tensor | None = None, adopted: bool = False) -> None:
        """Remember the parameter as it is now: sparse (unless adopted), and ours."""
        self.released = self.written = False
        self.adopted = adopted
        self.version = self.local._version
        # Counting booleans is 10 times as fast as counting numbers.
        self.kept = torch.count_nonzero(self.local != 0) if kept is None else kept

    def release(self, step: Step, lend: bool = False) -> None:
        """Before the optimizer: add the method's term, put the dense weight in the parameter."""
        decay = self.begin(step)
        if decay:
            assert self.grad is not None
            # W - W~ is exactly (1 - E) * W, with no mask needed.
            term = self.dense - self.local
            if isinstance(step.grad_scale, Tensor):
                term.mul_(step.grad_scale)
            self.grad.add_(term, alpha=decay)
        self.expose(lend)

    def begin(self, step: Step) -> float:
        """The method's own moment before the step; the factor of the term still to be added."""
        grad = self.grad
        if grad is None:
            return 0.0
        if overlaps_itself(grad):
            # Of ``sum().backward()``, say: an optimizer reads it, we also write to it.
            self.parameter.grad = grad = grad.clone(memory_format=torch.contiguous_format)
        self.method.before_step(self._weight(grad), step)
        decay = self.method.gradient_decay(step)
        return -decay if step.maximize else decay

    def _weight(self, grad: Tensor | None) -> Weight:
        mask = self._shown if self.mask is None else self.mask
        return Weight(self.dense, self.local, grad, mask, self.stage)

    def expose(self, lend: bool = False) -> None:
        """Put the dense weight in the parameter: a copy of it or, to ``lend``, its own memory.

        Lending costs nothing, and the sparse weight stays where it was. It wants a borrower that
        asks the parameter for its memory, as torch's optimizers do at every step, and keeps no
        other way to it, as flat buffers of parameters are.
        """
        if lend and self._can_be_lent():
            self._home = self.parameter.data
            self.parameter.data = self.dense
        else:
            self.local.copy_(self.dense)
        self.released = True

    def _can_be_lent(self) -> bool:
        shared = self.local.untyped_storage().is_shared()
        return self.lendable and type(self.parameter) is nn.Parameter and not shared

    def reclaim(self) -> bool:
        """After the optimizer: the parameter is the new dense weight. False when not released."""
        if not self.released:
            return False
        local = self.local
        self._check_shape(local)
        if self._home is None or local.data_ptr() != self.dense.data_ptr():
            self.dense.copy_(local)
        if self._home is not None and _form(local) == _form(self.dense):
            self.parameter.data = self._home
        self._home = None
        self.released = False
        return True

    def finish(self, step: Step) -> None:
        """After `reclaim`: the method's own moment after the step, and the new sparse weight."""
        self.method.after_step(self._weight(None), step)
        self.project()

    def follow(self) -> bool:
        """Go where the model has gone: another device, dtype or memory format."""
        local = self.local
        self._check_shape(local)
        if _form(local) == self._form:
            return False
        # In the old dtype: rounded, two weights may rank the same that did not before.
        untouched = torch.equal(local, self.ours().to(local.device, local.dtype))
        self.dense = torch.empty_like(local).copy_(self.dense)
        self._form = _form(local)
        self.mask = None if self.mask is None else self.mask.to(local.device)
        self._shown = None if self._shown is None else self._shown.to(local.device)
        if untouched:
            local.copy_(self.ours())
            self.seal(adopted=self.adopted)
        self.written = not untouched
        return True

    def _check_shape(self, local: Tensor) -> None:
        if local.shape != self.dense.shape:
            raise RuntimeError(
                f"layer {self.name!r} {list(self.dense.shape)} has become {list(local.shape)}; "
                "make the optimizer and call sparsify after changing shapes"
            )

    def is_replaced(self) -> bool:
        """Whether the module holds another Parameter than the one we know."""
        return self.site.module._parameters.get(self.site.attribute) is not self.parameter

    def is_gathered(self) -> bool:
        """Whether the module holds something else than a shard of which we are the master."""
        return self.memory is not self.parameter and self.is_replaced()

    def is_overwritten(self) -> bool:
        """Whether the parameter holds anything else than the sparse weight we put there."""
        sparse = self.local
        if type(self.method).effective is not Method.effective:
            return not torch.equal(sparse, self.ours())
        ours = ((sparse == 0) | (sparse == self.dense)).all()
        return not bool(ours & (torch.count_nonzero(sparse != 0) == self.kept))

    def restore_rounded(self) -> bool:
        """Undo a cast to a narrower dtype and back. False when the parameter holds anything else.

        The dense weight has kept its precision: the parameter gets again what we left in it.
        """
        local, ours = self.local, self.ours()
        others = {torch.bfloat16, torch.float16, torch.float32} - {local.dtype}
        if not any(torch.equal(local, ours.to(other).to(local.dtype)) for other in others):
            return False
        local.copy_(ours)
        self.seal(adopted=self.adopted)
        return True

    def adopt(self) -> None:
        """Take what was written into the parameter as the new dense weight, as it stands."""
        self.dense.copy_(self.local)
        self.mask = self._shown = None
        self.is_new = True
        if self.method.keeps_mask:
            self.mask = self.new_mask()
        self.seal(adopted=True)

    def recover(self, alpha: float) -> None:
        """Restore or adopt what the parameter holds, after ``alpha`` times the term was added.

        The term is corrected; there is none between an adopted weight and itself.
        """
        if alpha and self.grad is not None:
            self.grad.sub_(self.dense - self.local, alpha=alpha)
        if not self.restore_rounded():
            self.adopt()
        elif alpha and self.grad is not None:
            self.grad.add_(self.dense - self.local, alpha=alpha)

    def project_copy(self, parameter: nn.Parameter) -> None:
        """Make the weight of a copy of the model sparse, in place."""
        local = local_shard(parameter)
        mask = masks.mask(self.method.score(local, self.mask), self.now, self.layout)
        local.copy_(self.method.effective(local, mask, self.stage))


def _form(local: Tensor) -> _Form:
    return local.dtype, local.device, local.stride()
