"""Configurations and overrides: text that ends up as a run's settings, an arm's profile or a contract.

An input is a line ``<what> <suffix>``, the file's bytes, and overrides after a mark, one a line. What is accepted is
used, see :mod:`tests.fuzz.use`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from m2distill_policy.config import load_config, read_file, to_dict, to_json
from m2distill_policy.contract import libero_contract
from m2distill_policy.recordings.contract import read_contract
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.settings.arm import load_arm
from m2distill_policy.settings.definitions import PARAMETERS
from m2distill_policy.settings.node import settings_from
from tests.fuzz.choice import TOKENS, Choice
from tests.fuzz.door import Door, Folder
from tests.fuzz.invariant import ROOT, require

MARK = b"\n=== overrides ===\n"
#: libyaml's where it is there: the harness's own work should not take long.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
#: Whether a policy can answer here.
_CAN_DRIVE = all(importlib.util.find_spec(module) is not None for module in ("onnxruntime", "onnx", "cv2"))
#: With every limit, of which changed ones are made.
_LIMITED: dict[str, Any] = {
    "safety": {
        "speed": [0.1, 0.1, 0.1, 0.5, 0.5, 0.5], "acceleration": [1.0] * 6, "jerk": [20.0] * 6,
        "workspace_low": [0.2, -0.3, 0.0], "workspace_high": [0.7, 0.3, 0.6],
    }
}  # fmt: skip
_DEFAULTS = {p.name: p.default for p in PARAMETERS if p.name.partition(".")[0] in ("safety", "watch", "gripper")}
SUFFIXES = (".toml", ".yaml", ".json")


@functools.cache
def _run_config() -> type[Any] | None:
    """The configuration of a run; None on a machine that does not learn."""
    if importlib.util.find_spec("torch") is None:
        return None
    from training.run_config import RunConfig

    return RunConfig


class ConfigurationDoor(Door):
    """See the module's text."""

    name = "configuration"
    seconds = 5.0
    mebibytes = 512

    def __init__(self) -> None:
        self._folder = Folder("config")
        self._targets: dict[str, Callable[[Path, list[str]], object]] = {
            "arm": self._arm, "contract": self._contract, "run": self._run, "parameters": self._parameters,
        }  # fmt: skip

    # --- letting in ---------------------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        head, _, rest = data.partition(b"\n")
        what, _, suffix = head.decode("latin-1").partition(" ")
        body, _, changes = rest.partition(MARK)
        overrides = [line.decode("utf-8", "replace") for line in changes.split(b"\n")] if changes else []
        target = self._targets.get(what)
        if target is None or suffix not in SUFFIXES:
            return
        path = self._folder.fill({f"settings{suffix}": body}) / f"settings{suffix}"
        target(path, overrides)

    @staticmethod
    def _arm(path: Path, overrides: list[str]) -> None:
        config, _ = load_arm(path, overrides)
        _require_finite(to_dict(config))
        if _CAN_DRIVE:
            from tests.fuzz.use import use_arm

            use_arm(config)

    @staticmethod
    def _contract(path: Path, overrides: list[str]) -> None:
        contract = read_contract(path)
        _require_finite(contract.to_dict())
        require(read_contract_again(contract.to_json()) == contract, "a contract is not what it was after JSON")
        if _CAN_DRIVE:
            from tests.fuzz.use import use_limits

            use_limits(SafetyLimits(), contract)
            use_limits(SafetyLimits(speed=(0.05,) * 6, acceleration=(1.0,) * 6, jerk=(20.0,) * 6), contract)

    @staticmethod
    def _run(path: Path, overrides: list[str]) -> None:
        cls = _run_config()
        if cls is None:
            return
        config = load_config(cls, path, overrides)
        _require_finite(to_dict(config))
        require(load_config(cls, None, []) is not None, "the defaults cannot be loaded")
        to_json(config)

    @staticmethod
    def _parameters(path: Path, overrides: list[str]) -> None:
        found: dict[str, Any] = {}
        for key, value in read_file(path).items():
            for parameter in PARAMETERS:
                if parameter.name == key:
                    _require_finite(parameter.check(value))
                    found[key] = value
        settings = settings_from(found)
        _require_finite(to_dict(settings.arm))
        if _CAN_DRIVE:
            from tests.fuzz.use import use_arm

            use_arm(settings.arm, settings.loop)

    # --- making -------------------------------------------------------------------------------------------------------

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        files = [
            *((f"arm {path.suffix}", path.read_bytes()) for path in sorted((ROOT / "config" / "arms").glob("*.yaml"))),
            ("arm .json", json.dumps(_DEFAULTS).encode()),
            ("arm .yaml", yaml.safe_dump(_DEFAULTS).encode()),
            ("contract .json", libero_contract(32).to_json().encode()),
            ("parameters .json", json.dumps({p.name: p.default for p in PARAMETERS} | {"bundle": "toy"}).encode()),
            ("arm .json", json.dumps(_LIMITED).encode()),
        ]
        if _run_config() is not None:
            profile = (ROOT / "config" / "tiny.toml").read_bytes()
            # By sections too: short inputs are tried faster.
            files += [("run .toml", profile), *(("run .toml", b"[" + part) for part in profile.split(b"\n[")[1:])]
        made = [f"{head}\n".encode() + body for head, body in files]
        overrides = ["safety.speed=[0.1,0.1,0.1,0.5,0.5,0.5]", "safety.halt_time=0.2", "watch.stale_after=0"]
        made.append(b"arm .yaml\n" + MARK + "\n".join(overrides).encode())
        if _run_config() is not None:
            made.append(b"run .toml\n" + MARK + b"optim.lr=1e-3\nseed=3\noptim.steps=10")
        return made

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        head, _, rest = data.partition(b"\n")
        body, _, changes = rest.partition(MARK)
        what, _, suffix = head.decode("latin-1").partition(" ")
        kind = choice.integer(0, 7)
        if kind >= 6:  # settings that somebody may well write, for whatever arm it is
            what, suffix, body = ("arm", ".json", json.dumps(_LIMITED).encode()) if what != "arm" else (
                what, suffix, body
            )  # fmt: skip
            changes = "\n".join(_plausible(choice) for _ in range(choice.pick((1, 1, 2)))).encode()
        elif kind <= 1:
            tree = self._tree(body, suffix)
            if tree is not None:
                suffix = choice.pick((".json", ".yaml")) if suffix == ".toml" or choice.chance(4) else suffix
                body = _dumped(choice.edited(tree, choice.integer(1, 3)), suffix)
                if choice.chance(4):
                    body = _as_bare_text(choice, body)
        elif kind == 2:
            body = choice.damaged(body)
        elif kind == 3:
            lines = changes.split(b"\n") if changes else []
            lines.append(self._override(choice, what).encode("utf-8", "replace"))
            if choice.chance(3):
                lines.append(choice.damaged(choice.pick(lines)))
            changes = b"\n".join(lines[-4:])
        elif kind == 4:
            body += choice.pick((b"\n", b"", b", ")) + choice.pick(TOKENS) + choice.pick((b"", b": ", b" = 1\n"))
        else:
            what, body = choice.pick((*self._targets, what)), body if choice.chance(2) else choice.raw(200)
            suffix = choice.pick((".toml", ".yaml", ".json"))
        return f"{what} {suffix}\n".encode("latin-1", "replace") + body + (MARK + changes if changes else b"")

    @staticmethod
    def _tree(body: bytes, suffix: str) -> Any:
        try:
            text = body.decode()
            if len(text) > 20_000:
                return None
            if suffix == ".toml":
                return tomllib.loads(text)
            # Aliases make a short text a tree without end.
            return json.loads(text) if suffix == ".json" else None if "*" in text else yaml.load(text, _Loader)
        except Exception:  # of the harness's making: what cannot be read is changed as bytes
            return None

    def _override(self, choice: Choice, what: str) -> str:
        cls = _run_config() if what == "run" else None
        names = list(_leaves(cls)) if cls is not None else [parameter.name for parameter in PARAMETERS]
        name = choice.pick(names) if not choice.chance(8) else choice.text()
        kind = choice.integer(0, 3)
        if kind == 0:
            text = choice.text()
        elif kind == 1:
            text = str(choice.number())
        elif kind == 2:
            text = json.dumps(choice.value())
        else:
            text = "[" + ",".join(str(choice.number()) for _ in range(choice.integer(0, 7))) + "]"
        return f"{name}{choice.pick(('=', '=', '=', ' = ', '', '=='))}{text}"


def _plausible(choice: Choice) -> str:
    """An override of an arm's limit: one size, for a number or for six of them."""
    name = choice.pick(
        ("safety.speed", "safety.acceleration", "safety.acceleration", "safety.jerk", "safety.jerk",
         *(f"watch.{field.name}" for field in dataclasses.fields(WatchLimits)), "safety.halt_time")
    )  # fmt: skip
    size = choice.pick((1, 2, 5)) * 10.0 ** choice.pick((*range(-4, 9), 200))
    if name.startswith("safety.") and name != "safety.halt_time":
        return f"{name}={json.dumps([size] * 6)}"
    return f"{name}={int(size) if name in ('watch.frozen_after', 'watch.overruns_in_a_row') else size}"


def read_contract_again(text: str) -> object:
    """What :meth:`Contract.to_json` wrote."""
    from m2distill_policy.contract import Contract

    return Contract.from_json(text)


def _dumped(tree: Any, suffix: str) -> bytes:
    try:
        if suffix == ".json":
            return json.dumps(tree, indent=1).encode()
        return yaml.dump(tree, Dumper=_Dumper, allow_unicode=True).encode("utf-8", "replace")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return repr(tree).encode("utf-8", "replace")


def _as_bare_text(choice: Choice, body: bytes) -> bytes:
    """One quote less, a number made long, or a key twice."""
    lines = body.split(b"\n")
    index = choice.integer(0, len(lines) - 1)
    kind = choice.integer(0, 2)
    if kind == 0:
        lines[index] = lines[index].replace(b'"', b"", 1)
    elif kind == 1:
        lines[index] = lines[index].replace(b"0", choice.pick((b"9" * 400, b"1e999", b"0" * 400 + b"1")), 1)
    else:
        lines.insert(index, lines[index])
    return b"\n".join(lines)


def _leaves(cls: type[Any], where: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = f"{where}.{field.name}" if where else field.name
        inner = [a for a in (hints[field.name], *typing.get_args(hints[field.name])) if dataclasses.is_dataclass(a)]
        yield name
        for section in inner:
            if isinstance(section, type) and section is not cls:
                yield from _leaves(section, name)


def _require_finite(tree: Any) -> None:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for entry in tree:
            _require_finite(entry)
    elif isinstance(tree, float):
        require(math.isfinite(tree), "a setting is not finite", tree)


def make() -> Door:
    """The door."""
    return ConfigurationDoor()
