"""A contract passes through JSON unchanged, refuses invalid values, and names every difference."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from m2distill_policy.contract import (
    Action,
    Camera,
    Contract,
    Proprioception,
    Text,
    VelocityResponse,
    libero_contract,
)
from m2distill_policy.errors import ContractError, ObservationError
from m2distill_policy.observation import Observation

TEXT = Text("minilm", "ab", "mean", 19.6, 384)


def observation(contract: Contract) -> Observation:
    return Observation(
        {c.name: np.zeros(c.shape, np.uint8) for c in contract.cameras},
        {g.name: np.zeros(g.size, np.float32) for g in contract.proprioception},
        0.0,
    )


def test_json_round_trip() -> None:
    contract = libero_contract(64, TEXT)
    assert Contract.from_json(contract.to_json()) == contract
    assert contract.differences(Contract.from_json(contract.to_json())) == []


def test_differences_are_named() -> None:
    a, b = libero_contract(64, TEXT), libero_contract(128, TEXT)
    with pytest.raises(ContractError, match=r"cameras\[0\].height: 64 != 128") as caught:
        a.require_same(b, "the bundle", "the robot")
    assert "the bundle and the robot do not fit together" in str(caught.value)
    a.require_same(b, "a", "b", ignore=("cameras",))


def test_unknown_version_and_broken_json() -> None:
    data = libero_contract(64, TEXT).to_dict()
    with pytest.raises(ContractError, match="version 99"):
        Contract.from_dict({**data, "version": 99})
    with pytest.raises(ContractError, match="not JSON"):
        Contract.from_json("{")
    del data["rate_hz"]
    with pytest.raises(ContractError, match="rate_hz"):
        Contract.from_json(json.dumps(data))


def test_ranges() -> None:
    with pytest.raises(ContractError, match="at least 16 x 16"):
        Camera("a", 8, 64, 45.0)
    for height in (64.5, True, "64"):
        with pytest.raises(ContractError, match="whole numbers are needed"):
            Camera("a", height, 64, 45.0)  # type: ignore[arg-type]
    for scale in (math.inf, math.nan, 0.0, -1.0):
        with pytest.raises(ContractError, match=r"action.rotation_scale is .*; a positive number is needed"):
            Action(rotation_scale=scale)
    with pytest.raises(ContractError, match="is in 'deg'; rad or m is needed"):
        Proprioception("joint_states", ("a",), "deg", -180.0, 180.0)
    with pytest.raises(ContractError, match="field of view"):
        Camera("a", 64, 64, 190.0)
    with pytest.raises(ContractError, match="at least one camera"):
        dataclasses.replace(libero_contract(64), cameras=())
    with pytest.raises(ContractError, match="never fall"):
        VelocityResponse((0.0, 1.0), ((0.0, -1.0),) * 6)


def test_velocity_response_is_odd_and_linear_between_levels() -> None:
    response = VelocityResponse((0.0, 0.5, 1.0), ((0.0, 0.1, 0.2),) * 3 + ((0.0, 1.0, 1.2),) * 3)
    twist = response.twist(np.array([0.25, -0.25, 1.0, 0.75, -0.75, 0.0, 1.0]))
    np.testing.assert_allclose(twist, [0.05, -0.05, 0.2, 1.1, -1.1, 0.0])


def test_observation_checks() -> None:
    contract = libero_contract(64)
    good = observation(contract)
    good.check(contract)
    missing = dataclasses.replace(good, images={"agentview_rgb": good.images["agentview_rgb"]})
    with pytest.raises(ObservationError, match="'eye_in_hand_rgb' is missing"):
        missing.check(contract)
    wrong = dataclasses.replace(good, images={**good.images, "agentview_rgb": np.zeros((32, 64, 3), np.uint8)})
    with pytest.raises(ObservationError, match=r"uint8 \(64, 64, 3\)"):
        wrong.check(contract)
    joints = np.zeros(7, np.float32)
    joints[2] = np.nan
    with pytest.raises(ObservationError, match="'panda_joint3'"):
        dataclasses.replace(good, proprioception={**good.proprioception, "joint_states": joints}).check(contract)
    joints[2] = 50
    with pytest.raises(ObservationError, match="allowed are"):
        dataclasses.replace(good, proprioception={**good.proprioception, "joint_states": joints}).check(contract)
