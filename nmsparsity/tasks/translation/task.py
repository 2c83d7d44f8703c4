"""TranslationTask: an encoder-decoder, its loss, its optimizer, its translations, for Lightning."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.task import Task
from nmsparsity.tasks.translation.adam import AdamW
from nmsparsity.tasks.translation.average import AVERAGED, AverageDense
from nmsparsity.tasks.translation.data import VOCABULARY
from nmsparsity.tasks.translation.decoding import Decoder
from nmsparsity.tasks.translation.dropout import QuickDropout
from nmsparsity.tasks.translation.models import (
    Transformer,
    describe,
    described,
    new,
    positions_of,
    pretrained,
    start_of,
)
from nmsparsity.tasks.translation.scores import Scores
from nmsparsity.tasks.translation.token_batches import Batch
from nmsparsity.tasks.translation.vocabulary import Vocabulary

MODEL = "model.json"


class TranslationTask(Task):
    """Trains an encoder-decoder to translate, and translates the whole validation set.

    Logs ``train/loss`` (with label smoothing, per token), ``train/tokens_per_second`` (target
    tokens, all processes), ``val/loss`` and ``val/perplexity`` (without), ``val/bleu`` and
    ``val/chrf``. During training the validation decodes greedily; ``nmsparsity evaluate`` searches
    with a beam. A step weighs every target token alike, however many processes and accumulated
    batches it is made of.

    Args:
        vocabulary: taken from the data by the command line,
        max_length: likewise.
        transformer: a new one of this shape.
        pretrained: instead, the model that transformers saved in this folder.
        optimizer: AdamW and its schedule.
        attention: how transformers computes it; None: as the model's own code prefers. On a CPU
            ``"eager"`` trains short sentences faster, in bf16 several times.
        label_smoothing: share of the target spread over all tokens.
        beam: hypotheses of the search in evaluation.
        length_penalty: see `Decoder`.
        average: epochs at the end whose dense weights are averaged into ``averaged.ckpt``; 0 for
            none.
        init_from: a checkpoint, packed file or run folder whose weights to start from.
        attached: the texts that a checkpoint brought along.

    Attributes:
        best_bleu: the largest of all epochs.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        max_length: int,
        transformer: Transformer = Transformer(),
        pretrained: str | None = None,
        optimizer: AdamW = AdamW(),
        attention: Literal["eager", "sdpa"] | None = None,
        label_smoothing: float = 0.1,
        beam: int = 4,
        length_penalty: float = 0.6,
        average: int = 0,
        init_from: str | None = None,
        attached: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(init_from)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing {label_smoothing}: want a share, 0 or more, below 1")
        if average < 0:
            raise ValueError(f"average {average}: want 0 or more epochs")
        self.vocabulary = vocabulary
        self.model = network(vocabulary, max_length, transformer, pretrained, attached or {})
        if attention is not None:
            self.model.set_attn_implementation(attention)  # type: ignore[operator]
        self._start = start_of(self.model)
        self.limit = positions_of(self.model, max_length)
        self.optimizer, self.label_smoothing, self.average = optimizer, label_smoothing, average
        self.decoder = Decoder(beam, length_penalty, self.limit)
        self.best_bleu = 0.0
        self.scores = Scores(vocabulary.pad)
        self._averaged: dict[str, Any] = {}
        self._tokens, self._since = 0, 0.0
        self._step_loss = torch.zeros(())

    def attachments(self) -> dict[str, str]:
        return {VOCABULARY: self.vocabulary.text, MODEL: describe(self.model)}

    def configure_callbacks(self) -> list[Callback]:
        fitting = self.trainer.state.fn == "fit"
        return [AverageDense(self.average)] if self.average and fitting else []

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Token scores ``[rows, target tokens, vocabulary]`` of each token, given those before."""
        pad = self.vocabulary.pad
        start = torch.full_like(target[:, :1], self._start)
        scores: Tensor = self.model(
            input_ids=source,
            attention_mask=source.ne(pad).long(),
            decoder_input_ids=torch.cat([start, target[:, :-1]], dim=1),
            use_cache=False,
        ).logits
        return scores

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        # Dropout of a step then depends on nothing before it: an interruption changes nothing.
        torch.manual_seed(batch.draws)
        with QuickDropout():
            scores = self(batch.source, batch.target)
        loss = functional.cross_entropy(
            scores.float().flatten(0, 1),
            batch.target.flatten(),
            ignore_index=self.vocabulary.pad,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        # DDP divides by the processes, and Lightning by the accumulated batches.
        loss = loss * self.trainer.world_size / batch.step_tokens
        self._step_loss = self._step_loss + loss.detach()
        self._tokens += int(batch.target.ne(self.vocabulary.pad).sum())
        if self._ends_step(batch_index):
            self.log("train/loss", self._step_loss, on_step=True, on_epoch=False, sync_dist=True)
            self._step_loss = torch.zeros(())
        return loss * self.trainer.accumulate_grad_batches

    def on_train_epoch_start(self) -> None:
        self._tokens, self._since = 0, time.perf_counter()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.scores.add_loss(self(batch.source, batch.target), batch.target)
        decoder = self.decoder
        if self.trainer.state.fn == "fit":
            decoder = Decoder(1, decoder.length_penalty, decoder.limit)
        found = decoder(self.model, self.vocabulary, batch.source)
        self._tokens += sum(its.tokens for its in found)
        if int(batch.numbers[0]) >= 0:
            self.scores.add_texts(batch.numbers, [its.text for its in found])

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.log("train/tokens_per_second", self._rate())
        self.scores = Scores(self.vocabulary.pad)
        self._tokens, self._since = 0, time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        rate, pairs = self._rate(), self._data().evaluation.texts
        whole = self.trainer.num_val_batches == [len(self._data().val_dataloader())]
        counted = self.scores.compute(pairs, self._add_up, whole)
        self.counted = {**counted, "decoded_per_second": rate}
        if self.trainer.state.fn == "fit":
            self.best_bleu = max(self.best_bleu, self.counted["bleu"])
        for name, value in self.counted.items():
            if not isinstance(value, str):
                self.log(f"val/{name}", float(value), prog_bar=name == "bleu", sync_dist=False)
        if self.folder is not None and self.trainer.is_global_zero:
            self.scores.write(self.folder / f"translations-{self._data().split}.tsv", pairs)

    def _data(self) -> Any:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def _rate(self) -> float:
        """Tokens a second of all processes since the clock was started."""
        tokens = self._add_up(torch.tensor(float(self._tokens), device=self.device))
        return float(tokens) / max(time.perf_counter() - self._since, 1e-9)

    def result(self) -> dict[str, Any]:
        return {**self.counted, "best_bleu": self.best_bleu, **self._averaged}

    def finish(self, trainer: Trainer, data: LightningDataModule) -> None:
        """Count the answers of the averaged network too; the module holds it from here on."""
        path = None if self.folder is None else self.folder / AVERAGED
        if path is None or not path.exists() or not self.average:
            return
        last = self.counted
        Checkpoint.read(path).load_into(self.model)
        trainer.validate(self, datamodule=data, verbose=False)
        names = {"bleu", "chrf", "loss", "perplexity"} & self.counted.keys()
        self._averaged = {f"averaged_{name}": self.counted[name] for name in sorted(names)}
        self.counted = last

    def check_start(self, start: Checkpoint) -> None:
        """Refuse weights of another vocabulary."""
        known = start.attachments.get(VOCABULARY)
        if known is not None and not Vocabulary(known).same(self.vocabulary):
            raise ValueError(
                f"{self.init_from} was trained with another vocabulary than that of the data; "
                f"give its own by --data.vocabulary_file RUN_FOLDER/{VOCABULARY}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["best_bleu"] = self.best_bleu
        if self._accumulating:
            mean = self.trainer.strategy.reduce(self._step_loss.clone(), reduce_op="mean")
            checkpoint["step_loss"] = float(mean)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.best_bleu = checkpoint.get("best_bleu", 0.0)
        self._step_loss = torch.tensor(checkpoint.get("step_loss", 0.0))


def network(
    vocabulary: Vocabulary,
    max_length: int,
    shape: Transformer,
    folder: str | None,
    attached: Mapping[str, str],
) -> nn.Module:
    """The checkpoint's own architecture; else the saved model; else a new one."""
    if MODEL in attached:
        return described(attached[MODEL])
    if folder is not None:
        return pretrained(folder, vocabulary, max_length)
    return new(shape, vocabulary, max_length)
