"""Between messages and what the runtime speaks. Pure: no participant, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Camera, Contract
from m2distill_policy.dds.image import Image
from m2distill_policy.dds.m2distill_msgs import PolicyAction, PolicyStatus
from m2distill_policy.dds.synchroniser import SynchronisedSet
from m2distill_policy.dds.types import (
    CameraInfo,
    Header,
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    Time,
    Twist,
    TwistStamped,
    Vector3,
)
from m2distill_policy.errors import ObservationError, TransportError
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.preprocess import fov_y_after_crop, preprocess
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.server import Decision
from m2distill_policy.runtime.status import Status

_MOTIONS = {Motion.RUNNING.value: 0, Motion.HALTING.value: 1, Motion.HALTED.value: 2}


def observation_of(found: SynchronisedSet[Image], contract: Contract) -> tuple[Observation, list[str]]:
    """The observation in a set, at the contract's resolution, and a sentence for each part that cannot be used.

    A picture that cannot be used is left out, so that the watchdog refuses the observation as a whole.
    """
    images: dict[str, NDArray[np.uint8]] = {}
    troubles = []
    for camera in contract.cameras:
        try:
            images[camera.name] = preprocess(found.views[camera.name].to_rgb(), camera)
        except (TransportError, ObservationError) as error:
            troubles.append(f"view '{camera.name}': {error}")
    if found.absent:
        troubles.append(f"the joint state does not name {', '.join(found.absent)}")
    return Observation(images, found.joints, found.stamp / 1e9), troubles


def action_message(decision: Decision, stamp: int, contract: Contract) -> PolicyAction:
    """``~/action`` for a decision; ``stamp``: ns, the observation's, 0 without one."""
    mixture = decision.mixture
    return PolicyAction(
        header=Header(Time.from_nanoseconds(stamp), contract.action.frame),
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


def status_message(
    status: Status,
    stamp: int,
    contract: Contract,
    *,
    cycle: int,
    episode: int,
    command: bool,
    gripper_commands: int,
    warnings: Sequence[str],
) -> PolicyStatus:
    """``~/status``; stamp: ns, of the observation answered, 0 without one. warnings: the node's own sentences."""
    motion = _MOTIONS[status.motion]
    return PolicyStatus(
        header=Header(Time.from_nanoseconds(stamp), contract.action.frame),
        cycle=cycle,
        episode=episode,
        code=int(status.code),
        name=status.code.name,
        sentence=status.sentence,
        motion=motion,
        halted=motion == 2,
        command=command,
        gripper_commands=gripper_commands,
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
        warning=" ".join([*([status.warning] if status.warning else []), *warnings]),
    )


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
    vector = np.asarray(pose[3:6], dtype=np.float64)
    angle = float(np.linalg.norm(vector))
    axis = vector / angle * math.sin(angle / 2) if angle > 0 else np.zeros(3)
    orientation = Quaternion(float(axis[0]), float(axis[1]), float(axis[2]), math.cos(angle / 2))
    return PoseStamped(Header(Time.from_nanoseconds(stamp), frame), Pose(Point(x, y, z), orientation))


def pose_of(message: PoseStamped) -> NDArray[np.float64]:
    """Pose (6,): position in m and rotation vector in rad; raises :class:`TransportError` if it is not a pose."""
    position, q = message.pose.position, message.pose.orientation
    vector, w = np.array([q.x, q.y, q.z]), q.w
    norm = math.sqrt(float(vector @ vector) + w * w)
    values = np.array([position.x, position.y, position.z, norm])
    if not np.isfinite(values).all() or abs(norm - 1) > 1e-3:
        raise TransportError(f"pose has a quaternion of length {norm:.4g} or a position that is not finite")
    if w < 0:  # the same rotation by the shorter way
        vector, w = -vector, -w
    sine = float(np.linalg.norm(vector))
    # Near the identity sine / angle tends to 1/2; below this the division would lose digits.
    rotation = vector * (2 * math.atan2(sine, w) / sine) if sine > 1e-12 else 2 * vector
    return np.concatenate([values[:3], rotation])


def action_to(
    target: NDArray[np.floating[Any]], pose: NDArray[np.floating[Any]], contract: Contract
) -> NDArray[np.float64]:
    """The motion entries (6,) of the action whose set-point from ``pose`` (6,) is ``target`` (6,); the inverse of
    :func:`m2distill_policy.runtime.drive.set_point`.
    """
    rotation = cv2.Rodrigues(np.asarray(target[3:6], dtype=np.float64))[0]
    present = cv2.Rodrigues(np.asarray(pose[3:6], dtype=np.float64))[0]
    turn = cv2.Rodrigues(rotation @ present.T)[0].ravel()
    # A controller keeps its orientation goal while no rotation is asked for: rounding must not ask for one.
    turn[np.abs(turn) < 1e-9] = 0.0
    scale = contract.action
    return np.concatenate([(target[:3] - pose[:3]) / scale.translation_scale, turn / scale.rotation_scale])


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


def fov_trouble(info: CameraInfo, camera: Camera, tolerance: float = 0.05) -> str | None:
    """A sentence if the camera's vertical field of view, after the crop, is not the contract's; None if it fits.

    tolerance: as a fraction of the contract's field of view. A camera that is not calibrated says 0 and is let be.
    """
    focal = float(info.k[4])
    if focal <= 0 or info.height < 1 or info.width < 1:
        return None
    full = math.degrees(2 * math.atan(info.height / 2 / focal))
    seen = fov_y_after_crop(full, info.height, info.width, camera)
    if abs(seen - camera.fov_y) <= tolerance * camera.fov_y:
        return None
    return (
        f"View '{camera.name}' has a vertical field of view of {seen:.1f} degrees after the crop and the policy was "
        f"trained with {camera.fov_y:.1f}; use another lens or camera mode."
    )


def optical_frame(view: str) -> str:
    """Name of the frame in which the view's camera looks along +z."""
    return f"{view.removesuffix('_rgb')}_optical_frame"
