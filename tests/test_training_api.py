"""The public calls of the training package, on small demonstration files without a simulator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import training
from m2distill_policy.bundle import open_bundle
from m2distill_policy.config import load_config
from m2distill_policy.errors import ConfigError, TrainingError
from tests.test_training_files import OWN, _demonstrate


def test_train_resume_extend_and_evaluate(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, instruction in (("a", "lift the red box"), ("b", "lift the green box"), ("c", "lift the blue box")):
        _demonstrate(data, name, instruction)
    config = load_config(training.RunConfig, "config/tiny.toml", OWN)
    trained = training.train(config, data, tmp_path / "run", stages=1, quiet=True)
    assert trained.results is None and trained.bundle == trained.run.bundle_folder(0)
    with pytest.raises(TrainingError, match=r"stage 1 of .* is not trained yet"):
        training.evaluate(tmp_path / "run")
    assert training.resume(tmp_path / "run", quiet=True).bundle == trained.run.bundle_folder(1)
    again = training.train(config, data, tmp_path / "run", quiet=True)
    assert again.bundle is not None and open_bundle(again.bundle).task_names == ("a", "b")
    with pytest.raises(ConfigError, match="there is nothing to evaluate"):
        training.evaluate(tmp_path / "run", quiet=True)
    criteria = training.ReleaseCriteria(publish=str(tmp_path / "watched"))
    with pytest.raises(ConfigError, match="suite=files has no simulator"):
        training.extend(tmp_path / "run", [2], data, tmp_path / "more", release=criteria)
    more = training.extend(tmp_path / "run", [2], data, tmp_path / "more", quiet=True)
    assert more.bundle is not None and open_bundle(more.bundle).task_names == ("a", "b", "c")


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, training; print('torch' in sys.modules, hasattr(training, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "False"]
