"""A contract is checked completely when it is made: wrong types and implausible values are refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from m2distill_policy.contract import (
    FASTEST,
    Action,
    Camera,
    Contract,
    Proprioception,
    Text,
    VelocityResponse,
    libero_contract,
)
from m2distill_policy.errors import ContractError

TEXT = Text("minilm", "ab", "mean", 19.6, 384)
CONTRACT = libero_contract(64, TEXT)


def plain() -> dict[str, Any]:
    """Return the contract as JSON data."""
    found: dict[str, Any] = json.loads(CONTRACT.to_json())
    return found


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths of all simple values, and of all lists and objects."""
    if way:
        yield way
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*way, key))
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            yield from leaves(entry, (*way, i))


def holder(data: Any, way: tuple[Any, ...]) -> Any:
    for key in way[:-1]:
        data = data[key]
    return data


ALL = list(leaves(plain()))
NUMBERS = [way for way in ALL if isinstance(holder(plain(), way)[way[-1]], (int, float))]
#: Never right at any place of a contract.
NEVER: dict[str, Any] = {
    "true": True,
    "false": False,
    "NaN": math.nan,
    "infinity": math.inf,
    "-infinity": -math.inf,
    "huge": 1e300,
    "huge whole": 10**400,
    "negative huge": -(10**400),
    "empty list": [],
    "empty object": {},
    "empty text": "",
    "list in a list": [[]],
    "NUL": "\0",
    "a megabyte": "x" * 2**20,
}


@pytest.mark.parametrize("way", ALL, ids=lambda way: ".".join(map(str, way)))
def test_invalid_values_are_refused_in_every_field(way: tuple[Any, ...]) -> None:
    for name, value in NEVER.items():
        if way == ("proprioception",) and value == []:
            continue  # a policy may see pictures alone
        data = plain()
        holder(data, way)[way[-1]] = value
        with pytest.raises(ContractError) as caught:
            Contract.from_dict(data)
        assert len(str(caught.value)) < 500, name


@pytest.mark.parametrize("way", [way for way in ALL if way != ("text",)], ids=lambda way: ".".join(map(str, way)))
def test_null_is_refused_everywhere_but_for_the_text(way: tuple[Any, ...]) -> None:
    data = plain()
    holder(data, way)[way[-1]] = None
    with pytest.raises(ContractError):
        Contract.from_dict(data)


@pytest.mark.parametrize("way", NUMBERS, ids=lambda way: ".".join(map(str, way)))
def test_a_number_is_never_taken_from_a_text(way: tuple[Any, ...]) -> None:
    data = plain()
    place = holder(data, way)
    place[way[-1]] = str(place[way[-1]])
    with pytest.raises(ContractError):
        Contract.from_dict(data)


@pytest.mark.parametrize("way", ALL, ids=lambda way: ".".join(map(str, way)))
def test_missing_field_is_refused(way: tuple[Any, ...]) -> None:
    data = plain()
    del holder(data, way)[way[-1]]
    if way[0] == "cameras" and len(way) == 2:
        assert len(Contract.from_dict(data).cameras) == 1
    elif (way[0] == "proprioception" and len(way) == 2) or way[-2:-1] == ("entries",):
        Contract.from_dict(data)  # another contract, and a whole one
    else:
        with pytest.raises(ContractError):
            Contract.from_dict(data)


@pytest.mark.parametrize(
    "way", [way for way in ALL if isinstance(holder(plain(), way), dict)], ids=lambda way: ".".join(map(str, way))
)
def test_a_misspelt_key_is_refused_with_the_closest_one(way: tuple[Any, ...]) -> None:
    data = plain()
    place = holder(data, way)
    place[f"{way[-1]}s"] = place.pop(way[-1])
    with pytest.raises(ContractError) as caught:
        Contract.from_dict(data)
    assert way[-1] in str(caught.value)


def test_text_instead_of_a_list_is_refused() -> None:
    data = plain()
    data["proprioception"][0]["entries"] = "abc"
    with pytest.raises(ContractError):
        Contract.from_dict(data)


@pytest.mark.parametrize("text", ['{"version": 1, "version": 1}', '{"version": NaN}', "[" * 100_000, "9" * 5000])
def test_ambiguous_json_is_refused(text: str) -> None:
    with pytest.raises(ContractError):
        Contract.from_json(text)


def response(**changes: Any) -> VelocityResponse:
    levels = {"levels": (0.0, 0.5, 1.0), "velocities": ((0.0, 0.1, 0.2),) * 6}
    return VelocityResponse(**{**levels, **changes})


WRONG: dict[str, Any] = {
    "levels with null": lambda: response(levels=(0.0, None, 1.0)),
    "levels as text": lambda: response(levels=(0.0, "0.5", 1.0)),
    "levels with NaN": lambda: response(levels=(0.0, math.nan, 1.0)),
    "levels too close": lambda: response(levels=(0.0, 5e-324, 1.0)),
    "levels that fall": lambda: response(levels=(0.0, 1.0, 1.0)),
    "levels as a list": lambda: response(levels=[0.0, 0.5, 1.0]),
    "level of true": lambda: response(levels=(0.0, 0.5, True)),
    "speeds with NaN": lambda: response(velocities=((0.0, math.nan, 0.2),) * 6),
    "speeds as text": lambda: response(velocities=((0.0, "0.1", 0.2),) * 6),
    "speeds negative": lambda: response(velocities=((0.0, -0.1, 0.2),) * 6),
    "speeds that fall": lambda: response(velocities=((0.0, 0.3, 0.2),) * 6),
    "8.2 m/s": lambda: response(velocities=((0.0, 0.1, 8.2),) * 6),
    "a ragged row": lambda: response(velocities=((0.0, 0.2),) + ((0.0, 0.1, 0.2),) * 5),
    "five axes": lambda: response(velocities=((0.0, 0.1, 0.2),) * 5),
    "fitted from half a step": lambda: response(fitted_from=0.5),
    "8.05 m a step": lambda: Action(translation_scale=8.05),
    "a turn of 10 rad": lambda: Action(rotation_scale=10.0),
    "a scale of nearly nothing": lambda: Action(translation_scale=5e-324),
    "a scale of true": lambda: Action(translation_scale=True),
    "seven and a half entries": lambda: Action(size=7.0),  # type: ignore[arg-type]
    "a frame with a space": lambda: Action(frame="the base"),
    "no response": lambda: Action(response=None),  # type: ignore[arg-type]
    "a NumPy scale": lambda: Action(translation_scale=np.float32(0.05)),  # type: ignore[arg-type]
    "field of view as text": lambda: Camera("a", 64, 64, "45"),  # type: ignore[arg-type]
    "field of view of NaN": lambda: Camera("a", 64, 64, math.nan),
    "a picture of 5000 rows": lambda: Camera("a", 5000, 64, 45.0),
    "a name that is no topic": lambda: Camera("a/b", 64, 64, 45.0),
    "a name of the graph": lambda: Camera("past_tokens", 64, 64, 45.0),
    "range of NaN": lambda: Proprioception("j", ("a",), "rad", math.nan, 1.0),
    "range without end": lambda: Proprioception("j", ("a",), "rad", -math.inf, 1.0),
    "entries of numbers": lambda: Proprioception("j", (1,), "rad", -1.0, 1.0),  # type: ignore[arg-type]
    "entries as one text": lambda: Proprioception("j", "abc", "rad", -1.0, 1.0),  # type: ignore[arg-type]
    "unit in a list": lambda: Proprioception("j", ("a",), ["rad"], -1.0, 1.0),  # type: ignore[arg-type]
    "size of text": lambda: Text("a", "0", "b", 1.0, 0),
    "scaling of text": lambda: Text("a", "0", "b", math.nan, 1),
    "sha256 of text": lambda: Text("a", "not hexadecimal", "b", 1.0, 1),
    "rate of 0.5": lambda: dataclasses.replace(CONTRACT, rate_hz=0.5),
    "rate of true": lambda: dataclasses.replace(CONTRACT, rate_hz=True),
    "history of 10.0": lambda: dataclasses.replace(CONTRACT, history=10.0),  # type: ignore[arg-type]
    "history of true": lambda: dataclasses.replace(CONTRACT, history=True),
    "no tuple of cameras": lambda: dataclasses.replace(CONTRACT, cameras=list(CONTRACT.cameras)),  # type: ignore[arg-type]
    "a camera that is none": lambda: dataclasses.replace(CONTRACT, cameras=({"name": "a"},)),  # type: ignore[arg-type]
    "a text that is none": lambda: dataclasses.replace(CONTRACT, text="minilm"),  # type: ignore[arg-type]
    "seventeen cameras": lambda: dataclasses.replace(
        CONTRACT, cameras=tuple(Camera(f"c{i}", 16, 16, 45.0) for i in range(17))
    ),
    "two cameras of one topic": lambda: dataclasses.replace(
        CONTRACT, cameras=(Camera("front", 64, 64, 45.0), Camera("front_rgb", 64, 64, 45.0))
    ),
    "pictures of 60 GiB": lambda: dataclasses.replace(
        CONTRACT, cameras=(Camera("front", 4096, 4096, 45.0),), history=1000
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_constructor_checks_the_same_rules(name: str) -> None:
    with pytest.raises(ContractError):
        WRONG[name]()


def test_other_arms_fit() -> None:
    arms = [
        Contract(
            cameras=tuple(Camera(f"view_{i}", 120, 160 + 16 * i, 60) for i in range(cameras)),
            proprioception=(
                (Proprioception("joint_states", tuple(f"arm/joint-{i}.a" for i in range(joints)), "rad", -700, 700),)
                if joints
                else ()
            ),
            action=Action(translation_scale=0.02, rotation_scale=0.1, frame="arm_1/base_link"),
            text=None,
            rate_hz=rate,
            history=history,
        )
        for cameras, joints, rate, history in ((1, 0, 5, 1), (6, 16, 50.0, 40), (2, 6, 12.5, 10))
    ]
    for contract in arms:
        assert Contract.from_json(contract.to_json()) == contract


def test_random_responses_are_finite_and_stay_below_their_top_speed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        inner = np.cumsum(rng.uniform(2e-3, 1.0, rng.integers(1, 8)))
        levels = (0.0, *(float(v) for v in inner[:-1] / inner[-1]), 1.0)
        if np.diff(levels).min() < 1e-3:
            continue
        rises = rng.uniform(0, 1, (6, len(levels) - 1)) * rng.choice([0.0, 5e-324, 1e-300, 1e-17, 1.0], (6, 1))
        speeds = np.minimum(np.cumsum(rises, axis=1), np.array(FASTEST)[:, None])
        made = VelocityResponse(levels, tuple((0.0, *(float(v) for v in row)) for row in speeds))
        action = rng.uniform(-1, 1, 7)
        twist = made.twist(action)
        sizes = [np.interp(abs(action[i]), made.levels, made.velocities[i]) for i in range(6)]
        np.testing.assert_array_equal(twist, np.sign(action[:6]) * sizes)
        assert np.all(np.isfinite(twist)) and np.all(np.abs(twist) <= made.top_speeds)
        for axis in range(6):
            wanted = abs(float(rng.uniform(0, 1) * twist[axis]))
            size = made.size_for(axis, wanted)
            assert 0 <= size <= 1
            reached = made.twist(np.full(7, size))[axis]
            assert math.isfinite(reached) and reached <= wanted * (1 + 1e-9) + 1e-12


def test_nothing_in_the_contract_is_changed_by_reading_it() -> None:
    data = plain()
    before = copy.deepcopy(data)
    Contract.from_dict(data)
    assert data == before
