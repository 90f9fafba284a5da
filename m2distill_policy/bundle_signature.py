"""Sign a bundle and verify its signature: Ed25519 over the manifest, which holds the sha256 of every other file.

A digest finds damage. A signature finds tampering: who does not have the private key cannot make one, whatever else of
the bundle is rewritten. ``bundle.json.sig`` is the raw signature, 64 bytes, so that OpenSSL reads it too::

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

#: Bytes of a key file; one of Ed25519 has some hundred.
_LARGEST_KEY = 65_536


@dataclass(frozen=True)
class PublicKey:
    """The key that bundles must be signed with. path: where it was read from, for messages."""

    path: Path
    _key: Ed25519PublicKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PublicKey:
        """Read a public key.

        Args:
            path: PEM file, as ``m2distill sign --new-key`` or ``openssl pkey -pubout`` writes it.

        Raises:
            ConfigError: the file cannot be read or is not an Ed25519 public key.
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
            where: the bundle's folder, for messages.
            manifest: content of ``bundle.json``.
            signature: content of ``bundle.json.sig``; None where there is no such file.

        Raises:
            BundleError: the bundle is not signed, or not with this key, or was changed since.
        """
        from cryptography.exceptions import InvalidSignature

        if signature is None:
            raise BundleError(
                f"bundle '{where}' is not signed, and '{self.path}' is configured as the key that bundles must be "
                "signed with; sign it with 'm2distill sign', or give a bundle from a source that does"
            )
        try:
            self._key.verify(signature, manifest)
        except InvalidSignature as error:
            raise BundleError(
                f"the signature of bundle '{where}' is not one of the key '{self.path}' for this '{MANIFEST}': it was "
                "changed since it was signed, or signed with another key; do not use it before you know which"
            ) from error


def sign_manifest(path: Path, manifest: bytes, key_path: str | os.PathLike[str]) -> None:
    """Write the signature of a bundle that was verified, over an earlier one.

    Args:
        path: the bundle's folder.
        manifest: content of its ``bundle.json``.
        key_path: PEM file of the private key.

    Raises:
        ConfigError: the key cannot be read or is not an Ed25519 private key.
        BundleError: the signature cannot be written.
    """
    key_path = Path(key_path)
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(_read_key(key_path), password=None)
    except (OSError, ValueError, TypeError, _unsupported()) as error:  # TypeError: a key with a password
        raise ConfigError(_no_key(key_path, "private", error)) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(_no_key(key_path, "private", f"it is a {type(key).__name__}"))
    # Beside the folder, in which nothing may lie that the manifest does not list.
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
        path: PEM file for the private key, readable by its owner alone; nothing may be there yet.

    Returns:
        The file of the public key beside it: ``key.pub.pem`` for ``key.pem``.

    Raises:
        ConfigError: one of the two files exists already or cannot be written. Neither is left behind.
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
    """The parts of the package that are used, imported when a signature is asked for and not before."""
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
