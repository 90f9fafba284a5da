"""A thousand randomly broken bundles for a policy that drives: no crash, and no command outside the limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m2distill_policy.bundle import open_bundle
from m2distill_policy.bundle_files import DIGEST, MANIFEST
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import SwapState
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, observations, replace_file, toy_contract, write_manifest, write_toy

BUNDLES = 1000
CONTRACT = toy_contract()
SPEED = (0.05, 0.05, 0.05, 0.2, 0.2, 0.2)


def _break(path: Path, originals: dict[str, bytes], rng: np.random.Generator) -> None:
    """Write the bundle with one file damaged, missing or added; every third time with a matching manifest."""
    for file in path.iterdir():
        file.unlink()
    for name, original in originals.items():
        (path / name).write_bytes(original)
    name = str(rng.choice(sorted(originals)))
    kind = int(rng.integers(8))
    if kind == 0:
        (path / name).unlink()
        return
    if kind == 1:
        (path / "more.onnx").write_bytes(rng.bytes(10))
        return
    data = bytearray(originals[name])
    if kind == 2:
        data = data[: int(rng.integers(len(data)))]
    for _ in range(int(rng.integers(1, 6))):
        if data:
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    (path / name).write_bytes(data)
    if rng.random() < 1 / 3:
        if name == MANIFEST:
            write_manifest(path, bytes(data))
        elif name != DIGEST:
            replace_file(path, name, bytes(data))


def test_broken_bundles(tmp_path: Path) -> None:
    server = PolicyServer(
        open_bundle(write_toy(tmp_path / "good")),
        watch=WatchLimits.lockstep(),
        limits=SafetyLimits(speed=SPEED),
        swap_when="now",
    )
    server.set_instruction(INSTRUCTIONS[0])
    originals = {file.name: file.read_bytes() for file in write_toy(tmp_path / "other", seed=1).iterdir()}
    broken = tmp_path / "broken"
    broken.mkdir()
    rng = np.random.default_rng(5)
    steps = observations(CONTRACT, BUNDLES)
    refused = 0
    for observation in steps:
        _break(broken, originals, rng)
        server.load(broken)
        report = server.wait_for_swap(30)
        # What was changed may be a word in the provenance, or a weight in a graph whose hash was made to fit.
        assert report.state in (SwapState.REFUSED, SwapState.SWITCHED), report
        refused += report.state is SwapState.REFUSED
        assert report.state is SwapState.SWITCHED or report.message.startswith("Bundle 'broken' was refused: ")
        decision = server.step(observation, observation.stamp)
        assert np.isfinite(decision.action).all() and np.abs(decision.action).max() <= 1
        speed = CONTRACT.action.response.twist(decision.action)
        assert (np.abs(speed) <= np.array(SPEED) + 1e-9).all(), speed
    assert refused > 0.8 * BUNDLES
    server.close()
