"""TokenBatches: batches of pairs of like length, counted in tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nmsparsity.tasks.batches import Batches, draw_seed, rank_and_world
from nmsparsity.tasks.translation.encoded import EncodedPairs

_NOISE = 4.0


class Batch(NamedTuple):
    """This process's share of a batch.

    Attributes:
        source: ``[rows, source tokens]``, int64, padded.
        target: ``[rows, target tokens]``, likewise; all padding in a row that does not count.
        numbers: ``[rows]``, of the pairs in their split; -1 for a row that does not count.
        step_tokens: target tokens of the whole optimizer step: of all processes, and of all
            batches whose gradients are accumulated.
        draws: a seed for dropout; another one in every batch, epoch and process.
    """

    source: Tensor
    target: Tensor
    numbers: Tensor
    step_tokens: int
    draws: int


class Share(NamedTuple):
    """What `TokenBatches.plan` says about a batch: its pairs here, and the tokens of its step."""

    numbers: Tensor
    step_tokens: int


class TokenBatches(Batches):
    """Batches of pairs of like length; a batch is as many as fill ``tokens``, padding included.

    Pairs are sorted by their longer side, at random among equals but roughly by the other side,
    and cut where rows times tokens of the longest would pass ``tokens``. So every epoch has
    the same number of batches of the same sizes, with other pairs, in another order. Cut is what
    all processes share; process r then takes the pairs r, r + world, ...: any number of processes
    trains on the same batches.

    Args:
        pairs: what they are made of.
        tokens: of a batch, all processes together.
        pad: the number of the token that fills rows.
        train: shuffle.
        accumulate: batches of one optimizer step.
        seed: of order and dropout.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        tokens: int,
        pad: int,
        *,
        train: bool,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        self.pairs, self.pad, self.accumulate = pairs, pad, accumulate
        source = pairs.source.lengths[pairs.numbers].numpy()
        self._target = pairs.target.lengths.numpy()
        target = self._target[pairs.numbers.numpy()]
        self._longer, self._both = np.maximum(source, target), source + target
        self._cuts = cuts(np.sort(self._longer), tokens)
        super().__init__(len(pairs), tokens, train=train, seed=seed)

    def __len__(self) -> int:
        return len(self._cuts)

    def plan(self) -> list[Any]:
        """A `Share` for each batch of the epoch."""
        rank, world = rank_and_world()
        batches = self._batches()
        counts = [int(self._target[batch].sum()) for batch in batches]
        starts = range(0, len(batches), self.accumulate)
        steps = [sum(counts[start : start + self.accumulate]) for start in starts]
        return [
            Share(torch.from_numpy(batch[rank::world]), steps[number // self.accumulate])
            for number, batch in enumerate(batches)
        ]

    def _batches(self) -> list[Any]:
        """The numbers of the pairs of each batch, of all processes."""
        draws = np.random.default_rng(draw_seed(self.seed, self.epoch))
        noise = draws.uniform(0, _NOISE, self.count) if self.train else 0.0
        order = np.lexsort((self._both + noise, self._longer))
        batches = np.split(self.pairs.numbers.numpy()[order], self._cuts[:-1])
        if not self.train:
            return batches
        return [batches[number] for number in draws.permutation(len(batches))]

    def load(self, plan: list[Any], start: int) -> Iterator[Any]:
        rank, _ = rank_and_world()
        for number, (numbers, step_tokens) in enumerate(plan, start):
            draws = draw_seed(self.seed, self.epoch, number, rank)
            yield self._batch(numbers, step_tokens, draws)

    def _batch(self, numbers: Tensor, step_tokens: int, draws: int) -> Batch:
        counted = numbers
        if not len(numbers):
            # Fewer pairs than processes: all have to take part in what they do together.
            numbers, counted = self.pairs.numbers[:1], torch.tensor([-1])
        source, target = (
            pad_sequence([side[int(n)] for n in numbers], True, self.pad)
            for side in (self.pairs.source, self.pairs.target)
        )
        if int(counted[0]) < 0:
            target = torch.full_like(target, self.pad)
        return Batch(source, target, counted, step_tokens, draws)


def cuts(lengths: Any, tokens: int) -> list[int]:
    """Where to cut rows of rising length so that rows x longest of each part fits ``tokens``.

    >>> import numpy as np
    >>> cuts(np.array([2, 2, 2, 3, 9]), 6)
    [3, 4, 5]
    """
    found, start = [], 0
    while start < len(lengths):
        some = lengths[start : start + max(1, tokens // int(lengths[start]))]
        area = some * np.arange(1, len(some) + 1)
        start += max(1, int(np.searchsorted(area, tokens, side="right")))
        found.append(start)
    return found
