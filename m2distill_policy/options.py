"""Numbers of the command line: finite, in a stated range, or one sentence that names the option."""

from __future__ import annotations

from collections.abc import Callable

from m2distill_policy.errors import ConfigError

#: Whole numbers that every generator of random numbers takes as a seed.
LARGEST_SEED = 2**32 - 1
#: Most of whatever is counted: rollouts, steps, episodes.
MANY = 10**6
#: Most processes or threads.
MOST_PROCESSES = 1024
#: s; the shortest and the longest wait, a week.
SHORTEST_WAIT, LONGEST_WAIT = 1e-3, 604_800.0
#: s; the smallest and the largest difference between stamps of one observation that can be asked for.
SHORTEST_SLOP, LARGEST_SLOP = 1e-6, 10.0

_SHOWN = 40


def whole(option: str, low: int, high: int) -> Callable[[str], int]:
    """A ``type`` for argparse: a whole number from ``low`` to ``high``.

    It raises :class:`ConfigError`, so that the command ends with one sentence instead of its usage.
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
    """A ``type`` for argparse: a finite number from ``low`` to ``high``; raises as :func:`whole` does."""

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
