"""Dense linear layers of a compressed model: from another order of the weight where that pays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.compression import prepack
from nmsparsity.layers.prepacked import PrepackedLinear


class Tied(nn.Module):
    """Words in, scores of words out, by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(24, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 24, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.words(ids)).relu())


@pytest.fixture
def wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[[str], None]:
    """Let one way be the fastest of all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def let(name: str) -> None:
        def times(calls: dict[str, Callable[[], object]], between: object) -> dict[str, float]:
            for call in calls.values():
                call()
            return {way: 1.0 if way == name else 2.0 for way in calls}

        monkeypatch.setattr(prepack, "medians", times)

    return let


def model() -> tuple[Tied, Tensor]:
    torch.manual_seed(0)
    made = Tied().eval()
    nm.prune(made, "2:4", include="body")
    return made, torch.randint(0, 24, (2, 3))


@pytest.mark.parametrize("order", ["transposed", "onednn"])
def test_a_tied_output_layer_that_pays(wins: Callable[[str], None], order: str) -> None:
    wins(order)
    plain, ids = model()
    fast = nm.compress(plain, ids)
    assert isinstance(fast.head, PrepackedLinear)
    assert fast.head.order == order
    assert fast.head.weight is fast.words.weight
    assert_close(fast(ids), plain(ids))
    assert_close(copy.deepcopy(fast)(ids), plain(ids))
    rows = {row.layer: row for row in nm.compressed_report(fast).rows}
    assert rows["words.weight"].nbytes == rows["words.weight"].dense_nbytes == 24 * 8 * 4
    assert (rows["head.weight"].nbytes, rows["head.weight"].dense_nbytes) == (24 * 8 * 4, 0)
    assert f"it is 'words.weight'; a second copy of it, {order}: 1 ms for 2 ms" in (
        rows["head.weight"].reason
    )
    again = nm.decompress(fast)
    assert type(again.head) is nn.Linear
    assert again.head.weight is again.words.weight
    assert_close(again(ids), plain(ids))
    assert fast.state_dict().keys() >= {"head.weight", "words.weight"}


def test_nothing_is_done_where_it_does_not_pay_or_is_not_measured(
    wins: Callable[[str], None],
) -> None:
    plain, ids = model()
    wins("dense")
    assert type(nm.compress(plain, ids).head) is nn.Linear
    wins("transposed")
    assert type(nm.compress(plain).head) is nn.Linear
    assert type(nm.compress(plain, ids, backend="reference").head) is nn.Linear
    assert type(nm.compress(plain, ids, exclude="head").head) is nn.Linear


def test_a_layer_that_stays_dense_keeps_its_promise(
    wins: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmsparsity.compression import compressed
    from nmsparsity.kernels.choose import Choice

    stays = Choice(None, 1.0, 2.0, "dense 1 ms, packed 2 ms: stays dense")
    monkeypatch.setattr(compressed, "fastest", lambda *_: stays)
    wins("transposed")
    plain, ids = model()
    fast = nm.compress(plain, ids)
    assert isinstance(fast.body, PrepackedLinear)
    assert nm.verify(fast).rows[0].pattern == "2:4"
    row = next(row for row in nm.compressed_report(fast).rows if row.layer == "body")
    assert (row.nbytes, row.dense_nbytes) == (512, 256)
    assert row.reason.startswith("dense 1 ms, packed 2 ms: stays dense; a second copy")
    assert nm.verify(nm.decompress(fast)).rows[0].pattern == "2:4"


def test_copies_keep_what_a_dense_weight_is_promised() -> None:
    made = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    nm.prune(made, "2:4")
    with torch.no_grad():
        made[0].weight[:, 1::2] = 0.0  # As others see it, it could be 1:2.
    fast = nm.compress(made, backend="reference", exclude="0")
    for model in (fast, nm.decompress(fast)):
        assert nm.verify(model).rows[0].pattern == "2:4"


@pytest.mark.parametrize(
    "odd",
    [
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 4).double(),
        nn.Linear(4, 4, device="meta"),
        nn.Bilinear(4, 4, 4),
    ],
)
def test_what_has_no_other_order(odd: nn.Module) -> None:
    assert not prepack.can_be_prepacked(odd)


def test_what_others_have_put_on_a_layer_is_kept() -> None:
    assert prepack.can_be_prepacked(nn.Linear(4, 4))
    patched, buffered, parted, hooked = (nn.Linear(4, 4) for _ in range(4))
    patched.forward = lambda x: x  # type: ignore[method-assign]
    buffered.register_buffer("scale", torch.ones(1))
    parted.adapter = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    for layer in (patched, buffered, parted, hooked):
        assert not prepack.can_be_prepacked(layer)


def test_the_fused_path_of_torch_reads_weights_itself(wins: Callable[[str], None]) -> None:
    wins("transposed")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(8, 8), nn.Linear(8, 3)).eval()
    nm.prune(model, "2:4", include="1")
    fast = nm.compress(model, torch.randn(2, 4, 8))
    assert type(fast[0].linear1) is nn.Linear
    assert type(fast[2]) is PrepackedLinear
    with pytest.raises(ValueError, match="decompress it first"):
        nm.compress(fast, torch.randn(2, 4, 8))
