"""What ``/diagnostics`` says of the policy node: rates, latency, missed cycles, broken messages, provider, bundle."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m2distill_policy.node.topics import POLICY_NODE
from m2distill_policy.runtime.status import Status

#: Cycles over which latencies are told.
CYCLES = 400
#: Levels of diagnostic_msgs/DiagnosticStatus.
OK, WARN, ERROR = 0, 1, 2


@dataclass(frozen=True)
class Health:
    """One diagnostic_msgs/DiagnosticStatus: level, name, hardware_id, message, and values in order."""

    level: int
    name: str
    hardware: str
    sentence: str
    values: tuple[tuple[str, str], ...]


class Diagnostics:
    """Collects figures between two messages. Durations in s; ``now`` is monotonic.

    name: of the node, with its namespace and without the first slash.
    """

    def __init__(self, now: float, name: str = POLICY_NODE) -> None:
        self._name = name
        self._since = now
        self._arrivals: dict[str, int] = {}
        self._steps: deque[float] = deque(maxlen=CYCLES)
        self._cycles: deque[float] = deque(maxlen=CYCLES)
        self.broken = 0
        #: Cycles that ran without an observation although one was due.
        self.missed = 0

    def arrived(self, topic: str, count: int) -> None:
        """``count`` messages came on ``topic``."""
        self._arrivals[topic] = self._arrivals.get(topic, 0) + count

    def cycle(self, step: float, whole: float) -> None:
        """An observation was answered: ``step`` s in the policy server, ``whole`` s from set to last publish."""
        self._steps.append(step)
        self._cycles.append(whole)

    def health(
        self, status: Status, now: float, *, provider: str, warnings: Sequence[str], seed: tuple[int, int]
    ) -> Health:
        """What there is to say, and begin to count the rates anew."""
        passed = max(now - self._since, 1e-9)
        values: dict[str, str] = {
            "status": status.code.name,
            "motion": status.motion,
            "bundle": status.bundle,
            "tasks": ", ".join(status.tasks),
            "instruction": status.instruction,
            "provider": provider,
            "swap": f"{status.swap.state.name} {status.swap.sentence}".strip(),
            "seed, episode": f"{seed[0]}, {seed[1]}",
            "missed cycles": str(self.missed),
            "overruns": str(status.overruns),
            "broken messages": str(self.broken),
            **_percentiles("policy step", self._steps),
            **_percentiles("whole cycle", self._cycles),
            **{f"rate of {topic} (Hz)": f"{count / passed:.1f}" for topic, count in sorted(self._arrivals.items())},
        }
        self._since = now
        self._arrivals = dict.fromkeys(self._arrivals, 0)
        level = ERROR if status.code.is_fault else WARN if warnings or status.warning else OK
        sentence = " ".join([status.sentence, *([status.warning] if status.warning else []), *warnings])
        return Health(level, f"{self._name}: policy", self._name, sentence, tuple(values.items()))


def _percentiles(what: str, seconds: deque[float]) -> dict[str, str]:
    if not seconds:
        return {}
    median, p95, p99 = np.percentile(np.array(seconds) * 1e3, [50, 95, 99])
    return {f"{what} (ms; median, p95, p99)": f"{median:.2f}, {p95:.2f}, {p99:.2f}"}
