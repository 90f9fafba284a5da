"""Limits, the ramp to a halt, and the conversion of actions to commands."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.contract import Camera, libero_contract
from m2distill_policy.errors import ConfigError, ObservationError
from m2distill_policy.images.preprocess import centre_crop, fov_y_after_crop, preprocess
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.runtime.drive import gripper, set_point, set_point_delta, twist
from m2distill_policy.runtime.mixture import PolicyOutputError
from m2distill_policy.runtime.safety import LIMIT_RANGES, Governor, Motion, SafetyLimits
from m2distill_policy.runtime.watchdog import WATCH_RANGES, WatchLimits

CONTRACT = libero_contract(64)
FULL: NDArray[np.float64] = np.array([1.0, -1.0, 0.5, 0.2, -0.2, 1.0, 1.0])


def test_action_is_clipped_to_its_range() -> None:
    governor = Governor(SafetyLimits(), CONTRACT)
    assert np.array_equal(governor.limit(FULL * 3), np.clip(FULL * 3.0, -1.0, 1.0))
    assert np.array_equal(governor.limit(FULL), FULL), "within limits nothing changes, not by a bit"


def test_speed_is_limited_per_axis_and_slower_axes_are_unchanged() -> None:
    governor = Governor(SafetyLimits(speed=(0.1, 0.05, 0.2, 0.3, 1.2, 0.6)), CONTRACT)
    command = governor.limit(FULL)
    np.testing.assert_allclose(twist(command, CONTRACT), [0.1, -0.05, 0.12, 0.28, -0.28, 0.6], atol=1e-12)
    # 0.1 m/s is between the levels 0.25 (0.06) and 0.5 (0.12); the set-point shrinks with the twist.
    np.testing.assert_allclose(command[0], 0.25 + 0.25 * (0.1 - 0.06) / 0.06)
    assert np.array_equal(command[[2, 3, 4, 6]], FULL[[2, 3, 4, 6]])


@pytest.mark.parametrize("jerk", [None, (4.0,) * 3 + (30.0,) * 3])
def test_acceleration_and_jerk_are_limited(jerk: tuple[float, ...] | None) -> None:
    limits = SafetyLimits(speed=(0.15,) * 3 + (1.0,) * 3, acceleration=(0.5,) * 3 + (4.0,) * 3, jerk=jerk)
    governor = Governor(limits, CONTRACT)
    rng = np.random.default_rng(0)
    # Held long enough to be reached, then thrown elsewhere.
    wishes = np.repeat(rng.uniform(-1, 1, size=(40, 7)), 25, axis=0)
    velocities = np.array([twist(governor.limit(wish), CONTRACT) for wish in wishes])
    period = CONTRACT.period
    acceleration = np.diff(np.vstack([np.zeros(6), velocities]), axis=0) / period
    assert limits.speed is not None and limits.acceleration is not None
    assert (np.abs(velocities) <= np.array(limits.speed) + 1e-9).all()
    assert (np.abs(acceleration) <= np.array(limits.acceleration) + 1e-6).all()
    assert (np.abs(acceleration).max(axis=0) > 0.95 * np.array(limits.acceleration)).all(), "and it is used"
    if jerk is not None:
        change = np.diff(np.vstack([np.zeros(6), acceleration]), axis=0) / period
        assert (np.abs(change) <= np.array(jerk) + 1e-6).all()
    arrived = velocities[24::25]
    wanted = np.clip([twist(wish, CONTRACT) for wish in wishes[24::25]], -np.array(limits.speed), limits.speed)
    np.testing.assert_allclose(arrived, wanted, atol=1e-9, err_msg="every wish is reached in time")


def test_halt_time_does_not_depend_on_the_acceleration_limit() -> None:
    governor = Governor(SafetyLimits(acceleration=(0.1,) * 6, halt_time=0.1), CONTRACT)
    for _ in range(60):
        governor.limit(FULL)
    governor.halt()
    assert not governor.halt()[:6].any() and governor.motion is Motion.HALTED
    assert np.abs(twist(governor.limit(FULL), CONTRACT)).max() <= 0.1 * CONTRACT.period + 1e-12, "from standing still"


def test_the_set_point_stays_within_the_workspace() -> None:
    limits = SafetyLimits(workspace_low=(0.3, -0.2, 0.05), workspace_high=(0.7, 0.2, 0.5))
    assert limits.needs_pose
    governor = Governor(limits, CONTRACT)

    def moved(place: tuple[float, float, float], action: tuple[float, float, float]) -> list[float]:
        pose = np.array([*place, 3.1, 0.0, 0.0])
        command = governor.limit(np.array([*action, 0.4, 0.0, 0.0, 1.0]), pose)
        assert command[3] == 0.4 and command[6] == 1.0
        return np.round((set_point(pose, command, CONTRACT)[:3] - pose[:3]) * 1000, 6).tolist()

    assert moved((0.5, 0.0, 0.2), (1.0, -1.0, 1.0)) == [50, -50, 50], "in the middle nothing is held back"
    assert moved((0.69, -0.18, 0.06), (1.0, -1.0, -1.0)) == [10, -20, -10], "up to the wall"
    assert moved((0.75, 0.25, 0.0), (1.0, 1.0, -1.0)) == [0, 0, 0], "beyond it no further"
    assert moved((0.75, 0.25, 0.0), (-1.0, -0.5, 1.0)) == [-50, -25, 50], "and back at will"
    drift = np.array([0.5, 0.3, -0.5, 0, 0, 0, 0])
    low, high = np.array(limits.workspace_low), np.array(limits.workspace_high)
    for held in (limits, dataclasses.replace(limits, acceleration=(0.3,) * 6)):
        rng, governor, place = np.random.default_rng(0), Governor(held, CONTRACT), np.array([0.5, 0.0, 0.2])
        for _ in range(500):
            pose = np.array([*place, 3.1, 0.0, 0.0])
            target = set_point(pose, governor.limit(rng.uniform(-1, 1, 7) + drift, pose), CONTRACT)[:3]
            assert (target >= low - 1e-12).all() and (target <= high + 1e-12).all()
            place = place + 0.2 * (target - place)


@pytest.mark.parametrize("bad", [np.full(7, np.nan), np.array([np.inf] + [0.0] * 6), np.zeros(6)])
def test_action_that_is_not_finite_is_refused(bad: NDArray[np.float64]) -> None:
    governor = Governor(SafetyLimits(), CONTRACT)
    governor.limit(FULL)
    with pytest.raises(PolicyOutputError, match="7 finite entries are needed"):
        governor.limit(bad)
    assert np.array_equal(governor.last, FULL), "a refused action leaves no trace"


def test_ramp_ends_within_halt_time_and_keeps_the_gripper() -> None:
    governor = Governor(SafetyLimits(halt_time=0.25), CONTRACT)
    states = [governor.motion]
    governor.limit(FULL)
    states.append(governor.motion)
    assert states == [Motion.HALTED, Motion.RUNNING]
    ramp = []
    for expected in (Motion.HALTING,) * 4 + (Motion.HALTED,) * 3:
        ramp.append(governor.halt())
        assert governor.motion is expected
    assert np.allclose([r[0] for r in ramp], [0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0])
    assert all(r[6] == 1.0 for r in ramp), "an object in the hand is not dropped"
    governor.limit(FULL)
    governor.reset()
    assert governor.motion is Motion.HALTED and not governor.last.any()


def test_ramp_does_not_speed_up_away_from_a_wall() -> None:
    limits = SafetyLimits(workspace_low=(0.0, -1.0, 0.0), workspace_high=(0.5, 1.0, 1.0), halt_time=0.5)
    governor = Governor(limits, CONTRACT)
    inside = np.array([0.3, 0.0, 0.3, np.pi, 0.0, 0.0])
    at_wall = inside.copy()
    at_wall[0] = 0.499
    governor.limit(FULL, inside)
    sizes = [np.abs(governor.halt(pose)[:6]) for pose in (at_wall, inside, inside, at_wall, inside, inside)]
    assert sizes[0][0] < 0.05
    for before, after in itertools.pairwise(sizes):
        assert (after <= before + 1e-12).all()


def test_no_halt_time_stops_at_once() -> None:
    governor = Governor(SafetyLimits(halt_time=0.0), CONTRACT)
    governor.limit(FULL)
    assert not governor.halt()[:6].any() and governor.motion is Motion.HALTED


@pytest.mark.parametrize("seed", range(8))
def test_limits_at_the_ends_of_their_ranges_give_a_command_or_our_error(seed: int) -> None:
    """Ruckig raises its own errors during a motion."""
    rng = np.random.default_rng(seed)

    def limit(name: str) -> tuple[float, ...]:
        low, high, _ = LIMIT_RANGES[name]
        ends = [low, low * 3, high / 3, high, 10 ** rng.uniform(np.log10(low), np.log10(high))]
        return tuple(float(v) for v in rng.choice(ends, 6))

    for _ in range(40):
        given: dict[str, Any] = {name: limit(name) for name in LIMIT_RANGES if rng.random() < 0.8}
        limits = SafetyLimits(**given)
        governor = Governor(limits, dataclasses.replace(CONTRACT, rate_hz=float(rng.choice([1.0, 10.0, 20.0, 200.0]))))
        for _ in range(30):
            if rng.random() < 0.1:
                command = governor.halt()
            else:
                try:
                    command = governor.limit(rng.uniform(-1, 1, 7) if rng.random() < 0.7 else rng.choice([0, 1, -1], 7))
                except PolicyOutputError:
                    command = governor.halt()
            assert np.isfinite(command).all() and (np.abs(command) <= 1).all()
            if limits.speed is not None:
                assert (np.abs(twist(command, CONTRACT)) <= np.array(limits.speed) * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("error", ["RuckigError", "ValueError"])
def test_an_error_of_the_smoothing_library_halts(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    import ruckig

    governor = Governor(SafetyLimits(acceleration=(0.5,) * 6), CONTRACT)
    governor.limit(FULL)
    assert governor._smoother is not None
    raised = ruckig.RuckigError("a test") if error == "RuckigError" else ValueError("-101 is not a valid Result")

    class Failing:
        def update(self, *_: object) -> None:
            raise raised

    monkeypatch.setattr(governor._smoother, "_generator", Failing())
    with pytest.raises(PolicyOutputError):
        governor.limit(FULL)
    assert np.abs(governor.halt()).max() <= 1


@pytest.mark.parametrize("name", [*WATCH_RANGES, "slop", "timeout"])
@pytest.mark.parametrize("value", [0, -1, 1e308, 1e12, float("nan"), float("inf"), True, "3"])
def test_times_and_counts_have_bounds(name: str, value: Any) -> None:
    kind = WatchLimits if name in WATCH_RANGES else LoopOptions
    with pytest.raises(ConfigError):
        kind(**{name: value})


@pytest.mark.parametrize("name", LIMIT_RANGES)
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-300, 1e-12, 1e9, 1e308, float("nan"), float("inf"), True, "3"])
def test_limits_of_an_axis_have_bounds(name: str, value: Any) -> None:
    for axis in range(6):
        limits: dict[str, Any] = {name: tuple(value if i == axis else 1.0 for i in range(6))}
        with pytest.raises(ConfigError):
            SafetyLimits(**limits)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"speed": (1.0,) * 7}, "'speed' has 7 entries; one is needed for each of"),
        ({"speed": (1.0, 1.0, 0.0, 1.0, 1.0, 1.0)}, "'speed' of 'z' is 0; 0.0001 to 100 m/s"),
        ({"jerk": (float("nan"),) + (1.0,) * 5}, "'jerk' of 'x' is nan"),
        ({"workspace_low": (0.0, 0.0, 0.0)}, "belong together; set both or neither"),
        (
            {"workspace_low": (0.0, 0.0, 0.5), "workspace_high": (1.0, 1.0, 0.5)},
            r"from \[0.0, 0.0, 0.5\] to \[1.0, 1.0, 0.5\] m; three numbers each, the first below the second",
        ),
        ({"halt_time": -1.0}, "'halt_time' is -1; 0 to 5 s is allowed"),
    ],
)
def test_contradictory_limits_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SafetyLimits(**limits)


# --- what an arm takes -----------------------------------------------------------------------------------------------


def test_set_point_scales_and_turns() -> None:
    contract = libero_contract(64)
    action = np.array([1.0, 0.0, -0.5, 0.0, 0.0, 1.0, -1.0])
    assert np.allclose(set_point_delta(action, contract), [0.05, 0, -0.025, 0, 0, 0.5])
    pose = np.array([0.4, 0.1, 0.2, np.pi, 0.0, 0.0])  # the hand points down
    target = set_point(pose, action, contract)
    assert np.allclose(target[:3], [0.45, 0.1, 0.175])
    # A turn about the base's z, applied after the present rotation: R_z(0.5) R_x(pi) has this rotation vector.
    assert np.allclose(np.abs(target[3:]), np.pi * np.abs([np.cos(0.25), np.sin(0.25), 0.0]), atol=1e-6)
    assert gripper(action) == -1.0


def test_twist_follows_the_response() -> None:
    contract = libero_contract(64)
    assert np.allclose(twist(np.array([1.0, -0.5, 0, 0, 0, -1.0, 1.0]), contract), [0.2, -0.12, 0, 0, 0, -1.2])


# --- pictures --------------------------------------------------------------------------------------------------------

SQUARE = Camera("view", 32, 32, 45.0)


def test_preprocess_keeps_an_image_of_the_right_size() -> None:
    frame = np.zeros((32, 32, 3), dtype=np.uint8)
    assert preprocess(frame, SQUARE) is frame


def test_preprocess_crops_the_centre_and_averages() -> None:
    frame = np.zeros((64, 96, 3), dtype=np.uint8)
    frame[:, 16:80] = (np.arange(64) // 2 * 2)[None, :, None]  # pairs of equal columns; the borders are cropped
    frame[1::2] += 4
    result = preprocess(frame, SQUARE)
    assert result.shape == (32, 32, 3) and result.dtype == np.uint8 and result.flags.c_contiguous
    assert np.array_equal(result[:, :, 0], np.broadcast_to(np.arange(32) * 2 + 2, (32, 32)))
    assert centre_crop(64, 96, SQUARE) == (0, 16, 64, 64)
    assert centre_crop(96, 64, SQUARE) == (16, 0, 64, 64)
    assert centre_crop(480, 640, Camera("wide", 48, 64, 45.0)) == (0, 0, 480, 640)


def test_field_of_view_after_the_crop() -> None:
    assert fov_y_after_crop(45.0, 480, 640, SQUARE) == pytest.approx(45.0)
    assert fov_y_after_crop(90.0, 640, 320, SQUARE) == pytest.approx(2 * np.degrees(np.arctan(0.5)))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((64, 64), np.uint8), r"view 'view' is uint8 \(64, 64\); uint8 \(height, width, 3\) in RGB is needed"),
        (np.zeros((64, 64, 4), np.uint8), r"uint8 \(64, 64, 4\)"),
        (np.zeros((64, 64, 3), np.float32), "is float32"),
        (np.zeros((16, 200, 3), np.uint8), "at least 32 x 32; choose a larger camera mode"),
    ],
)
def test_unusable_frames_are_refused(frame: Any, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        preprocess(frame, SQUARE)
