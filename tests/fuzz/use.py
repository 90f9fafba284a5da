"""Use what a configuration gave: a governor for some steps, and a policy node's cycle with a robot that works."""

from __future__ import annotations

import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.contract import Contract
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.runtime.mixture import PolicyOutputError
from m2distill_policy.runtime.safety import Governor, Motion, SafetyLimits
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.settings.arm import ArmSettings
from tests.bundles import INSTRUCTIONS, write_toy
from tests.fuzz.expected import within
from tests.fuzz.invariant import finite, require
from tests.fuzz.messages_door import CONTRACT, WHERE, Clock, use_one_engine

#: Steps of a governor, and cycles of a node.
STEPS, CYCLES = 24, 16


@cache
def _bundle() -> Bundle:
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(write_toy(Path(folder) / "toy", contract=CONTRACT))
    use_one_engine(bundle)
    return bundle


def use_limits(limits: SafetyLimits, contract: Contract) -> None:
    """Drive to and fro within ``limits``: every velocity and its change is inside, and the ramp to a halt ends."""
    governor = Governor(limits, contract)
    rng = np.random.default_rng(3)
    last = np.zeros(6)
    action = np.zeros(7)
    for step in range(STEPS):
        if step % 6 == 0:
            action = rng.choice([-1.0, 1.0, 0.3, 0.0], 7)
        try:
            found = governor.limit(action)
        except PolicyOutputError:  # the server ramps to a halt then
            found = governor.halt()
            last = np.full(6, math.inf)
        finite("an action", found, -1.0, 1.0)
        twist = contract.action.response.twist(found)
        if limits.speed is not None:
            within("a twist above the speed limit", twist, np.array(limits.speed), 1e-6)
        if limits.acceleration is not None and np.isfinite(last).all():
            most = np.array(limits.acceleration) * contract.period
            within("the velocity changes faster than the acceleration limit", twist - last, most, 1e-5)
        last = twist
    cycles = math.ceil(limits.halt_time / contract.period) + 1
    for _ in range(cycles):
        found = governor.halt()
    require(governor.motion is Motion.HALTED and not found[:6].any(), "a ramp to a halt does not end", cycles)


def use_arm(arm: ArmSettings, options: LoopOptions | None = None) -> None:
    """Let a node with these settings run; a mapping of joints that does not fit the contract is an error of ours."""
    use_limits(arm.safety, CONTRACT)
    _drive(
        arm.safety,
        arm.watch,
        options or LoopOptions(gripper=arm.gripper, joints=arm.joints, joint_topics=arm.joint_topics),
    )


def _drive(limits: SafetyLimits, watch: WatchLimits, options: LoopOptions) -> None:
    clock = Clock()
    server = PolicyServer(_bundle(), limits=limits, watch=watch, clock=clock.monotonic, sampling="sample")
    try:
        server.set_instruction(INSTRUCTIONS[0])
        cycle: RealTimeLoop[NDArray[np.uint8]] = RealTimeLoop(
            server, lambda frame: frame, options, wall_clock=clock.wall, monotonic=clock.monotonic
        )
        cycle._stream.intervals.update(dict.fromkeys(CONTRACT.camera_names, CONTRACT.period))
        names = [entry for group in CONTRACT.proprioception for entry in group.entries]
        sources = {source.entry: source.name for source in options.joints}
        for number in range(CYCLES):
            stamp = clock.wall()
            clock.to(clock.monotonic() + 0.01)
            cycle.operator.set_dead_man(True)
            cycle.add_pose(stamp, WHERE + np.array([number / 1000, 0.0, 0.0, 0.0, 0.0, 0.0]))
            positions = [0.02 + number / 10_000 if "finger" in entry else number / 100 for entry in names]
            cycle.add_joints(stamp, [sources.get(entry, entry) for entry in names], positions)
            for view in CONTRACT.camera_names:
                cycle.add_image(view, stamp, np.full((16, 16, 3), number, dtype=np.uint8))
            _look(cycle.run(0.0), server)
            clock.to(clock.monotonic() + CONTRACT.period - 0.01)
            _look(cycle.run(0.0), server)
        cycle.shut_down("the fuzzer wants it")
        for _ in range(math.ceil(limits.halt_time / CONTRACT.period) + 2):
            _look(cycle.ramp(), server)
            clock.to(clock.monotonic() + CONTRACT.period)
        require(cycle.may_exit, "the node does not leave", limits.halt_time)
    finally:
        server.close()


def _look(output: Any, server: PolicyServer) -> None:
    if output is None:
        return
    speeds = np.array(server.speeds)
    finite("a twist", output.command.twist, -speeds, speeds)
    finite("a set-point", output.command.target_pose, -np.inf, np.inf)
    size = len(output.decision.status.message) + sum(map(len, output.report.warnings))
    require(size < 20_000, "a status of many characters", size)
