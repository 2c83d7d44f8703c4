"""The packed file: bit-exact, all or nothing, and no damaged byte goes unnoticed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from nmsparsity.layout import Layout
from nmsparsity.packed import PackedFileError, PackedWeight, file, read, write
from nmsparsity.packed.checksum import START, seal
from nmsparsity.pattern import Pattern

TWO_OF_FOUR = Pattern(2, 4)


def sparse(*shape, pattern=TWO_OF_FOUR, layout=None, dtype=torch.float32, name="weight"):
    weight = torch.randn(shape)
    weight = (weight * pattern.mask(weight.abs(), layout)).to(dtype)
    return PackedWeight.pack(weight, pattern, layout, name)


def small(path):
    """A small file with everything in it: every coding, a plain tensor, a tie, metadata."""
    torch.manual_seed(0)
    packed = {
        "a.weight": sparse(2, 8),
        "b.weight": sparse(4, 8, pattern=Pattern(1, 4), dtype=torch.float16),
        "c.weight": sparse(8, 24, pattern=Pattern(2, 4, "kernel")),
    }
    packed["d.weight"] = packed["a.weight"]
    steps = torch.tensor([3, 2**40])
    write(path, packed, {"steps": steps, "again": steps}, {"epoch": "7"})
    return packed


@pytest.fixture
def path(tmp_path):
    small(tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def take_apart(path):
    """The safetensors header, our document in it, and the data."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    return header, json.loads(header["__metadata__"].pop("nmsparsity")), raw[end:]


def put_together(path, header, document, data):
    """Undo `take_apart`, with a valid checksum: only the meaning can be wrong now."""
    text = document
    if isinstance(document, dict):
        text = json.dumps(
            {"sha256": "0" * 64} | document | {"sha256": "0" * 64}, separators=(",", ":")
        )
    header = header | {"__metadata__": {"nmsparsity": text} | header["__metadata__"]}
    order = ["__metadata__", *(key for key in header if key != "__metadata__")]
    head = json.dumps({key: header[key] for key in order}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    with open(path, "r+b") as stream:
        seal(stream)


def test_round_trip_restores_weights_ties_and_metadata(tmp_path):
    path = tmp_path / "small.safetensors"
    packed = small(path)
    contents = read(path)
    assert list(contents.packed) == list(packed)
    for name, weight in packed.items():
        got = contents.packed[name]
        assert torch.equal(got.unpack(), weight.unpack())
        assert (got.pattern, got.layout, got.coding) == (
            weight.pattern,
            weight.layout,
            weight.coding,
        )
    assert {weight.coding for weight in packed.values()} == {"bitmask", "index", "combinadic"}
    assert contents.packed["d.weight"] is contents.packed["a.weight"]
    assert contents.tensors["again"] is contents.tensors["steps"]
    assert contents.tensors["steps"].tolist() == [3, 2**40]
    assert contents.metadata == {"epoch": "7"}


def plain_tensors():
    base = torch.randn(6, 8)
    tensors = {
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "bool": torch.tensor([True, False, True]),
        "counter": torch.tensor(2**62),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "rows": base[1:3],
        "more rows": base[3:5],
        "reshaped": base.view(48),
        "as_ints": base.view(torch.int32),
        "expanded": torch.ones(1).expand(5),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conjugate": torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        'ünïcode "quoted" \\ name': torch.ones(1),
        "": torch.ones(2),
    }
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2):
        tensors[str(dtype)] = torch.randn(7).to(dtype)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint64):
        tensors[str(dtype)] = torch.arange(5).to(dtype)
    return tensors


def test_any_plain_tensor_comes_back_bit_by_bit(tmp_path):
    path, tensors = tmp_path / "plain.safetensors", plain_tensors()
    size = write(path, {}, tensors)
    got = read(path).tensors
    assert size == path.stat().st_size
    assert set(got) == set(tensors)
    for name, tensor in tensors.items():
        want = tensor.detach().resolve_conj().contiguous()
        assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape), name
        assert bytes(got[name].reshape(-1).view(torch.uint8).numpy()) == bytes(
            want.reshape(-1).view(torch.uint8).numpy()
        ), name


def test_tensors_read_do_not_change_with_the_file(path):
    values = read(path).packed["c.weight"].values
    before = values.clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(values, before)


def test_a_packed_file_is_a_safetensors_file(path):
    stored = load_file(path)
    assert set(stored) == {"steps"} | {
        f"{name}.weight.{part}" for name in "abc" for part in ("values", "positions")
    }
    assert stored["a.weight.values"].shape == (4, 2)


def test_the_same_content_gives_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.test_packed_file import small\n"
        "small(sys.argv[2])"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    small(tmp_path / "here")
    subprocess.run([sys.executable, "-c", code, root, tmp_path / "there"], check=True)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_every_changed_byte_is_noticed(path):
    raw = path.read_bytes()
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(PackedFileError, match=r"small\.safetensors: "):
            read(path)


def test_spaces_and_tabs_in_the_header_are_told_apart(path):
    for length in range(1, 9):
        write(path, {}, {"x" * length: torch.zeros(1)})
        raw = path.read_bytes()
        if raw[-5:-4] == b" ":
            break
    path.write_bytes(raw[:-5] + b"\t" + raw[-4:])
    load_file(path)
    with pytest.raises(PackedFileError, match="checksum"):
        read(path)


def test_every_length_but_the_right_one_is_noticed(path):
    raw = path.read_bytes()
    for length in [*range(0, len(raw), 7), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(PackedFileError, match=r"small\.safetensors: "):
            read(path)
    for more in (b"\0", b" " * 8, raw):
        path.write_bytes(raw + more)
        with pytest.raises(PackedFileError, match="checksum"):
            read(path)


def test_headers_that_lie_about_their_length(path):
    raw = path.read_bytes()
    for length in (0, 1, len(raw), 2**31, 2**63, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + raw[8:])
        with pytest.raises(PackedFileError):
            read(path)


def test_files_of_others_are_told_apart(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(3)}, path)
    with pytest.raises(PackedFileError, match=r"x.safetensors: not a packed file.*load_file"):
        read(path)
    torch.save({"w": torch.ones(3)}, path)
    with pytest.raises(PackedFileError, match="not a safetensors file"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(PackedFileError, match="not a safetensors file"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_a_checksum_in_capitals_is_refused(path):
    raw = path.read_bytes()
    at = 8 + len(START)
    path.write_bytes(raw[:at] + raw[at : at + 64].upper() + raw[at + 64 :])
    with pytest.raises(PackedFileError, match="checksum"):
        read(path)


def test_taking_apart_and_putting_together_changes_nothing(path):
    put_together(path, *take_apart(path))
    assert read(path).metadata == {"epoch": "7"}


def weight_a(**changes):
    return lambda header, document: document["weights"]["a.weight"].update(changes)


def top(**changes):
    return lambda header, document: document.update(changes)


FORGED = [
    (top(format="other"), "format 'other', want 'nmsparsity'"),
    (top(version=2), "format version 2; this nmsparsity reads version 1: update nmsparsity"),
    (top(version=True), "version is True, want a whole number"),
    (top(version=None), "version is None"),
    (top(weights=[]), "weights is .*, want an object"),
    (top(metadata={"epoch": 7}), "metadata: 'epoch' is 7, want a text"),
    (top(aliases={"x": 1}), "aliases: 'x' is 1, want a text"),
    (top(aliases={"x": "y"}), "alias 'x' of 'y'"),
    (top(aliases={"steps": "a.weight"}), "alias 'steps' of 'a.weight'"),
    (top(aliases={"x": "steps", "y": "x"}), "alias 'y' of 'x'"),
    (lambda h, d: d["weights"].update({"a.weight": 3}), "a.weight: want a JSON object, got 3"),
    (lambda h, d: d["weights"].update({"z": d["weights"]["a.weight"]}), "'z.values' is missing"),
    (lambda h, d: h.pop("a.weight.positions"), None),
    (lambda h, d: d["weights"].update({"steps": d["weights"].pop("a.weight")}), "is missing"),
    (weight_a(n_kept=3), r"a.weight: values of shape \[4, 2\], want \[4, 3\]"),
    (weight_a(n_kept=0), "a.weight: pattern '0:4': want 'N:M'"),
    (weight_a(n_kept=-2), "a.weight: pattern '-2:4'"),
    (weight_a(n_kept="2"), "a.weight: n_kept is '2', want a whole number"),
    (weight_a(m=8), "a.weight: values of shape"),
    (weight_a(m=10**30), "a.weight: pattern 2:1000000000000000000000000000000: .* up to 256"),
    (weight_a(axis="rows"), "a.weight: axis 'rows'"),
    (weight_a(input_dim=2), "a.weight: .*want input_dim 0 or 1"),
    (weight_a(input_dim=0, conv_groups=4), "do not divide"),
    (weight_a(conv_groups=0), "a.weight: .*conv_groups of at least 1"),
    (weight_a(shape=[2, 2**70]), "a.weight .*not the shape of a tensor"),
    (weight_a(shape=[0, 2**61]), "a.weight: values of shape"),
    (weight_a(shape=[2, -8]), "a.weight .*not the shape of a tensor"),
    (weight_a(shape=[2, 8.0]), "a.weight: shape .*want whole numbers"),
    (weight_a(shape=[True, 8]), "a.weight: shape .*want whole numbers"),
    (weight_a(shape=[16]), "a.weight .*two dimensions"),
    (weight_a(shape="2,8"), "a.weight: shape is '2,8', want a list"),
    (weight_a(dtype="float16"), "a.weight: values are torch.float32, the header says 'float16'"),
    (weight_a(coding="huffman"), "a.weight: unknown position coding 'huffman'"),
    (weight_a(coding="combinadic"), "a.weight: 2 bytes of positions do not fit"),
]


@pytest.mark.parametrize(("edit", "message"), FORGED)
def test_forged_documents_are_refused_by_meaning(path, edit, message):
    header, document, data = take_apart(path)
    edit(header, document)
    put_together(path, header, document, data)
    with pytest.raises(PackedFileError, match=message and f"small.safetensors: .*{message}"):
        read(path)


@pytest.mark.parametrize("document", ["", "[", "[" * 100_000, "3", "null", '{"sha256":"0"}'])
def test_documents_that_are_no_documents(path, document):
    header, _, data = take_apart(path)
    text = '{"sha256":"' + "0" * 64 + '"' + document
    put_together(path, header, text, data)
    with pytest.raises(PackedFileError, match=r"small\.safetensors: "):
        read(path)


def edit_data(path, name, change):
    header, document, data = take_apart(path)
    start, end = header[name]["data_offsets"]
    put_together(path, header, document, data[:start] + change(data[start:end]) + data[end:])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("a.weight.positions", lambda d: b"\xff" * len(d), "a.weight: a bitmask with 4 bits"),
        ("c.weight.positions", lambda d: b"\xff" * len(d), "c.weight: .*"),
        ("c.weight.positions", lambda d: d[:-1] + b"\x80", "c.weight: the bits after the last"),
        ("a.weight.values", lambda d: d[:-4] + b"\0\0\x80\x7f", "a.weight .*NaN or infinity"),
    ],
)
def test_forged_data_is_refused_by_meaning(path, name, change, message):
    edit_data(path, name, change)
    with pytest.raises(PackedFileError, match=f"small.safetensors: {message}"):
        read(path)


def test_forged_indices_and_virtual_values_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, {"w": sparse(2, 5, pattern=Pattern(1, 5))})
    edit_data(path, "w.positions", lambda d: b"\x3f")
    with pytest.raises(PackedFileError, match="w: index 7 in a group of 5"):
        read(path)
    write(path, {"w": PackedWeight.pack(torch.ones(1, 1), Pattern(2, 4))})
    edit_data(path, "w.values", lambda d: d[:4] * 2)
    with pytest.raises(PackedFileError, match="w: a value beyond the end of its row"):
        read(path)


NUMBERS = [True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, 0.5]
NASTY = [None, *NUMBERS, "", "F32", "BOOL", "F4", "F8_E8M0", [], [0], [[1]], {}, {"a": 1}]


def test_any_header_value_replaced_by_nonsense_is_refused_or_harmless(path):
    """Walk every leaf and branch of both headers; only a PackedFileError may come out."""
    header, document, data = take_apart(path)
    refused = 0
    for which in (0, 1):
        for keys in list(_paths((header, document)[which])):
            for nasty in NASTY:
                forged = json.loads(json.dumps([header, document]))
                _put(forged[which], keys, nasty)
                if not isinstance(forged[0].get("__metadata__"), dict):
                    continue
                put_together(path, *forged, data)
                try:
                    read(path)
                except PackedFileError:
                    refused += 1
    assert refused > 500


def _paths(tree, above=()):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*above, key)
        if isinstance(value, (dict, list)):
            yield from _paths(value, (*above, key))


def _put(tree, keys, value):
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


@pytest.mark.parametrize(
    ("packed", "tensors", "name"),
    [
        (["w"], ["w"], "w"),
        (["w"], ["w.values"], "w.values"),
        (["w"], ["w.positions"], "w.positions"),
        (["w", "w.values"], [], "w.values"),
        ([], ["__metadata__"], "__metadata__"),
        ([], [3], "3"),
    ],
)
def test_names_that_collide_are_refused(tmp_path, packed, tensors, name):
    weights = {key: sparse(2, 4) for key in packed}
    with pytest.raises(ValueError, match=f"{name}.*rename"):
        write(tmp_path / "x", weights, {key: torch.ones(2) for key in tensors})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (3, "'x' is a int, not a tensor"),
        (torch.ones(2, device="meta"), "'x' is on the meta device"),
        (torch.ones(2, 2).to_sparse(), "'x' is torch.float32 in layout torch.sparse_coo"),
        (torch.ones(2, dtype=torch.complex128), "'x' is torch.complex128"),
    ],
)
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path, thing, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "x", {}, {"x": thing})
    assert os.listdir(tmp_path) == []


class Wrapped(torch.Tensor):
    """A tensor whose data is elsewhere, as that of a DTensor is."""

    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (2, 2))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} needs the data")


def test_a_wrapper_of_tensors_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="'x' is a Wrapped; gather it into a plain tensor"):
        write(tmp_path / "x", {}, {"x": Wrapped()})


def test_metadata_must_be_text(tmp_path):
    with pytest.raises(ValueError, match="metadata 'epoch': 7: want text"):
        write(tmp_path / "x", {}, {}, {"epoch": 7})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(file, "seal", broken)
    with pytest.raises(KeyboardInterrupt):
        write(path, {}, {"x": torch.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="file size limits are a POSIX thing")
def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path):
    code = (
        "import resource, signal, sys, torch\n"
        "from nmsparsity.packed import write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write(sys.argv[1], {}, {'x': torch.ones(10_000)})\n"
        "except OSError as error:\n    print('refused:', error)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    environment = {**os.environ, "PYTHONPATH": root}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert said.stdout.startswith(f"refused: {tmp_path / 'x'}: could not be written")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "x", {}, {"x": torch.ones(1)})


@pytest.mark.skipif(os.name != "posix", reason="permission bits and links are a POSIX thing")
def test_permissions_follow_the_umask_and_links_are_followed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    old = os.umask(0o027)
    try:
        write(link, {}, {"x": torch.ones(1)})
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert read(target).tensors["x"].item() == 1


def test_layouts_and_short_groups_survive(tmp_path):
    weights = {
        "conv1d": sparse(10, 6, pattern=Pattern(1, 4), layout=Layout(0)),
        "transposed": sparse(8, 3, 2, 2, layout=Layout(0, 2), pattern=Pattern(2, 3, "kernel")),
        "none": sparse(0, 8),
        "hollow": sparse(8, 4, 0, 3),
        "dense": sparse(3, 5, pattern=Pattern(2, 2)),
    }
    write(tmp_path / "x", weights)
    got = read(tmp_path / "x").packed
    for name, weight in weights.items():
        assert got[name].layout == weight.layout
        assert torch.equal(got[name].unpack(), weight.unpack())


def test_another_layout_of_the_library_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "save_file", lambda tensors, path, metadata: save_file(tensors, path))
    with pytest.raises(RuntimeError, match="install another version of safetensors"):
        write(tmp_path / "x", {}, {"x": torch.ones(1)})
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permission bits are a POSIX thing")
@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, mode):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(mode)
    write(target, {}, {"x": torch.ones(1)})
    assert target.stat().st_mode & 0o777 == mode
    assert torch.equal(read(target).tensors["x"], torch.ones(1))


def test_a_place_where_no_file_can_be_is_named(tmp_path):
    missing = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError, match=f"{missing}: there is no folder .*make it first"):
        write(missing, {}, {"x": torch.ones(1)})
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder: give the name"):
        write(tmp_path, {}, {"x": torch.ones(1)})


def test_promises_are_those_given_or_those_of_the_packed_weights(tmp_path):
    weight = torch.eye(8)
    packed = PackedWeight.pack(weight, "1:8", name="a")
    write(tmp_path / "x", {"a": packed, "b": packed}, {"c": weight})
    assert read(tmp_path / "x").promises == {"a": Pattern(1, 8), "b": Pattern(1, 8)}
    write(tmp_path / "x", {"a": packed}, {"c": weight}, promises={"c": Pattern(1, 512, "kernel")})
    assert read(tmp_path / "x").promises == {"c": Pattern(1, 512, "kernel")}
    write(tmp_path / "x", {"a": packed}, {}, promises={})
    assert read(tmp_path / "x").promises == {}
    write(tmp_path / "x", {"a": packed}, {}, promises={"other": Pattern(1, 8)})
    with pytest.raises(PackedFileError, match="'other' has a promise, but is not stored"):
        read(tmp_path / "x")
