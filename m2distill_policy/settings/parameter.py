"""One setting: its type, its range, and the value that switches it off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from m2distill_policy.config import parse_text
from m2distill_policy.errors import ConfigError

Value = bool | int | float | str | list[float] | list[str]

_LARGEST_INTEGER = 2**63 - 1

#: Kind of a parameter -> name of its type in ROS 2.
KINDS = {
    "bool": "bool",
    "int": "integer",
    "float": "double",
    "string": "string",
    "floats": "double[]",
    "strings": "string[]",
}
#: Kind of a parameter -> Python type with which the text of a command line is read.
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
        name: Name with its group, such as ``safety.speed``.
        kind: A key of :data:`KINDS`.
        default: Default value.
        unit: Unit of the value, or "".
        text: Description for the documentation.
        choices: Allowed strings; empty allows any.
        low, high: Smallest and largest allowed number.
        is_positive: Whether only numbers above 0 are allowed.
        has_off: Whether 0, or an empty list, switches the setting off. It is the only way to write "off", because ROS 2
            has no null.
        is_live: Whether it may change while the node is configured. Others are read when the node is configured.
        is_fixed: Whether it is read when the process starts and never changes.
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
        """The allowed values as text, for messages and the documentation."""
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
        """Return whether ``value``, which :meth:`check` has accepted, switches this setting off."""
        return self.has_off and (value == [] if isinstance(value, list) else value == 0)

    def check(self, value: object) -> Value:
        """Check ``value`` and return it with this parameter's type.

        Raises:
            ConfigError: Its type is wrong, or it is not allowed.
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
            ConfigError: The text is not of this parameter's type, or the value is not allowed.
        """
        return self.check(parse_text(_READ_AS[self.kind], text))

    def _typed(self, value: object) -> Value:
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, int) and abs(number) > _LARGEST_INTEGER for number in numbers):
            raise ConfigError(f"parameter '{self.name}' does not fit in 64 bits, the size of an integer in ROS 2")
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
