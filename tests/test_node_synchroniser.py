"""Sets of images and joint positions that belong together; stamps and data are arguments."""

from __future__ import annotations

import numpy as np
import pytest

from m2distill_policy.contract import libero_contract
from m2distill_policy.errors import ConfigError, ObservationError
from m2distill_policy.node.joint_states import JointStates
from m2distill_policy.node.joints import JointMap, JointSource
from m2distill_policy.node.synchroniser import RATE_OVER, Synchroniser
from m2distill_policy.settings.arm import ArmSettings

CONTRACT = libero_contract(32)
NAMES = [entry for group in CONTRACT.proprioception for entry in group.entries]
MS = 1_000_000
A, B = CONTRACT.camera_names


def _sets(slop_ms: float = 20) -> Synchroniser[str]:
    slop = round(slop_ms * MS)
    return Synchroniser(CONTRACT.camera_names, JointStates(NAMES, slop=slop, held=slop), slop)


def _joints(sets: Synchroniser[str], stamp: int, value: float = 0.0) -> None:
    sets.joints.add("/joint_states", stamp, NAMES, [value] * len(NAMES), None)


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
    assert found.joints[1][0] == 2.0
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


def test_stamps_beyond_the_slop_make_no_set() -> None:
    sets = _sets(slop_ms=20)
    sets.add_view(A, 100 * MS, "a")
    sets.add_view(B, 121 * MS, "b")
    _joints(sets, 100 * MS)
    assert sets.take() is None
    exact = _sets(slop_ms=0)
    exact.add_view(A, 100, "a")
    exact.add_view(B, 100, "b")
    _joints(exact, 101)
    assert exact.take() is None and exact.waiting_for() == ("joint_states",)


def test_fast_joint_states_are_matched_to_the_nearest_image() -> None:
    sets = _sets()
    for ms in range(200):
        _joints(sets, ms * MS, float(ms))
    sets.add_view(A, 150 * MS + 300_000, "a")
    sets.add_view(B, 149 * MS, "b")
    found = sets.take()
    assert found is not None and found.joints[1][7] == 150.0


def test_joints_are_matched_by_name_in_any_order() -> None:
    joints = JointMap(CONTRACT)
    values = {name: float(i) for i, name in enumerate(NAMES)}
    shuffled = ["some_other_joint", *reversed(NAMES)]
    groups, absent = joints.proprioception(shuffled, [99.0, *(values[n] for n in reversed(NAMES))])
    assert absent == ()
    np.testing.assert_array_equal(groups["joint_states"], np.arange(7, dtype=np.float32))
    np.testing.assert_array_equal(groups["gripper_states"], np.array([7, 8], dtype=np.float32))


def test_missing_joint_is_reported_and_nan() -> None:
    groups, absent = JointMap(CONTRACT).proprioception(NAMES[:3] + NAMES[4:], [0.0] * 8)
    assert absent == ("panda_joint4",)
    assert np.isnan(groups["joint_states"][3]) and np.isfinite(groups["gripper_states"]).all()
    with pytest.raises(ObservationError, match="names 2 joints but has 1"):
        _sets().joints.add("/joint_states", 0, ["a", "b"], [1.0], None)


def test_joints_of_another_arm_are_mapped_to_the_contract() -> None:
    sources = [JointSource(f"panda_joint{i}", f"fr3_joint{i}") for i in range(1, 8)]
    sources[1] = JointSource("panda_joint2", "fr3_joint2", scale=-1.0, offset=0.5)
    finger = "fr3_finger_joint1"
    sources += [JointSource("panda_finger_joint1", finger), JointSource("panda_finger_joint2", finger, scale=-1.0)]
    joints = JointMap(CONTRACT, sources)
    names = [finger, *(f"fr3_joint{i}" for i in range(1, 8))]
    groups, absent = joints.proprioception(names, [0.03, *(0.1 * i for i in range(1, 8))])
    assert absent == ()
    np.testing.assert_allclose(groups["joint_states"], [0.1, 0.3, 0.3, 0.4, 0.5, 0.6, 0.7], atol=1e-6)
    np.testing.assert_allclose(groups["gripper_states"], [0.03, -0.03])
    assert joints.proprioception(names[1:], [0.0] * 7)[1] == (finger,), "named once, though two readings want it"
    with pytest.raises(ConfigError, match="given for 'elbow', which is not in the contract; it has panda_joint1"):
        JointMap(CONTRACT, [JointSource("elbow", "joint_3")])
    with pytest.raises(ConfigError, match="scale 0"):
        JointSource("panda_joint1", "a", scale=0)


@pytest.mark.parametrize("entry", NAMES)
@pytest.mark.parametrize("other", ["same joint", "another joint"])
def test_an_entry_with_two_sources_is_refused(entry: str, other: str) -> None:
    sources = [JointSource(name, name) for name in NAMES]
    sources.append(JointSource(entry, entry if other == "same joint" else "wrist"))
    for make in (lambda: JointMap(CONTRACT, sources), lambda: ArmSettings(joints=tuple(sources))):
        with pytest.raises(ConfigError, match=f"'{entry}'"):
            make()


def test_repeated_and_backward_stamps_still_make_sets() -> None:
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
