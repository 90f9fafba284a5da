"""Every command is finite and within the limits, for any bundle, hot swap and state."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.contract import FASTEST, Contract, VelocityResponse
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.output import Output
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode, SwapState
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, Tremor, observations, toy_bundle, toy_contract, write_toy

CONTRACT = toy_contract()
PERIOD = CONTRACT.period
WAIT = 30.0
POSE = np.array([0.4, 0.0, 0.3, math.pi, 0.02, -0.01])
ROOT = Path(__file__).resolve().parent.parent


def with_response(response: VelocityResponse, contract: Contract = CONTRACT, **action: Any) -> Contract:
    return dataclasses.replace(contract, action=dataclasses.replace(contract.action, response=response, **action))


def with_top(*tops: float) -> Contract:
    """The toy contract with a response that reaches these speeds; one number is used for all six axes."""
    each = tops if len(tops) == 6 else tops * 6
    return with_response(VelocityResponse((0.0, 1.0), tuple((0.0, top) for top in each)))


class Arm:
    """A policy loop with artificial clocks and messages, and its own check of what may be published."""

    def __init__(
        self, bundle: Bundle, *, limits: SafetyLimits | None = None, gripper: GripperProfile | None = None, **more: Any
    ) -> None:
        self.now = 100.0
        self.limits = limits or SafetyLimits()
        self.gripper = gripper or GripperProfile()
        self.server = PolicyServer(bundle, limits=self.limits, watch=WatchLimits(frozen_after=None), **more)
        self.server.set_instruction(INSTRUCTIONS[0])
        self.contract = bundle.contract
        self.speeds = np.array(self.limits.speed or bundle.contract.action.response.top_speeds)
        self.cycle: RealTimeLoop[NDArray[np.uint8]] = RealTimeLoop(
            self.server,
            lambda frame: frame,
            LoopOptions(gripper=self.gripper),
            wall_clock=lambda: round(self.now * 1e9),
            monotonic=lambda: self.now,
        )
        self.outputs: list[Output] = []
        self.tremor = Tremor()
        first = observations(self.contract, 1)[0]
        for before in range(22, 0, -1):
            for name, frame in first.images.items():
                self.cycle.add_image(name, round((self.now - before * PERIOD) * 1e9), frame)

    def send(self, observation: Observation, pose: NDArray[np.float64] | None = None) -> None:
        """Add all parts of an observation, stamped now."""
        stamp = round(self.now * 1e9)
        names = [e for g in self.contract.proprioception for e in g.entries]
        values = np.concatenate([observation.proprioception[g.name] for g in self.contract.proprioception]).tolist()
        if pose is not None:
            self.cycle.add_pose(stamp, self.tremor(pose))
        self.cycle.add_joints(stamp, names, values)
        for name, frame in observation.images.items():
            self.cycle.add_image(name, stamp, frame)

    def period(self, observation: Observation | None, pose: NDArray[np.float64] | None = None) -> Output | None:
        """Run one period with or without an observation, and check the published commands."""
        self.now += PERIOD
        if observation is not None:
            self.send(observation, pose)
        output = None
        for late in (0.0, 0.002, 0.02, 0.02):
            self.now += late
            output = self.cycle.run(0.0) or output
        self.now -= 0.042
        if output is not None:
            self.check(output)
            self.outputs.append(output)
        return output

    def drive(self, steps: Sequence[Observation], pose: NDArray[np.float64] | None = None) -> list[Output]:
        found = [self.period(step, pose) for step in steps]
        return [output for output in found if output is not None]

    def check(self, output: Output) -> None:
        action = output.decision.action
        assert action.shape == (7,) and np.all(np.isfinite(action)) and np.all(np.abs(action) <= 1 + 1e-9)
        if output.command.twist is not None:
            assert np.all(np.isfinite(output.command.twist))
            assert np.all(np.abs(output.command.twist) <= self.speeds * (1 + 1e-6) + 1e-9), output.command.twist
        if output.command.target_pose is not None:
            assert output.command.target_pose.shape == (6,) and np.all(np.isfinite(output.command.target_pose))
            if self.limits.workspace_low is not None and self.limits.workspace_high is not None:
                assert np.all(output.command.target_pose[:3] >= np.array(self.limits.workspace_low) - 1e-9)
                assert np.all(output.command.target_pose[:3] <= np.array(self.limits.workspace_high) + 1e-9)
        if output.command.gripper is not None:
            assert output.command.gripper in (self.gripper.open_position, self.gripper.closed_position)
        assert math.isfinite(output.decision.status.latency)


def swap(arm: Arm, path: Path) -> SwapState:
    arm.server.load(path)
    return arm.server.wait_for_swap(WAIT).state


# --- a bundle that is swapped in -------------------------------------------------------------------------------------


def test_slightly_faster_bundle_is_limited_to_the_first_bundles_speed(tmp_path: Path) -> None:
    first = toy_bundle(tmp_path / "first", contract=with_top(0.2))
    write_toy(tmp_path / "refit", 3, contract=with_top(0.21))
    arm = Arm(first, sampling="mode")
    arm.drive(observations(CONTRACT, 5))
    assert swap(arm, tmp_path / "refit") is SwapState.SWITCHED
    outputs = arm.drive(observations(CONTRACT, 20, seed=1))
    assert outputs[-1].decision.status.code is StatusCode.RUNNING
    assert outputs[-1].decision.bundle == open_bundle(tmp_path / "refit").identifier
    warning = outputs[-1].decision.status.warning
    assert "0.21" in warning and first.identifier in warning
    arm.server.rollback()
    assert arm.server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    assert not arm.drive(observations(CONTRACT, 1, seed=2))[-1].decision.status.warning
    arm.server.close()


@pytest.mark.parametrize("axis", range(6))
def test_bundle_over_25_percent_faster_on_any_axis_is_refused(tmp_path: Path, axis: int) -> None:
    tops = [0.2] * 6
    first = toy_bundle(tmp_path / "first", contract=with_top(*tops))
    tops[axis] = 0.251
    write_toy(tmp_path / "faster", 3, contract=with_top(*tops))
    tops[axis] = 0.25
    write_toy(tmp_path / "allowed", 3, contract=with_top(*tops))
    arm = Arm(first)
    arm.drive(observations(CONTRACT, 3))
    assert swap(arm, tmp_path / "faster") is SwapState.REFUSED
    report = arm.server.swap.message
    assert CONTRACT.action.frame and "0.251" in report and "safety.allow_faster_bundle" in report
    assert ("x", "y", "z", "rx", "ry", "rz")[axis] in report
    assert arm.server.bundle.identifier == first.identifier
    assert swap(arm, tmp_path / "allowed") is SwapState.SWITCHED
    arm.drive(observations(CONTRACT, 10, seed=2))
    arm.server.close()


def test_small_steps_do_not_add_up(tmp_path: Path) -> None:
    first = toy_bundle(tmp_path / "first", contract=with_top(0.2))
    arm = Arm(first)
    arm.drive(observations(CONTRACT, 3))
    found = []
    for i, top in enumerate((0.22, 0.24, 0.26, 0.3)):
        write_toy(tmp_path / f"step_{i}", i, contract=with_top(top))
        found.append(swap(arm, tmp_path / f"step_{i}"))
        arm.drive(observations(CONTRACT, 3, seed=i))
    assert found == [SwapState.SWITCHED, SwapState.SWITCHED, SwapState.REFUSED, SwapState.REFUSED]
    arm.server.close()


def test_allowed_faster_bundle_is_limited(tmp_path: Path) -> None:
    first = toy_bundle(tmp_path / "first", contract=with_top(0.2))
    write_toy(tmp_path / "faster", 3, contract=with_top(2.0))
    arm = Arm(first, limits=SafetyLimits(allow_faster_bundle=True), sampling="mode")
    arm.drive(observations(CONTRACT, 3))
    assert swap(arm, tmp_path / "faster") is SwapState.SWITCHED
    outputs = arm.drive(observations(CONTRACT, 20, seed=1))
    assert outputs[-1].decision.status.code is StatusCode.RUNNING
    assert "2 m/s" in outputs[-1].decision.status.warning
    arm.server.close()


def test_configured_speed_is_the_limit_for_every_bundle(tmp_path: Path) -> None:
    first = toy_bundle(tmp_path / "first", contract=with_top(0.2))
    write_toy(tmp_path / "faster", 3, contract=with_top(2.0))
    arm = Arm(first, limits=SafetyLimits(speed=(0.5,) * 6), sampling="mode")
    arm.drive(observations(CONTRACT, 3))
    assert swap(arm, tmp_path / "faster") is SwapState.SWITCHED
    outputs = arm.drive(observations(CONTRACT, 20, seed=1))
    twists = [np.abs(output.command.twist).max() for output in outputs if output.command.twist is not None]
    assert 0.2 < max(twists) <= 0.5 + 1e-9
    assert not outputs[-1].decision.status.warning
    arm.server.close()


@pytest.mark.parametrize("axis", range(6))
def test_with_configured_speed_a_slower_response_is_refused(tmp_path: Path, axis: int) -> None:
    """On the same arm, a set-point that is farther ahead would move it faster than the limit."""
    tops = [0.2] * 6
    first = toy_bundle(tmp_path / "first", contract=with_top(*tops))
    tops[axis] = 0.04
    write_toy(tmp_path / "slower", 3, contract=with_top(*tops))
    tops[axis] = 0.17
    write_toy(tmp_path / "refit", 3, contract=with_top(*tops))
    arm = Arm(first, limits=SafetyLimits(speed=(0.05,) * 6), sampling="mode")
    arm.drive(observations(CONTRACT, 3))
    assert swap(arm, tmp_path / "slower") is SwapState.REFUSED
    assert ("x", "y", "z", "rx", "ry", "rz")[axis] in arm.server.swap.message
    assert swap(arm, tmp_path / "refit") is SwapState.SWITCHED
    arm.server.close()
    free = Arm(first, sampling="mode")
    free.drive(observations(CONTRACT, 3))
    assert swap(free, tmp_path / "slower") is SwapState.SWITCHED, "the twist is slower and the set-point as far ahead"
    free.server.close()


def test_small_differences_on_a_slow_axis_are_accepted(tmp_path: Path) -> None:
    first = toy_bundle(tmp_path / "first", contract=with_top(0.2, 0.2, 0.2, 1e-5, 0.0, 1e-17))
    write_toy(tmp_path / "refit", 3, contract=with_top(0.2, 0.2, 0.2, 1e-3, 1e-17, 2e-3))
    arm = Arm(first)
    arm.drive(observations(CONTRACT, 3))
    assert swap(arm, tmp_path / "refit") is SwapState.SWITCHED
    arm.drive(observations(CONTRACT, 10, seed=1))
    arm.server.close()


@pytest.mark.parametrize("factors", [(1.24, 1.0), (0.9, 1.2, 1.0), (0.3, 1.0), (1.02,)])
@pytest.mark.parametrize("jerk", [None, (2.0,) * 3 + (10.0,) * 3])
def test_a_swap_keeps_the_limits_of_acceleration_and_jerk(
    tmp_path: Path, factors: tuple[float, ...], jerk: tuple[float, ...] | None
) -> None:
    """The same action means another velocity under another response; the arm keeps its velocity."""
    acceleration = (0.1,) * 3 + (0.5,) * 3
    first = toy_bundle(tmp_path / "first", contract=with_top(0.2))
    arm = Arm(first, limits=SafetyLimits(acceleration=acceleration, jerk=jerk), sampling="mode")
    # One observation again and again, and then another: long enough to be at full speed, and to change it.
    one, other = observations(CONTRACT, 2, seed=3)
    arm.drive([one] * 60)
    for number, factor in enumerate(factors):
        path = write_toy(tmp_path / f"bundle_{number}", 3 + number, contract=with_top(0.2 * factor))
        arm.server.load(path)
        for step in [other, one] * 5 + [other] * 40 + [one] * 40:
            arm.server.wait_for_swap(WAIT)  # lockstep: a busy machine could not feed the candidate between two cycles
            arm.drive([step])
        assert arm.server.bundle.identifier == open_bundle(path).identifier
    ran = [o for o in arm.outputs if o.decision.status.code is StatusCode.RUNNING and o.command.twist is not None]
    assert len(ran) > 100 * len(factors) and len({o.decision.bundle for o in ran}) == 1 + len(factors)
    changes = np.diff(np.array([o.command.twist for o in ran]), axis=0) / PERIOD
    assert np.all(np.abs(changes) <= np.array(acceleration) * (1 + 1e-6)), np.abs(changes).max(axis=0)
    if jerk is not None:
        assert np.all(np.abs(np.diff(changes, axis=0)) / PERIOD <= np.array(jerk) * (1 + 1e-6))
    arm.server.close()


def test_the_ramp_to_a_halt_after_a_swap_stays_below_the_limit(tmp_path: Path) -> None:
    """The swap comes while the arm halts, so the last command means a higher velocity under the new response."""
    first = toy_bundle(tmp_path / "first", contract=with_top(0.2))
    write_toy(tmp_path / "faster", 3, contract=with_top(2.0))
    for pause in range(5):
        arm = Arm(first, limits=SafetyLimits(allow_faster_bundle=True, halt_time=0.5), sampling="mode")
        arm.drive(observations(CONTRACT, 5))
        arm.server.load(tmp_path / "faster")
        assert arm.server._policy.swap.wait_ready(WAIT).state is SwapState.READY
        arm.server.halt("a test")
        for _ in range(pause):
            arm.period(None)
        arm.server.wait_for_swap(WAIT)
        before = np.abs(arm.outputs[-1].command.twist) if arm.outputs[-1].command.twist is not None else None
        for _ in range(12):
            output = arm.period(None)
            if output is not None and output.command.twist is not None and before is not None:
                assert np.all(np.abs(output.command.twist) <= arm.speeds + 1e-9)
        arm.server.close()


# --- the last check --------------------------------------------------------------------------------------------------


def spoil(contract: Contract, field: str, value: Any) -> None:
    """Damage a contract without its checks, as a software error might."""
    place: Any = contract.action if field in ("translation_scale", "rotation_scale") else contract.action.response
    object.__setattr__(place, field, value)


SPOILT: dict[str, tuple[str, Any]] = {
    "levels of NaN": ("levels", (0.0, math.nan, math.nan, 1.0)),
    "speeds of NaN": ("velocities", ((0.0, math.nan, math.nan, math.nan),) * 6),
    "speeds of 8 m/s": ("velocities", ((0.0, 8.0, 8.0, 0.2),) * 6),
    "speeds negative": ("velocities", ((0.0, -8.0, -8.0, 0.2),) * 6),
    "scale of NaN": ("translation_scale", math.nan),
    "scale without end": ("translation_scale", math.inf),
    "turn of NaN": ("rotation_scale", math.nan),
}


@pytest.mark.parametrize("name", SPOILT)
def test_invalid_command_is_not_sent(tmp_path: Path, name: str) -> None:
    bundle = toy_bundle(tmp_path / "toy")
    arm = Arm(bundle, sampling="mode")
    arm.drive(observations(CONTRACT, 3), POSE)
    assert arm.outputs[-1].decision.status.code is StatusCode.RUNNING
    field, value = SPOILT[name]
    spoil(bundle.contract, field, value)
    outputs = arm.drive(observations(CONTRACT, 12, seed=1), POSE)
    bad = next(output for output in outputs if output.decision.status.code is StatusCode.BAD_COMMAND)
    assert (
        bad.command.twist is not None
        and not bad.command.twist.any()
        and bad.command.target_pose is None
        and bad.command.gripper is None
    )
    assert bad.command.is_sent and not bad.decision.action[:6].any() and bad.decision.status.code.is_fault
    assert outputs[-1].decision.status.code is StatusCode.BAD_COMMAND, "until it is enabled"
    assert outputs[-1].decision.status.motion == "halted"
    arm.server.close()


@pytest.mark.parametrize("state", ["ramp of an emergency stop", "ramp of disable", "leaving", "silence"])
def test_the_ramp_is_checked_too(tmp_path: Path, state: str) -> None:
    bundle = toy_bundle(tmp_path / "toy")
    arm = Arm(bundle, sampling="mode")
    arm.drive(observations(CONTRACT, 3), POSE)
    spoil(bundle.contract, "velocities", ((0.0, math.nan, math.nan, math.nan),) * 6)
    if state == "ramp of an emergency stop":
        arm.server.set_emergency_stop(True)
    elif state == "ramp of disable":
        arm.server.disable()
    elif state == "leaving":
        arm.cycle.shut_down("a test")
    for step in observations(CONTRACT, 12, seed=1):
        arm.period(None if state == "silence" else step, POSE)
    codes = {output.decision.status.code for output in arm.outputs}
    assert StatusCode.BAD_COMMAND in codes
    assert arm.cycle.may_exit or state != "leaving"
    arm.server.close()


def test_enable_drives_again_once_commands_are_valid(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "toy")
    arm = Arm(bundle, sampling="mode")
    arm.drive(observations(CONTRACT, 3), POSE)
    sound = bundle.contract.action.response.velocities
    spoil(bundle.contract, "velocities", ((0.0, math.nan, math.nan, math.nan),) * 6)
    arm.drive(observations(CONTRACT, 12, seed=1), POSE)
    spoil(bundle.contract, "velocities", sound)
    assert arm.drive(observations(CONTRACT, 2, seed=2), POSE)[-1].decision.status.code is StatusCode.BAD_COMMAND
    arm.server.enable()
    assert arm.drive(observations(CONTRACT, 2, seed=3), POSE)[-1].decision.status.code is StatusCode.RUNNING
    arm.server.close()


def test_commands_are_made_in_one_place() -> None:
    """Transports publish only commands of an Output, and only the loop makes one."""
    made: dict[str, set[str]] = {"Output": set(), "ArmCommand": set()}
    written: dict[str, list[str]] = {}
    sources: dict[str, str] = {}
    for file in sorted((ROOT / "m2distill_policy").rglob("*.py")):
        name = str(file.relative_to(ROOT / "m2distill_policy"))
        sources[name] = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(sources[name])):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id in made:
                made[node.func.id].add(name)
            if ast.unparse(node.func) in ("MESSAGES.twist", "MESSAGES.pose", "MESSAGES.gripper"):
                written.setdefault(name, []).append(ast.unparse(node.args[0]))
    assert made == {"Output": {"node/loop.py"}, "ArmCommand": {"node/command.py"}}
    for name in ("dds/policy_node.py", "ros/outputs.py"):
        assert sorted(written[name]) == ["command.gripper", "command.target_pose", "command.twist"], name
        assert "command, stamp, frame = output.command, output.command_stamp, self._frame" in sources[name]


# --- all of it at once -----------------------------------------------------------------------------------------------


def random_contract(rng: np.random.Generator) -> Contract:
    inner = np.sort(rng.uniform(0.05, 0.95, 2))
    levels = (0.0, float(inner[0]), float(inner[0] + 0.02), 1.0) if rng.random() < 0.5 else (0.0, 1.0)
    rises = rng.uniform(0, 1, (6, len(levels) - 1)) * rng.choice([0.0, 1e-9, 0.1, 0.5], (6, 1))
    speeds = np.minimum(np.cumsum(rises, axis=1), np.array(FASTEST)[:, None])
    response = VelocityResponse(levels, tuple((0.0, *map(float, row)) for row in speeds))
    return with_response(
        response,
        translation_scale=float(rng.choice([1e-6, 0.01, 0.05, 0.5])),
        rotation_scale=float(rng.choice([1e-6, 0.1, 0.5, math.pi])),
    )


def random_limits(rng: np.random.Generator) -> SafetyLimits:
    def axes(low: float, high: float) -> tuple[float, ...]:
        return tuple(float(v) for v in rng.uniform(low, high, 6))

    low = rng.uniform(-0.5, 0.3, 3)
    box = (tuple(map(float, low)), tuple(map(float, low + rng.uniform(0.001, 0.6, 3))))
    has_box = rng.random() < 0.6
    return SafetyLimits(
        speed=axes(0.01, 0.5) if rng.random() < 0.4 else None,
        acceleration=axes(0.1, 5) if rng.random() < 0.3 else None,
        jerk=axes(1, 50) if rng.random() < 0.2 else None,
        workspace_low=box[0] if has_box else None,
        workspace_high=box[1] if has_box else None,
        halt_time=float(rng.choice([0.0, 0.05, 0.25, 0.6])),
        allow_faster_bundle=bool(rng.random() < 0.5),
    )


def random_pose(rng: np.random.Generator, around: NDArray[np.float64]) -> NDArray[np.float64] | None:
    kind = rng.integers(12)
    if kind == 0:
        return None
    pose = around + rng.normal(scale=0.01, size=6)
    if kind == 1:
        pose[:3] = rng.uniform(-1, 1, 3) * 10.0 ** rng.integers(-1, 4)
    if kind == 2:
        pose[rng.integers(6)] = rng.choice([math.nan, math.inf, -math.inf, 1e300])
    if kind == 3:
        pose[3:] = rng.uniform(-math.pi, math.pi, 3)
    return pose


@pytest.mark.parametrize("seed", range(24))
def test_commands_are_finite_and_within_limits_for_random_inputs(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    contract, limits = random_contract(rng), random_limits(rng)
    for i in range(3):
        other = random_contract(rng)
        write_toy(tmp_path / f"other_{i}", i, contract=with_response(other.action.response, contract))
    open_position, closed_position = (float(v) for v in rng.uniform(-1, 1, 2))
    arm = Arm(
        toy_bundle(tmp_path / "first", seed, contract=contract),
        limits=limits,
        gripper=GripperProfile(open_position=open_position, closed_position=closed_position),
        resume=str(rng.choice(["auto", "enable"])),
        sampling="sample",
        temperature=float(rng.choice([1.0, 50.0])),
    )
    around = np.concatenate([rng.uniform(-0.4, 0.6, 3), rng.uniform(-1, 1, 3)])
    for step in observations(contract, 120, seed=seed):
        event = rng.integers(40)
        if event == 0:
            arm.server.halt("a test")
        elif event == 1:
            arm.server.set_emergency_stop(bool(rng.random() < 0.5))
        elif event == 2:
            arm.server.disable()
        elif event <= 5:
            arm.server.set_emergency_stop(False)
            arm.server.enable()
        elif event == 6:
            arm.server.set_instruction(str(rng.choice([*INSTRUCTIONS, ""])))
        elif event == 7:
            arm.server.set_instruction(INSTRUCTIONS[0])
        elif event <= 9:
            swap(arm, tmp_path / f"other_{rng.integers(3)}")
        elif event == 10:
            around = np.concatenate([rng.uniform(-2, 2, 3), rng.uniform(-1, 1, 3)])
        arm.period(step if rng.random() < 0.85 else None, random_pose(rng, around))
    arm.cycle.shut_down("the end")
    while not arm.cycle.may_exit:
        arm.now += PERIOD
        arm.check(arm.cycle.ramp())
    assert any(output.command.twist is not None for output in arm.outputs)
    assert all(output.decision.status.code is not StatusCode.BAD_COMMAND for output in arm.outputs), "limited before"
    arm.server.close()
