"""Between messages and what the runtime speaks. Pure: no participant, no clock."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Camera, Contract
from m2distill_policy.dds.m2distill_msgs import PolicyAction, PolicyStatus
from m2distill_policy.dds.types import (
    CameraInfo,
    DiagnosticArray,
    DiagnosticStatus,
    Header,
    KeyValue,
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    Time,
    Twist,
    TwistStamped,
    Vector3,
)
from m2distill_policy.node.cycle import Output
from m2distill_policy.node.diagnostics import Health
from m2distill_policy.node.pose import pose_from, quaternion_of
from m2distill_policy.runtime.safety import Motion

_MOTIONS = {Motion.RUNNING.value: 0, Motion.HALTING.value: 1, Motion.HALTED.value: 2}


def action_message(output: Output, contract: Contract) -> PolicyAction:
    """``~/action`` for a cycle."""
    decision = output.decision
    mixture = decision.mixture
    return PolicyAction(
        header=Header(Time.from_nanoseconds(output.stamp), contract.action.frame),
        bundle=decision.bundle,
        instruction=decision.status.instruction,
        command=decision.command,
        action=decision.action.tolist(),
        sample=decision.sample.tolist() if decision.sample is not None else [],
        modes=len(mixture.logits) if mixture is not None else 0,
        logits=mixture.logits.tolist() if mixture is not None else [],
        means=mixture.means.reshape(-1).tolist() if mixture is not None else [],
        scales=mixture.scales.reshape(-1).tolist() if mixture is not None else [],
    )


def status_message(output: Output, contract: Contract) -> PolicyStatus:
    """``~/status`` for a cycle."""
    status = output.decision.status
    motion = _MOTIONS[status.motion]
    return PolicyStatus(
        header=Header(Time.from_nanoseconds(output.stamp), contract.action.frame),
        cycle=output.cycle,
        episode=output.episode,
        code=int(status.code),
        name=status.code.name,
        sentence=status.sentence,
        motion=motion,
        halted=motion == 2,
        command=output.command,
        gripper_commands=output.gripper_commands,
        bundle=status.bundle,
        tasks=list(status.tasks),
        instruction=status.instruction,
        window=status.window,
        latency=status.latency,
        overruns=status.overruns,
        window_cleared=status.window_cleared,
        swap=int(status.swap.state),
        swap_sentence=status.swap.sentence,
        swap_bundle=status.swap.bundle,
        warning=" ".join([*([status.warning] if status.warning else []), *output.warnings]),
    )


def diagnostics_message(health: Health, stamp: int) -> DiagnosticArray:
    """``/diagnostics``; stamp: ns."""
    pairs = [KeyValue(key, value) for key, value in health.values]
    entry = DiagnosticStatus(health.level, health.name, health.sentence, health.hardware, pairs)
    return DiagnosticArray(Header(Time.from_nanoseconds(stamp), ""), [entry])


def twist_message(velocity: NDArray[np.float64], stamp: int, frame: str) -> TwistStamped:
    """``~/twist`` for a velocity (6,) in m/s and rad/s."""
    x, y, z, rx, ry, rz = (float(v) for v in velocity)
    return TwistStamped(Header(Time.from_nanoseconds(stamp), frame), Twist(Vector3(x, y, z), Vector3(rx, ry, rz)))


def twist_of(message: TwistStamped) -> NDArray[np.float64]:
    """Velocity (6,) in m/s and rad/s."""
    linear, angular = message.twist.linear, message.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


def pose_message(pose: NDArray[np.floating[Any]], stamp: int, frame: str) -> PoseStamped:
    """A pose (6,): position in m and rotation vector in rad."""
    x, y, z = (float(v) for v in pose[:3])
    return PoseStamped(
        Header(Time.from_nanoseconds(stamp), frame), Pose(Point(x, y, z), Quaternion(*quaternion_of(pose[3:6])))
    )


def pose_of(message: PoseStamped) -> NDArray[np.float64]:
    """Pose (6,): position in m and rotation vector in rad; raises :class:`ObservationError` if it is not a pose."""
    position, q = message.pose.position, message.pose.orientation
    return pose_from((position.x, position.y, position.z), (q.x, q.y, q.z, q.w))


def camera_info(camera: Camera, height: int, width: int, stamp: int) -> CameraInfo:
    """Intrinsics of a (height, width) picture with the camera's field of view, square pixels and no distortion."""
    focal = height / 2 / math.tan(math.radians(camera.fov_y) / 2)
    k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0]
    return CameraInfo(
        header=Header(Time.from_nanoseconds(stamp), optical_frame(camera.name)),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=k,
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0],
    )


def optical_frame(view: str) -> str:
    """Name of the frame in which the view's camera looks along +z."""
    return f"{view.removesuffix('_rgb')}_optical_frame"
