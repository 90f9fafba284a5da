"""Configuration that nobody here wrote: read, or refused by one ConfigError within a second or two."""

from __future__ import annotations

import random
import string
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from m2distill_policy.config import from_dict, from_json, load_config
from m2distill_policy.config_text import DEEPEST, LARGEST
from m2distill_policy.errors import ConfigError
from m2distill_policy.settings.arm import load_arm

ROOT = Path(__file__).resolve().parent.parent
#: s: far above what any text may take, far below the 40 s of a few aliases.
SOON = 10.0
BOMB = "[&a [x,x,x,x,x,x,x,x,x,x]" + "".join(
    f", &{name} [{','.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@dataclass(frozen=True)
class Inner:
    lr: float = 1.0
    names: tuple[str, ...] = ()
    free: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    name: str = ""
    steps: int = 1
    inner: Inner = field(default_factory=Inner)
    out: Path | None = None


BAD = [
    ("bomb.yaml", f"name: {BOMB}]"),
    ("bomb.yml", f"inner: {{free: {{a: {BOMB}]}}}}"),
    ("alias.yaml", "name: &a x\nout: *a"),
    ("merge.yaml", "inner: {<<: {lr: 1.0}}"),
    ("tag.yaml", "name: !!str 1"),
    ("tag.yaml", "inner: !!omap [a: 1]"),
    ("tag.yaml", "steps: !!bool maybe"),
    ("deep.yaml", f"name: {'[' * 5000}{']' * 5000}"),
    ("deep.yaml", "\n".join(f"{' ' * i}a:" for i in range(400))),
    ("deep.yaml", "- " * 3000 + "1"),
    ("deep.yaml", "? " * 3000 + "1"),
    ("deep.json", f'{{"name": {"[" * 100_000}'),
    ("deep.json", '{"a":' * 20_000),
    ("deep.toml", f"name = {'[' * 5000}{']' * 5000}"),
    ("deep.toml", f"name = {'{a=' * 3000}1{'}' * 3000}"),
    ("deep.toml", f"{'a.' * 60_000}a = 1"),
    ("deep.toml", f"[{'a . ' * 40_000}a]"),
    ("long.toml", f"steps = {'9' * 400}"),
    ("long.toml", f"steps = {'9' * 5000}"),
    ("long.toml", f"steps = 0x{'f' * 20_000}"),
    ("long.toml", f"inner.lr = {'9' * 400}"),
    ("long.toml", f"inner.lr = {'9' * 400}.0"),
    ("long.toml", "inner.free.x = nan"),
    ("long.yaml", f"steps: {'9' * 400}"),
    ("long.yaml", f"steps: {'9' * 5000}"),
    ("long.yaml", f"inner: {{lr: {'9' * 400}}}"),
    ("long.yaml", f"inner: {{lr: {'9' * 400}.0}}"),
    ("long.yaml", "inner: {lr: .nan}"),
    ("long.yaml", "inner: {lr: -.inf}"),
    ("long.yaml", "steps: 0x_"),
    ("long.yaml", f"inner: {{lr: {':'.join(['59'] * 400)}.0}}"),
    ("long.json", f'{{"steps": {"9" * 400}}}'),
    ("long.json", f'{{"inner": {{"lr": {"9" * 400}.0}}}}'),
    ("long.json", '{"inner": {"lr": NaN}}'),
    ("long.json", '{"inner": {"free": {"x": Infinity}}}'),
    ("twice.yaml", "name: x\nname: y"),
    ("twice.yaml", "inner: {free: {1: x, 0x1: y}}"),
    ("twice.yaml", "inner: {free: {yes: x, true: y}}"),
    ("twice.json", '{"name": "x", "name": "y"}'),
    ("twice.json", '{"inner": {"lr": 1, "lr": 2}}'),
    ("twice.toml", "name = 'x'\nname = 'y'"),
    ("key.yaml", "1: x"),
    ("key.yaml", "inner: {free: {? [a, b] : 1}}"),
    ("key.yaml", "inner: {free: {null: 1}}"),
    ("two.yaml", "name: x\n---\nname: y"),
    ("surrogate.yaml", 'name: "\\ud800"'),
    ("surrogate.json", '{"name": "\\ud800"}'),
    ("null.json", '{"out": "a\\u0000b"}'),
    ("control.yaml", "name: a\x01b"),
    ("large.yaml", "#" * (LARGEST + 1)),
    ("large.toml", "#" * (LARGEST + 1)),
    ("large.json", " " * (LARGEST + 1)),
    ("many.yaml", "a:\n" * (LARGEST // 3)),
    ("many.yaml", "name: [" + "a," * (LARGEST // 2 - 10) + "]"),
    ("many.yaml", "- - - a\n" * (LARGEST // 8)),
]


def _refused(path: Path, overrides: tuple[str, ...] = ()) -> str:
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path, overrides)
    assert time.monotonic() - began < SOON
    said = str(caught.value)
    assert "\n" not in said and len(said) < 800
    said.encode("utf-8")
    return said


@pytest.mark.parametrize(("name", "text"), BAD, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BAD)])
def test_what_cannot_be_a_configuration_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert str(path) in _refused(path)


@pytest.mark.parametrize("name", ["x.toml", "x.yaml", "x.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "name: x".encode("utf-16"), b"\x00" * 64, b'{"name": "\xe9"}'])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert str(path) in _refused(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yaml")  # reading it would wait for a writer
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "folder.toml", "endless.json"):
        assert "regular file" in _refused(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "name: 2026-11-27\nsteps: 3"),
        ("a.toml", "name = '2026-11-27'\nsteps = 3"),
        ("a.json", '{"name": "2026-11-27", "steps": 3}'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, name: str, text: str, mark: str) -> None:
    path = tmp_path / name
    path.write_text(mark + text, encoding="utf-8")
    assert load_config(Outer, path) == Outer(name="2026-11-27", steps=3)


@pytest.mark.parametrize(
    "override",
    [
        f"steps={'9' * 400}",
        f"steps={'9' * 5000}",
        f"inner.lr={'9' * 400}",
        f"inner.lr=1e{'9' * 400}",
        "inner.lr=nan",
        'inner={"lr": 1, "lr": 2}',
        'inner={"lr": NaN}',
        f'inner={{"free": {"[" * 5000}}}',
        f"inner.names={'[' * 5000}",
        "inner.free.x=NaN",
        "inner.free.x=1e999",
        "out=a\0b",
        f"{'a' * 10_000}=1",
        "a" * 10_000,
        "name=\udcff",
    ],
)
def test_overrides_are_held_to_the_same(override: str) -> None:
    began = time.monotonic()
    try:
        made = load_config(Outer, None, [override])
    except ConfigError as error:
        assert len(str(error)) < 800
        str(error).encode("utf-8")
    else:  # text that is no number stays text where text is allowed
        assert "free" in override and isinstance(made.inner.free["x"], str)
    assert time.monotonic() - began < SOON


def test_dictionaries_from_elsewhere_are_held_to_the_same() -> None:
    for data in ({"steps": 10**400}, {"inner": {"lr": 10**400}}, {"inner": {"lr": -(10**400)}}, {"name": 10**9000}):
        with pytest.raises(ConfigError):
            from_dict(Outer, data)
    for text in ('{"steps": 1, "steps": 2}', "[" * 100_000, '{"inner": {"lr": NaN}}'):
        with pytest.raises(ConfigError):
            from_json(Outer, text)


def test_the_commands_refuse_a_bomb_at_once(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(f"suite: {BOMB}]")
    (tmp_path / "arm.yaml").write_text(f"safety: {{speed: {BOMB}]}}")
    with pytest.raises(ConfigError):
        load_arm(tmp_path / "arm.yaml")
    words = ["train", "--config", str(tmp_path / "bomb.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "m2distill_policy", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "alias" in done.stderr
    assert not (tmp_path / "run").exists()


# --- generated -------------------------------------------------------------------------------------------------------

_SEEDS = {
    ".yaml": (
        "name: first\nsteps: 10\ninner:\n  lr: 1e-3\n  names: [a, 'b']\n  free: {x: 1, y: [1.5, ~, true]}\nout: runs\n"
    ),
    ".toml": "name = 'first'\nsteps = 10\n[inner]\nlr = 1e-3\nnames = ['a']\n[inner.free]\nx = [1.5, true]",
    ".json": '{"name": "first", "steps": 10, "inner": {"lr": 1e-3, "names": ["a"], "free": {"x": [1.5, null, true]}}}',
}
_PIECES = [
    *"[]{}:,-?&*!|>%@`#\"'=.\\\n\t 019eEx_+~<",
    *("&a ", "*a", "<<: ", "!!float ", "!!set ", "---\n", "0x", "1e999", ".nan", "nan", "-inf", "\\ud800", "\x00"),
    *("9" * 400, "[" * 100, "{" * 100, "- " * 100, "a." * 100, "\ufeff", "\u2028", "2026-99-99", "'''", '"""'),
]


def _garbled(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(_PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 8) :]
        elif kind == 2:
            text = text[:at] + text[max(0, at - rng.randint(1, 40)) :]
        else:
            text = text[:at] + rng.choice(string.printable) * rng.randint(1, 60) + text[at + 1 :]
    return text


@pytest.mark.parametrize("suffix", sorted(_SEEDS))
def test_garbled_text_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(suffix)
    path = tmp_path / f"x{suffix}"
    read = 0
    for number in range(400):
        text = "".join(rng.choices(_PIECES, k=rng.randint(1, 30))) if number % 8 == 0 else _garbled(_SEEDS[suffix], rng)
        path.write_text(text, encoding="utf-8", newline="")
        began = time.monotonic()
        try:
            load_config(Outer, path)
            read += 1
        except ConfigError as error:
            assert str(path) in str(error) and "\n" not in str(error), text
            str(error).encode("utf-8")
        assert time.monotonic() - began < SOON, text
    assert 0 < read < 400
    assert DEEPEST >= 16
