"""A model packed and dense, by several engines, in turns."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nmsparsity.bench.engines import ENGINES, Run, last
from nmsparsity.bench.error import error
from nmsparsity.bench.flat import call, first, tensors
from nmsparsity.bench.memory import Footprint, footprint
from nmsparsity.bench.progress import Progress
from nmsparsity.bench.result import Benchmark, Row
from nmsparsity.bench.rounds import interleaved
from nmsparsity.compression import CompressedReport, compress, compressed_report, decompress
from nmsparsity.compression.check import first_line
from nmsparsity.compression.eligible import eligible
from nmsparsity.micro_batches import MicroBatches
from nmsparsity.pattern import Pattern
from nmsparsity.promises import declare, declared
from nmsparsity.pruning import prune
from nmsparsity.sites import sites, unwrap

ALL = ("torch", "channels_last", "compile", "onnxruntime", "openvino")


@torch.no_grad()
def benchmark(
    model: nn.Module,
    inputs: Any,
    *,
    patterns: str | Pattern | Sequence[str | Pattern] = (),
    against: Sequence[str] = ALL,
    threads: int | None = None,
    rounds: int = 15,
    backend: str = "auto",
    micro_batch: int | None = None,
    name: str | None = None,
) -> Benchmark:
    """Measure a model packed against dense engines with the same weights; the model is unchanged.

    All engines are in this process and take turns, so that a slow moment hits all of them; medians
    are compared. Every engine has the same number of threads. In the same run all outputs are
    compared with those of dense torch.

    Args:
        model: with N:M weights, or one that `nmsparsity.compress` made; put in eval mode.
        inputs: a tuple of arguments, a mapping of named ones, or anything else as the one
            argument. The model must not write into them.
        patterns: prune copies of the model by magnitude to these patterns and measure each: to
            know what would be gained before anything is trained. None: the weights as they are.
        against: names of engines; ``"torch"`` always runs. What is not installed or cannot run
            the model is named in the result, with the reason.
        threads: of every engine; default `torch.get_num_threads`. ``torch.set_num_threads`` is
            set for the while.
        rounds: turns of each engine.
        backend: as for `nmsparsity.compress`.
        micro_batch: run packed models that many entries at a time, too: `nmsparsity.MicroBatches`.
        name: of the model in the result; default its class.

    Raises:
        ValueError: when no weight is N:M and no patterns are given, for unknown engines, and for
            inputs that the model cannot run.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> found = benchmark(model, torch.randn(16, 64), patterns="2:4", against=["torch"], rounds=1)
    >>> [row.name for row in found.rows]
    ['torch', '2:4']
    >>> found["2:4"].error < 1e-4
    True
    """
    engines = [ENGINES[engine] for engine in dict.fromkeys(("torch", *against))]
    threads = torch.get_num_threads() if threads is None else threads
    asked = [patterns] if isinstance(patterns, str | Pattern) else list(patterns)
    subjects = _subjects(unwrap(model), asked)
    with _threads(threads), Progress(rounds) as progress:
        work = _Work(inputs, threads, backend, "channels_last" in against, micro_batch, progress)
        for engine in engines:
            work.dense(engine.name, next(iter(subjects.values()))[0])
        for subject, (dense, packed) in subjects.items():
            work.packed(subject, dense, packed)
        progress.total = rounds * len(work.runs)
        times = interleaved(work.runs, rounds, progress.step)
    rows = [
        Row(row, row in work.layers, its, work.memory[row], work.errors[row])
        for row, its in times.items()
    ]
    title = name or type(unwrap(model)).__name__
    return Benchmark(title, _batch(inputs), threads, rounds, rows, work.missing, work.layers)


def _batch(inputs: Any) -> int:
    """How many at once: entries of a list, as detectors take images, else the first size."""
    if isinstance(inputs, list):
        return len(inputs)
    first = tensors(inputs)[0]
    return first.shape[0] if first.dim() else 1


class _Work:
    """Engines started one after the other, with what is seen of them on the way."""

    def __init__(
        self,
        inputs: Any,
        threads: int,
        backend: str,
        also_last: bool,
        micro_batch: int | None,
        progress: Progress,
    ) -> None:
        self.inputs, self.threads, self.backend = inputs, threads, backend
        self.micro_batch = micro_batch
        self.also_last = also_last and any(x.dim() == 4 for x in tensors(inputs))
        self.progress = progress
        self.runs: dict[str, Run] = {}
        self.memory: dict[str, Footprint] = {}
        self.errors: dict[str, float] = {}
        self.missing: dict[str, str] = {}
        self.layers: dict[str, CompressedReport] = {}

    def dense(self, name: str, model: nn.Module) -> None:
        """Start a dense engine; where that fails, note why."""
        self.progress.say(f"starting {name}")
        engine = ENGINES[name]
        if (why := engine.missing()) is not None:
            self.missing[name] = why
            return
        expected = _outputs(model, self.inputs)
        try:
            engine.load()
            run, grown = footprint(
                lambda: engine.start(model, self.inputs, self.threads), lambda run: run()
            )
            self._note(name, run, grown, expected)
        except Exception as error:  # What a foreign engine does with a model is beyond any list.
            said = str(error).strip().partition("\n")[0]
            self.missing[name] = f"{type(error).__name__}: {said:.200}"

    def packed(self, name: str, dense: nn.Module, packed: nn.Module | None) -> None:
        """Pack a model, unless it is, and start it; with images in both memory formats."""
        expected = _outputs(dense, self.inputs)
        forms = {name: self.inputs}
        if packed is None and self.also_last:
            forms[f"{name} channels_last"] = last(self.inputs)
        for form, inputs in forms.items():
            self.progress.say(f"packing {form}")
            made = packed
            if made is None:
                made = self._compressed(dense, inputs, inputs)
            self._take(form, made, compressed_report(made), inputs, expected)
            if self.micro_batch is None or self.micro_batch >= _batch(self.inputs):
                continue
            some = first(inputs, self.micro_batch)
            made = packed if packed is not None else self._compressed(dense, inputs, some)
            parts, report = MicroBatches(made, self.micro_batch), compressed_report(made)
            self._take(f"{form}, {self.micro_batch} at a time", parts, report, inputs, expected)

    def _compressed(self, dense: nn.Module, inputs: Any, examples: Any) -> nn.Module:
        given = dense if inputs is self.inputs else _last(dense)
        return compress(given, examples, backend=self.backend)

    def _take(
        self, name: str, model: nn.Module, report: CompressedReport, inputs: Any, expected: Any
    ) -> None:
        self.layers[name] = report
        run, grown = footprint(lambda: _copied(model, inputs), lambda run: run())
        self._note(name, run, grown, expected)

    def _note(self, name: str, run: Run, grown: Footprint, expected: Any) -> None:
        self.errors[name] = error(run(), expected)
        self.runs[name], self.memory[name] = self._waited(run), grown

    def _waited(self, run: Run) -> Run:
        """The run, until a GPU has done what it was told."""
        device = tensors(self.inputs)[0].device
        if device.type != "cuda":
            return run

        def wait() -> Any:
            result = run()
            torch.cuda.synchronize(device)
            return result

        return wait


def _outputs(model: nn.Module, inputs: Any) -> Any:
    try:
        return call(model, inputs)
    except Exception as error:  # What a foreign forward does with an input is beyond any list.
        shapes = [list(x.shape) for x in tensors(inputs)]
        raise ValueError(
            f"this {type(model).__name__} cannot run inputs of shapes {shapes}: {first_line(error)}"
        ) from error


def _subjects(
    model: nn.Module, patterns: Sequence[str | Pattern]
) -> dict[str, tuple[nn.Module, nn.Module | None]]:
    """What to measure by the name of its row: dense, and packed where it is already."""
    if _is_compressed(model):
        if patterns:
            raise ValueError("patterns: the model is packed already, and packed weights stay")
        return {"packed": (decompress(model).eval(), model)}
    if not patterns:
        try:
            eligible(model, None, None)
        except ValueError as error:
            raise ValueError(f"{error}; or give a pattern to prune copies to") from None
        return {"packed": (_copy(model), None)}
    subjects: dict[str, tuple[nn.Module, nn.Module | None]] = {}
    for pattern in patterns:
        pruned = _copy(model)
        prune(pruned, pattern)
        subjects[str(pattern)] = (pruned, None)
    return subjects


def _is_compressed(model: nn.Module) -> bool:
    try:
        compressed_report(model)
    except ValueError:
        return False
    return True


def _copy(model: nn.Module) -> nn.Module:
    """In eval mode, its weights promised to the same patterns."""
    known, copied = declared(), copy.deepcopy(model).eval()
    for site, of_copy in zip(sites(model), sites(copied), strict=True):
        if (pattern := known.get(id(site.parameter))) is not None:
            declare({of_copy: pattern})
    return copied


def _last(model: nn.Module) -> nn.Module:
    return _copy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _copied(model: nn.Module, inputs: Any) -> Run:
    copied = copy.deepcopy(model)
    return lambda: call(copied, inputs)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    if count < 1:
        raise ValueError(f"threads {count}: want 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
