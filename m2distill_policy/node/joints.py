"""Map an arm's joints to the contract's proprioception: names and signs differ between arms and drivers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import ConfigError
from m2distill_policy.node.joint_gate import JointLimit

#: The contract's group of the gripper's joints. The gripper's driver may be slower than the arm's.
GRIPPER = "gripper_states"


@dataclass(frozen=True)
class JointSource:
    """A joint of the arm that gives one entry of the contract: entry = scale * position + offset.

    For example, the position of robosuite's second finger is negative. For an arm whose driver counts both fingers as
    positive, the scale of that entry is -1. A driver with only one finger joint gives both entries.

    Attributes:
        entry: Name of the entry in the contract.
        name: Name of the arm's joint.
        scale: Factor, not 0.
        offset: Offset in rad or m.
    """

    entry: str
    name: str
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale != 0 and math.isfinite(self.offset)):
            raise ConfigError(
                f"joint '{self.name}' has scale {self.scale} and offset {self.offset}; both must be finite, and the "
                "scale not 0"
            )


def require_distinct(sources: Sequence[JointSource]) -> None:
    """Raise :class:`ConfigError` if two of ``sources`` are for the same entry."""
    found: dict[str, JointSource] = {}
    for source in sources:
        if source.entry in found:
            raise ConfigError(
                f"two joints are given for '{source.entry}': '{found[source.entry].name}' and '{source.name}'; give "
                "one joint for each entry"
            )
        found[source.entry] = source


class JointMap:
    """Converts joint positions to the contract's proprioception.

    An entry without a source is the joint of the same name.
    """

    def __init__(self, contract: Contract, sources: Sequence[JointSource] = ()) -> None:
        self._contract = contract
        known = {entry for group in contract.proprioception for entry in group.entries}
        self._sources = {entry: JointSource(entry, entry) for entry in known}
        require_distinct(sources)
        for source in sources:
            if source.entry not in known:
                raise ConfigError(
                    f"a joint is given for '{source.entry}', which is not in the contract; it has "
                    + ", ".join(e for group in contract.proprioception for e in group.entries)
                )
            self._sources[source.entry] = source

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the needed joints of the arm, each once."""
        entries = (entry for group in self._contract.proprioception for entry in group.entries)
        return tuple(dict.fromkeys(self._sources[entry].name for entry in entries))

    @property
    def gripper(self) -> frozenset[str]:
        """Names of the needed joints that are used only for the contract's ``gripper_states``."""
        arm = {self._sources[e].name for g in self._contract.proprioception if g.name != GRIPPER for e in g.entries}
        return frozenset(self.wanted) - arm

    @property
    def limits(self) -> tuple[JointLimit, ...]:
        """How far two positions of each joint in ``wanted`` may differ; with several entries, the widest limit."""
        found: dict[str, JointLimit] = {}
        for group in self._contract.proprioception:
            for entry in group.entries:
                source = self._sources[entry]
                limit = JointLimit.of(group.unit, source.scale)
                if source.name not in found or limit.slack > found[source.name].slack:
                    found[source.name] = limit
        return tuple(found[name] for name in self.wanted)

    def proprioception(
        self, names: Sequence[str], positions: Sequence[float]
    ) -> tuple[dict[str, NDArray[np.float32]], tuple[str, ...]]:
        """Return the contract's proprioception and the names of the missing joints.

        Returns:
            Name of each group -> its values (n,) float32, with NaN for missing joints; and the names of the missing
            joints, each once.
        """
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
