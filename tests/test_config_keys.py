"""Every configuration key is documented, the reference is up to date, and files extend one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2distill_policy.cli import main
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.config_keys import describe_keys, explain
from m2distill_policy.errors import ConfigError
from training.run_config import RunConfig, reference

ROOT = Path(__file__).parent.parent


def _leaves(data: dict[str, object], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for key, value in data.items():
        names |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return names


def test_every_key_is_documented() -> None:
    keys = {key.name: key for key in describe_keys(RunConfig)}
    config = load_config(RunConfig, None, ["ewc.weight=1", "packnet.prune=0.5"])
    assert _leaves(to_dict(config)) == {name for name, key in keys.items() if not key.is_section}
    for key in keys.values():
        assert key.meaning.endswith((".", ")")), key
        assert key.is_section or (key.type and key.default), key


def test_the_reference_is_up_to_date() -> None:
    page = ROOT / "docs" / "reference" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference(), "run: m2distill config --markdown > " + str(page)


def test_a_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--explain", "optim.warmup"]) == 0
    said = capsys.readouterr().out
    assert "optim.warmup" in said and "int" in said and "steps" in said and "default  0" in said
    assert explain(RunConfig, "ewc").count("ewc.") >= 3
    with pytest.raises(ConfigError, match=r"no configuration key 'warmup'; did you mean 'optim\.warmup'"):
        explain(RunConfig, "warmup")
    assert main(["config", "--explain", "optim.lr", "optim.lr=3"]) == 2


def test_a_whole_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--config", str(ROOT / "config" / "libero_small.toml"), "optim.batch=8"]) == 0
    said = capsys.readouterr().out
    assert '"batch": 8' in said and '"later_lr": 0.0007' in said and '"suite": "libero_object"' in said


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "base.toml").write_text("episodes = 9\n[optim]\nlr = 1e-3\nbatch = 7\n[memory]\nepisodes = 2\n")
    child = tmp_path / "folder" / "child.yaml"
    child.write_text("extends: ../base.toml\ntasks: [4]\noptim: {batch: 3}\n")
    config = load_config(RunConfig, child, ["memory.replay_batch=5"])
    assert (config.episodes, config.tasks) == (9, (4,))
    assert (config.optim.lr, config.optim.batch) == (1e-3, 3), "tables are merged, the child's values win"
    assert (config.memory.episodes, config.memory.replay_batch) == (2, 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "a.toml"', "extend one another in a circle"),
        ('extends = "nothing.toml"', r"nothing\.toml: cannot be read"),
        ("extends = 3", "'extends' is 3"),
    ],
)
def test_a_wrong_extends_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(RunConfig, tmp_path / "a.toml")
