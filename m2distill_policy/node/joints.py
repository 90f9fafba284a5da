"""Which joints of an arm are the contract's readings: another arm, or another driver, has other names and signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import ConfigError
from m2distill_policy.node.joint_gate import JointLimit

#: The contract's group of readings that a gripper's driver sends, which may be slower than the arm's.
GRIPPER = "gripper_states"


@dataclass(frozen=True)
class JointSource:
    """The contract's ``entry`` is ``scale`` times the position of joint ``name`` (rad or m) plus ``offset``.

    robosuite's second finger is negative, for one: an arm whose driver counts both fingers up has scale -1 there, and
    one whose driver tells a single finger names it for both entries.
    """

    entry: str
    name: str
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale != 0 and math.isfinite(self.offset)):
            raise ConfigError(
                f"joint '{self.name}' has scale {self.scale} and offset {self.offset}; finite numbers are needed, and "
                "no scale of 0"
            )


def require_distinct(sources: Sequence[JointSource]) -> None:
    """Raise :class:`ConfigError` where two of ``sources`` are for one entry of the contract."""
    found: dict[str, JointSource] = {}
    for source in sources:
        if source.entry in found:
            raise ConfigError(
                f"two joints are given for '{source.entry}', '{found[source.entry].name}' and '{source.name}'; name "
                "each entry once"
            )
        found[source.entry] = source


class JointMap:
    """Makes a joint state into the contract's readings. Entries without a source are joints of that very name."""

    def __init__(self, contract: Contract, sources: Sequence[JointSource] = ()) -> None:
        self._contract = contract
        known = {entry for group in contract.proprioception for entry in group.entries}
        self._sources = {entry: JointSource(entry, entry) for entry in known}
        require_distinct(sources)
        for source in sources:
            if source.entry not in known:
                raise ConfigError(
                    f"a joint is given for '{source.entry}', which the contract does not have; it has "
                    + ", ".join(e for group in contract.proprioception for e in group.entries)
                )
            self._sources[source.entry] = source

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the arm's joints that are needed, each once."""
        entries = (entry for group in self._contract.proprioception for entry in group.entries)
        return tuple(dict.fromkeys(self._sources[entry].name for entry in entries))

    @property
    def gripper(self) -> frozenset[str]:
        """Those of them that only the contract's ``gripper_states`` are made of."""
        arm = {self._sources[e].name for g in self._contract.proprioception if g.name != GRIPPER for e in g.entries}
        return frozenset(self.wanted) - arm

    @property
    def limits(self) -> tuple[JointLimit, ...]:
        """How far two positions of each of ``wanted`` may differ; the widest, where it is of several entries."""
        found: dict[str, JointLimit] = {}
        for group in self._contract.proprioception:
            for entry in group.entries:
                source = self._sources[entry]
                limit = JointLimit.of(group.unit, source.scale)
                if source.name not in found or limit.slack > found[source.name].slack:
                    found[source.name] = limit
        return tuple(found[name] for name in self.wanted)

    def readings(
        self, names: Sequence[str], positions: Sequence[float]
    ) -> tuple[dict[str, NDArray[np.float32]], tuple[str, ...]]:
        """Group -> (n,) float32, NaN where the joint is not named; and the joints that are not, each once."""
        values = dict(zip(names, positions, strict=True))
        groups: dict[str, NDArray[np.float32]] = {}
        absent: dict[str, None] = {}
        for group in self._contract.proprioception:
            row = np.full(group.size, np.nan, dtype=np.float32)
            for index, entry in enumerate(group.entries):
                source = self._sources[entry]
                if source.name in values:
                    row[index] = source.scale * values[source.name] + source.offset
                else:
                    absent[source.name] = None
            groups[group.name] = row
        return groups, tuple(absent)
