"""A bundle is written completely and verified when opened, and every kind of damage has its message."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import m2distill_policy.bundle_writer as bundle_module
from m2distill_policy.bundle import open_bundle
from m2distill_policy.bundle_writer import write_bundle
from m2distill_policy.errors import BundleError, UnknownInstructionError
from tests.bundles import (
    INSTRUCTIONS,
    TEXT,
    edit_manifest,
    replace_file,
    toy_contract,
    toy_embeddings,
    toy_graphs,
    write_manifest,
    write_toy,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "bundle", seed=3)


def packed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_round_trip(path: Path) -> None:
    bundle = open_bundle(path)
    assert bundle.contract == toy_contract()
    assert bundle.instructions == INSTRUCTIONS
    assert bundle.task_names == ("lift_the_red_box", "lift_the_green_box")
    assert bundle.provenance["seed"] == 3
    assert np.array_equal(bundle.embeddings, toy_embeddings(INSTRUCTIONS))
    assert np.array_equal(bundle.embedding(INSTRUCTIONS[1]), bundle.embeddings[1])
    assert bundle.graph("step.onnx") == toy_graphs(toy_contract(), 3)["step.onnx"]
    assert len(bundle.identifier) == 12
    with pytest.raises(ValueError, match="read-only"):
        bundle.embeddings[0, 0] = 1.0
    with pytest.raises(BundleError, match=r"no graph 'step.onx'; it has .*did you mean 'step.onnx'"):
        bundle.graph("step.onx")


def test_identifier_follows_the_content(tmp_path: Path) -> None:
    a = open_bundle(write_toy(tmp_path / "a", 0))
    assert open_bundle(write_toy(tmp_path / "again", 0)).identifier == a.identifier
    assert open_bundle(write_toy(tmp_path / "b", 1)).identifier != a.identifier


def test_changes_after_opening_do_not_matter(path: Path) -> None:
    bundle = open_bundle(path)
    before = bundle.graph("step.onnx")
    (path / "step.onnx").write_bytes(b"tampered")
    assert bundle.graph("step.onnx") == before


def test_unknown_instruction_lists_the_known_ones(path: Path) -> None:
    with pytest.raises(UnknownInstructionError) as caught:
        open_bundle(path).embedding("lift the reed box")
    text = str(caught.value)
    assert "does not know the instruction 'lift the reed box'; did you mean 'lift the red box'?" in text
    assert "It knows: 'lift the red box'; 'lift the green box'." in text


def test_writer_replaces_only_with_overwrite(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="exists already; choose another place or say that it may be overwritten"):
        write_toy(path, 4)
    assert open_bundle(path).provenance["seed"] == 3
    write_toy(path, 4, overwrite=True)
    assert open_bundle(path).provenance["seed"] == 4
    assert [p.name for p in path.parent.iterdir()] == ["bundle"], "nothing unfinished stays behind"
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    for place in (tmp_path / "run", tmp_path):  # a bundle's parent is no bundle either
        with pytest.raises(BundleError, match="is no bundle and is not overwritten"):
            write_toy(place, 4, overwrite=True)
    assert (tmp_path / "run" / "run.json").exists()


def test_failed_write_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "_write_flushed", full)
    with pytest.raises(BundleError, match=r"could not be written: .*No space left"):
        write_toy(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_appears_by_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files are written, the folder has another, hidden name."""
    seen: list[list[str]] = []
    real = bundle_module._write_flushed

    def spy(path: Path, data: bytes) -> None:
        real(path, data)
        seen.append([p.name for p in tmp_path.iterdir()])

    monkeypatch.setattr(bundle_module, "_write_flushed", spy)
    write_toy(tmp_path / "bundle")
    assert len(seen) == 5
    assert all(len(names) == 1 and names[0].startswith(".bundle.") and names[0].endswith(".tmp") for names in seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provenance": {"metric": float("nan")}}, "cannot be written as JSON"),
        ({"provenance": {"what": object()}}, "cannot be written as JSON"),
        ({"network": {"modes": 3, "tokens": 4, "embed": 8}}, "says 4 tokens a step; its contract makes 5"),
        ({"network": {"modes": 3, "tokens": 5}}, "has None at 'network.embed'"),
        ({"tasks": [{"name": "x", "instruction": "sing"}]}, "whose instruction 'sing' is not in 'instructions.npz'"),
        ({"embeddings": np.zeros((2, 5), np.float32)}, r"'embeddings' is float32 \(2, 5\); .* want float32 \(2, 12\)"),
        ({"embeddings": np.full((2, TEXT), np.nan, np.float32)}, "values that are not finite"),
        ({"instructions": ["a", "a"], "tasks": []}, "must be different and not empty"),
        ({"graphs": {"step.onnx": b""}}, "does not list 'instruction.onnx'"),
        ({"graphs": {"step.onnx": b"", "instruction.onnx": b"", "../evil": b""}}, "plain names without folders"),
    ],
)
def test_writer_refuses_what_could_not_be_opened(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "contract": toy_contract(),
        "tasks": [],
        "network": {"modes": 3, "tokens": 5, "embed": 8},
        "provenance": {},
        "instructions": list(INSTRUCTIONS),
        "embeddings": toy_embeddings(INSTRUCTIONS),
        "graphs": {"step.onnx": b"", "instruction.onnx": b""},
    }
    with pytest.raises(BundleError, match=message):
        write_bundle(tmp_path / "bundle", **(arguments | change))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError, match="starts with a dot"):
        write_bundle(tmp_path / ".hidden", **arguments)


# --- bad bundles, one mistake each -----------------------------------------------------------------------------------


def _tampered(path: Path) -> None:
    data = bytearray((path / "step.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "step.onnx").write_bytes(data)


def _link(path: Path) -> None:
    (path / "step.onnx").rename(path.parent / "elsewhere.onnx")
    (path / "step.onnx").symlink_to(path.parent / "elsewhere.onnx")


def _pipe(path: Path) -> None:
    (path / "step.onnx").unlink()
    os.mkfifo(path / "step.onnx")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "tampered": (_tampered, r"step.onnx' was changed or damaged: its sha256 .* copy the bundle again"),
    "missing": (lambda p: (p / "step.onnx").unlink(), "lacks the file 'step.onnx' that its manifest lists; copy"),
    "extra": (
        lambda p: (p / "notes.txt").write_text("hello"),
        "holds a file 'notes.txt' that its manifest does not list; remove it",
    ),
    "extra folder": (lambda p: (p / "more").mkdir(), "holds a file 'more' that its manifest does not list"),
    "version": (
        lambda p: edit_manifest(p, lambda m: m.update(format_version=2)),
        "is of format version 2; this software reads version 1; export the bundle again",
    ),
    "version true": (lambda p: edit_manifest(p, lambda m: m.update(format_version=True)), "format version True"),
    "no manifest": (lambda p: (p / "bundle.json").unlink(), "holds no 'bundle.json', so it is not a bundle"),
    "manifest cut": (
        lambda p: write_manifest(p, (p / "bundle.json").read_bytes()[:100]),
        r"bundle.json' is not JSON \(.*; copy the bundle",
    ),
    "manifest binary": (lambda p: write_manifest(p, b"\xff\xfe\x00"), "is not JSON"),
    "manifest deep": (lambda p: write_manifest(p, b"[" * 100_000), "is not JSON"),
    "manifest list": (lambda p: write_manifest(p, b"[]"), "holds a list; it must hold a JSON object"),
    "no tasks": (lambda p: edit_manifest(p, lambda m: m.pop("tasks")), "has nothing at 'tasks'; it must be a list"),
    "files a list": (
        lambda p: edit_manifest(p, lambda m: m.update(files=[])),
        "has list at 'files'; it must be an obj",
    ),
    "task": (lambda p: edit_manifest(p, lambda m: m["tasks"].append({"name": 3})), r"at 'tasks\[2\]'; a name and an"),
    "hash": (lambda p: edit_manifest(p, lambda m: m["files"].update({"step.onnx": 7})), "gives 7 as the sha256 of"),
    "path": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"../x": "0" * 64})),
        "plain names without folders",
    ),
    "modes": (lambda p: edit_manifest(p, lambda m: m["network"].update(modes=0)), "has 0 at 'network.modes'; a whole"),
    "contract": (
        lambda p: edit_manifest(p, lambda m: m["contract"].pop("rate_hz")),
        r"bundle.json': the contract has no 'rate_hz'.*; copy",
    ),
    "contract range": (
        lambda p: edit_manifest(p, lambda m: m["contract"].update(rate_hz=0)),
        "rate_hz is 0; a positive number is needed",
    ),
    "no text": (lambda p: edit_manifest(p, lambda m: m["contract"].update(text=None)), "has no text encoder"),
    "npz damaged": (lambda p: replace_file(p, "instructions.npz", b"PK\x03\x04junk"), r"npz' cannot be read \("),
    "npz text": (lambda p: replace_file(p, "instructions.npz", b"hello"), r"npz' cannot be read \("),
    "npz keys": (
        lambda p: replace_file(p, "instructions.npz", packed(texts=np.array(["a"]))),
        r"it holds \['texts'\], not 'instructions' and 'embeddings'",
    ),
    "npz pickle": (
        lambda p: replace_file(
            p,
            "instructions.npz",
            packed(instructions=np.array(["a", None], dtype=object), embeddings=np.zeros((2, TEXT), np.float32)),
        ),
        r"npz' cannot be read \(Object arrays cannot be loaded",
    ),
    "npz dtype": (
        lambda p: replace_file(
            p,
            "instructions.npz",
            packed(instructions=np.array(INSTRUCTIONS), embeddings=np.zeros((2, TEXT), np.float64)),
        ),
        r"'embeddings' is float64 \(2, 12\)",
    ),
    "npz bytes": (
        lambda p: replace_file(
            p,
            "instructions.npz",
            packed(instructions=np.array([b"a", b"b"]), embeddings=np.zeros((2, TEXT), np.float32)),
        ),
        "a list of at least one text is needed",
    ),
    "link": (_link, "step.onnx' is not a plain file"),
    "pipe": (_pipe, "step.onnx' is not a plain file"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_bundle_is_refused_with_its_message(path: Path, case: str) -> None:
    damage, message = BAD[case]
    damage(path)
    with pytest.raises(BundleError, match=message):
        open_bundle(path)


def test_not_there_and_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no bundle at .* give the folder that 'm2distill export' wrote"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"is not a folder; a bundle is a folder that holds 'bundle\.json'"):
        open_bundle(tmp_path / "file")


def test_damaged_bundle_raises_only_bundle_errors(path: Path) -> None:
    """Random bytes flipped and files truncated, with matching hashes in the manifest: only our own errors."""
    rng = np.random.default_rng(0)
    originals = {p.name: p.read_bytes() for p in path.iterdir()}
    for _ in range(150):
        for file, original in originals.items():
            (path / file).write_bytes(original)
        name = str(rng.choice(["bundle.json", "instructions.npz"]))
        data = bytearray(originals[name])
        if rng.random() < 0.3:
            data = data[: int(rng.integers(len(data)))]
        for _ in range(int(rng.integers(1, 4))):
            if data:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        if name == "bundle.json":
            write_manifest(path, bytes(data))
        else:
            replace_file(path, name, bytes(data))
        try:
            open_bundle(path)
        except BundleError as error:
            assert str(path) in str(error)
