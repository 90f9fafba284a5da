"""A signature detects tampering: with a public key, only bundles signed with its private key are accepted."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from m2distill_policy.bundle import open_bundle
from m2distill_policy.bundle_files import MANIFEST, SIGNATURE
from m2distill_policy.bundle_signature import PublicKey, write_new_key
from m2distill_policy.bundle_writer import sign_bundle
from m2distill_policy.cli import main
from m2distill_policy.errors import BundleError, ConfigError, M2DistillError
from m2distill_policy.runtime.folder_watcher import FolderWatcher
from m2distill_policy.runtime.probe import open_and_prove
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import SwapState
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, edit_manifest, observations, replace_file, toy_contract, toy_graphs, write_toy

WAIT = 60.0


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_new_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def public(key: Path) -> PublicKey:
    return PublicKey.load(key.with_name("key.pub.pem"))


@pytest.fixture
def path(tmp_path: Path, key: Path) -> Path:
    sign_bundle(write_toy(tmp_path / "bundle", seed=3), key)
    return tmp_path / "bundle"


def test_signed_bundle_opens_with_and_without_the_key(path: Path, public: PublicKey) -> None:
    assert open_bundle(path, public_key=public).digest == open_bundle(path).digest
    assert len((path / SIGNATURE).read_bytes()) == 64
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


def _other_response(path: Path) -> None:
    edit_manifest(path, lambda m: m["contract"]["action"].update(translation_scale=0.1))


TAMPERED: dict[str, Callable[[Path], object]] = {
    "no signature": lambda p: (p / SIGNATURE).unlink(),
    "empty": lambda p: (p / SIGNATURE).write_bytes(b""),
    "zeros": lambda p: (p / SIGNATURE).write_bytes(bytes(64)),
    "short": lambda p: (p / SIGNATURE).write_bytes((p / SIGNATURE).read_bytes()[:63]),
    "long": lambda p: (p / SIGNATURE).write_bytes((p / SIGNATURE).read_bytes() + b"\n"),
    "too long": lambda p: (p / SIGNATURE).write_bytes(bytes(10_000_000)),
    "link": lambda p: (p / SIGNATURE).symlink_to((p / SIGNATURE).rename(p.parent / "s")),
    # Everything else is made to fit: the file's hash, the manifest, its digest.
    "provenance": lambda p: edit_manifest(p, lambda m: m["provenance"].update(seed=4)),
    "scale": _other_response,
    "weights": lambda p: replace_file(p, "step.onnx", toy_graphs(toy_contract(), 4)["step.onnx"]),
    "spaces": lambda p: edit_manifest(p, lambda m: None),
    # What was signed earlier, with the same key, is no signature of this.
    "older": lambda p: shutil.copy(
        sign_bundle(write_toy(p.parent / "old", 8), p.parent / "key.pem").path / SIGNATURE, p
    ),
    "other key": lambda p: (write_new_key(p.parent / "other.pem"), sign_bundle(p, p.parent / "other.pem")),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_bundle_is_refused(path: Path, public: PublicKey, case: str) -> None:
    TAMPERED[case](path)
    with pytest.raises(BundleError):
        open_bundle(path, public_key=public)
    with pytest.raises(BundleError):
        open_and_prove(path, public_key=public)


def test_every_bit_of_the_signature(path: Path, public: PublicKey) -> None:
    manifest, signature = (path / MANIFEST).read_bytes(), (path / SIGNATURE).read_bytes()
    public.verify(path, manifest, signature)
    for place in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(BundleError):
            public.verify(path, manifest, bytes(changed))
    rng = np.random.default_rng(0)
    for place in rng.choice(8 * len(manifest), 500, replace=False):
        changed = bytearray(manifest)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(BundleError):
            public.verify(path, bytes(changed), signature)


def test_nothing_of_an_unsigned_manifest_is_used(
    path: Path, public: PublicKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> object:
        raise AssertionError("the manifest was parsed before its signature was verified")

    TAMPERED["scale"](path)
    monkeypatch.setattr("m2distill_policy.strict_json.parse", fails)
    with pytest.raises(BundleError):
        open_bundle(path, public_key=public)


def test_hot_swap_accepts_only_signed_bundles(tmp_path: Path, path: Path, key: Path, public: PublicKey) -> None:
    server = PolicyServer(open_and_prove(path, public_key=public), watch=WatchLimits.lockstep(), public_key=public)
    server.set_instruction(INSTRUCTIONS[0])
    first = server.bundle.digest
    unsigned = write_toy(tmp_path / "unsigned", 4)
    wrong = write_toy(tmp_path / "wrong", 5)
    write_new_key(tmp_path / "other.pem")
    sign_bundle(wrong, tmp_path / "other.pem")
    for bad in (unsigned, wrong, tmp_path / "wrong"):
        server.load(bad)
        assert server.wait_for_swap(WAIT).state is SwapState.REFUSED
        assert server.bundle.digest == first
    sign_bundle(unsigned, key)
    server.load(unsigned)
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    server.rollback()
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    assert server.bundle.digest == first
    step = observations(toy_contract(), 1)[0]
    assert server.step(step, step.stamp).sample is not None
    server.close()


def test_a_watched_bundle_is_taken_once_it_is_signed(tmp_path: Path, path: Path, key: Path, public: PublicKey) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    server = PolicyServer(open_bundle(path, public_key=public), watch=WatchLimits.lockstep(), public_key=public)
    watcher = FolderWatcher(watched, server.load)
    write_toy(watched / "next", 6)
    assert watcher.poll() == watched / "next"
    assert server.wait_for_swap(WAIT).state is SwapState.REFUSED
    assert watcher.poll() is None
    sign_bundle(watched / "next", key)
    assert watcher.poll() == watched / "next"
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    server.close()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_new_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    public = write_new_key(tmp_path / "robot.pem")
    assert public == tmp_path / "robot.pub.pem"
    assert stat.S_IMODE((tmp_path / "robot.pem").stat().st_mode) == 0o600
    before = (tmp_path / "robot.pem").read_bytes()
    for _ in range(2):
        with pytest.raises(ConfigError, match="exists already"):
            write_new_key(tmp_path / "robot.pem")
        public.unlink(missing_ok=True)
    assert (tmp_path / "robot.pem").read_bytes() == before
    with pytest.raises(ConfigError):
        write_new_key(tmp_path / "nowhere" / "key.pem")


def _pem(key: object, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined]


NO_KEYS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "zeros": lambda: bytes(10_000),
    "cut": lambda: _pem(ed25519.Ed25519PrivateKey.generate())[:60],
    "rsa": lambda: _pem(rsa.generate_private_key(65537, 2048)),
    "ecdsa": lambda: _pem(ec.generate_private_key(ec.SECP256R1())),
    "password": lambda: _pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
    "header alone": lambda: b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
}


@pytest.mark.parametrize("case", NO_KEYS)
def test_files_that_are_not_keys(tmp_path: Path, path: Path, case: str) -> None:
    file = tmp_path / "no.pem"
    file.write_bytes(NO_KEYS[case]())
    before = (path / SIGNATURE).read_bytes()
    for use in (lambda: PublicKey.load(file), lambda: sign_bundle(path, file)):
        with pytest.raises(ConfigError):
            use()
    assert (path / SIGNATURE).read_bytes() == before


def test_keys_are_not_mixed_up(path: Path, key: Path) -> None:
    with pytest.raises(ConfigError):
        PublicKey.load(key)
    with pytest.raises(ConfigError):
        sign_bundle(path, key.with_name("key.pub.pem"))
    with pytest.raises(ConfigError):
        PublicKey.load(path.parent)
    with pytest.raises(ConfigError):
        PublicKey.load(path / "nowhere.pem")


def test_a_damaged_bundle_is_not_signed(path: Path, key: Path) -> None:
    (path / SIGNATURE).unlink()
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes() + b" ")
    with pytest.raises(BundleError):
        sign_bundle(path, key)
    assert not (path / SIGNATURE).exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_keys_and_verifies(tmp_path: Path) -> None:
    private, public = tmp_path / "k.pem", tmp_path / "p.pem"
    for words in (
        ("genpkey", "-algorithm", "ed25519", "-out", str(private)),
        ("pkey", "-in", str(private), "-pubout", "-out", str(public)),
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
    path = sign_bundle(write_toy(tmp_path / "bundle"), private).path
    open_bundle(path, public_key=PublicKey.load(public))
    verify = ("pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin", "-in", str(path / MANIFEST))
    subprocess.run(["openssl", *verify, "-sigfile", str(path / SIGNATURE)], check=True, capture_output=True, timeout=60)


# --- the command -----------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, key, public = str(write_toy(tmp_path / "b")), str(tmp_path / "k.pem"), str(tmp_path / "k.pub.pem")
    assert main(["sign", "--new-key", key]) == 0
    assert main(["sign", bundle, "--verify", public]) == 2
    assert main(["sign", bundle, "--key", key]) == 0
    assert main(["sign", bundle, "--verify", public]) == 0
    assert main(["sign", bundle, "--key", public]) == 2
    assert main(["sign", "--key", key]) == 2
    assert main(["sign", bundle, "--new-key", str(tmp_path / "m.pem")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_serve_accepts_only_signed_bundles(tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unsigned = write_toy(tmp_path / "unsigned")
    assert main(["serve", str(unsigned), "--public-key", str(tmp_path / "key.pub.pem")]) == 2
    assert "is not signed" in capsys.readouterr().err
    assert main(["serve", str(unsigned), "--public-key", str(tmp_path / "nowhere.pem")]) == 2


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    real = __import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("builtins.__import__", without)
    open_bundle(path)
    with pytest.raises(M2DistillError, match="cryptography"):
        PublicKey.load(path.parent / "key.pub.pem")


@pytest.mark.parametrize("fails", range(1, 3))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_keys_are_both_written_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int, number: int
) -> None:
    left = [fails]
    fsync = os.fsync

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["sign", "--new-key", str(tmp_path / "key.pem")]) == 2
    assert not list(tmp_path.iterdir())
    assert main(["sign", "--new-key", str(tmp_path / "key.pem")]) == 0, "nothing blocks the same command"
    assert {path.name for path in tmp_path.iterdir()} == {"key.pem", "key.pub.pem"}


def test_a_key_that_is_there_stays_and_nothing_is_added(tmp_path: Path) -> None:
    for there in ("key.pem", "key.pub.pem"):
        folder = tmp_path / there.replace(".", "_")
        folder.mkdir()
        (folder / there).write_text("mine")
        with pytest.raises(ConfigError):
            write_new_key(folder / "key.pem")
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(there, "mine")]
