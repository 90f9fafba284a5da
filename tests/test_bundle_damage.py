"""Damaged, oversized and malicious bundles: every one is refused, in bounded time and memory."""

from __future__ import annotations

import io
import json
import operator
import os
import socket
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from m2distill_policy import bundle_files
from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.bundle_arrays import read_arrays
from m2distill_policy.bundle_files import DIGEST, MANIFEST, check_digest
from m2distill_policy.bundle_graphs import DEEPEST, MOST_NODES, GraphError, check_graph
from m2distill_policy.bundle_writer import write_bundle
from m2distill_policy.errors import BundleError, UnknownInstructionError
from m2distill_policy.runtime.engine import Engine
from tests.bundles import INSTRUCTIONS, edit_manifest, replace_file, toy_contract, toy_graphs, write_manifest, write_toy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "bundle", seed=3)


def refused_quickly(path: Path, within: float = 2.0) -> str:
    """Return the message of the refusal, which must come ``within`` s and use almost no memory."""
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(BundleError) as caught:
            open_bundle(path)
        assert time.monotonic() - begin < within
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 2000
    return str(caught.value)


# --- the manifest's digest -------------------------------------------------------------------------------------------


def bits(data: bytes) -> Iterator[bytes]:
    """``data`` with one bit changed, for every bit."""
    for i in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[i] ^= 1 << bit
            yield bytes(changed)


def test_every_single_bit_of_the_manifest_and_of_its_digest(path: Path) -> None:
    manifest, digest = (path / MANIFEST).read_bytes(), (path / DIGEST).read_bytes()
    check_digest(path, manifest, digest)
    count = 0
    for changed in bits(manifest):
        with pytest.raises(BundleError):
            check_digest(path, changed, digest)
        count += 1
    for changed in bits(digest):
        with pytest.raises(BundleError):
            check_digest(path, manifest, changed)
        count += 1
    assert count == 8 * (len(manifest) + len(digest)) > 15_000
    # The same through the door itself; the whole of it takes minutes.
    rng = np.random.default_rng(0)
    for name, data in ((MANIFEST, manifest), (DIGEST, digest)):
        for place in rng.choice(8 * len(data), 300, replace=False):
            damaged = bytearray(data)
            damaged[place // 8] ^= 1 << place % 8
            (path / name).write_bytes(damaged)
            with pytest.raises(BundleError, match="was changed or damaged"):
                open_bundle(path)
        (path / name).write_bytes(data)
    open_bundle(path)


@pytest.mark.parametrize("change", [
    lambda data: b"", lambda data: data[:-1], lambda data: data + b"\n", lambda data: data.upper(),
    lambda data: data[:64], lambda data: data.replace(b"  ", b" *"), lambda data: data * 2, lambda data: data + b"\0",
    lambda data: b"0" * 10_000,
])  # fmt: skip
def test_a_digest_of_another_form(path: Path, change: Callable[[bytes], bytes]) -> None:
    (path / DIGEST).write_bytes(change((path / DIGEST).read_bytes()))
    refused_quickly(path)


def test_sha256sum_reads_the_digest(path: Path) -> None:
    name, _, rest = (path / DIGEST).read_text().partition("  ")
    assert len(name) == 64 and rest == "bundle.json\n"


def test_a_bundle_without_digest_says_what_to_do(path: Path) -> None:
    (path / DIGEST).unlink()
    assert "export the bundle again with this version" in refused_quickly(path)


def test_no_part_of_a_damaged_manifest_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> object:
        raise AssertionError("the manifest was parsed before its digest was checked")

    monkeypatch.setattr("m2distill_policy.strict_json.parse", fails)
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes() + b" ")
    refused_quickly(path)


def test_manifest_cannot_list_digest_or_signature(path: Path) -> None:
    original = (path / MANIFEST).read_bytes()
    for name in (MANIFEST, DIGEST, "bundle.json.sig"):
        files = {**json.loads(original)["files"], name: "0" * 64}
        edit_manifest(path, operator.methodcaller("update", files=files))
        refused_quickly(path)


# --- what is no plain file, or too large ----------------------------------------------------------------------------


def _sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(20 * 10**9)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [_sparse, _fifo, _socket, _device, _link, _folder])
@pytest.mark.parametrize("name", [MANIFEST, DIGEST, "step.onnx", "instruction.onnx", "instructions.npz"])
def test_special_and_large_files_are_refused(path: Path, name: str, change: Callable[[Path], None]) -> None:
    change(path / name)
    message = refused_quickly(path)
    assert name in message


def test_all_files_together_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(file.stat().st_size for file in path.iterdir())
    monkeypatch.setattr(bundle_files, "LARGEST_BUNDLE", total)
    open_bundle(path)
    monkeypatch.setattr(bundle_files, "LARGEST_BUNDLE", total - 1)
    assert "together" in refused_quickly(path)
    # What could not be opened is not written either.
    with pytest.raises(BundleError, match="together"):
        write_toy(path.parent / "again", seed=3)
    assert not (path.parent / "again").exists()


def test_thousands_of_files(path: Path) -> None:
    for i in range(3000):
        (path / f"f{i}").touch()
    refused_quickly(path)


@pytest.mark.parametrize("place", ["x" * 5000, "a/" * 3000, "nul\0in it", "", "loop"])
def test_a_path_that_no_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    refused_quickly(Path(place))


def test_a_file_that_grows_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def shorter(handle: int) -> os.stat_result:
        found = real(handle)
        return os.stat_result((*found[:6], max(0, found.st_size - 1), *found[7:]))

    monkeypatch.setattr(bundle_files.os, "fstat", shorter)
    assert "changed while it was read" in refused_quickly(path)


# --- archives --------------------------------------------------------------------------------------------------------


def archive(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _bomb() -> bytes:
    """Compress 272 MB of zeros to 1 MB."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("instructions.npy", "w", force_zip64=True) as member,
    ):
        zeros = bytes(2**24)
        for _ in range(17):
            member.write(zeros)
    return stream.getvalue()


def _header(text: str) -> bytes:
    padded = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "bomb": _bomb,
    "claims": lambda: archive({"instructions.npy": _header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }")}),
    "overflow": lambda: archive({"instructions.npy": _header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }")}),
    "negative": lambda: archive({"instructions.npy": _header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }") + bytes(16)}),
    "deep header": lambda: archive({"instructions.npy": _header("(" * 3000)}),
    "long header": lambda: archive({"instructions.npy": _header("{'descr': '<f4'," + " " * 20_000)}),
    "structured": lambda: archive({"instructions.npy": npy(np.zeros(3, [("a", "f4"), ("b", "O")]))}),
    "lzma": lambda: archive({"instructions.npy": npy(np.zeros(3))}, zipfile.ZIP_LZMA),
    "many": lambda: archive({f"{i}.npy": b"" for i in range(70_000)}),
    "empty": lambda: archive({}),
    "twice": lambda: archive({"a.npy": npy(np.zeros(3)), "a": npy(np.zeros(3))}),
    "no characters": lambda: archive({
        "instructions.npy": npy(np.zeros(2, "<u4") + 0x110000).replace(b"'<u4'", b"'<U1'"),
        "embeddings.npy": npy(np.zeros((2, 12), np.float32))}),
    "half a pair": lambda: archive({
        "instructions.npy": npy(np.array(["a", "\ud800"])), "embeddings.npy": npy(np.zeros((2, 12), np.float32))}),
    "a megabyte": lambda: archive({
        "instructions.npy": npy(np.array(["a", "b" * 10**6])), "embeddings.npy": npy(np.zeros((2, 12), np.float32))}),
    "two lines": lambda: archive({
        "instructions.npy": npy(np.array(["a", "b\nc"])), "embeddings.npy": npy(np.zeros((2, 12), np.float32))}),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
@pytest.mark.parametrize("name", ["instructions.npz", "views.npz"])
def test_archive_is_refused_before_it_is_unpacked(path: Path, case: str, name: str) -> None:
    replace_file(path, name, ARCHIVES[case]())
    refused_quickly(path)


def test_damaged_archives_raise_one_error() -> None:
    rng = np.random.default_rng(2)
    original = archive({"a.npy": npy(np.arange(60.0)), "b.npy": npy(np.array(INSTRUCTIONS))})
    for _ in range(3000):
        data = bytearray(original[: int(rng.integers(len(original)))] if rng.random() < 0.2 else original)
        for _ in range(int(rng.integers(1, 5))):
            if data:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            found = read_arrays(bytes(data), 2**20)
        except ValueError:
            continue
        assert sum(array.nbytes for array in found.values()) <= 2**20


# --- graphs ----------------------------------------------------------------------------------------------------------


def external(place: str = "weights.bin", *, location_only: bool = False) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    if not location_only:
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", place
    return tensor


def _plain(name: str = "g") -> onnx.GraphProto:
    return helper.make_graph([], name, [], [])


def _in_node(tensor: TensorProto) -> onnx.GraphProto:
    graph = _plain()
    graph.node.append(helper.make_node("Constant", [], ["y"], value=tensor))
    return graph


def _in_subgraph(depth: int) -> onnx.ModelProto:
    graph = _in_node(external())
    for _ in range(depth):
        outer = _plain()
        outer.node.append(helper.make_node("If", ["c"], ["y"], then_branch=graph))
        graph = outer
    return helper.make_model(graph)


def _initializer() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    model.graph.initializer.append(external())
    return model


def _sparse_initializer() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    model.graph.sparse_initializer.add().indices.CopyFrom(external())
    return model


def _attribute_list() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    attribute = model.graph.node.add(op_type="X").attribute.add(name="a", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.extend([numpy_helper.from_array(np.zeros(2)), external()])
    return model


def _attribute_graphs() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    attribute = model.graph.node.add(op_type="X").attribute.add(name="a", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.extend([_plain(), _in_node(external())])
    return model


def _sparse_attributes() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    attribute = model.graph.node.add(op_type="X").attribute.add(name="a", type=onnx.AttributeProto.SPARSE_TENSORS)
    attribute.sparse_tensors.add().values.CopyFrom(external())
    return model


def _function() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["y"], value=external()))
    return model


def _function_default() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    attribute = model.functions.add(name="f").attribute_proto.add(name="a", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(external())
    return model


def _training() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    model.training_info.add().algorithm.initializer.append(external())
    return model


def _location_only() -> onnx.ModelProto:
    model = helper.make_model(_plain())
    model.graph.initializer.append(external(location_only=True))
    return model


def _compiled() -> onnx.ModelProto:
    node = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="../x.bin")
    return helper.make_model(helper.make_graph([node], "g", [], []))


OUTSIDE: dict[str, Callable[[], onnx.ModelProto]] = {
    "initializer": _initializer, "sparse initializer": _sparse_initializer, "node": lambda: _in_subgraph(0),
    "subgraph": lambda: _in_subgraph(1), "deep subgraph": lambda: _in_subgraph(4), "tensors": _attribute_list,
    "graphs": _attribute_graphs, "sparse": _sparse_attributes, "function": _function, "default": _function_default,
    "training": _training, "location only": _location_only, "compiled": _compiled,
}  # fmt: skip


@pytest.mark.parametrize("case", OUTSIDE)
def test_graph_that_is_not_self_contained(path: Path, case: str) -> None:
    data = OUTSIDE[case]().SerializeToString()
    with pytest.raises(GraphError):
        check_graph(data)
    replace_file(path, "step.onnx", data)
    refused_quickly(path)
    with pytest.raises(BundleError, match="export the bundle again"):
        write_bundle(
            path.parent / "again", contract=toy_contract(), tasks=[], network={"modes": 3, "tokens": 5, "embed": 8},
            provenance={}, instructions=INSTRUCTIONS, embeddings=np.zeros((2, 12), np.float32),
            graphs={"step.onnx": data, "instruction.onnx": b""},
        )  # fmt: skip


def test_weights_in_the_working_directory_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete bundle except for one weight, which is in a file in the working directory."""
    path = write_toy(tmp_path / "bundle")
    model = onnx.load_from_string((path / "step.onnx").read_bytes())
    weight = next(w for w in model.graph.initializer if w.name == "w_means")
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    replace_file(path, "step.onnx", model.SerializeToString())
    assert "external data" in refused_quickly(path)


def test_graphs_that_are_too_large() -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    many = helper.make_model(_plain())
    many.graph.node.extend([node] * MOST_NODES)
    check_graph(many.SerializeToString())
    many.graph.node.append(node)
    with pytest.raises(GraphError, match="nodes"):
        check_graph(many.SerializeToString())
    begin = time.monotonic()
    for data in (b"\x08\x01" * 10_000_000, b"\x3a\x80\xda\xc4\x09" + b"\x0a\x00" * 10_000_000):
        with pytest.raises(GraphError, match="more than"):
            check_graph(data)
    deep = b""
    for _ in range(DEEPEST):  # a node's attribute's graph in a node's attribute ...
        for tag in (0x32, 0x2A, 0x0A):
            deep = bytes([tag]) + _varint(len(deep)) + deep
    with pytest.raises(GraphError, match="deep"):
        check_graph(b"\x3a" + _varint(len(deep)) + deep)
    assert time.monotonic() - begin < 5
    with pytest.raises(GraphError, match="own format"):
        check_graph(b"\x08\x00\x00\x00ORTM" + bytes(100))


def _varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def test_damaged_graphs_never_hide_external_data() -> None:
    """If the onnx package finds external data in a damaged graph, so does the check."""
    rng = np.random.default_rng(4)
    model = _in_subgraph(2)
    model.graph.initializer.append(external())
    originals = [toy_graphs(toy_contract())["step.onnx"], model.SerializeToString()]
    parsed = 0
    for i in range(4000):
        original = originals[i % 2]
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            check_graph(bytes(data))
        except GraphError:
            continue
        damaged = onnx.ModelProto()
        try:
            damaged.ParseFromString(bytes(data))
        except DecodeError:
            continue
        parsed += 1
        text = str(damaged)
        assert "external_data" not in text and "data_location: EXTERNAL" not in text
    assert parsed > 100


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change bits and bytes, truncate, repeat and move parts, as by damage or by an attacker."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        place, other = (int(rng.integers(max(1, len(changed)))) for _ in range(2))
        size, kind = int(rng.integers(1, 40)), int(rng.integers(5))
        if kind == 0 and changed:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[place : place + 4] = [b"\xff" * 4, b"\0" * 8, b"\xff\xff\xff\xff\x0f"][int(rng.integers(3))]
        elif kind == 2:
            del changed[place : place + size]
        elif kind == 3:
            changed[place:place] = changed[other : other + size]
        else:
            changed[place : place + size] = changed[other : other + size]
    return bytes(changed)


def test_damage_below_the_hashes(path: Path) -> None:
    """Every file, with matching hashes and digest, up to the first answer: a bundle or our own error, soon."""
    rng = np.random.default_rng(6)
    views = {camera.name: np.zeros(camera.shape, np.uint8) for camera in toy_contract().cameras}
    write_toy(path, 3, views=views, overwrite=True)
    originals = {file.name: file.read_bytes() for file in path.iterdir() if file.name != DIGEST}
    loaded = 0
    for _ in range(250):
        for name, data in originals.items():
            (path / name).write_bytes(data)
        name = str(rng.choice(sorted(originals)))
        if name == MANIFEST:
            write_manifest(path, _mutate(originals[name], rng))
        else:
            replace_file(path, name, _mutate(originals[name], rng))
        begin = time.monotonic()
        try:
            Engine(open_bundle(path))
            loaded += 1
        except BundleError as error:
            assert len(str(error)) < 5000
        assert time.monotonic() - begin < 10
    assert 0 < loaded < 250


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_long_unknown_instruction_is_not_repeated_whole(path: Path) -> None:
    bundle: Bundle = open_bundle(path)
    begin = time.monotonic()
    for text in ("x" * 10**6, "lift the red box " * 60_000):
        with pytest.raises(UnknownInstructionError) as caught:
            bundle.embedding(text)
        assert len(str(caught.value)) < 1000
        assert str(len(text)) in str(caught.value)
    assert time.monotonic() - begin < 1


def test_long_values_in_a_manifest_are_not_repeated_whole(path: Path) -> None:
    original = (path / MANIFEST).read_bytes()
    long = "x" * 200_000
    for change in (
        lambda m: m.update(format_version=long),
        lambda m: m["network"].update(modes=[long]),
        lambda m: m["tasks"].append({"name": long}),
        lambda m: m["tasks"].append({"name": long, "instruction": INSTRUCTIONS[0]}),
        lambda m: m["tasks"].append({"name": "n", "instruction": long}),
        lambda m: m["files"].update({long: "0" * 64}),
        lambda m: m["files"].update({"a": long}),
    ):
        write_manifest(path, original)
        edit_manifest(path, change)
        refused_quickly(path)


@pytest.mark.parametrize("key", ["modes", "tokens", "embed"])
@pytest.mark.parametrize("value", [0, -1, 2**40, 1.0, 3.0, True, "3", None, [3], 10**30])
def test_sizes_of_the_network(path: Path, key: str, value: object) -> None:
    edit_manifest(path, lambda m: m["network"].update({key: value}))
    refused_quickly(path)
