"""Faults that are planted into the product, to see that the doors find them: ``python -m tests.fuzz.plants DOOR``.

Each :class:`Plant` replaces a function of the product while it lasts. One line of JSON is printed for each: what was
found, and after how many inputs. The inputs are always the same: the seeds, and then changed ones.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from tests.fuzz.choice import RandomChoice
from tests.fuzz.door import make
from tests.fuzz.invariant import ROOT, check

#: Names the environment variable with what the process that reads HDF5 is to leave out.
FOLLOWED = "M2DISTILL_FUZZ_FOLLOWS"


@dataclasses.dataclass(frozen=True)
class Plant:
    """A fault, and the doors that must find it. ``kinds``: kinds of the findings that count."""

    name: str
    doors: tuple[str, ...]
    put: Callable[[], contextlib.AbstractContextManager[Any]]
    kinds: tuple[str, ...] = ("command",)


@contextlib.contextmanager
def _all(*patches: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _without_last_check() -> Any:
    from m2distill_policy.runtime.command_check import CommandCheck

    return mock.patch.object(CommandCheck, "problem", lambda *_: None)


def _outside_the_box() -> Any:
    from m2distill_policy.node import command

    return _all(
        _without_last_check(),
        mock.patch.object(command, "set_point_inside", lambda target, pose, limits, contract: target),
    )


def _walls_do_not_hold() -> Any:
    from m2distill_policy.runtime.safety import Governor

    return mock.patch.object(Governor, "_within_walls", lambda self, action, pose: action)


def _twice_the_lead() -> Any:
    from m2distill_policy.runtime import drive

    real = drive.set_point_delta
    return _all(_without_last_check(), mock.patch.object(drive, "set_point_delta", lambda *given: 2 * real(*given)))


def _three_times_the_twist() -> Any:
    from m2distill_policy.runtime import drive

    real = drive.twist
    return _all(_without_last_check(), mock.patch.object(drive, "twist", lambda *given: 3 * real(*given)))


def _emergency_does_not_hold() -> Any:
    from m2distill_policy.runtime.server import PolicyServer

    def emergency_stop(self: Any, pressed: bool) -> None:
        self._interlock._is_stopped = pressed

    return mock.patch.object(PolicyServer, "set_emergency_stop", emergency_stop)


def _refused_instruction_goes_on() -> Any:
    from m2distill_policy.errors import UnknownInstructionError
    from m2distill_policy.runtime.server import PolicyServer

    real = PolicyServer.set_instruction

    def set_instruction(self: Any, instruction: str, **rest: Any) -> None:
        with contextlib.suppress(UnknownInstructionError):
            real(self, instruction, **{**rest, "keep_on_refusal": True})

    return mock.patch.object(PolicyServer, "set_instruction", set_instruction)


def _frozen_joints_pass() -> Any:
    from m2distill_policy.runtime.frozen_motion import FrozenMotionCheck

    return mock.patch.object(FrozenMotionCheck, "check", lambda *given, **named: None)


def _frozen_poses_pass() -> Any:
    from m2distill_policy.runtime.frozen_motion import FrozenMotionCheck

    return mock.patch.object(FrozenMotionCheck, "_check_pose", lambda *given, **named: None)


def _repeated_enable_counts() -> Any:
    from m2distill_policy.node.operator_inputs import OperatorInputs

    return mock.patch.object(OperatorInputs, "enable_by_message", lambda self, wanted: self.enable(wanted))


def _frozen_views_pass() -> Any:
    from m2distill_policy.runtime.watchdog import Watchdog

    return mock.patch.object(Watchdog, "_frozen", lambda *given, **named: None)


def _future_passes() -> Any:
    from m2distill_policy.node import arrivals

    return mock.patch.object(arrivals, "_is_ahead", lambda *_: False)


def _many_joints() -> Any:
    from m2distill_policy.node.joint_states import JointStates

    real = JointStates.add

    def add(self: Any, topic: str, stamp: int, names: Any, *rest: Any, **named: Any) -> None:
        if len(names) > 40:
            raise KeyError("planted")
        real(self, topic, stamp, names, *rest, **named)

    return mock.patch.object(JointStates, "add", add)


def _acceleration_is_not_kept() -> Any:
    from m2distill_policy.runtime.safety import _Smoother

    return mock.patch.object(_Smoother, "towards", lambda self, wanted, present: wanted)


def _gripper_is_inverted() -> Any:
    from m2distill_policy.runtime import drive

    return mock.patch.object(drive, "gripper", lambda action: -float(action[6]))


def _speed_is_not_kept() -> Any:
    from m2distill_policy.runtime.safety import Governor

    return mock.patch.object(Governor, "_faster", lambda self: False)


def _upside_down() -> Any:
    from m2distill_policy.demonstrations import DemonstrationFile

    real = DemonstrationFile._dataset

    def dataset(self: Any, file: Any, name: str, key: str, shape: Any, *rest: Any) -> Any:
        found = real(self, file, name, key, shape, *rest)
        return found[:, ::-1] if len(shape) == 3 else found

    return mock.patch.object(DemonstrationFile, "_dataset", dataset)


def _links_are_followed() -> Any:
    from m2distill_policy import hdf5

    return _all(
        mock.patch.object(hdf5, "_READER", "tests.fuzz.plants"),
        mock.patch.dict(os.environ, {FOLLOWED: "links", "PYTHONPATH": str(ROOT)}),
        _anew(),
    )


def _virtual_datasets_are_read() -> Any:
    from m2distill_policy import hdf5

    return _all(
        mock.patch.object(hdf5, "_READER", "tests.fuzz.plants"),
        mock.patch.dict(os.environ, {FOLLOWED: "storage", "PYTHONPATH": str(ROOT)}),
        _anew(),
    )


@contextlib.contextmanager
def _anew() -> Iterator[None]:
    """Another process reads HDF5 meanwhile."""
    from m2distill_policy import hdf5

    hdf5._close()
    try:
        yield
    finally:
        hdf5._close()


def _follow(what: str) -> None:
    """Be the process that reads HDF5, and refuse less."""
    from m2distill_policy import hdf5_reader

    if what == "links":
        setattr(hdf5_reader, "_require_hard", lambda *_: None)  # noqa: B010
    else:

        def describe(dataset: Any, at: str) -> dict[str, Any]:
            return {"shape": [int(n) for n in dataset.shape], "kind": dataset.dtype.str}

        setattr(hdf5_reader, "_describe_dataset", describe)  # noqa: B010
        setattr(hdf5_reader, "_require_whole", lambda *_: None)  # noqa: B010
    hdf5_reader.main()


def _imported_gripper_is_inverted() -> Any:
    from m2distill_policy.recordings import actions as episode

    real = episode._grip
    return mock.patch.object(episode, "_grip", lambda *given: -real(*given))


def _imported_joints_are_mixed_up() -> Any:
    from m2distill_policy.node.joints import JointMap

    real = JointMap.proprioception

    def proprioception(self: Any, *given: Any, **named: Any) -> Any:
        groups, absent = real(self, *given, **named)
        return {name: np.ascontiguousarray(v[::-1]) for name, v in groups.items()}, absent

    return mock.patch.object(JointMap, "proprioception", proprioception)


def _settings_are_not_checked() -> Any:
    from m2distill_policy.runtime.safety import Governor

    real = Governor.__init__

    def made(self: Any, limits: Any, contract: Any) -> None:
        real(self, limits, contract)
        if limits.jerk is not None and max(limits.jerk) > 100:
            raise OverflowError("planted")

    return mock.patch.object(Governor, "__init__", made)


_DDS, _MESSAGES = ("dds",), ("dds", "ros")
PLANTS: tuple[Plant, ...] = (
    Plant("set-points outside the workspace", _MESSAGES, _outside_the_box),
    Plant("walls that do not hold", _DDS, _walls_do_not_hold),
    Plant("set-points two actions ahead", _DDS, _twice_the_lead),
    Plant("three times the twist", _DDS, _three_times_the_twist),
    Plant("an emergency stop that does not hold", _MESSAGES, _emergency_does_not_hold),
    Plant("a refused instruction that is passed over", _DDS, _refused_instruction_goes_on),
    Plant("frozen joints", _DDS, _frozen_joints_pass),
    Plant("frozen poses", _DDS, _frozen_poses_pass),
    Plant("an enable that is repeated", _DDS, _repeated_enable_counts),
    Plant("frozen views", _DDS, _frozen_views_pass),
    Plant("stamps of the future", _DDS, _future_passes),
    Plant("an error for many joints", _MESSAGES, _many_joints, ("error",)),
    Plant("no limit on acceleration", _DDS, _acceleration_is_not_kept),
    Plant("an inverted gripper", _DDS, _gripper_is_inverted),
    Plant("no limit on speed", ("bundle",), _speed_is_not_kept),
    Plant("pictures upside down", ("demonstration",), _upside_down),
    Plant("links that are followed", ("demonstration",), _links_are_followed),
    Plant("data of other files", ("demonstration",), _virtual_datasets_are_read),
    Plant("an inverted imported gripper", ("recording",), _imported_gripper_is_inverted),
    Plant("imported joints in another order", ("recording",), _imported_joints_are_mixed_up),
    Plant("settings that nobody can use", ("configuration",), _settings_are_not_checked, ("error",)),
)


def tried(door: Any, plant: Plant, inputs: int, seed: int) -> dict[str, Any]:
    """Try seeds and changed ones with a fault in place, until it is found or ``inputs`` have been tried."""
    began, count, pool = time.perf_counter(), 0, [*door.seeds(), *door.committed()]
    with plant.put():
        for turn in range(inputs):
            if turn < len(pool):
                data = pool[turn]
            else:
                choice = RandomChoice(seed * 1_000_003 + turn)
                data = door.change(choice, choice.pick(pool))
            count += 1
            _, finding = check(door, data)
            if finding is not None and finding.kind in plant.kinds:
                break
        else:
            finding = None
    return {
        "door": door.name,
        "plant": plant.name,
        "inputs": count,
        "seconds": round(time.perf_counter() - began, 2),
        "found": finding.key if finding is not None else None,
    }


def main() -> None:
    """See the module's text."""
    if os.environ.get(FOLLOWED):
        _follow(os.environ[FOLLOWED])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("doors", nargs="+")
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", help="this one alone")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for name in args.doors:
        door = make(name)
        door.seeds()
        for plant in PLANTS:
            if name in plant.doors and args.plant in (None, plant.name):
                print(json.dumps(tried(door, plant, args.inputs, args.seed)), flush=True)
    sys.stdout.flush()
    os._exit(0)  # threads of libraries must not keep it


if __name__ == "__main__":
    main()
