"""The clock that stays in phase with the cameras; time is an argument."""

from __future__ import annotations

import numpy as np
import pytest

from m2distill_policy.node.pacer import Pacer

PERIOD = 0.05


def _run(arrivals: list[float], until: float, interval: float | None) -> tuple[list[float], int]:
    """Return the times of cycles with a set, and the number without, for sets that arrive at ``arrivals`` (s)."""
    pacer, now, used, missed, index = Pacer(PERIOD, arrivals[0]), arrivals[0], [], 0, 0
    pacer.cameras(interval)
    newest: float | None = None
    while now < until:
        while index < len(arrivals) and arrivals[index] <= now + 1e-12:
            newest, index = arrivals[index], index + 1
        if newest is not None and pacer.ready(now, newest):
            used.append(now)
            newest = None
            pacer.used(now)
        elif now >= pacer.latest:
            missed += 1
            pacer.missed(now)
        else:
            now = min(pacer.latest if newest is None else pacer.next, *arrivals[index : index + 1], until)
    return used, missed


@pytest.mark.parametrize("rate", [18.5, 19.98, 20.0, 20.02, 20.5])
@pytest.mark.parametrize("jitter", [0.0, 0.003, 0.01])
def test_every_set_of_a_camera_at_the_rate_is_used(rate: float, jitter: float) -> None:
    rng = np.random.default_rng(0)
    arrivals = sorted(i / rate + rng.uniform(0, jitter) for i in range(int(60 * rate)))
    used, missed = _run(arrivals, 59.9, 1 / rate)
    assert missed == 0
    assert len(used) >= len([t for t in arrivals if t < 59.9]) - 1


@pytest.mark.parametrize("rate", [30.0, 60.0, 100.0])
def test_a_faster_camera_does_not_drive_the_policy_faster(rate: float) -> None:
    used, missed = _run([i / rate for i in range(int(20 * rate))], 19.9, 1 / rate)
    assert missed == 0
    assert len(used) == pytest.approx(20 * 19.9, rel=0.02)
    assert max(np.diff(used)) <= 1.5 * PERIOD


def test_delay_loses_no_set() -> None:
    """One set is 40 ms late: it and the next one are used, and later ones when they arrive."""
    arrivals = [0.0, 0.05, 0.14, 0.15, 0.2, 0.25, 0.3]
    used, missed = _run(arrivals, 0.34, PERIOD)
    assert used == pytest.approx([0.0, 0.05, 0.14, 0.165, 0.2, 0.25, 0.3], abs=1e-9)
    assert missed == 1  # the cycle that went by at 0.125 said so


def test_without_sets_cycles_go_on_at_the_rate() -> None:
    used, missed = _run([0.0], 10.0, None)
    assert used == [0.0] and missed == pytest.approx(200, abs=2)


def test_first_set_after_a_pause_is_used_at_once() -> None:
    used, _ = _run([0.0, 0.05, 1.031, 1.081], 1.2, PERIOD)
    assert used == pytest.approx([0.0, 0.05, 1.031, 1.081], abs=1e-9)
