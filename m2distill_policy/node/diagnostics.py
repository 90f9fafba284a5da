"""Counters of each cycle and figures for ``/diagnostics``: rates, latency, missed cycles, unreadable messages."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m2distill_policy.node.topics import POLICY_NODE
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import Status, StatusCode

logger = logging.getLogger(__name__)

#: Seconds between two messages on /diagnostics.
PERIOD = 1.0
#: Number of newest cycles whose latencies are reported.
CYCLES = 400
#: Levels of diagnostic_msgs/DiagnosticStatus.
OK, WARN, ERROR = 0, 1, 2


@dataclass(frozen=True)
class Health:
    """One diagnostic_msgs/DiagnosticStatus: level, name, hardware_id, message, and values in order."""

    level: int
    name: str
    hardware: str
    message: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CycleReport:
    """Counters, warnings and figures of one cycle.

    Attributes:
        cycle: Number of the cycle, from 1.
        episode: Number of the episode; 0 in real time.
        warnings: Problems that do not stop the policy.
        health: Content of /diagnostics; None in cycles that do not publish it.
        start: When the work on this cycle began, s, by ``time.perf_counter``.
    """

    cycle: int
    episode: int
    warnings: tuple[str, ...]
    health: Health | None
    start: float


class Diagnostics:
    """Counts messages and cycles, and summarises them once a second.

    Args:
        server: Policy server, whose provider and random stream are reported.
        now: Current monotonic time, s.
        name: Name of the node with its namespace, without the first slash.
    """

    def __init__(self, server: PolicyServer, now: float, name: str = POLICY_NODE) -> None:
        self._server = server
        self._name = name
        self._since = now
        self._arrivals: dict[str, int] = {}
        self._steps: deque[float] = deque(maxlen=CYCLES)
        self._cycles: deque[float] = deque(maxlen=CYCLES)
        #: The last status code that was logged.
        self._logged: StatusCode | None = None
        self._broken = 0
        #: Number of cycles so far.
        self.cycle_count = 0
        #: Number of cycles without an observation although one was due.
        self.missed = 0

    def count_messages(self, topic: str, count: int, broken: int = 0) -> None:
        """Count ``count`` readable messages on ``topic``, and ``broken`` unreadable ones."""
        self._arrivals[topic] = self._arrivals.get(topic, 0) + count
        self._broken += broken

    def add_latency(self, step: float, whole: float) -> None:
        """Record the latency of an answer.

        Args:
            step: Latency of the policy server, s.
            whole: Time from the start of the work on the cycle until ``~/status`` is published, s.
        """
        self._steps.append(step)
        self._cycles.append(whole)

    def report(self, status: Status, now: float, *, warnings: Sequence[str], episode: int, start: float) -> CycleReport:
        """Count one cycle and report it. Once a second, log a new status code and fill ``health``.

        Args:
            status: Status of this cycle.
            now: Monotonic time, s.
            warnings: Problems that do not stop the policy.
            episode: Number of the episode.
            start: See :class:`CycleReport`.
        """
        self.cycle_count += 1
        health = None
        if now - self._since >= PERIOD:
            self._log(status)
            health = self._health(status, now, warnings)
        return CycleReport(self.cycle_count, episode, tuple(warnings), health, start)

    def _log(self, status: Status) -> None:
        code = status.code
        if code in (self._logged, StatusCode.WAITING):  # waiting is normal between two observations
            return
        self._logged = code
        logger.log(logging.WARNING if code.is_fault else logging.INFO, "%s: %s", code.name, status.message)

    def _health(self, status: Status, now: float, warnings: Sequence[str]) -> Health:
        """Summarise the time since the last summary, and restart the counts of the rates."""
        passed = max(now - self._since, 1e-9)
        seed, episode = self._server.episode
        values: dict[str, str] = {
            "status": status.code.name,
            "motion": status.motion,
            "bundle": status.bundle,
            "tasks": ", ".join(status.tasks),
            "instruction": status.instruction,
            "provider": self._server.engine.active_provider,
            "swap": f"{status.swap.state.name} {status.swap.message}".strip(),
            "seed, episode": f"{seed}, {episode}",
            "missed cycles": str(self.missed),
            "overruns": str(status.overruns),
            "broken messages": str(self._broken),
            **_percentiles("policy step", self._steps),
            **_percentiles("whole cycle", self._cycles),
            **{f"rate of {topic} (Hz)": f"{count / passed:.1f}" for topic, count in sorted(self._arrivals.items())},
        }
        self._since = now
        self._arrivals = dict.fromkeys(self._arrivals, 0)
        level = ERROR if status.code.is_fault else WARN if warnings or status.warning else OK
        message = " ".join([status.message, *([status.warning] if status.warning else []), *warnings])
        return Health(level, f"{self._name}: policy", self._name, message, tuple(values.items()))


def _percentiles(what: str, seconds: deque[float]) -> dict[str, str]:
    if not seconds:
        return {}
    median, p95, p99 = np.percentile(np.array(seconds) * 1e3, [50, 95, 99])
    return {f"{what} (ms; median, p95, p99)": f"{median:.2f}, {p95:.2f}, {p99:.2f}"}
