"""Every stream is checked with its own clock, when it arrives: ahead, stale, unsynchronised, missing, frozen."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.bundle import Bundle
from m2distill_policy.errors import ObservationError
from m2distill_policy.node.arrivals import HOLD
from m2distill_policy.node.joint_states import JOINTS_KEPT, JointStates
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose_gate import PoseGate
from m2distill_policy.node.pose_source import PoseBuffer
from m2distill_policy.runtime.frozen_motion import FrozenMotionCheck
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import observations, toy_bundle, toy_contract
from tests.streams import BEGIN, Clock, Streams, play

CONTRACT = toy_contract()
A, B = CONTRACT.camera_names
ARM = list(CONTRACT.proprioception[0].entries)
GRIPPER = list(CONTRACT.proprioception[1].entries)
#: What a message calls each stream.
LABELS = {
    A: "/camera/agentview/image_raw",
    B: "/camera/eye_in_hand/image_raw",
    "joints": "/joint_states",
    "gripper": "/gripper/joint_states",
    "pose": "/end_effector_pose",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("streams") / "bundle")


def split(hz: float = 30.0, topic: str = "/gripper/joint_states") -> Streams:
    """Arm and gripper in separate messages, and a pose."""
    arm = ("/joint_states", ARM, Clock(hz=125.0, delay=0.001))
    return Streams(CONTRACT, joints=[arm, (topic, GRIPPER, Clock(hz=hz, delay=0.002))], pose=Clock(hz=100.0))


def last(outputs: list[Output], count: int = 10) -> set[StatusCode]:
    return {o.decision.status.code for o in outputs[-count:] if o.decision.status.code is not StatusCode.WAITING}


def moving(outputs: list[Output]) -> bool:
    return any(o.command.is_sent and bool(o.decision.action[:6].any()) for o in outputs)


def test_correct_streams_are_driven(bundle: Bundle) -> None:
    for streams in (Streams(CONTRACT), split(), split(topic="/joint_states")):
        outputs = play(bundle, streams)
        assert last(outputs, 30) == {StatusCode.RUNNING}
        assert not [o for o in outputs if o.decision.status.code.is_fault]


# --- ahead and stale -------------------------------------------------------------------------------------------------

OFFSETS = (*(s * x for x in (0.03, 0.09, 0.12, 0.15, 0.19, 0.21, 0.3, 0.4, 0.8, 1, 2, 5, 37, 40) for s in (1, -1)), 1e9)
EVERY: list[tuple[tuple[str, ...], float]] = [((name,), offset) for name in LABELS for offset in OFFSETS]
EVERY += [(tuple(names), offset) for names in itertools.combinations(LABELS, 2) for offset in (0.3, -0.3, 1.0)]
EVERY += [((A, B, "joints", "gripper", "pose"), offset) for offset in (0.3, -0.3, 37.0, -37.0)]


@pytest.mark.parametrize(("names", "offset"), EVERY)
def test_each_stream_with_a_clock_offset_is_driven_or_reported(
    bundle: Bundle, names: tuple[str, ...], offset: float
) -> None:
    """Delays are at most 5 ms here, so the limits are 0.1 s ahead and 0.2 s behind the clock."""
    streams = split()
    for name in names:
        streams = streams.shifted(name, offset=offset)
    outputs = play(bundle, streams, 2.0)
    status = outputs[-1].decision.status
    if offset > 0.1 + 0.006:
        assert last(outputs) == {StatusCode.FUTURE_STAMP}
        assert not moving(outputs), "it never moved"
    elif offset < -0.2:
        assert last(outputs) == {StatusCode.STALE_OBSERVATION}
        assert not moving(outputs)
    elif last(outputs) == {StatusCode.RUNNING}:
        return
    else:
        # In tolerance each, but too far apart, or as old as allowed once they are used.
        assert last(outputs) <= {StatusCode.UNSYNCHRONISED, StatusCode.STALE_OBSERVATION}
    assert any(LABELS[name] in status.message for name in names), status.message


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("stamp", [0, 1, -1, 10**9, (2**31 - 1) * 10**9, -(2**31) * 10**9])
def test_a_stamp_that_was_never_set(bundle: Bundle, name: str, stamp: int) -> None:
    outputs = play(bundle, split().shifted(name, fixed=stamp))
    wanted = StatusCode.FUTURE_STAMP if stamp > 2 * 10**18 else StatusCode.REPEATED_STAMP
    assert last(outputs) == {wanted} and not moving(outputs)
    assert LABELS[name] in outputs[-1].decision.status.message


def test_the_message_names_the_difference_the_setting_and_a_stream_to_compare(bundle: Bundle) -> None:
    text = play(bundle, split().shifted(A, offset=0.3))[-1].decision.status.message
    for part in (f"view '{A}' on {LABELS[A]}", "0.295 s", "0.1 s", "watch.future_tolerance", "/joint_states"):
        assert part in text, text
    text = play(bundle, split().shifted("gripper", offset=-37))[-1].decision.status.message
    for part in (f"{', '.join(GRIPPER)} on {LABELS['gripper']}", "37.002 s", "0.2 s", "watch.stale_after"):
        assert part in text, text


class Changing(Clock):
    """One publisher whose messages have several clocks in turn."""

    def messages(self, seconds: float) -> Iterator[tuple[float, int, int]]:
        for clock in self.clocks:
            yield from clock.messages(seconds)

    clocks: tuple[Clock, ...] = ()


def in_turn(*clocks: Clock) -> Clock:
    changing = Changing()
    object.__setattr__(changing, "clocks", clocks)
    return changing


def changed(streams: Streams, name: str, *, offset: float, since: float, until: float) -> Streams:
    """Return ``streams`` in which the clock of one is off by ``offset`` from ``since`` to ``until``."""
    views, joints, pose = dict(streams.views), list(streams.joints), streams.pose
    assert pose is not None
    index = {"joints": 0, "gripper": 1}.get(name)
    clock = pose if name == "pose" else views[name] if index is None else joints[index][2]
    turns = in_turn(
        dataclasses.replace(clock, until=since),
        dataclasses.replace(clock, offset=offset, since=since, until=until),
        dataclasses.replace(clock, since=until),
    )
    if name == "pose":
        pose = turns
    elif index is None:
        views[name] = turns
    else:
        joints[index] = (*joints[index][:2], turns)
    return Streams(streams.contract, views, joints, pose)


@pytest.mark.parametrize("offset", [1.0, -1.0])
@pytest.mark.parametrize("name", LABELS)
def test_the_fault_lasts_as_long_as_the_clock_is_wrong(bundle: Bundle, name: str, offset: float) -> None:
    outputs = play(bundle, changed(split(), name, offset=offset, since=1.5, until=2.5), 4.0)
    code = StatusCode.FUTURE_STAMP if offset > 0 else StatusCode.STALE_OBSERVATION
    for output in outputs:
        at = output.command_stamp / 1e9 - BEGIN
        if 1.7 < at < 2.5:
            assert output.decision.status.code is code, at
        elif at > 2.5 + HOLD + 0.15:
            assert output.decision.status.code in (StatusCode.RUNNING, StatusCode.WAITING), at
    assert outputs[-1].decision.status.code is StatusCode.RUNNING


@pytest.mark.parametrize("name", LABELS)
def test_one_message_ahead_halts_only_for_a_time(bundle: Bundle, name: str) -> None:
    outputs = play(bundle, changed(split(), name, offset=5.0, since=1.5, until=1.56), 3.0)
    codes = [o.decision.status.code for o in outputs]
    assert StatusCode.FUTURE_STAMP in codes and codes[-1] is StatusCode.RUNNING


def test_transforms_that_are_ahead_are_named(bundle: Bundle) -> None:
    """Poses that are polled, as those of tf2 are."""
    for ahead, code in ((4.0, StatusCode.FUTURE_STAMP), (0.0, StatusCode.RUNNING)):
        poses = PoseBuffer(
            lambda: "/tf from 'base' to 'hand'", slop=0, longest_silence=None, monotonic=lambda: 0.0,
            gate=PoseGate([1.0] * 6),
        )  # fmt: skip
        poses.newest_stamp = round((BEGIN + ahead) * 1e9)
        outputs = play(bundle, Streams(CONTRACT), poses=poses)
        assert last(outputs) == {code}
        assert ("/tf from 'base' to 'hand'" in outputs[-1].decision.status.message) == bool(ahead)


def test_two_publishers_of_which_one_is_ahead(bundle: Bundle) -> None:
    """Two nodes publish the same joints on one topic: the arm is not driven, whichever sent last."""
    streams = Streams(CONTRACT)
    streams.joints.append(("/joint_states", streams.names, Clock(hz=50.0, offset=1.0, delay=0.001)))
    outputs = play(bundle, streams)
    assert last(outputs, 20) == {StatusCode.FUTURE_STAMP} and not moving(outputs)


def test_a_switched_off_check_is_off(bundle: Bundle) -> None:
    off = WatchLimits(future_tolerance=None, stale_after=None)
    for offset in (-0.5, 0.15):
        streams = Streams(CONTRACT, {name: Clock(offset=offset) for name in (A, B)})
        streams.joints[0] = (*streams.joints[0][:2], Clock(hz=125.0, offset=offset))
        assert StatusCode.RUNNING in last(play(bundle, streams, watch=off))


# --- unsynchronised and missing --------------------------------------------------------------------------------------


def test_two_cameras_that_never_fit_are_named_with_their_distance(bundle: Bundle) -> None:
    outputs = play(bundle, Streams(CONTRACT, {B: Clock(phase=0.024)}))
    assert last(outputs) == {StatusCode.UNSYNCHRONISED}
    text = outputs[-1].decision.status.message
    assert all(part in text for part in (LABELS[A], LABELS[B], "0.024 s apart", "0.02 s", "slop")), text


@pytest.mark.parametrize("phase", [0.021, 0.025, 0.028])
def test_joints_that_never_fit_are_named(bundle: Bundle, phase: float) -> None:
    streams = Streams(CONTRACT, joints=[("/joint_states", ARM + GRIPPER, Clock(phase=phase))])
    outputs = play(bundle, streams)
    assert last(outputs) == {StatusCode.UNSYNCHRONISED}
    assert "/joint_states" in outputs[-1].decision.status.message and "slop" in outputs[-1].decision.status.message


def test_joints_slower_than_the_policy_are_named_with_their_rate(bundle: Bundle) -> None:
    streams = Streams(CONTRACT, joints=[("/joint_states", ARM + GRIPPER, Clock(hz=10.0, delay=0.001))])
    outputs = play(bundle, streams, 4.0)
    assert last(outputs) == {StatusCode.UNSYNCHRONISED}
    assert all(part in outputs[-1].decision.status.message for part in ("/joint_states", "10.0", "20"))


@pytest.mark.parametrize("name", [A, B, "joints", "gripper"])
def test_a_stream_that_stops_is_named_alone(bundle: Bundle, name: str) -> None:
    outputs = play(bundle, split().shifted(name, until=1.5))
    code = StatusCode.BAD_OBSERVATION if name in ("joints", "gripper") else StatusCode.MISSING_OBSERVATION
    assert last(outputs) == {code}
    text = outputs[-1].decision.status.message
    assert (LABELS[name] if name in (A, B) else (ARM if name == "joints" else GRIPPER)[0]) in text
    assert not any(LABELS[other] in text for other in (A, B) if other != name), text


def test_stream_without_any_message(bundle: Bundle) -> None:
    for name in (A, B, "joints", "gripper"):
        outputs = play(bundle, split().shifted(name, since=99.0))
        code = StatusCode.BAD_OBSERVATION if name in ("joints", "gripper") else StatusCode.MISSING_OBSERVATION
        assert last(outputs) == {code}, name
    silent = Streams(CONTRACT, joints=[("/joint_states", ARM + GRIPPER, Clock(since=99.0))])
    outputs = play(bundle, silent)
    assert last(outputs) == {StatusCode.MISSING_OBSERVATION}
    assert "/joint_states (never)" in outputs[-1].decision.status.message


@pytest.mark.parametrize("missing", ARM + GRIPPER)
def test_missing_joint_is_reported(bundle: Bundle, missing: str) -> None:
    names = [name for name in ARM + GRIPPER if name != missing]
    outputs = play(bundle, Streams(CONTRACT, joints=[("/joint_states", names, Clock(hz=100.0))]))
    assert last(outputs) == {StatusCode.BAD_OBSERVATION}
    text = outputs[-1].decision.status.message
    assert f"does not name {missing} on" in text and "finite" not in text


# --- joints in pieces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["/joint_states", "/gripper/joint_states"])
@pytest.mark.parametrize("hz", [6.0, 10.0, 30.0, 100.0, 250.0])
def test_a_gripper_at_its_own_rate(bundle: Bundle, topic: str, hz: float) -> None:
    outputs = play(bundle, split(hz, topic), 4.0)
    assert last(outputs, 40) == {StatusCode.RUNNING}


def test_messages_without_the_gripper_or_without_positions_between(bundle: Bundle) -> None:
    streams = Streams(CONTRACT)
    names = streams.names
    streams.joints = [
        ("/joint_states", ARM, Clock(hz=125.0, delay=0.001)),
        ("/joint_states", names, Clock(hz=50.0, delay=0.001, since=0.1)),
        ("/joint_states", ["wheel_left", "wheel_right"], Clock(hz=100.0)),
    ]
    assert last(play(bundle, streams), 30) == {StatusCode.RUNNING}


MS = 1_000_000


def _states() -> JointStates:
    return JointStates([*ARM, *GRIPPER], GRIPPER, slop=20 * MS, held=200 * MS)


def test_the_newest_value_by_name_with_its_own_age() -> None:
    states = _states()
    states.add("/joint_states", 100 * MS, ARM, [1.0] * 7, None)
    assert states.at(100 * MS) is None and states.distances(100 * MS)[7:] == [None, None]
    states.add("/joint_states", 0, GRIPPER, [0.01, -0.01], None)
    assert states.at(100 * MS) == [1.0] * 7 + [0.01, -0.01]
    states.add("/joint_states", 110 * MS, ARM, [], None)
    assert states.at(100 * MS) == [1.0] * 7 + [0.01, -0.01], "velocities alone change nothing"
    states.add("/joint_states", 130 * MS, ARM, [2.0] * 7, None)
    assert states.at(116 * MS) == [2.0] * 7 + [0.01, -0.01]
    assert states.at(114 * MS) == [1.0] * 7 + [0.01, -0.01]
    assert states.at(201 * MS) is None, "the arm's are 71 ms old, the gripper's 201"
    states.add("/joint_states", 200 * MS, ARM, [3.0] * 7, None)
    assert states.at(201 * MS) is None and states.at(200 * MS) is not None


def test_a_name_twice() -> None:
    states = _states()
    twice = [*ARM, *GRIPPER, GRIPPER[0]]
    states.add("/joint_states", 100 * MS, twice, [*[0.5] * 7, 0.01, 0.02, 0.01], None)
    assert states.at(100 * MS) == [*[0.5] * 7, 0.01, 0.02]
    with pytest.raises(ObservationError, match=r"names panda_finger_joint1 2 times, with positions 0\.01, 0\.03"):
        states.add("/joint_states", 200 * MS, twice, [*[0.6] * 7, 0.01, 0.02, 0.03], None)
    assert states.at(200 * MS) is None, "what is refused changes nothing"


def test_joints_out_of_order_and_clocks_that_are_set_back() -> None:
    states = _states()
    rng = np.random.default_rng(0)
    for ms in rng.permutation(800):
        states.add("/joint_states", int(ms) * MS, ARM + GRIPPER, [float(ms)] * 9, None)
    for ms in (500, 600, 799):
        found = states.at(ms * MS)
        assert found is not None and abs(found[0] - ms) <= 1
    states.add("/joint_states", -5000 * MS, ARM + GRIPPER, [7.0] * 9, None)
    assert states.at(799 * MS) is None and states.at(-5000 * MS) == [7.0] * 9


def test_memory_is_bounded() -> None:
    states = _states()
    for i in range(5000):
        states.add("/joint_states", i * MS, [*ARM, *GRIPPER, f"spare_{i}"], [0.0] * 10, None)
        states.add("/joint_states", i * MS, ARM, [0.0] * 7, None)
    assert len(states.current()) <= 16
    assert max(len(publisher.stamps) for publisher, _ in states.current()) <= 2 * JOINTS_KEPT


# --- frozen joints ---------------------------------------------------------------------------------------------------


def test_joints_that_freeze_while_motion_is_commanded(bundle: Bundle) -> None:
    streams = Streams(CONTRACT, frozen=1.5)
    outputs = play(bundle, streams, 5.0)
    codes = [o.decision.status.code for o in outputs]
    assert codes[-1] is StatusCode.FROZEN_JOINTS and not outputs[-1].decision.action[:6].any()
    began = (outputs[codes.index(StatusCode.FROZEN_JOINTS)].command_stamp / 1e9) - BEGIN
    assert 1.5 < began < 2.5
    assert "joint_states" in outputs[-1].decision.status.message
    shadow = play(bundle, streams, 5.0, enabled=False)
    assert not {o.decision.status.code for o in shadow if o.decision.status.code.is_fault}
    off = play(bundle, streams, 5.0, watch=WatchLimits(frozen_after=None))
    assert last(off) == {StatusCode.RUNNING}


def test_the_frozen_check() -> None:
    step = observations(CONTRACT, 1)[0]
    twist = np.array([0.1, 0, 0, 0, 0, 0])

    def moved(by: float, group: str = "joint_states") -> object:
        return dataclasses.replace(
            step, proprioception={**step.proprioception, group: step.proprioception[group] + np.float32(by)}
        )

    check = FrozenMotionCheck(CONTRACT, WatchLimits())
    for _ in range(200):  # commanded to stand still
        assert check.check(step) is None
        check.add_command(np.zeros(6))
    for i in range(30):  # the gripper's readings do not count, for or against
        found = check.check(moved(1e-3 * i, "gripper_states"))  # type: ignore[arg-type]
        assert (found is None) == (i < 10)
        check.add_command(twist)
    assert check.check(moved(1e-6)) is None  # type: ignore[arg-type]
    for i in range(200):  # a blocked arm: noise in the last digits
        check.add_command(twist)
        assert check.check(moved(2e-6 * (i % 2))) is None  # type: ignore[arg-type]
    for i in range(30):  # rounding is no motion
        check.add_command(twist)
        found = check.check(moved(1e-7 * (i % 3)))  # type: ignore[arg-type]
    assert found is not None and found.code is StatusCode.FROZEN_JOINTS
    for i in range(30):  # but a slow drift is
        check.add_command(twist)
        found = check.check(moved(3e-7 * i))  # type: ignore[arg-type]
    assert found is None
    slow = FrozenMotionCheck(CONTRACT, WatchLimits())
    for _ in range(2000):  # 1 mm/s: not 2 cm in 2 s
        assert slow.check(step) is None
        slow.add_command(twist / 100)
    slow.reset()
    assert slow.check(step) is None


# --- a frozen pose ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [20.0, 30.0, 125.0])
def test_a_pose_that_freezes_while_motion_is_commanded(bundle: Bundle, hz: float) -> None:
    streams = Streams(CONTRACT, pose=Clock(hz=hz), frozen_pose=1.5)
    outputs = play(bundle, streams, 5.0)
    codes = [o.decision.status.code for o in outputs]
    began = (outputs[codes.index(StatusCode.BAD_POSE)].command_stamp / 1e9) - BEGIN
    assert 1.5 < began < 2.6 and set(codes[-20:]) <= {StatusCode.BAD_POSE, StatusCode.WAITING}
    assert LABELS["pose"] in outputs[-1].decision.status.message and not moving(outputs[-10:])
    for off in (
        play(bundle, streams, 5.0, enabled=False),
        play(bundle, streams, 5.0, watch=WatchLimits(frozen_after=None)),
    ):
        assert not {o.decision.status.code for o in off if o.decision.status.code.is_fault}


def test_a_frozen_pose_in_a_workspace_does_not_leave_it(bundle: Bundle) -> None:
    box = SafetyLimits(workspace_low=(0.2, -0.2, 0.1), workspace_high=(0.6, 0.2, 0.5))
    outputs = play(bundle, Streams(CONTRACT, pose=Clock(hz=100.0), frozen_pose=1.5), 5.0, limits=box)
    way = sum(
        float(np.abs(o.command.twist[:3]).max()) * CONTRACT.period
        for o in outputs
        if o.command.twist is not None and o.command.is_sent
    )
    assert last(outputs) == {StatusCode.BAD_POSE} and way < 1.0


def test_the_frozen_check_of_poses() -> None:
    steps = observations(CONTRACT, 40)
    pose, twist = np.array([0.4, 0.0, 0.3, 3.0, 0.0, 0.0]), 0.1 * np.eye(6)[0]

    def codes(
        check: FrozenMotionCheck, step: NDArray[np.float64], *, by: float = 0.0, driven: bool = True
    ) -> list[object]:
        found: list[object] = []
        for i in range(30):
            fault = check.check(steps[i], pose + by * i * np.eye(6)[i % 6], driven=driven)
            found.append(None if fault is None else fault.code)
            check.add_command(step)
        return found

    still = [None] * 10 + [StatusCode.BAD_POSE] * 20
    assert codes(FrozenMotionCheck(CONTRACT, WatchLimits()), twist) == still
    assert codes(FrozenMotionCheck(CONTRACT, WatchLimits()), twist, by=1e-15) == still, "rounding is no motion"
    assert codes(FrozenMotionCheck(CONTRACT, WatchLimits()), twist / 1e6) == still, "the joints move"
    assert not any(codes(FrozenMotionCheck(CONTRACT, WatchLimits()), twist * 0.0)), "nothing is commanded"
    assert not any(codes(FrozenMotionCheck(CONTRACT, WatchLimits()), twist, by=1e-5))
    assert not any(codes(FrozenMotionCheck(CONTRACT, WatchLimits()), twist, driven=False))
    assert not any(codes(FrozenMotionCheck(CONTRACT, WatchLimits(frozen_after=None)), twist))
    check = FrozenMotionCheck(CONTRACT, WatchLimits())
    assert codes(check, twist)[-1] is StatusCode.BAD_POSE
    assert check.check(steps[30]) is not None, "no pose is no news"
    assert check.check(steps[31], pose + 1e-5) is None
    assert codes(check, twist)[-1] is StatusCode.BAD_POSE
    check.reset()
    assert check.check(steps[32], pose) is None
