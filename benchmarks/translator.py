"""How fast a packed translator is: ours against the best dense engine, and where the time goes.

    pip install 'nmsparsity[bench,translation]'      # what is missing is left out, and said
    python benchmarks/translator.py                  # writes results/translator.md
    python benchmarks/translator.py --only Multi30k --rounds 2 --out /tmp/quick.md   # a quick look

A run translates a batch of sentences greedily, by so many tokens each, with a cache. Weights are
random and pruned by magnitude. Every engine is given the same two graphs, of a sentence and of one
more token (written.py); ``generate`` is what transformers runs around its own model, as
``nmsparsity translate`` does. All take turns in one process, medians are compared, and in the same
run the tokens are compared, which have to be the same ones in fp32. Interrupted, the same command
goes on.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from journal import Journal
from machine import machine
from stepping import STARTS, Step
from time_shares import shares
from torch import Tensor, nn
from written import Written

import nmsparsity as nm
from nmsparsity.bench import ENGINES
from nmsparsity.bench.engines import versions
from nmsparsity.bench.rounds import Times, interleaved
from nmsparsity.layers import PackedLayer

RESULT = Path(__file__).parent / "results" / "translator.md"
RECIPES = Path(__file__).parents[1] / "recipes" / "translation"
CASES = {"Multi30k's recipe": "multi30k_dense", "Transformer-base": "wmt14_dense"}
PATTERNS, BATCHES = ("2:4", "1:4", "1:8"), (1, 32)
TOKENS, STEPS = 16, 16
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Words:
    """As much of a vocabulary as a model asks for."""

    size: int
    pad: int = 0
    end: int = 1


def translator(recipe: str) -> Any:
    """A recipe's model with random weights."""
    from nmsparsity.tasks.translation.models import Transformer, new

    said = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    words = Words(said["data"]["vocabulary_size"])
    torch.manual_seed(0)
    model: Any = new(Transformer(**said["task"]["transformer"]), words, 128)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            module.weight.data.mul_(3.0)  # Else the likeliest token is always the one before.
    return model.eval()


def sentences(rows: int, words: int) -> Tensor:
    """Numbers of tokens; every second sentence is half as long and padded."""
    ids = torch.randint(2, words, (rows, TOKENS))
    ids[1::2, TOKENS // 2 :] = 0
    return ids


def generating(model: Any, ids: Tensor) -> Run:
    """Translation by transformers' own code."""
    from transformers import GenerationConfig

    config: Any = GenerationConfig(
        **{"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False},
        **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
        suppress_tokens=[0],
    )
    mask = ids.ne(0).long()
    return lambda: model.generate(input_ids=ids, attention_mask=mask, generation_config=config)


def steps_of(written: Written) -> tuple[Step, Step]:
    """Both graphs as torch runs them."""
    return lambda state: list(written.encode(*state)), lambda state: list(
        written.next_token(*state)
    )


class Work:
    """Everything that takes turns in one case, checked as it is started."""

    def __init__(self, recipe: str, batch: int, threads: int) -> None:
        self.model, self.threads = translator(recipe), threads
        self.written = Written(self.model).eval()
        self.ids = sentences(batch, self.model.config.vocab_size)
        self.runs: dict[str, Run] = {}
        self.missing: dict[str, str] = {}
        self.same: dict[str, str] = {}
        self.more: dict[str, dict[str, Any]] = {}

    def dense(self, name: str) -> None:
        """Start a dense engine; where that fails, note why."""
        if (why := ENGINES[name].missing()) is not None:
            self.missing[name] = why
            return
        try:
            run = self._started(name)
            self._check(name, run(), self._greedy(self.written))
        except Exception as failed:  # What a foreign engine does with a model is beyond any list.
            self.missing[name] = f"{type(failed).__name__}: {str(failed).splitlines()[0]:.200}"
            return
        self.runs[name] = run

    def _started(self, name: str) -> Run:
        encode, step = self.written.encode, self.written.next_token
        kept = list(encode(self.ids))
        past = self.written.past(len(self.ids), 3)
        example = [self.ids[:, :1], torch.tensor([[3]]), *kept, *past]
        growing = range(len(example) - len(past), len(example))
        start = partial(STARTS[name], threads=self.threads)
        first = start(encode, [self.ids], ())
        return partial(self.written.greedy, self.ids, STEPS, first, start(step, example, growing))

    def packed(self, pattern: str) -> None:
        """Prune a copy, pack it, and start both ways to run it."""
        sparse = copy.deepcopy(self.model)
        nm.prune(sparse, pattern)
        with tempfile.TemporaryDirectory() as folder:
            saved = nm.save(sparse, Path(folder) / "packed.safetensors")
        ours = nm.compress(Written(sparse), self._greedy)
        self._check(pattern, self._greedy(ours), self._greedy(Written(sparse)))
        self.runs[pattern] = partial(self._greedy, ours)
        rows = [row for row in nm.compressed_report(ours).rows if row.pattern is not None]
        held, dense = (sum(getattr(r, k) for r in rows) for k in ("nbytes", "dense_nbytes"))
        self.more[pattern] = {
            "stayed": f"{sum(row.kernel is None for row in rows)} of {len(rows)}",
            "layers": held / dense,
            "file": [saved.nbytes, saved.dense_nbytes],
            "shares": shares(parts(ours), self.runs[pattern]),
        }
        theirs = nm.compress(sparse, lambda model: generating(model, self.ids)())
        name, run = f"generate, {pattern}", generating(theirs, self.ids)
        self._check(name, run(), generating(sparse, self.ids)())
        self.runs[name] = run

    def _greedy(self, written: Any) -> Tensor:
        found: Tensor = written.greedy(self.ids, STEPS, *steps_of(written))
        return found

    def _check(self, name: str, got: Tensor, wanted: Tensor) -> None:
        """Note how many tokens are those of dense torch with the same weights.

        Raises:
            RuntimeError: if more differ than rounding can explain where two are equally likely.
        """
        same = int((got == wanted).sum())
        if same < 0.97 * wanted.numel():
            raise RuntimeError(f"wrong: {same} of {wanted.numel()} tokens are those of torch")
        self.same[name] = f"{same} of {wanted.numel()}"


def parts(written: Any) -> dict[str, list[nn.Module]]:
    """The modules of both graphs by kind."""
    head = written.next_token.head
    linear = [m for m in written.modules() if isinstance(m, PackedLayer | nn.Linear)]
    others = [m for m in written.modules() if isinstance(m, nn.LayerNorm | nn.Embedding)]
    return {
        "N:M layers": [layer for layer in linear if layer is not head],
        "output layer": [head],
        "norms, embeddings": others,
    }


@torch.no_grad()
def measure(recipe: str, batch: int, asked: argparse.Namespace) -> dict[str, Any]:
    """All of one case and batch."""
    torch.set_num_threads(asked.threads)
    work = Work(recipe, batch, asked.threads)
    for name in asked.against:
        work.dense(name)
    work.runs["generate"] = generating(work.model, work.ids)
    for pattern in asked.patterns:
        work.packed(pattern)
    times = interleaved(work.runs, asked.rounds)
    return {
        "tokens": batch * STEPS,
        "rows": {name: _numbers(its) for name, its in times.items()},
        "more": work.more,
        "same": work.same,
        "missing": work.missing,
    }


def _numbers(times: Times) -> list[float]:
    return [1e3 * one for one in (times.median, times.low, times.high)]


def section(title: str, found: dict[str, Any]) -> list[str]:
    """The two tables of a case and batch."""
    dense = [n for n in found["rows"] if n not in found["more"] and not n.startswith("generate")]
    best = min(found["rows"][name][0] for name in dense)
    head = "| | ms | middle half | tokens a second | best dense / it | generate / it | same tokens "
    head += "| bytes of N:M layers | of the file | stayed dense |"
    lines = ["", f"## {title}", "", head, "|---" * (head.count("|") - 1) + "|"]
    for name, (ms, low, high) in found["rows"].items():
        its = found["more"].get(name)
        lines.append(
            f"| {name} | {ms:.2f} | {low:.2f} to {high:.2f} | {found['tokens'] / ms * 1e3:,.0f} | "
            f"{best / ms:.2f} | {found['rows']['generate'][0] / ms:.2f} | "
            f"{found['same'].get(name, '')} | " + (_sizes(its) if its else " | | |")
        )
    lines += ["", *(f"{name}: not run: {why}" for name, why in found["missing"].items()), ""]
    kinds = list(next(iter(found["more"].values()))["shares"])
    lines += [f"| time in | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, its in found["more"].items():
        cells = [f"{its['shares'][kind]:.0%}" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _sizes(its: dict[str, Any]) -> str:
    file, dense = its["file"]
    return f"{its['layers']:.0%} | {file / 1e6:.1f} MB, {file / dense:.0%} | {its['stayed']} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--against", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


def main() -> None:
    asked = parse()
    folder = tempfile.TemporaryDirectory()
    os.environ["XDG_CACHE_HOME"] = folder.name  # Kernels are chosen anew, by this run's times.
    nm.keep_memory()
    settings = {**vars(asked), "out": str(asked.out), "machine": machine()}
    journal = Journal(asked.out, settings | {"versions": versions("transformers")})
    lines = [
        f"# A packed translator against the best dense engine, {asked.threads} thread(s)",
        "",
        f"Sentences of {TOKENS} and {TOKENS // 2} tokens, translated greedily by {STEPS} tokens. "
        "Random weights, pruned by magnitude, fp32; the sparse models are run, not estimated. "
        f"Medians of {asked.rounds} rounds and the middle half of them, all in turn in one "
        "process. `same tokens`: as dense torch finds with the same weights. `generate` is "
        "transformers' own code around the model, dense and packed; all others are given the same "
        "two graphs. `compile` is torch.compile with "
        "frozen weights. Embeddings and the output layer are one dense matrix. The second tables "
        "say where the time of the packed graphs goes.",
    ]
    cases = {case: recipe for case, recipe in CASES.items() if asked.only in case}
    if not cases:
        raise SystemExit(f"--only {asked.only!r}: none of {', '.join(CASES)} has this in it")
    for case, recipe in cases.items():
        for batch in asked.batches:
            title = f"{case}, batch {batch}"
            if title not in journal.found:
                journal.put(title, measure(recipe, batch, asked))
            lines += section(title, journal.found[title])
            print("\n".join(section(title, journal.found[title])), flush=True)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines += [
        "",
        *machine(),
        f"{versions('transformers')}. Instruction set: {nm.native.isa()}.",
        f"Command: `python benchmarks/{command}`, {datetime.date.today()}.",
    ]
    journal.close(asked.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
