"""Sign a bundle and verify its signature: Ed25519 over the manifest, which contains the sha256 of every other file.

A digest detects damage. A signature detects tampering, because it can be made only with the private key.
``bundle.json.sig`` is the raw signature, 64 bytes, which OpenSSL can verify too::

    openssl pkeyutl -verify -pubin -inkey key.pub.pem -rawin -in bundle.json -sigfile bundle.json.sig
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2distill_policy.bundle_files import MANIFEST, SIGNATURE
from m2distill_policy.errors import BundleError, ConfigError
from m2distill_policy.installation import install_command
from m2distill_policy.storage import write_new

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Largest size of a key file in bytes; an Ed25519 key file has some hundred bytes.
_LARGEST_KEY = 65_536


@dataclass(frozen=True)
class PublicKey:
    """The key with which bundles must be signed. path: File of the key, for messages."""

    path: Path
    _key: Ed25519PublicKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PublicKey:
        """Read a public key.

        Args:
            path: PEM file, as written by ``m2distill sign --new-key`` or ``openssl pkey -pubout``.

        Raises:
            ConfigError: The file cannot be read, or is not an Ed25519 public key.
        """
        path = Path(path)
        serialization, ed25519 = _cryptography()
        try:
            key = serialization.load_pem_public_key(_read_key(path))
        except (OSError, ValueError, _unsupported()) as error:
            raise ConfigError(_no_key(path, "public", error)) from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise ConfigError(_no_key(path, "public", f"it is a {type(key).__name__}"))
        return cls(path, key)

    def verify(self, where: Path, manifest: bytes, signature: bytes | None) -> None:
        """Check the signature of a bundle.

        Args:
            where: Folder of the bundle, for messages.
            manifest: Content of ``bundle.json``.
            signature: Content of ``bundle.json.sig``; None if there is no such file.

        Raises:
            BundleError: The bundle is not signed, is signed with another key, or was changed after signing.
        """
        from cryptography.exceptions import InvalidSignature

        if signature is None:
            raise BundleError(
                f"bundle '{where}' is not signed, but bundles must be signed with the key '{self.path}'; sign it with "
                "'m2distill sign', or get a signed bundle"
            )
        try:
            self._key.verify(signature, manifest)
        except InvalidSignature as error:
            raise BundleError(
                f"the signature of bundle '{where}' does not fit the key '{self.path}' and this '{MANIFEST}': it was "
                "changed since it was signed, or signed with another key; do not use it until you know which"
            ) from error


def sign_manifest(path: Path, manifest: bytes, key_path: str | os.PathLike[str]) -> None:
    """Write the signature of a verified bundle, replacing an earlier one.

    Args:
        path: Folder of the bundle.
        manifest: Content of ``bundle.json``.
        key_path: PEM file of the private key.

    Raises:
        ConfigError: The key cannot be read, or is not an Ed25519 private key.
        BundleError: The signature cannot be written.
    """
    key_path = Path(key_path)
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(_read_key(key_path), password=None)
    except (OSError, ValueError, TypeError, _unsupported()) as error:  # TypeError: the key has a password
        raise ConfigError(_no_key(key_path, "private", error)) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(_no_key(key_path, "private", f"it is a {type(key).__name__}"))
    # Written outside the folder, because a file that the manifest does not list would make the bundle invalid.
    temporary = path.absolute().parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.write_bytes(key.sign(manifest))
        temporary.replace(path / SIGNATURE)
    except OSError as error:
        raise BundleError(f"the signature of '{path}' could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_new_key(path: str | os.PathLike[str]) -> Path:
    """Make a key pair.

    Args:
        path: New PEM file for the private key, readable only by its owner.

    Returns:
        The file of the public key next to it: ``key.pub.pem`` for ``key.pem``.

    Raises:
        ConfigError: One of the files exists already or cannot be written. Then neither is written.
    """
    path = Path(path)
    public = path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem")
    serialization, ed25519 = _cryptography()
    key: Ed25519PrivateKey = ed25519.Ed25519PrivateKey.generate()
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        write_new({path: (private_pem, 0o600), public: (public_pem, 0o644)})
    except FileExistsError as error:
        raise ConfigError(f"'{error.filename}' exists already; choose another name for the new key") from error
    except OSError as error:
        raise ConfigError(f"the key '{path}' could not be written: {error}; choose another place") from error
    return public


def _cryptography() -> tuple[Any, Any]:
    """Import and return ``serialization`` and ``ed25519`` of cryptography. Called only if signatures are used."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigError(
            "signatures need the package 'cryptography', which is not installed; install it: "
            f"{install_command('robot')}"
        ) from error
    return serialization, ed25519


def _unsupported() -> type[Exception]:
    from cryptography.exceptions import UnsupportedAlgorithm

    return UnsupportedAlgorithm


def _read_key(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    with path.open("rb") as file:
        return file.read(_LARGEST_KEY)


def _no_key(path: Path, kind: str, reason: object) -> str:
    return (
        f"'{path}' cannot be read as an Ed25519 {kind} key in PEM format without password: {reason}; "
        "'m2distill sign --new-key' makes a pair of keys"
    )
