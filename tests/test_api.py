"""The public API of the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import m2distill_policy as m2
from m2distill_policy.errors import BundleError, ConfigError, ObservationError, UnknownInstructionError
from m2distill_policy.observation import Observation
from m2distill_policy.policy import PolicyError
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.settings.node import settings_from
from tests.bundles import INSTRUCTIONS, observations, toy_bundle, toy_contract
from tests.test_dependencies import loaded_by

CONTRACT = toy_contract()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return toy_bundle(tmp_path / "bundle").path


def act(policy: m2.Policy, steps: Sequence[Observation]) -> list[NDArray[np.float64]]:
    return [policy.act(step.images, step.proprioception).values for step in steps]


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("m2distill_policy") & {"numpy", "torch", "onnxruntime", "cv2", "yaml", "h5py"}
    assert not loaded_by("m2distill_policy.policy") & {
        "torch",
        "rclpy",
        "robosuite",
        "mujoco",
        "cyclonedds",
        "training",
    }


def test_every_public_name_is_there_and_documented() -> None:
    for name in m2.__all__:
        assert name in dir(m2)
        if not name.startswith("__") and name != "PRETRAINED":
            assert getattr(m2, name).__doc__
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = m2.no_such_name


def test_a_run_is_accepted_for_a_bundle(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "bundles").mkdir(parents=True)
    (run / "run.json").touch()
    with pytest.raises(BundleError, match="no bundle yet"):
        m2.load(run)
    with pytest.raises(BundleError, match="no bundle yet"):
        settings_from({"bundle": str(run)})
    last = toy_bundle(run / "bundles" / "stage_10").path
    toy_bundle(run / "bundles" / "stage_2", seed=1)
    assert m2.load(run).identifier == m2.open_bundle(last).identifier
    assert settings_from({"bundle": str(run)}).bundle == last


@pytest.mark.parametrize("sampling", ["low_noise", "sample", "mode"])
def test_the_actions_are_those_of_the_policy_server(bundle: Path, sampling: str) -> None:
    policy = m2.load(bundle, sampling=sampling, seed=5)
    server = PolicyServer(m2.open_bundle(bundle), sampling=sampling, seed=5, watch=WatchLimits.lockstep())  # type: ignore[arg-type]
    server.set_instruction(INSTRUCTIONS[1])
    for episode in range(2):
        steps = observations(CONTRACT, 2 * CONTRACT.history, seed=episode)
        policy.reset(INSTRUCTIONS[1])
        server.reset(is_stationary=True)
        wanted = [server.step(step, step.stamp).action for step in steps]
        np.testing.assert_array_equal(act(policy, steps), wanted)
    server.close()


def test_an_episode_can_be_repeated(bundle: Path) -> None:
    policy = m2.load(bundle, sampling="sample")
    steps = observations(CONTRACT, 12)
    policy.reset(INSTRUCTIONS[0], seed=3)
    first = act(policy, steps)
    policy.reset(INSTRUCTIONS[0])
    assert not np.array_equal(act(policy, steps), first)
    policy.reset(INSTRUCTIONS[0], seed=3)
    np.testing.assert_array_equal(act(policy, steps), first)


def test_what_act_returns(bundle: Path) -> None:
    policy = m2.load(bundle)
    assert set(INSTRUCTIONS) <= set(policy.instructions)
    assert policy.contract == CONTRACT and len(policy.identifier) == 12
    assert policy.provider == "CPUExecutionProvider"
    policy.reset(INSTRUCTIONS[0])
    (step,) = observations(CONTRACT, 1)
    action = policy.act(step.images, {name: values.tolist() for name, values in step.proprioception.items()})
    assert action.values.shape == (7,) and np.all(np.abs(action.values) <= 1)
    assert action.mixture.means.shape[1] == 7 and 0 < action.latency < 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        action.latency = 0.0  # type: ignore[misc]


def test_one_mapping_may_hold_both(bundle: Path) -> None:
    policy = m2.load(bundle, sampling="mode")
    (step,) = observations(CONTRACT, 1)
    policy.reset(INSTRUCTIONS[0])
    wanted = act(policy, [step])[0]
    policy.reset(INSTRUCTIONS[0])
    more = {"not_of_the_contract": np.zeros(3)}
    np.testing.assert_array_equal(policy.act({**step.images, **step.proprioception, **more}).values, wanted)
    with pytest.raises(ObservationError, match=r"joint_states|missing"):
        policy.act(step.images)


def test_larger_images_are_shrunk(bundle: Path) -> None:
    policy = m2.load(bundle, sampling="mode")
    (step,) = observations(CONTRACT, 1)
    large = {name: frame.repeat(3, axis=0).repeat(3, axis=1) for name, frame in step.images.items()}
    policy.reset(INSTRUCTIONS[0])
    wanted = act(policy, [step])[0]
    policy.reset(INSTRUCTIONS[0])
    np.testing.assert_array_equal(policy.act(large, step.proprioception).values, wanted)


def test_wrong_use_is_refused(bundle: Path) -> None:
    policy = m2.load(bundle)
    (step,) = observations(CONTRACT, 1)
    with pytest.raises(PolicyError, match="reset"):
        act(policy, [step])
    with pytest.raises(UnknownInstructionError):
        policy.reset("no such task")
    with pytest.raises(PolicyError):
        act(policy, [step])
    policy.reset(INSTRUCTIONS[0])
    view, group = CONTRACT.camera_names[0], CONTRACT.proprioception_names[0]
    wrong_images = [
        {},
        {**step.images, view: step.images[view].astype(np.float32)},
        {**step.images, view: step.images[view][:8, :8]},
        {**step.images, view: None},
    ]
    for images in wrong_images:
        with pytest.raises(ObservationError):
            policy.act(images, step.proprioception)  # type: ignore[arg-type]
    for values in ([1.0], ["a"] * 7, [float("nan")] * 7, [[1.0], [2.0, 3.0]], [1e9] * 7, None):
        with pytest.raises(ObservationError):
            policy.act(step.images, {**step.proprioception, group: values})  # type: ignore[dict-item]
    with pytest.raises(ObservationError):
        policy.act(step.images, {})
    act(policy, [step])  # a refusal changes nothing
    for options in ({"sampling": "nearly"}, {"provider": "none"}, {"seed": -1}, {"threads": 0}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            m2.load(bundle, **options)
