"""The layers that stay dense unless they are asked for, each with its reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import timm.layers
import torch
from torch import nn

from nmsparsity.exceptions import exceptions
from nmsparsity.sites import sites


def reasons(model: nn.Module) -> dict[str, str]:
    return exceptions(model, sites(model))


class Named(nn.Module):
    """A model of named layers, without a forward."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


# The first convolution.


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_first_convolution_on_an_image(channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(3, 8, 3))
    found = {"0.weight": f"the first convolution, on {channels} image channels"}
    assert reasons(model) == found


def test_a_first_convolution_on_features_is_ordinary() -> None:
    assert reasons(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(3, 8, 3))) == {}


def test_patch_embedding_and_sound_are_first_convolutions_too() -> None:
    assert "0.weight" in reasons(nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 8)))
    assert "0.weight" in reasons(nn.Sequential(nn.Conv1d(1, 8, 3), nn.Conv1d(8, 8, 3)))


def test_a_linear_layer_before_it_does_not_hide_the_first_convolution() -> None:
    assert "1.weight" in reasons(nn.Sequential(nn.Linear(8, 8), nn.Conv2d(3, 8, 3)))


# The final classifier.


def test_the_last_linear_layer() -> None:
    assert reasons(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))) == {
        "1.weight": "the final classifier"
    }


def test_a_lone_layer_is_no_classifier() -> None:
    assert reasons(nn.Linear(8, 8)) == {}
    assert reasons(nn.Sequential(nn.Linear(8, 8))) == {}


def test_in_a_model_of_convolutions_it_is_a_last_one_by_one() -> None:
    assert reasons(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))) == {}
    last = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))
    assert reasons(last) == {"1.weight": "the final classifier"}


def test_the_last_block_of_a_stack_is_no_classifier() -> None:
    blocks = nn.ModuleList(Named(up=nn.Linear(8, 8), down=nn.Linear(8, 8)) for _ in range(3))
    assert reasons(Named(blocks=blocks)) == {}
    with_head = Named(blocks=blocks, head=nn.Linear(8, 2))
    assert reasons(with_head) == {"head.weight": "the final classifier"}


def test_an_encoder_without_a_head_has_none() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert reasons(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)) == {}


def test_the_projection_at_the_end_of_an_attention_is_no_classifier() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert reasons(attention) == {}
    assert reasons(Named(body=nn.Linear(8, 8), pool=attention)) == {}


def test_a_partly_compiled_stack_is_still_a_stack() -> None:
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(3))
    blocks[2] = torch.compile(blocks[2], backend="eager")
    assert reasons(Named(blocks=blocks)) == {}


def test_a_linear_layer_in_the_middle_of_a_decoder_is_no_classifier() -> None:
    """What the last of all layers is decides, not the last linear one."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 16), nn.ConvTranspose2d(4, 4, 2))
    assert "1.weight" not in reasons(model)


def test_heads_beside_the_last_one_are_classifiers_too() -> None:
    body = nn.Linear(8, 8)
    final = "the final classifier"
    two = Named(body=body, head=nn.Linear(8, 4), head_dist=nn.Linear(8, 4))
    assert reasons(two) == {"head.weight": final, "head_dist.weight": final}
    inner = Named(
        body=body,
        policy=Named(norm=nn.LayerNorm(8), linear=nn.Linear(8, 4)),
        value=Named(norm=nn.LayerNorm(8), linear=nn.Linear(8, 1)),
    )
    assert reasons(inner) == {"policy.linear.weight": final, "value.linear.weight": final}
    assert set(reasons(nn.Sequential(body, two))) == {"1.head.weight", "1.head_dist.weight"}


@pytest.mark.parametrize(
    "layers",
    [
        # One may feed the next.
        {"body": nn.Linear(4, 8), "fc1": nn.Linear(8, 8), "fc2": nn.Linear(8, 4)},
        {"body": nn.Linear(4, 8), "up": nn.Linear(8, 16), "down": nn.Linear(16, 8)},
        # Nothing else would be left.
        {"fc1": nn.Linear(8, 4), "fc2": nn.Linear(8, 4)},
        # At another depth.
        {"body": nn.Linear(4, 8), "inner": Named(a=nn.Linear(8, 4)), "fc2": nn.Linear(8, 4)},
    ],
)
def test_layers_before_the_last_one_are_no_heads(layers: dict[str, nn.Module]) -> None:
    assert list(reasons(Named(**layers)).values()) == ["the final classifier"]


def test_layers_in_a_sequence_are_no_heads() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), nn.Unflatten(1, (8, 1)))
    model.append(nn.Linear(8, 4))
    assert reasons(model) == {"3.weight": "the final classifier"}


def test_both_heads_of_levit_stay_dense() -> None:
    model = timm.create_model("levit_128s", num_classes=10)
    heads = [name for name, why in reasons(model).items() if why == "the final classifier"]
    assert heads == ["head.linear.weight", "head_dist.linear.weight"]


# Depthwise convolutions.


@pytest.mark.parametrize(
    ("make", "depthwise"),
    [
        (lambda: nn.Conv2d(8, 8, 3, groups=8), True),
        (lambda: nn.Conv2d(8, 16, 3, groups=8), True),
        (lambda: nn.Conv1d(8, 8, 3, groups=8), True),
        (lambda: nn.ConvTranspose2d(8, 8, 3, groups=8), True),
        (lambda: nn.ConvTranspose2d(8, 16, 3, groups=8), True),
        (lambda: nn.Conv2d(8, 8, 3, groups=4), False),
        (lambda: nn.ConvTranspose2d(8, 8, 3, groups=4), False),
        (lambda: nn.Conv2d(4, 1, 3), False),
    ],
)
def test_one_input_channel_per_filter(make: Callable[[], nn.Module], depthwise: bool) -> None:
    found = reasons(nn.Sequential(nn.Conv2d(8, 8, 3), make()))
    assert ("1.weight" in found) == depthwise
    assert all(reason.startswith("a depthwise convolution") for reason in found.values())


def test_a_first_convolution_with_groups_is_depthwise() -> None:
    assert "depthwise" in reasons(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)))["0.weight"]


# Standardized weights.


@pytest.mark.parametrize("kind", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d"])
def test_a_standardized_weight_would_not_stay_sparse(kind: str) -> None:
    layer = getattr(timm.layers, kind)(8, 8, 3)
    assert "standardizes" in reasons(nn.Sequential(layer))["0.weight"]


# Tied weights.


def test_tied_weights_are_dense_under_both_names() -> None:
    model = Named(embedding=nn.Embedding(12, 8), body=nn.Linear(8, 8), head=nn.Linear(8, 12))
    model.head.weight = model.embedding.weight
    assert reasons(model) == {"head.weight": "a tied weight: other layers use the same parameter"}
    pair = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    pair[1].weight = pair[0].weight
    assert [name for name, why in reasons(pair).items() if "tied" in why] == [
        "0.weight",
        "1.weight",
    ]


def test_one_module_used_twice_is_not_tied() -> None:
    shared = nn.Linear(8, 8)
    assert reasons(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 2))) == {
        "3.weight": "the final classifier"
    }


def test_a_tied_head_is_called_tied() -> None:
    """Two reasons hold; the one that the user can do something about is given."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert "tied" in reasons(model)["1.weight"]


def test_weights_that_share_memory_without_being_one_parameter_are_tied() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Conv2d(8, 8, 1))
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    assert {"0.weight", "1.weight"} <= set(reasons(model))
