"""The actions of a demonstration: for each step, the command that the arm followed during the step."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.demonstrations import Episode
from m2distill_policy.errors import ObservationError, RecordingError
from m2distill_policy.node import topics
from m2distill_policy.node.frame_names import shown_frame
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.observation import Observation
from m2distill_policy.recordings.bag import Bag
from m2distill_policy.recordings.frozen import FrozenCheck, SetPointWay
from m2distill_policy.recordings.import_settings import ImportSettings
from m2distill_policy.recordings.playback import Playback, Step
from m2distill_policy.runtime import drive

#: Time for which a velocity command is valid, s. Without a new command, MoveIt Servo and most velocity controllers stop
#: an arm after 0.1 to 0.2 s.
TWIST_HOLDS = 0.2
#: Distance between the fingers below which a gripper without a command counts as closed, m. It is half of the largest
#: opening of robosuite's Panda hand, the gripper of the contract.
HALF_OPEN = 0.04
#: Fraction of clipped steps above which the user gets a warning.
MOST_CLIPPED = 0.05


@dataclass(frozen=True)
class Imported:
    """An imported demonstration, and facts about the import.

    Attributes:
        episode: The demonstration.
        missed: Number of control periods without an observation.
        clipped: Fraction of steps whose motion was larger than the largest action.
        unknown_frame: Frame of the velocities if it may differ from the contract's frame; else "".
    """

    episode: Episode
    missed: int
    clipped: float
    unknown_frame: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user."""
        found = []
        if self.missed:
            found.append(f"{self.missed} periods had no observation; check whether the cameras keep their rate")
        if self.clipped > MOST_CLIPPED:
            found.append(
                f"{100 * self.clipped:.0f} % of the steps moved faster than the contract's largest action and were "
                "clipped: move more slowly, or increase action.translation_scale in a contract of your own"
            )
        if self.unknown_frame:
            found.append(
                f"the velocities are in {shown_frame(self.unknown_frame)}, which is assumed to be the contract's "
                "frame; set pose.base_frame in --config to the arm's base, so that other frames are refused"
            )
        return tuple(found)


@dataclass
class Commands:
    """Commands to the arm and the gripper, each with its time of recording (ns).

    A set-point is valid until the next one, as for an impedance controller. A velocity is valid for
    :data:`TWIST_HOLDS` s.
    """

    motions: list[tuple[int, NDArray[np.float64]]] = field(default_factory=list)
    grips: list[tuple[int, float]] = field(default_factory=list)

    def motion(self, until: int) -> tuple[int, NDArray[np.float64]] | None:
        """Return the time (ns) and value of the newest motion command before ``until`` (ns); None if there is none."""
        index = bisect.bisect_left(self.motions, until, key=lambda entry: entry[0])
        return self.motions[index - 1] if index else None

    def grip(self, until: int) -> float | None:
        """Return the newest gripper command before ``until`` (ns), a position in m or rad; None if there is none."""
        index = bisect.bisect_left(self.grips, until, key=lambda entry: entry[0])
        return self.grips[index - 1][1] if index else None


def make_episode(
    bag: Bag,
    contract: Contract,
    settings: ImportSettings,
    playback: Playback,
    commands: Commands,
    poses: Sequence[tuple[int, NDArray[np.float64]]],
) -> Imported:
    """Make a demonstration from the steps of a recording.

    Args:
        bag: The recording, for messages.
        contract: Contract of the demonstration.
        settings: Settings of the import.
        playback: The playback, with the steps.
        commands: All recorded commands.
        poses: (stamp in ns, pose of the end effector (6,)), in the order of recording.

    Raises:
        RecordingError: Commands or poses are missing, or images, joints or poses are frozen.
    """
    poses = sorted(poses, key=lambda entry: entry[0])
    steps = [s for s in playback.steps if commands.motion(_end(s, contract)) is not None]
    if not steps:
        raise RecordingError(
            f"{bag.path}: no command was recorded while there were observations; check --commands {settings.command}"
        )
    if settings.command == "target_pose" and not poses:
        raise RecordingError(
            f"{bag.path}: '{settings.topic(topics.END_EFFECTOR_POSE)}' has no pose after the last long gap, but "
            "set-points need poses; record it together with the cameras, or use --commands twist"
        )
    ee = np.array([_pose_at(bag, poses, s, settings.slop) for s in steps]) if poses else None
    actions, way = np.zeros((len(steps), 7)), SetPointWay(contract)
    frozen = FrozenCheck(contract, settings.watch)
    for index, step in enumerate(steps):
        following = steps[index + 1].at if index + 1 < len(steps) else _end(step, contract)
        command = commands.motion(following)
        assert command is not None
        sent, motion = command
        if settings.command == "target_pose":
            assert ee is not None
            actions[index, :6] = drive.motion_to(motion, ee[index], contract)
            commanded = way.to(motion, actions[index])
        else:
            if following - sent <= TWIST_HOLDS * 1e9:
                actions[index, :6] = _action_for(motion, contract)
            commanded = drive.twist(np.clip(actions[index], -1.0, 1.0), contract)
        fault = frozen.check(step.observation, None if ee is None else ee[index], commanded)
        if fault is not None:
            raise RecordingError(f"{bag.path} at {step.at / 1e9:.3f} s: {fault.code.name}: {fault.message}")
        try:
            actions[index, 6] = _grip(commands.grip(following), step.observation, settings.gripper)
        except ObservationError as error:
            raise RecordingError(f"{bag.path} at {step.at / 1e9:.3f} s: {error}") from error
    clipped = float((np.abs(actions[:, :6]).max(axis=1) > 1 + 1e-6).mean())
    episode = Episode(
        images={name: np.stack([s.observation.images[name] for s in steps]) for name in contract.camera_names},
        proprioception={
            name: np.stack([s.observation.proprioception[name] for s in steps])
            for name in contract.proprioception_names
        },
        actions=np.clip(actions, -1.0, 1.0).astype(np.float32),
        ee=None if ee is None else ee.astype(np.float32),
    )
    return Imported(episode, playback.missed, clipped)


def _end(step: Step, contract: Contract) -> int:
    return step.at + round(contract.period * 1e9)


def _pose_at(
    bag: Bag, poses: Sequence[tuple[int, NDArray[np.float64]]], step: Step, slop: float
) -> NDArray[np.float64]:
    """Return the pose whose stamp is nearest to that of a step. ``poses`` must be sorted by stamp."""
    wanted = round(step.observation.stamp * 1e9)
    after = bisect.bisect_left(poses, wanted, key=lambda entry: entry[0])
    stamp, value = min(poses[max(0, after - 1) : after + 1], key=lambda entry: abs(entry[0] - wanted))
    if abs(stamp - wanted) > slop * 1e9:
        raise RecordingError(
            f"{bag.path}: no pose of the end effector within {slop:g} s of the observation stamped {wanted / 1e9:.3f} s"
        )
    return value


def _action_for(velocity: NDArray[np.float64], contract: Contract) -> NDArray[np.float64]:
    """Return the motion entries (6,) of the action that causes ``velocity``; above 1 if no action reaches it."""
    response = contract.action.response
    action = np.zeros(6)
    for axis, speed in enumerate(np.abs(velocity)):
        top = response.velocities[axis][-1]
        size = response.size_for(axis, float(speed)) if speed <= top else speed / top if top > 0 else np.inf
        action[axis] = np.copysign(size, velocity[axis]) if speed > 0 else 0.0
    return action


def _grip(position: float | None, observation: Observation, profile: GripperProfile) -> float:
    """Return the gripper entry of the action: -1 (open) or +1 (closed).

    It is computed from the gripper command ``position``, in the unit of the gripper's driver. Before the first command
    (None), it is computed from the joint positions of the contract, in m for each finger.
    """
    if position is not None:
        return profile.entry(position)
    fingers = observation.proprioception.get("gripper_states")
    return 1.0 if fingers is not None and float(np.abs(fingers).sum()) < HALF_OPEN else -1.0
