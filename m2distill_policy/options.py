"""Numbers on the command line: types for argparse that check the range and name the option in errors."""

from __future__ import annotations

from collections.abc import Callable

from m2distill_policy.errors import ConfigError

#: Largest seed that every random number generator accepts.
LARGEST_SEED = 2**32 - 1
#: Upper limit of counts: rollouts, steps, episodes.
MANY = 10**6
#: Upper limit of processes or threads.
MOST_PROCESSES = 1024
#: Smallest and largest value of an option that is a waiting time, s. The largest is a week.
SHORTEST_WAIT, LONGEST_WAIT = 1e-3, 604_800.0
#: Smallest and largest value of the setting for the time difference between the messages of one observation, s.
SHORTEST_SLOP, LARGEST_SLOP = 1e-6, 10.0

_SHOWN = 40


def whole(option: str, low: int, high: int) -> Callable[[str], int]:
    """Return a ``type`` for argparse: a whole number from ``low`` to ``high``.

    Args:
        option: Name of the option, for the error message.
        low: Smallest allowed value.
        high: Largest allowed value.

    Returns:
        A function that parses a text. It raises :class:`ConfigError`, which the command line shows as one line.
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ConfigError(f"{option} is {_shown(text)}; allowed are whole numbers from {low} to {high}")
        return value

    return parse


def real(option: str, low: float, high: float) -> Callable[[str], float]:
    """Return a ``type`` for argparse: a finite number from ``low`` to ``high``. See :func:`whole`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ConfigError(f"{option} is {_shown(text)}; allowed are numbers from {low:g} to {high:g}")
        return value

    return parse


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text)} characters)"
