"""Convert between messages and the runtime's types, for the message classes of any library.

ROS 2's message classes and the plain DDS types have the same names and fields. So the fields are filled only here, and
each transport supplies its message classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Camera, Contract
from m2distill_policy.errors import printable
from m2distill_policy.node.diagnostics import Health
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose import pose_from, quaternion_of
from m2distill_policy.runtime.safety import Motion

NANOSECONDS = 1_000_000_000

_MOTIONS = {Motion.RUNNING.value: 0, Motion.HALTING.value: 1, Motion.HALTED.value: 2}


class Messages:
    """Makes messages with the message classes of one library.

    Args:
        types: An object whose attributes are the message classes by name: Time, Header, PolicyAction, PolicyStatus,
            Episode, Point, Pose, PoseStamped, Quaternion, Twist, TwistStamped, Vector3, JointState, CameraInfo,
            GripperCommand, DiagnosticArray, DiagnosticStatus and KeyValue.
        byte: Converts a number to what that library stores in a field of type ``byte``; ROS 2 in Python uses ``bytes``.
    """

    def __init__(self, types: Any, byte: Callable[[int], Any] = int) -> None:
        self._types = types
        self._byte = byte

    def header(self, stamp: int, frame: str) -> Any:
        """Make a std_msgs/Header. stamp: ns."""
        at = self._types.Time(sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS)
        return self._types.Header(stamp=at, frame_id=frame)

    def action(self, output: Output, contract: Contract) -> Any:
        """Make ``~/action`` for a cycle."""
        decision = output.decision
        mixture = decision.mixture
        return self._types.PolicyAction(
            header=self.header(output.stamp, contract.action.frame),
            bundle=decision.bundle,
            instruction=printable(decision.status.instruction),
            command=decision.command,
            action=decision.action.tolist(),
            sample=decision.sample.tolist() if decision.sample is not None else [],
            modes=len(mixture.logits) if mixture is not None else 0,
            logits=mixture.logits.tolist() if mixture is not None else [],
            means=mixture.means.reshape(-1).tolist() if mixture is not None else [],
            scales=mixture.scales.reshape(-1).tolist() if mixture is not None else [],
        )

    def status(self, output: Output, contract: Contract) -> Any:
        """Make ``~/status`` for a cycle."""
        status = output.decision.status
        motion = _MOTIONS[status.motion]
        return self._types.PolicyStatus(
            header=self.header(output.stamp, contract.action.frame),
            cycle=output.report.cycle,
            episode=output.report.episode,
            code=int(status.code),
            name=status.code.name,
            message=printable(status.message),
            motion=motion,
            halted=motion == 2,
            command=output.command.is_sent,
            gripper_commands=output.command.gripper_count,
            bundle=status.bundle,
            tasks=[printable(task) for task in status.tasks],
            instruction=printable(status.instruction),
            window=status.window,
            latency=status.latency,
            overruns=status.overruns,
            window_cleared=printable(status.window_cleared),
            swap=int(status.swap.state),
            swap_message=printable(status.swap.message),
            swap_bundle=status.swap.bundle,
            warning=printable(" ".join([*([status.warning] if status.warning else []), *output.report.warnings])),
        )

    def episode(self, number: int, instruction: str, *, seed: int, random_stream: int, stamp: int, frame: str) -> Any:
        """Make ``~/episode``. stamp: ns."""
        header = self.header(stamp, frame)
        return self._types.Episode(
            header=header, number=number, seed=seed, random_stream=random_stream, instruction=instruction
        )

    def diagnostics(self, health: Health, stamp: int) -> Any:
        """Make ``/diagnostics``. stamp: ns."""
        entry = self._types.DiagnosticStatus(
            level=self._byte(health.level),
            name=health.name,
            message=printable(health.message),
            hardware_id=printable(health.hardware),
            values=[self._types.KeyValue(key=key, value=printable(value)) for key, value in health.values],
        )
        return self._types.DiagnosticArray(header=self.header(stamp, ""), status=[entry])

    def twist(self, velocity: NDArray[np.float64], stamp: int, frame: str) -> Any:
        """Make ``~/twist`` for a velocity (6,) in m/s and rad/s."""
        linear, angular = self.vector(velocity[:3]), self.vector(velocity[3:6])
        twist = self._types.Twist(linear=linear, angular=angular)
        return self._types.TwistStamped(header=self.header(stamp, frame), twist=twist)

    def pose(self, pose: NDArray[np.floating[Any]], stamp: int, frame: str) -> Any:
        """Make a geometry_msgs/PoseStamped for a pose (6,): position in m and rotation vector in rad."""
        x, y, z = (float(v) for v in pose[:3])
        qx, qy, qz, qw = quaternion_of(pose[3:6])
        position = self._types.Point(x=x, y=y, z=z)
        orientation = self._types.Quaternion(x=qx, y=qy, z=qz, w=qw)
        return self._types.PoseStamped(
            header=self.header(stamp, frame), pose=self._types.Pose(position=position, orientation=orientation)
        )

    def gripper(self, position: float, max_effort: float) -> Any:
        """Make a control_msgs/GripperCommand. position: m or rad. max_effort: N."""
        return self._types.GripperCommand(position=position, max_effort=max_effort)

    def joints(self, names: list[str], positions: list[float], stamp: int, frame: str) -> Any:
        """Make a sensor_msgs/JointState. positions: rad or m. stamp: ns."""
        return self._types.JointState(header=self.header(stamp, frame), name=names, position=positions)

    def camera_info(self, camera: Camera, height: int, width: int, stamp: int) -> Any:
        """Make the intrinsics of a (height, width) image with the camera's field of view, without distortion."""
        focal = height / 2 / math.tan(math.radians(camera.fov_y) / 2)
        k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0]
        return self._types.CameraInfo(
            header=self.header(stamp, optical_frame(camera.name)),
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=[0.0] * 5,
            k=k,
            r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            p=[*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0],
        )

    def vector(self, values: Sequence[float] | NDArray[np.float64]) -> Any:
        """Make a geometry_msgs/Vector3 of three numbers."""
        x, y, z = (float(v) for v in values)
        return self._types.Vector3(x=x, y=y, z=z)


def nanoseconds_of(message: Any) -> int:
    """Return the stamp in a message's header, in ns."""
    stamp = message.header.stamp
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def twist_of(message: Any) -> NDArray[np.float64]:
    """Return the velocity (6,) in m/s and rad/s of a geometry_msgs/TwistStamped."""
    linear, angular = message.twist.linear, message.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


def pose_of(message: Any) -> NDArray[np.float64]:
    """Return the pose (6,) of a geometry_msgs/PoseStamped: position in m and rotation vector in rad.

    Raises:
        ObservationError: The message does not hold a valid pose.
    """
    position, q = message.pose.position, message.pose.orientation
    return pose_from((position.x, position.y, position.z), (q.x, q.y, q.z, q.w))


def action_of(message: Any, size: int) -> NDArray[np.float64] | None:
    """Return the action (size,) of a PolicyAction; None if the arm should not execute it, or if it cannot be used."""
    values = np.asarray(message.action, dtype=np.float64)
    fits = values.shape == (size,) and bool(np.isfinite(values).all())
    return values if message.command and fits else None


def optical_frame(view: str) -> str:
    """Return the name of the frame in which the view's camera looks along +z."""
    return f"{view.removesuffix('_rgb')}_optical_frame"
