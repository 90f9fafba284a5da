"""The policy node on plain DDS; what it shares with ROS 2's is tested in test_behaviour_*.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2distill_policy.bundle import open_bundle
from m2distill_policy.dds.domain import reserve_domain
from m2distill_policy.dds.participant import Participant
from m2distill_policy.dds.policy_node import PolicyNode
from m2distill_policy.errors import ConfigError
from m2distill_policy.runtime.server import PolicyServer
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy

CONTRACT = toy_contract()


@pytest.fixture
def domain() -> Iterator[int]:
    with reserve_domain() as reserved:
        yield reserved


def test_unused_remapping_is_refused(tmp_path: Path, domain: int) -> None:
    server = PolicyServer(open_bundle(write_toy(tmp_path / "toy")))
    for source, expected in (
        ("/joint_state", r"renames '/joint_state', which is not used; .*; did you mean '/joint_states'\?"),
        ("/m2distill_policy/twist", None),
    ):
        with Participant(domain, {source: "/arm/x"}) as participant:
            PolicyNode(participant, server)
            if expected is None:
                participant.require_remapped()
            else:
                with pytest.raises(ConfigError, match=expected):
                    participant.require_remapped()
    server.close()


@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("frame", [None, "fr3_link0"])
def test_poses_must_be_in_the_frame_that_the_arm_has(
    tmp_path: Path, domain: int, lockstep: bool, frame: str | None
) -> None:
    server = PolicyServer(open_bundle(write_toy(tmp_path / "toy")))
    pose = np.array([0.4, 0.0, 0.3, 0.0, 0.0, 0.0])
    with Participant(domain) as participant:
        node = PolicyNode(participant, server, frame=frame, lockstep=lockstep)
        for name, fits in (("", True), ("base", lockstep or frame is None), ("fr3_link0", True)):
            node._loop._poses.clear()
            node._loop.add_pose(1, pose, name)
            assert (node._loop._poses.refused is None) == fits
    server.close()


@pytest.mark.parametrize("ramp_fails", [False, True])
def test_unexpected_error_halts_first_and_is_raised(
    tmp_path: Path, domain: int, ramp_fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = PolicyServer(open_bundle(write_toy(tmp_path / "toy")), sampling="mode")
    server.set_instruction(INSTRUCTIONS[0])
    for observation in observations(CONTRACT, 3):
        server.step(observation, observation.stamp)
    assert server.motion.value == "running"
    reasons: list[str] = []
    halt = server.halt

    def remember(reason: str) -> None:
        reasons.append(reason)
        halt(reason)

    monkeypatch.setattr(server, "halt", remember)

    def fails(*_: object) -> int:
        raise RuntimeError("a bug")

    def fails_too(*_: object) -> None:
        raise OSError("no way out")

    with Participant(domain) as participant:
        node = PolicyNode(participant, server)
        monkeypatch.setattr(node, "_take_inputs", fails)
        if ramp_fails:
            monkeypatch.setattr(node, "_command", fails_too)
        with pytest.raises(RuntimeError, match="a bug"):
            node.spin()
    if ramp_fails:
        assert "the ramp to a halt failed too (OSError: no way out)" in caplog.text
    else:
        assert server.motion.value == "halted" and node.cycle_count == 5
    assert reasons == ["the node failed (RuntimeError: a bug)"]
    server.close()


def test_unpublishable_status_does_not_end_the_ramp(
    tmp_path: Path, domain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PolicyServer(open_bundle(write_toy(tmp_path / "toy")), sampling="mode")
    server.set_instruction(INSTRUCTIONS[0])
    for observation in observations(CONTRACT, 3):
        server.step(observation, observation.stamp)
    sent: list[float] = []

    def fails(*_: object) -> None:
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "a status")

    with Participant(domain) as participant:
        node = PolicyNode(participant, server)
        write = node._twist.write

        def remember(message: Any) -> None:
            sent.append(max(abs(message.twist.linear.x), abs(message.twist.angular.z)))
            write(message)

        monkeypatch.setattr(node._twist, "write", remember)
        monkeypatch.setattr(node._status, "write", fails)
        with pytest.raises(UnicodeEncodeError):
            node.spin()
    assert len(sent) >= 5 and sent[0] > 0 and sent[-1] == 0.0
    assert server.motion.value == "halted"
    server.close()
