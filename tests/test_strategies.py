"""Strategies are registered by their classes alone, and one file adds one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from m2distill_policy.config import from_dict, load_config, to_dict
from m2distill_policy.errors import ConfigError
from tests.training_fixtures import CONTRACT, config, task_data
from training.lifelong import strategies
from training.lifelong.memory import Memory
from training.lifelong.stage import train_stage
from training.lifelong.strategies import import_strategies, make_strategy, sections, strategy_class, strategy_names
from training.lifelong.strategies.sequential import Sequential
from training.lifelong.strategy import REGISTERED
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig, first_difference

EXAMPLE = Path(__file__).parent.parent / "examples" / "add_a_strategy.py"


@pytest.fixture
def clean() -> Iterator[None]:
    """Forget what a test registers and imports."""
    registered, imported = dict(REGISTERED), list(strategies.IMPORTED)
    yield
    REGISTERED.clear()
    REGISTERED.update(registered)
    strategies.IMPORTED[:] = imported
    for name in ("add_a_strategy", "another_anchor", "empty_strategy"):
        sys.modules.pop(name, None)


def test_every_file_of_the_package_is_registered() -> None:
    files = {path.stem for path in Path(strategies.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(strategy_names()) == files
    assert set(sections()) == {"distill", "ewc", "packnet"}


@pytest.mark.usefixtures("clean")
def test_one_file_adds_a_strategy_with_its_section(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    with pytest.raises(ConfigError, match=r"strategy is 'anchor'; allowed are .*--import"):
        load_config(RunConfig, "config/tiny.toml", ["strategy=anchor"])
    import_strategies([str(EXAMPLE)])
    import_strategies([str(EXAMPLE)])  # again: nothing happens
    made = load_config(RunConfig, "config/tiny.toml", ["strategy=anchor", "anchor.weight=3"])
    assert to_dict(made)["anchor"] == {"weight": 3.0} and from_dict(RunConfig, to_dict(made)) == made
    assert made.strategy_class.describe(made) == "weight anchor"
    with pytest.raises(ConfigError, match=r"anchor\.weight is -1"):
        load_config(RunConfig, None, ["anchor.weight=-1"])

    run = config(strategy="anchor")
    torch.manual_seed(0)
    policy = ResNetT(run.network, CONTRACT)
    seen: list[dict[str, float]] = []
    for stage in range(2):
        strategy = make_strategy(run, Memory(run.memory), CONTRACT.history)
        data, folder = task_data(stage), tmp_path / str(stage)
        folder.mkdir()
        train_stage(policy, strategy, data, run, stage, folder, lambda s, n, terms: seen.append(terms), lambda p: None)
    steps = run.optim.steps
    assert all("distance" not in terms for terms in seen[:steps])
    assert seen[steps]["distance"] == 0 and seen[-1]["distance"] > 0


@pytest.mark.usefixtures("clean")
def test_what_is_imported_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.py: there is no such file"):
        import_strategies([str(tmp_path / "nothing.py")])
    with pytest.raises(ConfigError, match=r"--import no_such_module_here: there is no such module"):
        import_strategies(["no_such_module_here"])
    (tmp_path / "empty_strategy.py").write_text("")
    with pytest.raises(ConfigError, match=r"empty_strategy\.py registers no strategy"):
        import_strategies([str(tmp_path / "empty_strategy.py")])
    copy = shutil.copy(EXAMPLE, tmp_path / "another_anchor.py")
    import_strategies([str(EXAMPLE)])
    with pytest.raises(TypeError, match="are both named 'anchor'"):
        import_strategies([str(copy)])
    with pytest.raises(TypeError, match="small letters"):
        type("Bad", (Sequential,), {"name": "Bad Name"})


@pytest.mark.usefixtures("clean")
def test_a_file_with_a_configuration_imports_nothing(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path / "add_a_strategy.py")
    (tmp_path / "run.toml").write_text('strategy = "add_a_strategy:Anchor"')
    with pytest.raises(ConfigError, match="strategy is 'add_a_strategy:Anchor'"):
        load_config(RunConfig, tmp_path / "run.toml")
    assert "add_a_strategy" not in sys.modules


def test_only_sections_that_a_strategy_reads_make_another_run() -> None:
    with_default, with_section = (
        to_dict(load_config(RunConfig, None, ["strategy=er", "memory.episodes=1", *more]))
        for more in ([], ["ewc.weight=7"])
    )
    assert "ewc" not in with_default and with_section["ewc"]["weight"] == 7.0
    assert first_difference(with_default, with_section) is None


@pytest.mark.parametrize("name", strategy_names())
def test_properties_fit_together(name: str) -> None:
    found = strategy_class(name)
    assert found.name == name and found.label
    assert not (found.learns_jointly and (found.uses_memory or found.network_per_task))
    if found.network_per_task or found.learns_jointly:
        assert not found.shares_first_stage
    if found.config_class is not None:
        assert sections()[found.section] is found.config_class
        assert found.quick(found.config_class()) is not None
