"""Configuration: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from m2distill_policy.config import from_dict, from_json, load_config, read_file, to_dict, to_json
from m2distill_policy.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int | None = 10

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr is {self.lr}; it must be positive")


@dataclass(frozen=True)
class Term:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Run:
    name: str
    strategy: Literal["m2distill", "sequential", "er"] = "m2distill"
    steps: int = 400
    augment: bool = True
    channels: tuple[int, ...] = (32, 64)
    out: Path | None = None
    # The older spelling must work as well as `float | None`.
    clip: Optional[float] = None  # noqa: UP045
    optimizer: Optimizer = field(default_factory=Optimizer)
    teacher: Optimizer | None = None
    weights: dict[str, float] = field(default_factory=dict)
    terms: tuple[Term, ...] = ()
    seed: int | str = 0


TOML = """
name = "first"
steps = 10
channels = [8, 16]
out = "runs/first"
clip = 1

[optimizer]
lr = 1
betas = [0.5, 0.9]

[weights]
image = 2.0

[[terms]]
name = "text"
"""

YAML = """
name: first
steps: 10
channels: [8, 16]
out: runs/first
clip: 1
optimizer: {lr: 1e0, betas: [0.5, 0.9]}
weights: {image: 2.0}
terms:
  - name: text
"""

EXPECTED = Run(
    name="first",
    steps=10,
    channels=(8, 16),
    out=Path("runs/first"),
    clip=1.0,
    optimizer=Optimizer(lr=1.0, betas=(0.5, 0.9)),
    weights={"image": 2.0},
    terms=(Term("text"),),
)


@pytest.mark.parametrize(("suffix", "text"), [(".toml", TOML), (".yaml", YAML), (".yml", YAML)])
def test_toml_and_yaml_read_the_same(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"run{suffix}"
    path.write_text(text)
    config = load_config(Run, path)
    assert config == EXPECTED
    assert isinstance(config.clip, float), "an int in a float's place becomes a float"


def test_json_file_and_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(EXPECTED))
    assert load_config(Run, path) == EXPECTED
    assert from_json(Run, to_json(EXPECTED)) == EXPECTED
    assert from_dict(Run, to_dict(EXPECTED)) == EXPECTED
    assert json.loads(to_json(EXPECTED))["out"] == "runs/first"


def test_defaults_without_a_file() -> None:
    assert load_config(Run, None, ["name=x"]) == Run("x")


@pytest.mark.parametrize(
    ("override", "field_name", "value"),
    [
        ("steps=7", "steps", 7),
        ("augment=false", "augment", False),
        ("strategy=er", "strategy", "er"),
        ("channels=4,8,16", "channels", (4, 8, 16)),
        ("channels=[4]", "channels", (4,)),
        ("channels=4", "channels", (4,)),
        ("channels=", "channels", ()),
        ("out=a=b", "out", Path("a=b")),
        ("name=12", "name", "12"),
        ("clip=1e-2", "clip", 0.01),
        ("clip=none", "clip", None),
        ("seed=3", "seed", 3),
        ("seed=three", "seed", "three"),
        ("optimizer.lr=1e-4", "optimizer", Optimizer(lr=1e-4)),
        ("optimizer.warmup=null", "optimizer", Optimizer(warmup=None)),
        ("optimizer.betas=0.1,0.2", "optimizer", Optimizer(betas=(0.1, 0.2))),
        ('optimizer={"lr": 0.5}', "optimizer", Optimizer(lr=0.5)),
        ("teacher.lr=2", "teacher", Optimizer(lr=2.0)),
        ("weights.text=0.5", "weights", {"text": 0.5}),
        ('terms=[{"name": "a"}]', "terms", (Term("a"),)),
    ],
)
def test_overrides_are_read_by_type(override: str, field_name: str, value: Any) -> None:
    config = load_config(Run, None, ["name=x", override])
    assert getattr(config, field_name) == value
    assert type(getattr(config, field_name)) is type(value)


def test_overrides_win_over_the_file_and_later_over_earlier(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    config = load_config(Run, path, ["optimizer.lr=3", "optimizer.lr=4", "weights.text=1"])
    assert config.optimizer == Optimizer(lr=4.0, betas=(0.5, 0.9)), "the rest of the section stays"
    assert config.weights == {"image": 2.0, "text": 1.0}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["step=3"], ["unknown key 'step'", "did you mean 'steps'?"]),
        (["optimizer.rl=3"], ["unknown key 'optimizer.rl'", "did you mean 'optimizer.lr'?"]),
        (["betas=1,2"], ["unknown key 'betas'", "did you mean 'optimizer.betas'?"]),
        (["optimiser.lr=3"], ["unknown key 'optimiser'", "did you mean 'optimizer'?"]),
        (["zzz=1"], ["unknown key 'zzz'", "known here: name, strategy"]),
        (["steps=1.5"], ["'steps' is '1.5'", "allowed is int"]),
        (["augment=yes"], ["'augment' is 'yes'", "allowed is bool"]),
        (["strategy=m2distil"], ["'m2distill', 'sequential', 'er'", "did you mean 'm2distill'?"]),
        (["channels=1,x"], ["'channels[1]' is 'x'", "int"]),
        (["optimizer.betas=1"], ["'optimizer.betas' has 1 entries", "exactly 2"]),
        (["optimizer=3"], ["'optimizer' is 3", "a table with"]),
        (["optimizer.lr=-1"], ["in 'optimizer'", "lr is -1.0; it must be positive"]),
        (["optimizer.lr=nan"], ["'optimizer.lr' is nan", "finite"]),
        (["steps.x=3"], ["'steps' is int, which has no keys"]),
        (["steps"], ["'steps' must have the form key=value"]),
        (["=3"], ["'=3' must have the form key=value"]),
        (['terms=[{"weight": 2}]'], ["'terms[0].name' is not given"]),
        (["weights.text=heavy"], ["'weights.text' is 'heavy'", "float"]),
        (["teacher.lr=x"], ["'teacher.lr' is 'x'", "float"]),
    ],
)
def test_mistakes_are_named(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, None, ["name=x", *overrides])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "'name' is not given"),
        ({"name": 3}, "'name' is 3 (int); allowed is str"),
        ({"name": "x", "steps": True}, "'steps' is True (bool); allowed is int"),
        ({"name": "x", "clip": True}, "'clip' is True (bool); allowed is float or null"),
        ({"name": "x", "augment": 1}, "'augment' is 1 (int); allowed is bool"),
        ({"name": "x", "steps": 1.0}, "'steps' is 1.0 (float); allowed is int"),
        ({"name": "x", "channels": "32"}, "'channels' is '32' (str); allowed is a list of int"),
        ({"name": "x", "optimizer": None}, "'optimizer' is None"),
        ({"name": "x", "seed": 1.5}, "'seed' is 1.5 (float); allowed is int or str"),
        ([], "'Run' is [] (list)"),
    ],
)
def test_wrong_types_say_what_was_got_and_what_is_allowed(data: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Run, data)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "name = ", "is not valid TOML"),
        ("a.toml", "name = 'x'\nname = 'y'", "is not valid TOML"),
        ("a.yaml", "name: x\nname: y", "the key 'name' is given twice"),
        ("a.yaml", "name: [", "is not valid YAML"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("a.yaml", "- 1", "a list at the top"),
        ("a.yaml", "", "'name' is not given"),
        ("a.json", "{", "is not valid JSON"),
        ("a.ini", "", "ends in .toml, .yaml, .yml, .json; got '.ini'"),
        ("a.toml", "name = 'x'\nstep = 3", "did you mean 'steps'?"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read"):
        read_file(tmp_path / "nothing.toml")


def test_yaml_reads_an_exponent_as_a_number(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3 as text, which every second learning rate falls into.
    path = tmp_path / "a.yaml"
    path.write_text("name: 1e-3x\noptimizer: {lr: 1e-3}\n")
    config = load_config(Run, path)
    assert config.optimizer.lr == 1e-3
    assert config.name == "1e-3x"


def test_an_annotation_that_is_not_supported_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="does not support"):
        from_dict(Unsupported, {"values": [1]})


@dataclass(frozen=True)
class Unsupported:
    values: list[int]
