"""2,000 changed manifests, each with a matching digest: refused with our own error, or commands within the limits."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2distill_policy.bundle import MANIFEST, Bundle, open_bundle
from m2distill_policy.errors import M2DistillError
from m2distill_policy.runtime.safety import SafetyLimits
from tests.bundles import observations, toy_contract, write_manifest, write_toy
from tests.test_contract_values import holder, leaves
from tests.test_runtime_limits import POSE, Arm

CHANGES = 2000
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "0.2", "x" * 5000, "\0", [], {}, [0, None, 0.5, 1], [[]], {"a": 1}),
    *(0, 1, -1, 2, 7, 16, 1000, 2**31, 2**63 - 1, -(2**63), 0.0, -0.0, 0.5, 1.5, 1e-300, 5e-324, 1e300, -1e300),
    *(math.nan, math.inf, -math.inf),
)
#: What json.dumps cannot write, put in by hand.
RAW = ("9" * 400, "9" * 400 + ".0", "1e400", "-1e999", "0x10", "1_000", "01", '"\\ud800"', "[" * 200 + "]" * 200)


def changed(rng: random.Random, text: str) -> bytes:
    """Return the manifest with one to three random changes."""
    data = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        ways = [way for way in leaves(data) if way[0] != "files"]
        # The contract is what commands are made with.
        of_contract = [way for way in ways if way[0] == "contract"]
        way = rng.choice(of_contract if of_contract and rng.random() < 0.8 else ways)
        place, key = holder(data, way), way[-1]
        kind = rng.randrange(9)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[f"{key}{rng.choice(['s', '_', ' '])}"] = place.pop(key)
        elif kind == 2 and isinstance(place, list):
            place.insert(rng.randrange(len(place) + 1), place[key])
        elif kind == 3 and isinstance(place[key], (int, float)) and not isinstance(place[key], bool):
            place[key] *= rng.choice([-1, 0.5, 1.01, 1.1, 2, 10, 1000, 1e9])
        elif kind == 4 and isinstance(place[key], (int, float)):
            place[key] = str(place[key])
        elif kind == 5 and isinstance(place[key], list):
            rng.shuffle(place[key])
        else:
            place[key] = rng.choice(VALUES)
    dumped = json.dumps(data, indent=rng.choice([None, 1]))
    kind = rng.randrange(20)
    if kind == 0:  # the same key again, first or last
        key = rng.choice(("version", "rate_hz", "action", "cameras", "history"))
        dumped = dumped.replace('"contract": {', f'"contract": {{"{key}": {json.dumps(rng.choice(VALUES))}, ', 1)
    elif kind == 1:
        numbers = [i for i, c in enumerate(dumped) if c.isdigit() and not dumped[i - 1].isalnum()]
        at = rng.choice(numbers)
        end = next(i for i in range(at, len(dumped)) if dumped[i] not in "0123456789.e+-")
        dumped = dumped[:at] + rng.choice(RAW) + dumped[end:]
    return dumped.encode("utf-8", "surrogatepass")


def drive(bundle: Bundle) -> None:
    """Run some steps, two halts and the end; :class:`Arm` checks every command."""
    arm = Arm(bundle, limits=SafetyLimits(workspace_low=(0.2, -0.2, 0.2), workspace_high=(0.6, 0.2, 0.6)))
    try:
        steps = observations(bundle.contract, 12)
        arm.drive(steps[:4], POSE)
        arm.server.halt("a test")
        arm.drive(steps[4:7], POSE)
        arm.server.release_halt()
        arm.drive(steps[7:10], POSE)
        arm.period(None)
        arm.cycle.shut_down("the end")
        for _ in range(20):
            arm.now += bundle.contract.period
            arm.check(arm.cycle.ramp())
    finally:
        arm.server.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("manifests") / "bundle", contract=toy_contract(16))


@pytest.mark.parametrize("part", range(8))
def test_a_changed_manifest_is_refused_or_stays_inside_the_limits(folder: Path, tmp_path: Path, part: int) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    path = tmp_path / "bundle"
    shutil.copytree(folder, path)
    opened = driven = 0
    for i in range(CHANGES // 8):
        rng = random.Random(part * 10_000 + i)
        write_manifest(path, changed(rng, text))
        try:
            bundle = open_bundle(path)
        except M2DistillError as error:
            assert 0 < len(str(error)) < 2000
            continue
        opened += 1
        contract = bundle.contract.to_json()
        assert not any(word in contract for word in ("NaN", "Infinity"))
        if driven >= 12:  # opened alike; driving each takes long
            continue
        try:
            with np.errstate(all="raise", under="ignore"):
                drive(bundle)
            driven += 1
        except M2DistillError as error:  # the graphs do not fit this contract, or know no such instruction
            assert 0 < len(str(error)) < 2000
    assert opened >= 3 and driven >= 2
