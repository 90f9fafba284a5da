"""Limits, the ramp to a halt, and what an action becomes for an arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.contract import Camera, libero_contract
from m2distill_policy.errors import ConfigError, ObservationError
from m2distill_policy.runtime.drive import gripper, set_point, set_point_delta, twist
from m2distill_policy.runtime.mixture import PolicyOutputError
from m2distill_policy.runtime.preprocess import centre_crop, fov_y_after_crop, preprocess
from m2distill_policy.runtime.safety import Governor, Motion, SafetyLimits

FULL: NDArray[np.float64] = np.array([1.0, -1.0, 0.5, 0.2, -0.2, 1.0, 1.0])


def test_action_is_clipped() -> None:
    governor = Governor(SafetyLimits(), 0.05)
    assert np.array_equal(governor.admit(FULL * 3), np.clip(FULL * 3.0, -1.0, 1.0))
    governor = Governor(SafetyLimits(largest=(0.5,) * 6 + (1.0,)), 0.05)
    assert np.array_equal(governor.admit(FULL)[:3], [0.5, -0.5, 0.5])


def test_rate_limit_binds_an_axis() -> None:
    governor = Governor(SafetyLimits(largest_change=(0.1,) * 6 + (2.0,)), 0.05)
    commands = np.array([governor.admit(FULL) for _ in range(12)])
    assert np.abs(np.diff(commands[:, :6], axis=0)).max() <= 0.1 + 1e-12
    assert np.allclose(commands[0, :6], np.clip(FULL[:6], -0.1, 0.1)), "from standing still, too"
    assert commands[0, 6] == 1.0
    assert np.allclose(commands[-1], FULL)


@pytest.mark.parametrize("bad", [np.full(7, np.nan), np.array([np.inf] + [0.0] * 6), np.zeros(6)])
def test_action_that_is_not_finite_is_refused(bad: NDArray[np.float64]) -> None:
    governor = Governor(SafetyLimits(), 0.05)
    governor.admit(FULL)
    with pytest.raises(PolicyOutputError, match="7 finite entries are needed"):
        governor.admit(bad)
    assert np.array_equal(governor.last, FULL), "a refused action leaves no trace"


def test_ramp_ends_within_the_stated_time_and_holds_the_gripper() -> None:
    governor = Governor(SafetyLimits(halt_time=0.25), 0.05)
    states = [governor.motion]
    governor.admit(FULL)
    states.append(governor.motion)
    assert states == [Motion.HALTED, Motion.RUNNING]
    ramp = []
    for expected in (Motion.HALTING,) * 4 + (Motion.HALTED,) * 3:
        ramp.append(governor.halt())
        assert governor.motion is expected
    assert np.allclose([r[0] for r in ramp], [0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0])
    assert all(r[6] == 1.0 for r in ramp), "an object in the hand is not dropped"
    governor.admit(FULL)
    governor.forget()
    assert governor.motion is Motion.HALTED and not governor.last.any()


def test_no_halt_time_stops_at_once() -> None:
    governor = Governor(SafetyLimits(halt_time=0.0), 0.05)
    governor.admit(FULL)
    assert not governor.halt()[:6].any() and governor.motion is Motion.HALTED


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"largest": (1.0,) * 6}, "'largest' has 6 entries; 7 are needed"),
        (
            {"largest": (1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0)},
            "'largest' is 0.0 for 'z'; above 0 and at most 1 is allowed",
        ),
        ({"largest": (1.5,) + (1.0,) * 6}, "'largest' is 1.5 for 'x'"),
        ({"largest_change": (float("nan"),) + (1.0,) * 6}, "'largest_change' is nan for 'x'"),
        ({"halt_time": -1.0}, "'halt_time' is -1.0 s; 0 to 5 s are allowed"),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
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


def test_preprocess_passes_what_fits() -> None:
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
    ("frame", "sentence"),
    [
        (np.zeros((64, 64), np.uint8), r"view 'view' is uint8 \(64, 64\); uint8 \(height, width, 3\) in RGB is needed"),
        (np.zeros((64, 64, 4), np.uint8), r"uint8 \(64, 64, 4\)"),
        (np.zeros((64, 64, 3), np.float32), "is float32"),
        (np.zeros((16, 200, 3), np.uint8), "at least 32 x 32; choose a larger camera mode"),
    ],
)
def test_frames_that_cannot_be_used(frame: Any, sentence: str) -> None:
    with pytest.raises(ObservationError, match=sentence):
        preprocess(frame, SQUARE)
