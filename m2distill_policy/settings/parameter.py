"""One setting: its type, its range, and what switches it off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from m2distill_policy.config import parse_text
from m2distill_policy.errors import ConfigError

Value = bool | int | float | str | list[float] | list[str]

_LARGEST_INTEGER = 2**63 - 1

#: Type of a parameter -> how ROS 2 names it.
KINDS = {
    "bool": "bool",
    "int": "integer",
    "float": "double",
    "string": "string",
    "floats": "double[]",
    "strings": "string[]",
}
#: Type of a parameter -> the Python type as which the text of a command line is read.
_READ_AS = {
    "bool": bool,
    "int": int,
    "float": float,
    "string": str,
    "floats": tuple[float, ...],
    "strings": tuple[str, ...],
}


@dataclass(frozen=True)
class Parameter:
    """One setting of the policy node.

    Attributes:
        name: with its group, such as ``safety.speed``.
        kind: a key of :data:`KINDS`.
        default: its value where none is given.
        unit: of the value; empty for none.
        text: what it is, for the documentation.
        choices: allowed strings; empty for any.
        low, high: smallest and largest allowed number.
        is_positive: whether only numbers above 0 are allowed.
        has_off: whether 0, or an empty list, switches it off. ROS 2 has no null, so no other spelling is allowed
            anywhere.
        is_live: whether it may change while the node is configured. All others are read when the node is configured.
        is_fixed: whether it is read when the process starts, and never changes.
    """

    name: str
    kind: str
    default: Value
    unit: str
    text: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    is_positive: bool = False
    has_off: bool = False
    is_live: bool = False
    is_fixed: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values, for messages and the documentation."""
        if self.choices:
            return ", ".join(self.choices)
        if self.is_positive:
            return "more than 0"
        if self.low > -math.inf and self.high < math.inf:
            found = f"{self.low:g} to {self.high:g}"
        else:
            found = f"at least {self.low:g}" if self.low > -math.inf else ""
        if not self.has_off:
            return found
        off = "empty" if self.kind == "floats" else "0"
        return f"{found}; {off} is off"

    def is_off(self, value: Value) -> bool:
        """Whether ``value``, which :meth:`check` has accepted, switches this setting off."""
        return self.has_off and (value == [] if isinstance(value, list) else value == 0)

    def check(self, value: object) -> Value:
        """Check ``value`` and return it with this parameter's type.

        Raises:
            ConfigError: its type or range does not fit.
        """
        found = self._typed(value)
        if self.choices and found not in self.choices:
            raise ConfigError(f"parameter '{self.name}' is '{found}'; choose one of {', '.join(self.choices)}")
        if self.is_off(found):
            return found
        numbers = found if isinstance(found, list) else [found]
        for number in numbers:
            if not isinstance(number, (int, float)):
                continue
            is_allowed = math.isfinite(number) and self.low <= number <= self.high
            if not is_allowed or (self.is_positive and number <= 0):
                raise ConfigError(
                    f"parameter '{self.name}' is {number}; allowed is {self.allowed or 'a finite number'}"
                )
        return found

    def read(self, text: str) -> Value:
        """Read the value from the text of a command line.

        Raises:
            ConfigError: it cannot be read, or is not allowed.
        """
        return self.check(parse_text(_READ_AS[self.kind], text))

    def _typed(self, value: object) -> Value:
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, int) and abs(number) > _LARGEST_INTEGER for number in numbers):
            raise ConfigError(f"parameter '{self.name}' has more digits than a number of ROS 2 can have (64 bits)")
        if self.kind == "bool" and isinstance(value, bool):
            return value
        if self.kind == "string" and isinstance(value, str):
            return value
        if self.kind == "int" and isinstance(value, int) and not isinstance(value, bool):
            return value
        if self.kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if self.kind in ("floats", "strings") and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            entries = list(value)
            if self.kind == "strings" and all(isinstance(entry, str) for entry in entries):
                return entries
            numeric = all(isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in entries)
            if self.kind == "floats" and numeric:
                return [float(entry) for entry in entries]
        raise ConfigError(
            f"parameter '{self.name}' is {value!r}; {'an' if self.kind == 'int' else 'a'} {KINDS[self.kind]} is needed"
        )
