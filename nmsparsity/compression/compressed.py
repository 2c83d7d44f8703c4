"""A model with sparse weights to one that holds them packed and runs them by kernels."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nmsparsity.compression.chain import Chain
from nmsparsity.compression.check import ChangedError, check
from nmsparsity.compression.eligible import eligible
from nmsparsity.compression.formats import convolves, faster
from nmsparsity.compression.fuse import Notes, chains, fold_batch_norms, fuse
from nmsparsity.compression.observe import Calls, chooses, observe, uses
from nmsparsity.compression.prepack import Prepacked, prepacked
from nmsparsity.compression.report import CompressedReport, CompressedRow, attach, compressed_report
from nmsparsity.compression.rows import layer_row, noted, skipped_rows
from nmsparsity.compression.swap import swap
from nmsparsity.compression.trace import Traced, trace
from nmsparsity.compression.work import Layer, Work, copied
from nmsparsity.kernels.base import KERNELS
from nmsparsity.kernels.choices import Choices
from nmsparsity.kernels.choose import Choice, Example, choose, fastest
from nmsparsity.kernels.timing import Others
from nmsparsity.layers import PackedLayer, pack
from nmsparsity.layers.fast_path import fast_path_parts, leave_fast_paths
from nmsparsity.layers.packing import describe, packed_weight
from nmsparsity.layers.plain import keep_hooks
from nmsparsity.promises import Place, declare
from nmsparsity.sites import unwrap
from nmsparsity.targets import EXCLUDED, Rules, Selection

_READ = "others read its weight themselves, and would read a packed one dense at every call"
_NOT_CALLED = "nothing calls it: it is not reached, or others read its weight"


@torch.no_grad()
def compress(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    backend: str = "auto",
    include: Rules = None,
    exclude: Rules = None,
) -> nn.Module:
    """A new model, in eval mode, that computes with packed N:M weights; the given one stays.

    It is for inference: none of its weights asks for a gradient; those of its inputs are right.

    Every layer whose weight is N:M, declared by `sparsify`, `prune` or `load` or seen from its
    zeros, is replaced by a packed one. Where a part of the model can be traced by ``torch.fx``,
    batch norm is folded into the layer before it, and a sum and an activation after it are done
    where it stores its result; that part is a ``GraphModule`` then. What was packed and fused, and
    what not and why, says `nmsparsity.compressed_report`.

    Args:
        model: any module; ``torch.compile`` and DDP wrappers are left out.
        example_inputs: a tuple of arguments, a mapping of named ones, a function that uses the
            model as it will be used, or anything else as the one argument; of the shapes that the
            model will be used with. ``lambda m: m.generate(prompt, max_new_tokens=32)`` shows a
            decoder's layers the prompt once and one token 31 times. With them the packed model's
            result is checked, and ``backend="auto"`` measures dense torch against every kernel for
            each layer and takes the fastest: a layer stays dense where that is. A model with
            convolutions is made for ``channels_last`` too, and the faster one is kept. A linear
            layer that stays dense gets a second copy of its weight, in another order, where torch
            is faster with that by a tenth; ``exclude`` keeps it as it is. Without
            them, ``"auto"`` packs all that a kernel can run, and nothing is seen of a forward that
            cannot be traced: what it calls is fused as if it used nothing else of it.
        backend: ``"auto"``, or the name of a kernel, which is then used for every layer that it
            does not refuse, faster or not.
        include, exclude: rules as for `sparsify`; a layer that is named is packed if it can be.

    Raises:
        ValueError: when no weight is N:M, when a declared pattern does not hold (nothing is ever
            pruned here), and for an unknown backend.
        RuntimeError: when the packed model fails on the example inputs.

    >>> from nmsparsity.pruning import prune
    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> _ = prune(model, "2:4")
    >>> fast = compress(model, backend="reference")
    >>> fast.get_submodule("0")
    PackedLinear([16, 16] 2:4, kernel=reference, 534 bytes (52% of dense))
    """
    if backend != "auto":
        KERNELS[backend]
    inner = unwrap(model)
    selection = eligible(inner, include, exclude)

    def make(form: torch.memory_format = torch.preserve_format) -> nn.Module:
        given = (inner, selection, example_inputs, backend, form)
        try:
            return _Compression(*given).result()
        except ChangedError as change:
            return _Compression(*given, unfused=str(change)).result()

    if backend != "auto" or example_inputs is None or not convolves(inner):
        return make()
    model, times = faster(make, example_inputs)
    attach(model, replace(compressed_report(model), formats=times))
    return model


class _Compression:
    """One try of `compress`, step by step; nothing is fused where there is a reason against it."""

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        inputs: Any,
        backend: str,
        form: torch.memory_format,
        unfused: str = "",
    ) -> None:
        self.given, self.selection = model, selection
        self.unfused = unfused
        self.inputs, self.backend = inputs, backend
        self.work: Work = copied(model, selection.targets)
        for module in self.work.model.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=form)  # type: ignore[call-overload]
        self.notes = Notes()
        self.calls: Calls = {}
        self.sizes = {layer: _nbytes(layer) for layer in self.work.layers}
        self.names = {module: name for name, module in self.work.model.named_modules()}
        measuring = backend == "auto" and inputs is not None
        self.choices = Choices() if measuring else None
        self.others = Others(sum(p.nbytes for p in model.parameters()) if measuring else 0)

    def result(self) -> nn.Module:
        """All steps in order."""
        layers, model = set(self.work.layers), self.work.model
        expected, called = None, None
        if self.inputs is not None:
            expected, called = observe(model, self.inputs, model.modules())
            self.calls = {part: seen for part, seen in called.items() if part in layers}
        traced = self._trace(layers, called)
        if self.inputs is not None and traced.graphs:
            self.calls = check("traced", self.work.model, self.inputs, expected, layers)
        alone = layers - traced.read
        fold_batch_norms(self.work.model, traced, alone, self._ranks(), self.notes)
        found = chains(self.work.model, traced, alone)
        chosen = self._choose(found, traced.read)
        packed = self._pack(chosen)
        self._fuse(traced, chains(self.work.model, traced, set(packed)))
        self._close(traced, packed)
        self._prepack(called or {})
        self._confirm(expected)
        rows = [self._row(m, its, chosen[m], packed.get(m)) for m, its in self.work.layers.items()]
        rows += skipped_rows(self.given, self.selection.skipped, self.prepacked)
        attach(self.work.model, CompressedReport(rows))
        return self.work.model

    def _trace(self, layers: set[nn.Module], called: Calls | None) -> Traced:
        """Trace what can be traced, and put it in place."""
        if self.unfused:
            return Traced({}, dict.fromkeys(layers, self.unfused))
        # A function may use more of the model than its forward: a graph has nothing else.
        whole = not uses(self.inputs)
        traced = trace(self.work.model, layers, whole=whole, called=called)
        self.work.model = swap(self.work.model, dict(traced.graphs))
        return traced

    def _confirm(self, expected: Any) -> None:
        """Check that the packed model computes what it did, where that can be told."""
        if self.inputs is None or chooses(expected):
            return
        try:
            check("packed", self.work.model, self.inputs, expected)
        except ChangedError as change:
            if not self.unfused or change.__cause__ is not None:
                raise
            warnings.warn(
                f"{change}: does this {type(self.given).__name__} use weights of its layers "
                "itself, or give another result every time? Exclude layers to find out which",
                RuntimeWarning,
                stacklevel=6,
            )

    def _ranks(self) -> dict[nn.Module, int | None]:
        ranks = {layer: {len(shape) for shape, _ in seen} for layer, seen in self.calls.items()}
        return {layer: found.pop() if len(found) == 1 else None for layer, found in ranks.items()}

    def _choose(
        self, found: dict[nn.Module, Chain], read: set[nn.Module]
    ) -> dict[nn.Module, Choice]:
        """The kernel of every layer, or why it stays dense."""
        chosen, present = {}, set(self.work.model.modules())
        for module, layer in self.work.layers.items():
            problem = describe(module, layer.pattern, layer.name)
            choice = choose(problem, self.backend)
            if module in read:
                choice = Choice(None, reason=_READ)
            elif module not in present or (self.inputs is not None and module not in self.calls):
                choice = Choice(None, reason=_NOT_CALLED)
            elif self.choices is not None and choice.kernel is not None:
                weight = packed_weight(module, layer.pattern, layer.name)
                examples = _examples(self.calls[module], found.get(module))
                bias = module._parameters["bias"]
                choice = fastest(problem, weight, bias, examples, self.choices, self.others)
            chosen[module] = choice
        return chosen

    def _pack(self, chosen: dict[nn.Module, Choice]) -> dict[nn.Module, PackedLayer]:
        packed = {}
        for module, layer in self.work.layers.items():
            kernel = chosen[module].kernel
            if kernel is not None:
                packed[module] = pack(module, layer.pattern, layer.name, kernel)
                keep_hooks(module, packed[module])
        return packed

    def _fuse(self, traced: Traced, found: dict[nn.Module, Chain]) -> None:
        graphs = {graph.graph: graph for graph in traced.graphs.values()}
        for module, chain in found.items():
            if chain.fused:
                fuse(graphs[chain.nodes[0].graph], chain)
            before = self.notes.fused.get(module, ())
            self.notes.fused[module] = (*before, *chain.fused)
            self.notes.reasons.setdefault(module, chain.stopped)

    def _close(self, traced: Traced, packed: dict[nn.Module, PackedLayer]) -> None:
        """Put packed layers in place; where nothing was done, the modules that were there."""
        touched = {module for module, fused in self.notes.fused.items() if fused}
        idle: dict[nn.Module, nn.Module] = {
            graph: module
            for module, graph in traced.graphs.items()
            if not touched.intersection(graph.modules())
        }
        closed: dict[nn.Module, nn.Module] = {
            opened: plain
            for opened, plain in self.work.opened.items()
            if not any(part in packed for part in opened.children())
        }
        kept = {m: graph for m, graph in traced.graphs.items() if graph not in idle}
        steps: list[dict[nn.Module, nn.Module]] = [{**idle, **closed}, {**kept}, {**packed}]
        for new in steps:
            self.work.model = swap(self.work.model, new)
        leave_fast_paths(self.work.model)
        for module, layer in self.work.layers.items():
            if module not in packed:
                declare({Place(module, "weight"): layer.pattern})
        self.reasons = traced.reasons

    def _prepack(self, called: Calls) -> None:
        """Linear layers that stay dense are run from another order of the weight, if that pays."""
        self.prepacked: dict[str, Prepacked] = {}
        if self.choices is None:
            return
        excluded = {
            entry.name.removesuffix(".weight")
            for entry in self.selection.skipped
            if entry.reason == EXCLUDED
        }
        new: dict[nn.Module, nn.Module] = {}
        fused = fast_path_parts(self.work.model)
        for module in self.work.model.modules():
            name = self.names.get(module, "")
            if module not in called or module in fused or name in excluded:
                continue
            found = prepacked(module, called[module], self.choices, self.others)
            if found is not None:
                new[module], self.prepacked[name] = found.layer, found
                if module in self.work.layers:
                    declare({Place(found.layer, "weight"): self.work.layers[module].pattern})
        self.work.model = swap(self.work.model, new)
        self.choices.save()

    def _row(
        self, module: nn.Module, layer: Layer, choice: Choice, packed: PackedLayer | None
    ) -> CompressedRow:
        why = self.notes.reasons.get(module) or self.reasons.get(module, "")
        given = (self.sizes[module], packed, self.notes.fused.get(module, ()), why)
        row = layer_row(layer.name, layer.pattern, choice, *given)
        return row if packed is not None else noted(row, self.prepacked.get(layer.name))


def _nbytes(layer: nn.Module) -> int:
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight.nbytes


def _examples(calls: Counter[tuple[tuple[int, ...], bool]], chain: Chain | None) -> list[Example]:
    ends = Example(())
    if chain is not None:
        ends = Example((), activation=chain.activation, residual=chain.residual is not None)
    return [
        replace(ends, shape=shape, channels_last=last, calls=count)
        for (shape, last), count in calls.items()
    ]
