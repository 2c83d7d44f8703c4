"""A decoder of the shape of GPT-2 small that generates with a cache of keys and values.

Written out, so that every engine gets the same graph: one step takes a token, its position and the
keys and values so far, and gives scores and the keys and values with its own. All engines are fed
the same tokens, so they do the same work; a run is a number of steps after a prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from stepping import STARTS, State, Step
from torch import Tensor, nn
from torch.nn import functional

import nmsparsity as nm
from nmsparsity.bench import ENGINES, Benchmark, Row
from nmsparsity.bench.error import error
from nmsparsity.bench.memory import Footprint, footprint
from nmsparsity.bench.progress import Progress
from nmsparsity.bench.rounds import interleaved

WORDS, WIDTH, HEADS, DEPTH, LONGEST = 50257, 768, 12, 12, 1024
PROMPT, STEPS = 32, 16


class Block(nn.Module):
    """Attention to all that came before, then two layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gelu = nn.GELU("tanh")

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        split = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in split)
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        seen = functional.scaled_dot_product_attention(q, keys, values)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(self.gelu(self.up(self.norm2(x)))), keys, values


class Decoder(nn.Module):
    """One step. Words and scores share their weight, as GPT-2's do: it stays dense."""

    def __init__(
        self, words: int = WORDS, width: int = WIDTH, heads: int = HEADS, depth: int = DEPTH
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(LONGEST, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)
        self.head.weight = self.words.weight
        self.shape = (1, heads, PROMPT, width // heads)

    def forward(self, token: Tensor, place: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        x = self.words(token) + self.places(place)
        present: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x, keys, values = block(x, past[2 * number], past[2 * number + 1])
            present += [keys, values]
        return self.head(self.norm(x)), *present

    def prompt(self) -> list[Tensor]:
        """Keys and values of a prompt."""
        return [torch.randn(self.shape) for _ in range(2 * len(self.blocks))]

    def example(self) -> tuple[Tensor, ...]:
        """The arguments of the first step after it."""
        return (torch.tensor([[0]]), torch.tensor([[PROMPT]]), *self.prompt())


def generate(step: Step, past: State) -> list[Tensor]:
    """The scores of the steps after the prompt."""
    scores, state = [], past
    for number in range(STEPS):
        token, place = torch.tensor([[number]]), torch.tensor([[PROMPT + number]])
        score, *state = step([token, place, *state])
        scores.append(torch.as_tensor(score))
    return scores


def by_us(model: nn.Module, example: tuple[Tensor, ...], pattern: str) -> tuple[Step, Any, Any]:
    """Our step, the scores that the same weights give by torch, and the report."""
    sparse = copy.deepcopy(model)
    nm.prune(sparse, pattern)
    expected = generate(lambda state: list(sparse(*state)), list(example[2:]))
    packed = nm.compress(sparse, example)
    return lambda state: list(packed(*state)), expected, nm.compressed_report(packed)


@torch.no_grad()
def benchmark(
    patterns: Sequence[str], threads: int, rounds: int, model: Decoder | None = None
) -> Benchmark:
    """Generation, as `nmsparsity.benchmark` measures other models; ``batch`` is tokens a run."""
    torch.set_num_threads(threads)
    model = (model or Decoder()).eval()
    example = model.example()
    past = list(example[2:])
    expected = generate(lambda state: list(model(*state)), past)
    growing = range(2, len(example))
    runs: dict[str, Callable[[], Any]] = {}
    memory: dict[str, Footprint] = {}
    errors, missing, layers = {}, {}, {}
    for name, start in STARTS.items():
        if (why := ENGINES[name].missing()) is not None:
            missing[name] = why
            continue
        try:
            ENGINES[name].load()
            begin = partial(start, model, example, growing, threads)
            step, memory[name] = footprint(begin, lambda step: generate(step, past))
        except Exception as failed:  # What a foreign engine does with a model is beyond any list.
            missing[name] = f"{type(failed).__name__}: {str(failed).splitlines()[0]:.200}"
            continue
        runs[name] = partial(generate, step, past)
        errors[name] = error(runs[name](), expected)
    for pattern in patterns:
        step, truth, layers[pattern] = by_us(model, example, pattern)
        runs[pattern], memory[pattern] = partial(generate, step, past), Footprint()
        errors[pattern] = error(runs[pattern](), truth)
    with Progress(rounds * len(runs)) as progress:
        times = interleaved(runs, rounds, progress.step)
    rows = [Row(n, n in layers, its, memory[n], errors[n]) for n, its in times.items()]
    return Benchmark("decoder", STEPS, threads, rounds, rows, missing, layers)
