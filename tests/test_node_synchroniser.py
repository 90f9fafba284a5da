"""Sets of pictures and joints that belong together; stamps and data are handed in."""

from __future__ import annotations

import numpy as np
import pytest

from m2distill_policy.contract import libero_contract
from m2distill_policy.errors import ObservationError
from m2distill_policy.node.synchroniser import RATE_OVER, Synchroniser

CONTRACT = libero_contract(32)
NAMES = [entry for group in CONTRACT.proprioception for entry in group.entries]
MS = 1_000_000
A, B = CONTRACT.camera_names


def _sets(slop_ms: float = 20) -> Synchroniser[str]:
    return Synchroniser(CONTRACT, round(slop_ms * MS))


def _joints(sets: Synchroniser[str], stamp: int, value: float = 0.0) -> None:
    sets.add_joints(stamp, NAMES, [value] * len(NAMES))


def test_a_set_is_given_once_and_needs_every_stream() -> None:
    sets = _sets()
    assert sets.take() is None and sets.waiting_for() == (A, B, "joint_states")
    sets.add_view(A, 100 * MS, "a1")
    assert sets.take() is None and sets.waiting_for() == (B, "joint_states")
    sets.add_view(B, 110 * MS, "b1")
    assert sets.waiting_for() == ("joint_states",)
    _joints(sets, 105 * MS)
    found = sets.take()
    assert found is not None and found.views == {A: "a1", B: "b1"} and found.stamp == 100 * MS
    assert sets.take() is None


def test_the_newest_set_wins_and_older_frames_are_forgotten() -> None:
    sets = _sets()
    for i in range(3):
        sets.add_view(A, (100 + 50 * i) * MS, f"a{i}")
        sets.add_view(B, (100 + 50 * i) * MS, f"b{i}")
        _joints(sets, (100 + 50 * i) * MS, float(i))
    found = sets.take()
    assert found is not None and found.views == {A: "a2", B: "b2"}
    assert found.joints["joint_states"][0] == 2.0
    assert sets.take() is None


def test_an_older_set_is_taken_while_the_newest_is_incomplete() -> None:
    sets = _sets()
    for stamp in (100, 150):
        sets.add_view(A, stamp * MS, f"a{stamp}")
    sets.add_view(B, 100 * MS, "b100")
    _joints(sets, 100 * MS)
    found = sets.take()
    assert found is not None and found.views == {A: "a100", B: "b100"}
    sets.add_view(B, 150 * MS, "b150")
    _joints(sets, 150 * MS)
    found = sets.take()
    assert found is not None and found.views == {A: "a150", B: "b150"}


def test_beyond_the_slop_nothing_belongs_together() -> None:
    sets = _sets(slop_ms=20)
    sets.add_view(A, 100 * MS, "a")
    sets.add_view(B, 121 * MS, "b")
    _joints(sets, 100 * MS)
    assert sets.take() is None
    exact = _sets(slop_ms=0)
    exact.add_view(A, 100, "a")
    exact.add_view(B, 100, "b")
    exact.add_joints(101, NAMES, [0.0] * 9)
    assert exact.take() is None and exact.waiting_for() == ("joint_states",)


def test_fast_joints_are_taken_nearest_the_picture() -> None:
    sets = _sets()
    for ms in range(200):
        _joints(sets, ms * MS, float(ms))
    sets.add_view(A, 150 * MS + 300_000, "a")
    sets.add_view(B, 149 * MS, "b")
    found = sets.take()
    assert found is not None and found.joints["gripper_states"][0] == 150.0


def test_joints_are_matched_by_name_in_any_order() -> None:
    sets = _sets()
    values = {name: float(i) for i, name in enumerate(NAMES)}
    shuffled = ["some_other_joint", *reversed(NAMES)]
    sets.add_joints(0, shuffled, [99.0, *(values[n] for n in reversed(NAMES))])
    sets.add_view(A, 0, "a")
    sets.add_view(B, 0, "b")
    found = sets.take()
    assert found is not None and found.absent == ()
    np.testing.assert_array_equal(found.joints["joint_states"], np.arange(7, dtype=np.float32))
    np.testing.assert_array_equal(found.joints["gripper_states"], np.array([7, 8], dtype=np.float32))


def test_an_absent_joint_is_named_and_not_a_number() -> None:
    sets = _sets()
    sets.add_joints(0, NAMES[:3] + NAMES[4:], [0.0] * 8)
    sets.add_view(A, 0, "a")
    sets.add_view(B, 0, "b")
    found = sets.take()
    assert found is not None and found.absent == ("panda_joint4",)
    assert np.isnan(found.joints["joint_states"][3]) and np.isfinite(found.joints["gripper_states"]).all()
    with pytest.raises(ObservationError, match="names 2 joints and holds 1"):
        sets.add_joints(0, ["a", "b"], [1.0])


def test_repeated_and_backward_stamps_make_sets_for_the_watchdog_to_judge() -> None:
    sets = _sets()
    for stamp in (100, 100, 40):
        sets.add_view(A, stamp * MS, "a")
        sets.add_view(B, stamp * MS, "b")
        _joints(sets, stamp * MS)
        found = sets.take()
        assert found is not None and found.stamp == stamp * MS


def test_the_rate_of_a_camera() -> None:
    sets = _sets()
    for i in range(RATE_OVER):
        sets.add_view(A, i * 50 * MS, "a")
    assert sets.interval(A) is None
    sets.add_view(A, RATE_OVER * 50 * MS, "a")
    assert sets.interval(A) == pytest.approx(0.05) and sets.interval(B) is None
    sets.clear()
    assert sets.interval(A) is None and sets.take() is None
