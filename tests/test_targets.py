"""Rules: which weights of a model get which pattern, and why not the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmsparsity import Pattern
from nmsparsity.targets import Selection, select


def net() -> nn.Module:
    """Two named blocks, an attention layer, a head."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "layer1": nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1)),
            "layer10": nn.Sequential(nn.Conv2d(16, 16, 3)),
            "attention": nn.MultiheadAttention(16, 2),
            "odd": nn.Linear(10, 8),
            "head": nn.Linear(16, 4),
        }
    )


def kept(selection: Selection) -> dict[str, str]:
    return {target.site.name: str(target.pattern) for target in selection.targets}


def why(selection: Selection) -> dict[str, str]:
    return {entry.name: entry.reason for entry in selection.skipped}


USUAL = [
    "layer1.0.weight",
    "layer1.1.weight",
    "layer10.0.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
]


def test_by_default_all_but_the_exceptions() -> None:
    selection = select(net(), "2:4")
    assert list(kept(selection)) == USUAL
    assert why(selection) == {
        "stem.weight": "the first convolution, on 3 image channels",
        "odd.weight": "10 weights along the input axis are no multiple of 4",
        "head.weight": "the final classifier",
    }


def test_every_weight_is_either_kept_or_explained() -> None:
    model = nn.Sequential(net(), nn.Embedding(4, 8), nn.Bilinear(8, 8, 4))
    selection = select(model, "2:4")
    found = [*kept(selection), *why(selection)]
    assert len(set(found)) == len(found)
    assert set(found) == {name for name, p in model.named_parameters() if p.dim() >= 2}
    assert all(why(selection).values())


# Rules.


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("layer1", ["layer1.0.weight", "layer1.1.weight"]),
        ("layer1.*", ["layer1.0.weight", "layer1.1.weight"]),
        ("layer1*", ["layer1.0.weight", "layer1.1.weight", "layer10.0.weight"]),
        ("layer1.0", ["layer1.0.weight"]),
        ("layer1.0.weight", ["layer1.0.weight"]),
        ("*.0", ["layer1.0.weight", "layer10.0.weight"]),
        ("layer1?.*", ["layer10.0.weight"]),
        ("layer1.[01]", ["layer1.0.weight", "layer1.1.weight"]),
        ("attention", ["attention.in_proj_weight", "attention.out_proj.weight"]),
        ("*in_proj*", ["attention.in_proj_weight"]),
        (nn.Conv2d, ["layer1.0.weight", "layer1.1.weight", "layer10.0.weight"]),
        (lambda name, module: getattr(module, "kernel_size", 0) == (1, 1), ["layer1.1.weight"]),
        (["layer10", nn.MultiheadAttention], ["layer10.0.weight", "attention.in_proj_weight"]),
    ],
)
def test_a_rule_covers(rule, expected: list[str]) -> None:
    chosen = kept(select(net(), "2:4", include=rule))
    assert [name for name in chosen if name in USUAL][: len(expected)] == expected
    left = kept(select(net(), "2:4", exclude=rule))
    assert not set(left) & set(expected)


def test_a_module_type_covers_what_is_below_it() -> None:
    """`exclude=nn.MultiheadAttention` means the attention, its output projection too."""
    assert "attention.out_proj.weight" not in kept(
        select(net(), "2:4", exclude=nn.MultiheadAttention)
    )
    assert "layer10.0.weight" in kept(select(net(), "2:4", include=nn.Sequential))


def test_rules_see_the_name_and_the_module() -> None:
    seen = []
    model = net()
    select(model, "2:4", include=lambda name, module: seen.append((name, module)) is None)
    assert ("layer1.0", model["layer1"][0]) in seen


def test_include_lifts_the_exceptions_that_it_names() -> None:
    assert kept(select(net(), "2:4", include="head")) == {"head.weight": "2:4"}
    assert kept(select(net(), "1:2", include="stem", remainder="pad")) == {"stem.weight": "1:2"}


def test_include_does_not_lift_a_misfit() -> None:
    selection = select(net(), "2:4", include=["odd", "head"])
    assert kept(selection) == {"head.weight": "2:4"}
    assert "no multiple of 4" in why(selection)["odd.weight"]
    assert why(selection)["layer1.0.weight"] == "not included by any rule"


def test_exclude_wins_over_include_and_pattern() -> None:
    selection = select(net(), {"*": "2:4"}, include="layer1", exclude="layer1.1")
    assert kept(selection) == {"layer1.0.weight": "2:4"}
    assert why(selection)["layer1.1.weight"] == "excluded by rule"


# Patterns by rule.


def test_patterns_by_layer_and_the_first_that_matches_counts() -> None:
    selection = select(net(), {"layer1.1": "1:8", "layer1": "2:4", "layer10": "4:16"})
    assert kept(selection) == {
        "layer1.0.weight": "2:4",
        "layer1.1.weight": "1:8",
        "layer10.0.weight": "4:16",
    }
    assert why(selection)["attention.in_proj_weight"] == "no pattern is given for it"


def test_a_pattern_for_an_exception_counts_when_the_layer_is_named_in_full() -> None:
    assert kept(select(net(), {"head": "2:4"})) == {"head.weight": "2:4"}
    assert kept(select(net(), {"head.weight": "2:4"})) == {"head.weight": "2:4"}
    wide = select(net(), {"layer10": "2:4", "h*": "2:4"})
    assert why(wide)["head.weight"] == "the final classifier"


def test_dense_by_pattern_is_said_so() -> None:
    selection = select(net(), {"layer10": "4:4", "*": "2:4"})
    assert "layer10.0.weight" not in kept(selection)
    assert "4:4 keeps every weight" in why(selection)["layer10.0.weight"]


def test_the_axis_overrides_that_of_every_pattern() -> None:
    given = {"layer1": Pattern(2, 4, "kernel"), "layer10": "2:4"}
    as_given = select(net(), given)
    assert [target.pattern.axis for target in as_given.targets] == ["kernel", "kernel", "input"]
    for axis in ("input", "kernel"):
        chosen = select(net(), given, axis=axis)  # type: ignore[arg-type]
        assert {target.pattern.axis for target in chosen.targets} == {axis}


def test_a_rule_that_no_layer_is_left_for_is_an_error() -> None:
    """`layer1` is taken by the star before it: the 1:8 would silently do nothing."""
    with pytest.raises(ValueError, match=r"rule 'layer1'"):
        select(net(), {"*": "2:4", "layer1": "1:8"})


# Remainders.


def odd() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 2))


def test_remainder_dense_lists_pad_takes_error_raises() -> None:
    assert why(select(odd(), "2:4"))["0.weight"].startswith("10 weights along the input axis")
    assert kept(select(odd(), "2:4", remainder="pad")) == {"0.weight": "2:4", "1.weight": "2:4"}
    with pytest.raises(ValueError, match="no multiple of 4") as error:
        select(odd(), "2:4", remainder="error")
    for part in ("'0.weight'", "[8, 10]", "10 weights", "exclude it", "another M", "'pad'"):
        assert part in str(error.value)


def test_remainder_error_looks_only_at_what_is_chosen() -> None:
    assert list(kept(select(odd(), "2:4", exclude="0", remainder="error"))) == ["1.weight"]


def test_the_kernel_axis_counts_the_whole_filter() -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 2), nn.Conv2d(8, 8, 3))
    assert list(kept(select(model, "2:4"))) == ["1.weight"]
    assert list(kept(select(model, "2:4", axis="kernel"))) == ["0.weight", "1.weight"]
    assert "27 weights along the kernel axis" in str(
        why(
            select(
                nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 8)),
                "2:4",
                include="*",
                axis="kernel",
            )
        )
    )


def test_grouped_convolutions_count_inside_one_group() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4))
    assert why(select(model, "2:4"))["1.weight"].startswith("2 weights along the input axis")
    model[1] = nn.ConvTranspose2d(8, 8, 3, groups=4)
    assert why(select(model, "2:4"))["1.weight"].startswith("2 weights along the input axis")
    assert "1.weight" in kept(select(model, "1:2"))


# Weights in two places.


def test_tied_weights_that_are_included_are_one_target() -> None:
    model = odd()
    model[2] = nn.Linear(8, 8)
    model[2].weight = model[1].weight
    assert kept(select(model, "2:4", include="*")) == {"1.weight": "2:4"}
    assert "same parameter as '1.weight'" in why(select(model, "2:4", include="*"))["2.weight"]


def test_tied_weights_of_two_layouts_are_refused() -> None:
    """One parameter cannot be N:M along two of its dimensions by one mask."""
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 1))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'0\.weight'"):
        select(model, "2:4", include="*")


def test_the_second_name_of_a_shared_module_is_an_error_not_silence() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 2))
    with pytest.raises(ValueError, match="rule '2' matches no layer"):
        select(model, {"2": "2:4"})


# Errors.


@pytest.mark.parametrize(
    ("pattern", "rules"),
    [
        ({"layer11": "2:4"}, {}),
        ("2:4", {"include": "layer11"}),
        ("2:4", {"exclude": ["layer1", "layer11"]}),
    ],
)
def test_a_rule_that_matches_nothing_names_the_near(pattern, rules) -> None:
    said = r"rule 'layer11' matches no layer; did you mean '.*layer1"
    with pytest.raises(ValueError, match=said):
        select(net(), pattern, **rules)


def test_a_rule_like_nothing_shows_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'%%%' matches no layer; known: stem, layer1\.0, "):
        select(net(), "2:4", exclude=["layer1", "%%%"])


def test_types_and_functions_that_match_nothing_are_named() -> None:
    with pytest.raises(ValueError, match="rule Conv3d matches no layer; the model has 8 layers"):
        select(net(), "2:4", exclude=nn.Conv3d)

    def no_layer(name: str, module: nn.Module) -> bool:
        return False

    with pytest.raises(ValueError, match="rule no_layer matches no layer"):
        select(net(), "2:4", include=[no_layer])


def test_the_star_may_match_nothing() -> None:
    assert select(nn.ReLU(), {"*": "2:4"}, include="*").targets == []


def test_the_name_of_a_lone_layer_is_suggested() -> None:
    with pytest.raises(ValueError, match="weight"):
        select(nn.Linear(8, 8), "2:4", include="head")


@pytest.mark.parametrize("rule", [3, [3], ["layer1", None], 2.5])
def test_a_rule_of_another_kind_is_refused(rule: object) -> None:
    with pytest.raises(ValueError, match=r"rule .*(glob|name).*type"):
        select(net(), "2:4", include=rule)  # type: ignore[arg-type]


def test_a_layer_in_place_of_its_name_is_refused() -> None:
    model = net()
    with pytest.raises(ValueError, match="rule"):
        select(model, "2:4", include=model["head"])


@pytest.mark.parametrize("remainder", ["", "drop", None, True])
def test_unknown_remainder(remainder: object) -> None:
    with pytest.raises(ValueError, match=f"remainder {remainder!r}: want 'dense', 'pad' or"):
        select(net(), "2:4", remainder=remainder)  # type: ignore[arg-type]


def test_an_empty_mapping_is_no_pattern() -> None:
    with pytest.raises(ValueError, match="one rule at least"):
        select(net(), {})


def test_a_pattern_by_rule_is_checked_like_any_other() -> None:
    with pytest.raises(ValueError, match=r"pattern '4:2': want 'N:M'"):
        select(net(), {"layer1": "4:2"})
