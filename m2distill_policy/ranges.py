"""Check that a number of a configuration is in its range; if not, the error names the setting."""

from __future__ import annotations

from m2distill_policy.errors import ConfigError


def require_within(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Check that ``value`` is from ``low`` to ``high``.

    Args:
        name: Name of the setting, for the message.
        value: The value to check.
        low, high: The range, inclusive.
        unit: Unit of the value and of the range, for the message.

    Raises:
        ConfigError: The value is not in the range, or is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # refuses NaN too
        given = f"{value:g}" if isinstance(value, float) else repr(value)
        raise ConfigError(f"{name} is {given}; {low:g} to {high:g}{f' {unit}' if unit else ''} is allowed")
