"""All master weights of a model: each moment of a step on all of them at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor, nn

from nmsparsity import native
from nmsparsity.exceptions import memory
from nmsparsity.master import MasterWeight
from nmsparsity.methods.base import Method, Step
from nmsparsity.methods.course import Course
from nmsparsity.targets import Target


class Masters:
    """The master weights of one sparsifier.

    Where the method ranks by magnitude and the native kernel can take the memory, a moment of the
    step is one call for all those weights; the others go one by one, by plain torch. The results
    are the same bit for bit.
    """

    def __init__(self, targets: Sequence[Target], method: Method) -> None:
        self._all = [MasterWeight(target, method) for target in targets]
        self._plain_method = method.is_plain
        self._gather()

    def __iter__(self) -> Iterator[MasterWeight]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def lend_only(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of these parameters, those that share their memory with another one keep it in a step.

        An optimizer that updates both by turns must find them in one place.
        """
        uses = Counter(memory(parameter) for parameter in parameters)
        for master in self._all:
            master.lendable = uses[memory(master.parameter)] < 2

    def enter(self, course: Course, count: int) -> None:
        """Be where the course is after so many steps; the next projection shows it."""
        if type(course) is Course:
            return
        for master in self._all:
            n, m, stage = master.pattern.n, master.pattern.m, master.stage
            kept, master.pending = course.kept(n, m, count), course.pending(n, m, count)
            self._outdated |= kept != stage.n
            stage.n, stage.rest = kept, course.rest(count)

    def project(self) -> None:
        """Dense weight to mask to sparse weight, in the parameters."""
        if self._outdated:
            self._gather()
        if self._fast:
            self._seal(*self._batch.project())
        for master in self._slow:
            master.project()

    def release(self, step_of: Callable[[MasterWeight], Step], lend: bool) -> None:
        """Add the method's term to the gradients, put the dense weights into the parameters.

        What was written into a parameter behind the version counter's back is adopted on the way,
        where the native kernel sees it; call `overwritten` first for the others.
        """
        for master in self._slow:
            master.release(step_of(master), lend)
        if self._fast:
            self._add_terms([step_of(master) for master in self._fast])
        for master in self._fast:
            master.expose(lend)

    def _add_terms(self, steps: list[Step]) -> None:
        """The method's term of the weights that the native kernel takes."""
        alphas = [
            master.begin(step) * float(step.grad_scale)
            for master, step in zip(self._fast, steps, strict=True)
        ]
        counts = self._batch.add_term(alphas, [master.grad for master in self._fast])
        for master, alpha, count in zip(self._fast, alphas, counts, strict=True):
            if count != master.kept:
                master.recover(alpha)

    def expose(self) -> None:
        """Put the dense weights into the parameters."""
        for master in self._all:
            master.expose()

    def keep_written(self) -> None:
        """Note what the parameters hold while they are exposed; they stay as they are."""
        for master in self._all:
            master.dense.copy_(master.local)

    def take_back(self, step_of: Callable[[MasterWeight], Step]) -> None:
        """The parameters hold the new dense weights, where released: take and project them."""
        released = {master for master in self._all if master.reclaim()}
        if not released:
            return
        self.follow()
        for master in self._slow:
            if master in released:
                master.finish(step_of(master))
        if not released.isdisjoint(self._fast):
            self._seal(*self._batch.project())

    def follow(self) -> None:
        """Go where the model has gone."""
        followed = [master.follow() for master in self._all]
        if any(followed) or self._outdated or self._lost():
            self._gather()

    def overwritten(self, look_inside: bool) -> Iterator[MasterWeight]:
        """The weights that someone wrote into since we put the sparse weight there.

        Every in-place operation raises the version counter. A write through ``.data`` does not:
        that takes a look at the values, when ``look_inside``. What `release` will not look at is
        looked at always, on the CPU; an accelerator would have to be waited for.
        """
        always = {master for master in self._slow if master.local.is_cpu}
        seen = [m for m in self._all if look_inside or m in always or _was_touched(m)]
        counted: dict[MasterWeight, int] = {}
        if not set(seen).isdisjoint(self._fast):
            counted = dict(zip(self._fast, self._batch.check(), strict=True))
        for master in seen:
            kept = counted.get(master)
            differs = master.is_overwritten() if kept is None else kept != master.kept
            if master.written or (differs and not master.restore_rounded()):
                yield master
            master.version = master.local._version

    def _lost(self) -> bool:
        """Whether a shard has other memory than the native kernel knows, its dtype the same."""
        taken = zip(self._fast, self._taken, strict=True)
        return any(master.local.data_ptr() != known.data_ptr() for master, known in taken)

    def _gather(self) -> None:
        """Sort the weights into those that the native kernel takes and the others."""
        self._outdated = False
        self._fast: list[MasterWeight] = []
        self._slow: list[MasterWeight] = []
        weights: list[native.NativeWeight] = []
        for master in self._all:
            rows = _rows(master) if self._plain_method else None
            if rows is None:
                self._slow.append(master)
            else:
                self._fast.append(master)
                n, m = master.stage.n, master.stage.m
                weights.append(native.NativeWeight(master.memory, master.dense, rows, n, m))
        self._taken = [weight.weight for weight in weights]
        if weights:
            self._batch = native.Batch(weights)

    def _seal(self, kept: list[int], bad: list[int]) -> None:
        for master, count in zip(self._fast, kept, strict=True):
            master.seal(count)
        for index in bad:
            self._fast[index].check_finite(self._fast[index].dense)


def _was_touched(master: MasterWeight) -> bool:
    return master.written or master.version != master.local._version


def _rows(master: MasterWeight) -> tuple[int, int, int] | None:
    """How groups lie in the weight's memory, where the native kernel can take it."""
    weight: Tensor = master.local
    axis, layout = master.pattern.axis, master.layout
    if not native.supports(weight, master.pattern.m):
        return None
    if weight.is_contiguous():
        rows = layout.fold(weight, axis)
        if rows.data_ptr() != weight.data_ptr():
            return None
        return rows.shape[0], rows.shape[1], rows.shape[2]
    last = weight.movedim(layout.input_dim, -1)
    if axis == "input" and layout.input_dim == 1 and last.is_contiguous():
        return weight.numel() // weight.shape[1], weight.shape[1], 1
    return None
