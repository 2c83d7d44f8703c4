"""Where a model has weights that can be N:M, under every wrapper and disguise."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from transformers.pytorch_utils import Conv1D

from nmsparsity.layout import Layout
from nmsparsity.sites import sites, unfit, unwrap


def names(model: nn.Module) -> list[str]:
    return [site.name for site in sites(model)]


def reasons(model: nn.Module) -> dict[str, str]:
    return {entry.name: entry.reason for entry in unfit(model)}


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


# What is found.


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_of_every_dimension(dims: int, groups: int) -> None:
    plain = getattr(nn, f"Conv{dims}d")(8, 12, 3, groups=groups)
    (site,) = sites(plain)
    assert (site.shape[:2], site.layout) == ((12, 8 // groups), Layout())
    transposed = getattr(nn, f"ConvTranspose{dims}d")(8, 12, 3, groups=groups)
    (site,) = sites(transposed)
    assert site.shape[:2] == (8, 12 // groups)
    assert site.layout == Layout(input_dim=0, conv_groups=groups)
    assert site.layout.length(site.shape, "input") == 8 // groups


def test_attention_with_one_projection_and_with_three() -> None:
    joint = nn.MultiheadAttention(8, 2)
    assert names(joint) == ["in_proj_weight", "out_proj.weight"]
    apart = nn.MultiheadAttention(8, 2, kdim=4, vdim=12)
    found = {site.name: site.shape for site in sites(apart)}
    assert found == {
        "q_proj_weight": (8, 8),
        "k_proj_weight": (8, 4),
        "v_proj_weight": (8, 12),
        "out_proj.weight": (8, 8),
    }


def test_attention_with_extra_keys_lists_them_as_unfit() -> None:
    assert set(reasons(nn.MultiheadAttention(8, 2, add_bias_kv=True))) == {"bias_k", "bias_v"}


def test_hugging_face_conv1d_has_its_input_first() -> None:
    (site,) = sites(Conv1D(3, 8))
    assert (site.shape, site.layout) == ((8, 3), Layout(input_dim=0))


def test_recurrent_layers_and_cells() -> None:
    joined = nn.LSTM(8, 4, num_layers=2, bidirectional=True, proj_size=2)
    matrices = [name for name, p in joined.named_parameters() if p.dim() == 2]
    assert names(joined) == matrices
    assert {site.shape[1] for site in sites(joined)} == {8, 2, 4}
    for layer in (
        nn.GRU(8, 8),
        nn.RNN(8, 8),
        nn.LSTMCell(8, 8),
        nn.GRUCell(8, 8),
        nn.RNNCell(8, 8),
    ):
        assert len(names(layer)) == 2
        assert reasons(layer) == {}


def test_a_layer_of_ones_own_that_is_only_called_conv1d_is_not_taken_for_it() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8, 8))

    assert names(Conv1D()) == []
    assert "input dimension is known" in reasons(Conv1D())["weight"]


def test_subclasses_count() -> None:
    class Mine(nn.Linear):
        pass

    assert names(nn.Sequential(Mine(8, 8))) == ["0.weight"]


def test_a_site_knows_its_place() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 4)))
    (site,) = sites(model)
    assert (site.name, site.module_name, site.attribute) == ("0.0.weight", "0.0", "weight")
    assert site.module is model[0][0]
    assert site.parameter is model[0][0].weight
    (root,) = sites(nn.Linear(8, 4))
    assert (root.name, root.module_name) == ("weight", "")


def test_a_module_in_two_places_is_one_site() -> None:
    shared = nn.Linear(8, 8)
    assert names(nn.Sequential(shared, nn.ReLU(), shared)) == ["0.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_real_dtype(dtype: torch.dtype) -> None:
    assert names(mlp().to(dtype)) == ["0.weight", "2.weight"]


# What is not, and why.


def test_bilinear_layers_are_listed_as_unfit() -> None:
    assert "Bilinear is not a layer" in reasons(nn.Bilinear(8, 8, 4))["weight"]


def test_embeddings_are_looked_up() -> None:
    for table in (nn.Embedding(4, 8), nn.EmbeddingBag(4, 8)):
        assert reasons(table) == {"weight": "an embedding table is looked up, not multiplied"}


def test_vectors_biases_and_norms_are_not_listed() -> None:
    assert reasons(nn.Sequential(nn.LayerNorm(8), nn.BatchNorm2d(8), nn.Linear(8, 8))) == {}


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        torch.nn.utils.spectral_norm,
    ],
)
def test_computed_weights_are_listed_with_the_reason(wrap) -> None:
    model = nn.Sequential(wrap(nn.Linear(8, 8)), nn.Linear(8, 8))
    assert names(model) == ["1.weight"]
    assert "computed from others" in reasons(model)["0.weight"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.complex64])
def test_dtypes_without_magnitude_order_are_listed(dtype: torch.dtype) -> None:
    model = mlp()
    model[0].weight = nn.Parameter(torch.ones(8, 8, dtype=dtype), requires_grad=False)
    assert names(model) == ["2.weight"]
    assert str(dtype) in reasons(model)["0.weight"]


def test_a_lazy_layer_has_no_shape_yet() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"layer '1\.weight' has no shape yet: run the model once"):
        sites(model)
    model(torch.zeros(1, 8))
    assert names(model) == ["0.weight", "1.weight"]


def test_lazy_layers_that_are_no_target_are_refused_as_clearly() -> None:
    with pytest.raises(ValueError, match=r"'1\.weight' has no shape yet: run the model once"):
        sites(nn.Sequential(nn.Linear(8, 8), nn.LazyBatchNorm1d()))


@pytest.mark.parametrize("shape", [(64,), (0,), ()])
def test_a_flattened_weight_is_listed_and_not_a_crash(shape: tuple[int, ...]) -> None:
    """FSDP1 and ZeRO-3 leave flat or empty shards where a matrix was."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].weight = nn.Parameter(torch.zeros(shape))
    assert names(model) == ["1.weight", "2.weight"]
    assert "0.weight" in reasons(model)


# Wrappers.


def test_wrappers_are_looked_through() -> None:
    plain = mlp()
    for wrapped in (
        nn.DataParallel(plain),
        AveragedModel(plain),
        torch.compile(plain, backend="eager"),
        nn.DataParallel(torch.compile(plain, backend="eager")),
        torch.compile(nn.DataParallel(plain), backend="eager"),
    ):
        assert names(wrapped) == ["0.weight", "2.weight"]
    assert unwrap(nn.DataParallel(plain)) is plain
    assert unwrap(plain) is plain


def test_distributed_data_parallel_is_looked_through() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = mlp()
        wrapped = nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager"))
        assert names(wrapped) == ["0.weight", "2.weight"]
        assert unwrap(wrapped) is model
    finally:
        dist.destroy_process_group()


def test_a_child_called_module_is_not_a_wrapper() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

    assert names(Mine()) == ["module.weight", "head.weight"]


def test_a_compiled_block_keeps_the_names_of_its_layers() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 2))
    model[0] = torch.compile(model[0], backend="eager")
    assert names(model) == ["0.0.weight", "1.weight"]
    assert [site.module_name for site in sites(model)] == ["0.0", "1"]


def test_a_compiled_layer_keeps_its_name() -> None:
    model = mlp()
    model[0] = torch.compile(model[0], backend="eager")
    assert names(model) == ["0.weight", "2.weight"]
    assert [site.module_name for site in sites(model)] == ["0", "2"]


@pytest.mark.parametrize(
    ("reparametrize", "part"),
    [
        (nn.utils.weight_norm, "0.weight_v"),
        (nn.utils.spectral_norm, "0.weight_orig"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 3), "0.weight_orig"),
        (nn.utils.parametrizations.weight_norm, "0.parametrizations.weight.original1"),
        (nn.utils.parametrizations.orthogonal, "0.parametrizations.weight.original"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_the_parts_of_a_computed_weight_say_so(reparametrize, part: str) -> None:
    model = nn.Sequential(reparametrize(nn.Linear(8, 8)))
    assert sites(model) == []
    reasons = {entry.name: entry.reason for entry in unfit(model)}
    assert reasons[part].startswith("the layer's weight is computed from it")
    assert reasons["0.weight"].startswith("its weight is computed from others")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_the_parts_of_a_recurrent_weight_are_no_sites() -> None:
    model = nn.utils.weight_norm(nn.LSTM(8, 8), "weight_hh_l0")
    assert [site.name for site in sites(model)] == ["weight_ih_l0"]
    assert "weight_hh_l0_v" in {entry.name for entry in unfit(model)}
