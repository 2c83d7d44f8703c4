"""Whole models: every entry back bit by bit, and nothing loaded where something is wrong."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import nmsparsity as nm
from nmsparsity.packed import PackedFileError, load, read, save, write
from nmsparsity.pattern import Pattern
from nmsparsity.promises import Place, declare, declared
from nmsparsity.sites import sites


class Net(nn.Module):
    """A convolution, a batch norm, a tied embedding, and state of several kinds."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(16, 8, 3)
        self.up = nn.ConvTranspose2d(16, 4, 2, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.embedding = nn.Embedding(20, 16)
        self.decoder = nn.Linear(16, 20)
        self.decoder.weight = self.embedding.weight
        self.head = nn.Linear(16, 10)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("empty", torch.zeros(0, 3))


def promised(module):
    return declared().get(id(module.weight))


def promise_(module, pattern):
    declare({Place(module, "weight"): pattern})


def prune_(model, names, pattern=Pattern(2, 4), promise=False):  # noqa: B008
    with torch.no_grad():
        for site in sites(model):
            if site.name in names:
                weight = site.parameter
                weight.mul_(pattern.mask(weight.abs(), site.layout))
                if promise:
                    declare({site: pattern})
    return model


def net(promise=False):
    torch.manual_seed(0)
    sparse = ("conv.weight", "up.weight", "decoder.weight")
    model = prune_(Net(), sparse, promise=promise)
    model.norm(torch.randn(2, 8, 3, 3))
    return model


def other():
    torch.manual_seed(1)
    return Net()


def assert_same(model, state):
    got = model.state_dict()
    assert list(got) == list(state)
    for name, tensor in state.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("promise", [True, False])
def test_a_model_comes_back_exactly(tmp_path, promise):
    model, loaded = net(promise), other()
    saved = save(model, tmp_path / "net", metadata={"epoch": "3"})
    assert load(tmp_path / "net", loaded) == {"epoch": "3"}
    # Where only zeros were negative, the value is the same.
    assert_same(loaded, model.state_dict())
    assert {weight.name for weight in saved.weights} == {
        "conv.weight",
        "up.weight",
        "embedding.weight",
    }
    assert loaded.decoder.weight is loaded.embedding.weight
    # What zeros show is no promise.
    assert promised(loaded.conv) == (Pattern(2, 4) if promise else None)
    assert promised(loaded.decoder) == (Pattern(2, 4) if promise else None)
    assert promised(loaded.head) is None


def test_saved_is_a_sentence_with_true_numbers(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, bias=False))
    prune_(model, ["0.weight"])
    saved = save(model, tmp_path / "net")
    assert saved.nbytes == (tmp_path / "net").stat().st_size
    assert saved.dense_nbytes == 4 * (64 * 64 * 2 + 64)
    (weight,) = saved.weights
    assert weight.dense_nbytes == 4 * 64 * 64
    assert weight.nbytes == 2 * 64 * 64 + 61 * 44 // 8 + 1  # 1024 groups, 17 in 44 bits
    share = f"{saved.nbytes / saved.dense_nbytes:.1%}"
    assert str(saved) == (
        f"{tmp_path / 'net'}: {saved.nbytes:,} bytes, {share} of 33,024 dense; "
        "1 weights packed (1 x 2:4)"
    )
    save(nn.Linear(4, 4), tmp_path / "dense")
    assert "0 weights packed" in str(save(nn.Linear(4, 4), tmp_path / "dense"))


def test_a_declared_pattern_that_does_not_hold_is_refused(tmp_path):
    model = net(promise=True)
    with torch.no_grad():
        model.conv.weight[1, 4:7, 0, 2] = 1
    with pytest.raises(ValueError, match=r"^conv\.weight .*filter 1, kernel position \(0, 2\)"):
        save(model, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_a_given_pattern_that_does_not_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^head\.weight .* is not 2:4"):
        save(net(), tmp_path / "net", {"conv": "2:4", "head": "2:4"})


def test_a_given_pattern_is_used_and_a_declared_one_comes_first(tmp_path):
    model = net()
    promise_(model.up, Pattern(2, 4))
    save(model, tmp_path / "net", {"conv": "3:4", "up": "4:8"})
    packed = read(tmp_path / "net").packed
    assert packed["conv.weight"].pattern == Pattern(3, 4)
    assert packed["up.weight"].pattern == Pattern(2, 4)
    assert packed["decoder.weight"].pattern == Pattern(2, 4)


def test_a_dense_promise_is_stored_plain(tmp_path):
    model = nn.Linear(8, 8)
    promise_(model, Pattern(4, 4))
    assert save(model, tmp_path / "net").weights == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_come_back_exactly(tmp_path, dtype):
    model, loaded = net().to(dtype), other().to(dtype)
    save(model, tmp_path / "net")
    load(tmp_path / "net", loaded)
    assert_same(loaded, model.state_dict())


def test_wrappers_are_looked_through(tmp_path):
    model = net()
    save(torch.optim.swa_utils.AveragedModel(model), tmp_path / "net")
    loaded = other()
    compiled = torch.compile(loaded)
    load(tmp_path / "net", compiled)
    assert_same(loaded, model.state_dict())
    inner = nn.Sequential(torch.compile(nn.Linear(4, 4)))
    save(inner, tmp_path / "inner")
    plain = nn.Sequential(nn.Linear(4, 4))
    load(tmp_path / "inner", plain)
    assert torch.equal(plain[0].weight, inner[0].weight)


def test_memory_formats_and_the_parameters_themselves_stay(tmp_path):
    model = net()
    save(model, tmp_path / "net")
    loaded = other().to(memory_format=torch.channels_last)
    before = {name: id(parameter) for name, parameter in loaded.named_parameters()}
    load(tmp_path / "net", loaded)
    assert before == {name: id(parameter) for name, parameter in loaded.named_parameters()}
    assert loaded.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert loaded.conv.weight.requires_grad
    assert_same(loaded, model.state_dict())


def test_every_difference_is_listed_and_nothing_is_loaded(tmp_path):
    save(net(), tmp_path / "net")
    model = other()
    model.head = nn.Linear(16, 11)
    model.norm.half()
    model.extra = nn.Linear(2, 2, bias=False)
    del model.mask
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        load(tmp_path / "net", model)
    listed = str(caught.value).splitlines()
    assert listed[0] == f"{tmp_path / 'net'} does not fit this model; nothing was loaded:"
    assert set(listed[1:]) == {
        "  'extra.weight' is missing in the file",
        "  'mask' is in the file, but not in the model",
        *(
            f"  'head.{name}' is torch.float32 [10{more}] in the file, "
            f"torch.float32 [11{more}] in the model"
            for name, more in (("weight", ", 16"), ("bias", ""))
        ),
        *(
            f"  'norm.{name}' is torch.float32 [8] in the file, torch.float16 [8] in the model"
            for name in ("weight", "bias", "running_mean", "running_var")
        ),
    }
    assert_same(model, before)


def test_a_packed_weight_of_another_shape_or_layout_is_refused(tmp_path):
    save(prune_(nn.Sequential(nn.Conv2d(8, 8, 1)), ["0.weight"], promise=True), tmp_path / "net")
    with pytest.raises(ValueError, match=r"'0\.weight' has Layout\(input_dim=1.*in the model"):
        load(tmp_path / "net", nn.Sequential(nn.ConvTranspose2d(8, 8, 1)))
    with pytest.raises(ValueError, match=r"'0\.weight' is torch\.float32 \[8, 8, 1, 1\] in the"):
        load(tmp_path / "net", nn.Sequential(nn.Conv2d(16, 8, 1)))


def test_a_damaged_file_changes_nothing(tmp_path):
    save(net(), tmp_path / "net")
    raw = bytearray((tmp_path / "net").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "net").write_bytes(raw)
    model = other()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PackedFileError, match="checksum"):
        load(tmp_path / "net", model)
    assert_same(model, before)
    assert promised(model.conv) is None


def test_a_dense_file_ends_the_promises_of_before(tmp_path):
    torch.manual_seed(2)
    save(Net(), tmp_path / "dense")
    model = net(promise=True)
    load(tmp_path / "dense", model)
    assert [promised(layer) for layer in (model.conv, model.up, model.decoder)] == [None] * 3
    assert not nm.verify(model).sparse
    assert save(model, tmp_path / "again").weights == ()


def test_a_sparse_file_ends_the_promises_that_it_does_not_make(tmp_path):
    save(prune_(other(), ("head.weight",), Pattern(1, 4), promise=True), tmp_path / "net")
    model = net(promise=True)
    load(tmp_path / "net", model)
    assert promised(model.head) == Pattern(1, 4)
    assert [row.name for row in nm.verify(model).sparse] == ["head.weight"]
    assert nm.verify(model).ok


def test_a_refused_file_ends_no_promise(tmp_path):
    save(nn.Linear(4, 4), tmp_path / "net")
    model = net(promise=True)
    with pytest.raises(ValueError, match="does not fit"):
        load(tmp_path / "net", model)
    assert promised(model.conv) == Pattern(2, 4)


@pytest.mark.parametrize("pattern", [None, Pattern(1, 4)])
def test_a_file_ends_no_promise_that_a_sparsifier_keeps(tmp_path, pattern):
    source = nn.Linear(16, 16)
    if pattern:
        prune_(source, ("weight",), pattern, promise=True)
    save(source, tmp_path / "net")
    model = nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    load(tmp_path / "net", model)
    assert promised(model) == Pattern(2, 4)
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    assert nm.verify(model).ok
    sparsifier.remove()
    assert promised(model) is None


def test_ties_that_the_file_does_not_have_are_refused_unless_equal(tmp_path):
    model = net()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(tmp_path / "equal", {}, state)
    load(tmp_path / "equal", other())
    state["decoder.weight"] += 1
    write(tmp_path / "differ", {}, state)
    with pytest.raises(ValueError, match=r"'decoder\.weight' and 'embedding\.weight' are tied"):
        load(tmp_path / "differ", other())


def test_a_tie_in_the_file_fills_two_parameters(tmp_path):
    save(net(), tmp_path / "net")
    model = other()
    model.decoder.weight = nn.Parameter(torch.zeros(20, 16))
    load(tmp_path / "net", model)
    assert model.decoder.weight is not model.embedding.weight
    assert torch.equal(model.decoder.weight, model.embedding.weight)


class WithState(nn.Linear):
    def get_extra_state(self):
        return {"step": 3}

    def set_extra_state(self, state):
        raise AssertionError("never reached")


def test_state_that_is_no_tensor_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'0\._extra_state' is a dict, not a tensor"):
        save(nn.Sequential(WithState(2, 2)), tmp_path / "net")
    write(tmp_path / "net", {}, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    with pytest.raises(ValueError, match="'_extra_state' is missing in the file"):
        load(tmp_path / "net", WithState(2, 2))


def test_models_without_data_are_refused(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "net")
    with pytest.raises(ValueError, match=r"'weight' is on the meta device: call model\.to_empty"):
        load(tmp_path / "net", nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="'weight' is on the meta device"):
        save(nn.Linear(2, 2, device="meta"), tmp_path / "net")
    lazy = nn.Sequential(nn.LazyLinear(4))
    for call in (lambda: save(lazy, tmp_path / "net"), lambda: load(tmp_path / "net", lazy)):
        with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet: run the model once"):
            call()


def test_a_parametrized_weight_is_stored_as_its_parts(tmp_path):
    model = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    save(model, tmp_path / "net")
    loaded = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    load(tmp_path / "net", loaded)
    assert parametrize.is_parametrized(loaded)
    assert_same(loaded, model.state_dict())


def test_not_a_number_in_a_sparse_weight_is_refused_by_name(tmp_path):
    model = net(promise=True)
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^conv\.weight .*NaN"):
        save(model, tmp_path / "net")


def test_a_live_sparsifier_keeps_its_own_promise(tmp_path):
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))
    nm.prune(source, "1:4")
    save(source, tmp_path / "net")
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    load(tmp_path / "net", model)
    assert promised(model[0]) == Pattern(2, 4)
    for _ in range(2):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    assert nm.verify(model).ok
    save(model, tmp_path / "again")
    sparsifier.remove()
    load(tmp_path / "net", model)
    assert promised(model[0]) == Pattern(1, 4)


def test_scattered_zeros_are_no_pattern_and_no_promise(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(64, 64) > 0.4)
    assert save(model, tmp_path / "net").weights == ()
    load(tmp_path / "net", model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(4, 64)).square().sum().backward()
    optimizer.step()
    save(model, tmp_path / "net")


def test_a_pattern_seen_in_the_zeros_is_packed_but_not_promised(tmp_path):
    torch.manual_seed(0)
    model = prune_(nn.Sequential(nn.Linear(64, 64)), ["0.weight"])
    assert len(save(model, tmp_path / "net").weights) == 1
    load(tmp_path / "net", model)
    nn.init.ones_(model[0].weight)
    assert save(model, tmp_path / "net").weights == ()


def test_a_promise_of_what_was_there_before_does_not_outlive_it(tmp_path):
    dense = nn.Sequential(nn.Linear(8, 8))
    save(dense, tmp_path / "net")
    model = nn.Sequential(nn.Linear(8, 8))
    nm.prune(model, "2:4")
    load(tmp_path / "net", model)
    assert promised(model[0]) is None
    save(model, tmp_path / "net")


@pytest.mark.parametrize("text", ["15:16", "31:32"])
def test_packed_is_never_larger_than_plain_and_the_promise_stays(tmp_path, text):
    torch.manual_seed(0)
    model, loaded = nn.Sequential(nn.Linear(5, 8)), nn.Sequential(nn.Linear(5, 8))
    nm.prune(model, {"0": text}, remainder="pad")
    assert save(model, tmp_path / "net").weights == ()
    load(tmp_path / "net", loaded)
    assert torch.equal(loaded[0].weight, model[0].weight)
    assert promised(loaded[0]) == Pattern.parse(text)


def test_a_plain_weight_must_hold_its_promise_too(tmp_path):
    model = nn.Sequential(nn.Linear(16, 8).half())
    promise_(model[0], Pattern(31, 32, "kernel"))
    save(model, tmp_path / "net")
    wide = nn.Sequential(nn.Linear(1024, 2))
    promise_(wide[0], Pattern(3, 512))
    with pytest.raises(ValueError, match=r"^0\.weight .* row 0, group 0 has 512 nonzeros"):
        save(wide, tmp_path / "net")


def test_groups_of_more_than_256_are_stored_and_stay_promised(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 32), nn.Linear(32, 2))
    loaded = copy.deepcopy(model)
    nm.prune(model, "3:512")
    saved = save(model, tmp_path / "net")
    assert saved.nbytes < 0.2 * saved.dense_nbytes
    load(tmp_path / "net", loaded)
    assert_same(loaded, model.state_dict())
    assert promised(loaded[0]) == Pattern(3, 512)
    assert nm.verify(loaded).ok


def test_a_given_pattern_is_for_the_layers_that_prune_chooses(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Linear(32, 32), nn.Linear(32, 2))
    nm.prune(model, "2:4")
    bare = copy.deepcopy(model)
    saved = save(bare, tmp_path / "net", pattern="2:4")
    assert [(weight.name, weight.pattern) for weight in saved.weights] == [
        ("1.weight", Pattern(2, 4))
    ]
    load(tmp_path / "net", bare)
    assert promised(bare[1]) == Pattern(2, 4)


class Versioned(nn.Linear):
    """Refuses a state that does not say which version it is of, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, local_metadata, *others):
        if local_metadata.get("version") not in (1, 2):
            raise ValueError(f"version should be 1 or 2 instead of {local_metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, local_metadata, *others)


def test_modules_with_versions_are_loaded(tmp_path):
    model, loaded = nn.Sequential(Versioned(4, 4)), nn.Sequential(Versioned(4, 4))
    save(model, tmp_path / "net")
    load(tmp_path / "net", loaded)
    assert_same(loaded, model.state_dict())


def test_another_dtype_is_one_sentence_with_the_remedy(tmp_path):
    save(net().half(), tmp_path / "net")
    model = other()
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        load(tmp_path / "net", model)
    assert str(caught.value).splitlines()[1:] == [
        "  16 tensors are torch.float16 in the file, torch.float32 in the model: call "
        "model.to(torch.float16) first"
    ]
    load(tmp_path / "net", model.to(torch.float16))
    model.up.bias.data = model.up.bias.data.float()
    with pytest.raises(ValueError, match=r"'up\.bias' is torch\.float16 .* torch\.float32"):
        load(tmp_path / "net", model)


def test_arguments_in_the_wrong_order_are_told_so(tmp_path):
    with pytest.raises(TypeError, match=r"got str: save\(model, path\)"):
        save(str(tmp_path / "net"), nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"got str: load\(path, model\)"):
        load(nn.Linear(2, 2), str(tmp_path / "net"))


def test_not_a_number_in_a_weight_without_a_promise_is_stored_as_it_is(tmp_path):
    model = prune_(nn.Sequential(nn.Linear(64, 64)), ["0.weight"])
    with torch.no_grad():
        model[0].weight[model[0].weight != 0] = float("nan")
    assert save(model, tmp_path / "net").weights == ()
