"""Poses: impossible ones are refused, and the pose of a set is found and waited for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.bundle import Bundle
from m2distill_policy.errors import ObservationError
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose import pose_from
from m2distill_policy.node.pose_gate import Measured, PoseGate, angle_between, between
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import observations, toy_bundle, toy_contract
from tests.test_runtime_limits import Arm

CONTRACT = toy_contract()
PERIOD = CONTRACT.period
STEPS = observations(CONTRACT, 200)
POSE = np.array([0.4, 0.3, 0.4, math.pi, 0.02, -0.01])
BOX = SafetyLimits(workspace_low=(0.2, 0.2, 0.2), workspace_high=(0.6, 0.6, 0.6))
SCALE = CONTRACT.action.translation_scale


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("poses") / "bundle")


def changed(**entries: float) -> NDArray[np.float64]:
    """:data:`POSE` with some of x, y, z, rx, ry, rz replaced."""
    pose = POSE.copy()
    for name, value in entries.items():
        pose[("x", "y", "z", "rx", "ry", "rz").index(name)] = value
    return pose


WRONG: dict[str, NDArray[np.float64]] = {
    "x = 3.4": changed(x=3.4),
    "y = -0.2": changed(y=-0.2),
    "z = 0.55": changed(z=0.55),
    "out of reach": changed(z=5.1),
    "a thousand km": changed(x=1e6),
    "1e300": changed(y=1e300),
    "NaN": changed(x=math.nan),
    "NaN in the rotation": changed(ry=math.nan),
    "infinity": changed(z=math.inf),
    "turned by 2 rad": changed(rx=math.pi - 2),
    "turned about another axis": changed(rx=0.0, ry=1.5),
}


def targets(outputs: list[Output]) -> list[NDArray[np.float64]]:
    return [output.command.target_pose for output in outputs if output.command.target_pose is not None]


@pytest.mark.parametrize("limits", [SafetyLimits(), BOX], ids=["no box", "a box"])
@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_pose_is_refused_and_reported(bundle: Bundle, name: str, limits: SafetyLimits) -> None:
    arm = Arm(bundle, limits=limits, sampling="mode")
    before = arm.drive(STEPS[:5], POSE)
    wrong = arm.drive(STEPS[5:6], WRONG[name])
    after = arm.drive(STEPS[6:12], POSE)
    assert all(output.decision.status.code is StatusCode.RUNNING for output in before)
    for target in targets(before + wrong + after):
        assert np.all(np.abs(target[:3] - POSE[:3]) <= SCALE + 1e-9)
    assert any("refused" in text for text in wrong[0].report.warnings)
    if not limits.needs_pose:
        assert wrong[0].command.target_pose is None
    else:  # a ramp begins, from the last pose that was right
        assert wrong[0].decision.status.code is StatusCode.BAD_POSE
    assert after[-1].decision.status.code is StatusCode.RUNNING and after[-1].command.target_pose is not None
    late = arm.drive(STEPS[12:34], POSE)
    assert not late[-1].report.warnings, "it is said for a second"
    arm.server.close()


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("state", ["ramp", "halted", "silence", "shadow"])
def test_a_wrong_pose_in_any_state(bundle: Bundle, name: str, state: str) -> None:
    arm = Arm(bundle, limits=BOX, sampling="mode")
    arm.drive(STEPS[:5], POSE)
    if state == "shadow":
        arm.server.disable()
    elif state != "silence":
        arm.server.halt("a test")
    arm.drive(STEPS[5 : 15 if state == "halted" else 6], POSE)
    for step in STEPS[15:20]:
        arm.cycle.add_pose(round((arm.now + PERIOD) * 1e9), WRONG[name])
        arm.period(None if state == "silence" else step)
    for target in targets(arm.outputs):
        assert np.all(np.abs(target[:3] - POSE[:3]) <= SCALE + 1e-9)
    assert any("refused" in text for text in arm.outputs[-1].report.warnings)
    arm.server.close()


def test_invalid_quaternion_is_refused_and_reported(bundle: Bundle) -> None:
    arm = Arm(bundle, limits=BOX, sampling="mode")
    arm.drive(STEPS[:5], POSE)
    for quaternion in ((0, 0, 0, 0), (0, 0, 0, 2), (1e300, 0, 0, 0), (math.nan, 0, 0, 1), (0, 0, 0, 0.9)):
        with pytest.raises(ObservationError) as caught:
            pose_from((0.4, 0.3, 0.4), quaternion)
        arm.cycle.refuse_pose(str(caught.value))
    output = arm.drive(STEPS[5:6])[0]
    assert output.decision.status.code is StatusCode.BAD_POSE and "refused" in " ".join(output.report.warnings)
    arm.server.close()


def test_a_jump_that_lasts_halts_until_the_policy_is_enabled(bundle: Bundle) -> None:
    """The arm was moved by hand while no pose came, or the measurement jumped; the poses do not show which."""
    there = changed(x=0.55, y=0.5)
    for limits in (SafetyLimits(), BOX):
        arm = Arm(bundle, limits=limits, sampling="mode")
        arm.drive(STEPS[:5], POSE)
        outputs = arm.drive(STEPS[5:45], there)
        assert outputs[-1].decision.status.code is StatusCode.BAD_POSE
        assert outputs[-1].decision.status.motion == "halted"
        for target in targets(outputs):
            assert np.all(np.abs(target[:3] - POSE[:3]) <= SCALE + 1e-9), "nothing was sent from there"
        assert not arm.server.refusal_to_enable(arm.now)
        arm.server.enable()
        again = arm.drive(STEPS[45:50], there)
        assert again[-1].decision.status.code is StatusCode.RUNNING
        assert np.all(np.abs(targets(again)[-1][:3] - there[:3]) <= SCALE + 1e-9)
        arm.server.close()


def test_poses_of_two_contradicting_publishers_are_refused(bundle: Bundle) -> None:
    arm = Arm(bundle, limits=BOX, sampling="mode")
    arm.drive(STEPS[:5], POSE)
    for step in STEPS[5:80]:
        arm.cycle.add_pose(round((arm.now + PERIOD) * 1e9) - 1_000_000, changed(x=0.25, y=0.55))
        arm.period(step, POSE)
    assert {output.decision.status.code for output in arm.outputs} == {StatusCode.RUNNING}
    for target in targets(arm.outputs):
        assert np.all(np.abs(target[:3] - POSE[:3]) <= SCALE + 1e-9)
    assert any("refused" in text for text in arm.outputs[-1].report.warnings)
    arm.server.close()


def test_normal_arm_motion_is_never_refused(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    for hz in (10, 20, 33, 100, 1000):
        gate = PoseGate(CONTRACT.action.response.top_speeds)
        pose, t = POSE.copy(), 0.0
        for _ in range(400):
            dt = float(rng.choice([1, 1, 1, 3])) / hz  # now and then two are lost
            t += dt
            pose = pose + rng.normal(scale=0.3, size=6) * np.array([1, 1, 1, 3, 3, 3]) / 2 * dt
            noisy = pose + rng.normal(scale=0.002, size=6)
            late = t + float(rng.uniform(0, 0.02))
            assert gate.problem(Measured(round(t * 1e9), late, noisy)) is None


@pytest.mark.parametrize("seed", range(6))
def test_random_jumps_are_refused_at_any_rate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hz = float(rng.choice([10, 20, 50, 200, 1000]))
    gate = PoseGate(CONTRACT.action.response.top_speeds)
    wrong = 0
    for i in range(1, 300):
        t = i / hz
        if rng.random() < 0.1:
            jump = rng.normal(size=3)
            bad = POSE.copy()
            bad[:3] += jump / np.linalg.norm(jump) * (0.06 + 1.1 * 12 / hz) * rng.uniform(1, 20)
            assert gate.problem(Measured(round(t * 1e9), t, bad)) is not None
            wrong += 1
        else:
            assert gate.problem(Measured(round(t * 1e9), t, POSE)) is None
    assert wrong and gate.take_jump() is None


def test_a_wrong_stamp_does_not_excuse_a_jump() -> None:
    gate = PoseGate(CONTRACT.action.response.top_speeds)
    assert gate.problem(Measured(10**18, 0.0, POSE)) is None
    assert gate.problem(Measured(2 * 10**18, 0.05, changed(x=1.4))) is not None
    assert gate.problem(Measured(0, 0.1, changed(x=1.4))) is not None


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [SafetyLimits(), BOX], ids=["no box", "a box"])
def test_pose_in_another_frame_is_refused_and_reported(bundle: Bundle, limits: SafetyLimits) -> None:
    arm = Arm(bundle, limits=limits, sampling="mode")

    def drive(frame: str, steps: list[Any]) -> list[Output]:
        found = []
        for step in steps:
            arm.cycle.add_pose(round((arm.now + PERIOD) * 1e9), POSE, frame)
            output = arm.period(step)
            assert output is not None
            found.append(output)
        return found

    before = drive("", STEPS[:5]) + drive("base", STEPS[5:10]) + drive("", STEPS[10:12]) + drive("/base", STEPS[12:14])
    assert {output.decision.status.code for output in before} == {StatusCode.RUNNING}
    wrong = drive("camera_link", STEPS[14:40])
    assert not targets(wrong[6:]), "a pose counts for four periods"
    assert any("'camera_link'" in text for text in wrong[-1].report.warnings)
    assert wrong[-1].decision.status.code is (StatusCode.BAD_POSE if limits.needs_pose else StatusCode.RUNNING)
    after = drive("base", STEPS[40:45])
    assert after[-1].decision.status.code is StatusCode.RUNNING and after[-1].command.target_pose is not None
    arm.server.close()


@pytest.mark.parametrize("wanted", ["", "base", "fr3_link0"])
@pytest.mark.parametrize("seed", range(4))
def test_frame_must_be_the_required_one_or_stay_the_same(wanted: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gate = PoseGate(CONTRACT.action.response.top_speeds, jumps=bool(seed % 2), frame=wanted)
    expected = wanted
    for i in range(100):
        frame = str(rng.choice(["", "base", "fr3_link0", "world", "x" * 10_000]))
        why = gate.problem(Measured(i * 10**7, i / 100, POSE, frame))
        assert (why is None) == (frame in ("", expected or frame)) and len(why or "") < 300
        expected = expected or frame
        if i == 50:
            gate.clear()
            expected = wanted
    assert gate.frame in ("", expected)


# --- outside the workspace -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [-1, 1])
def test_arm_outside_the_workspace_gets_no_set_point_outside(bundle: Bundle, axis: int, side: int) -> None:
    edge = 0.4 + side * 0.2
    for beyond in (0.001, 0.03, 0.049, 0.051, 0.2, 1.5):
        outside = np.array([0.4, 0.4, 0.4, math.pi, 0.0, 0.0])
        outside[axis] = edge + side * beyond
        arm = Arm(bundle, limits=BOX, sampling="mode")
        arm.drive(STEPS[:8], outside)
        arm.server.halt("a test")
        arm.drive(STEPS[8:20], outside)
        found = targets(arm.outputs)
        if beyond < SCALE:
            assert found
            for target in found:
                assert np.all(np.abs(target[:3] - outside[:3]) <= SCALE + 1e-9), "no jump"
        else:
            assert not found
            assert any("outside the workspace" in text for output in arm.outputs for text in output.report.warnings)
        for output in arm.outputs:
            if output.command.twist is not None:
                assert output.command.twist[axis] * side <= 0, "only motion back"
        arm.server.close()


# --- which pose belongs to a set -------------------------------------------------------------------------------------


def test_between_two_poses_position_is_linear_and_rotation_the_shorter_way() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        rotation = rng.normal(size=3)
        rotation *= rng.uniform(0, math.pi) / np.linalg.norm(rotation)
        turn = rng.normal(size=3)
        turn *= rng.choice([0.0, 1e-12, 1e-6, 0.1, 1.0, 3.0]) / np.linalg.norm(turn)
        start = np.concatenate([rng.uniform(-1, 1, 3), rotation])

        def turned(share: float, start: NDArray[np.float64] = start, turn: Any = turn) -> NDArray[np.float64]:
            matrix = cv2.Rodrigues(turn * share)[0] @ cv2.Rodrigues(start[3:])[0]
            return np.concatenate([start[:3] + share * 0.3, cv2.Rodrigues(matrix)[0].ravel()])

        before, after = Measured(1000, 0.0, turned(0.0)), Measured(2000, 0.0, turned(1.0))
        for stamp in (1000, 1001, 1500, 1999, 2000):
            found, expected = between(before, after, stamp), turned((stamp - 1000) / 1000)
            np.testing.assert_allclose(found[:3], expected[:3], atol=1e-12)
            assert angle_between(found[3:], expected[3:]) < 1e-5
        assert abs(angle_between(before.value[3:], after.value[3:]) - np.linalg.norm(turn)) < 1e-5


def play(
    arm: Arm, seconds: float, *, pose_hz: float, pose_late: Callable[[int], float], phase: float, where: Any = POSE
) -> tuple[int, int, list[float]]:
    """Cameras at 20 Hz and joints at 100 Hz arrive at once, poses ``pose_late`` s after their stamps.

    Returns how many cycles drove, how many of them had a set-point, and s from a set's arrival to its answer.
    """
    events: list[tuple[float, int, Callable[[], None]]] = []
    start = arm.now

    def view(stamp: float, i: int) -> Callable[[], None]:
        def send() -> None:
            for name, frame in STEPS[i % len(STEPS)].images.items():
                arm.cycle.add_image(name, round(stamp * 1e9), frame)

        return send

    def joints(stamp: float, i: int) -> Callable[[], None]:
        names = [e for g in CONTRACT.proprioception for e in g.entries]
        groups = STEPS[i % len(STEPS)].proprioception
        values = np.concatenate([groups[g.name] for g in CONTRACT.proprioception]).tolist()
        return lambda: arm.cycle.add_joints(round(stamp * 1e9), names, values)

    def pose(stamp: float) -> Callable[[], None]:
        value = where(stamp - start) if callable(where) else where
        return lambda: arm.cycle.add_pose(round(stamp * 1e9), value)

    for i in range(round(seconds * 100)):
        stamp = start + (i + 1) * 0.01
        events.append((stamp, 0, joints(stamp, i)))
        if (i + 1) % 5 == 0:
            events.append((stamp, 1, view(stamp, i)))
    for i in range(round(seconds * pose_hz)):
        stamp = start + phase + i / pose_hz
        events.append((stamp + pose_late(i), 2, pose(stamp)))
    drove = with_target = 0
    waits = []
    for at, _, send in sorted(events, key=lambda event: event[:2]):
        while arm.cycle.wake < at:
            arm.now = max(arm.now, arm.cycle.wake)
            output = arm.cycle.run(0.0)
            if output is not None and output.decision.status.code is StatusCode.RUNNING:
                drove, with_target = drove + 1, with_target + (output.command.target_pose is not None)
                waits.append(arm.now - output.stamp / 1e9)
                arm.check(output)
        arm.now = max(arm.now, at)
        send()
        output = arm.cycle.run(0.0)
        if output is not None and output.decision.status.code is StatusCode.RUNNING:
            drove, with_target = drove + 1, with_target + (output.command.target_pose is not None)
            waits.append(arm.now - output.stamp / 1e9)
            arm.check(output)
    return drove, with_target, waits


@pytest.mark.parametrize("late", [0.0, 0.0005, 0.002, 0.008, 0.014])
@pytest.mark.parametrize("limits", [SafetyLimits(), BOX], ids=["no box", "a box"])
def test_a_pose_that_comes_just_after_the_joints_is_waited_for(
    bundle: Bundle, late: float, limits: SafetyLimits
) -> None:
    arm = Arm(bundle, limits=limits, sampling="mode")
    _, found, waits = play(arm, 5.0, pose_hz=20.0, pose_late=lambda i: late, phase=PERIOD)
    assert found >= 97, "but for the first, from which it is learned"
    assert max(waits) <= 0.3 * PERIOD + 0.003
    if late == 0.0:
        assert max(waits) < 1e-9, "a pose that is there costs no time"
    arm.server.close()


@pytest.mark.parametrize("hz", [30.0, 31.0, 50.0, 100.0, 1000.0])
@pytest.mark.parametrize("late", [0.0, 0.001])
def test_poses_at_any_rate_from_30_hz_on_are_found(bundle: Bundle, hz: float, late: float) -> None:
    for phase in (0.0, 0.003, 0.011, 0.017, 0.029):
        arm = Arm(bundle, sampling="mode")
        drove, found, _ = play(arm, 5.0, pose_hz=hz, pose_late=lambda i: late, phase=phase)
        assert drove >= 95 and drove - found <= 3, (phase, drove, found)
        arm.server.close()


def test_poses_of_another_phase_are_interpolated(bundle: Bundle) -> None:
    """Images arrive 40 ms after their stamps, poses at 15 Hz at once: the arm is between two poses."""
    arm = Arm(bundle, sampling="mode")

    def where(t: float) -> NDArray[np.float64]:
        return changed(x=0.4 + 0.2 * t)

    start = arm.now
    for i in range(60):
        arm.cycle.add_pose(round((start + i / 15) * 1e9), where(i / 15))
        arm.now = start + i / 15
        if i < 4:
            continue
        stamp = arm.now - 0.04
        found = arm.cycle._poses.at(round(stamp * 1e9))
        assert found is not None
        np.testing.assert_allclose(found[:3], where(stamp - start)[:3], atol=1e-6)
        assert angle_between(found[3:], POSE[3:]) < 1e-6
    arm.server.close()


def test_slow_poses_are_reported_with_distance_and_setting(bundle: Bundle) -> None:
    arm = Arm(bundle, sampling="mode")
    drove, found, waits = play(arm, 5.0, pose_hz=20.0, pose_late=lambda i: 0.0, phase=0.025)
    assert drove >= 95 and found == 0, "each is 25 ms before its images, and the next one comes 25 ms after them"
    assert sum(wait > 0.001 for wait in waits) <= len(waits) * 0.3, "and waiting does not help"
    arm.period(STEPS[0])
    warning = " ".join(arm.outputs[-1].report.warnings)
    assert "ms before its images" in warning and "'slop' allows 20 ms" in warning
    arm.server.close()


def test_a_pose_that_has_stopped_is_not_waited_for(bundle: Bundle) -> None:
    arm = Arm(bundle, sampling="mode")
    play(arm, 2.0, pose_hz=20.0, pose_late=lambda i: 0.005, phase=PERIOD)
    _, _, waits = play(arm, 2.0, pose_hz=0.0, pose_late=lambda i: 0.0, phase=0.0)
    assert sum(wait > 0.001 for wait in waits) <= 3, "until its silence is known"
    arm.server.close()
