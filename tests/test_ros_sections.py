"""The sections of a parameter file that are used are those that rclpy uses, in its order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not sourced")

import rclpy
from rclpy.node import Node

from m2distill_policy.errors import ConfigError
from m2distill_policy.settings.arm import load_arm
from tests.test_parameter_sections import NAMESPACES, NODE, SECTIONS, TWICE, write

pytestmark = pytest.mark.usefixtures("own_domain")


@pytest.fixture(scope="module")
def context() -> Iterator[rclpy.Context]:
    """One context for all nodes, because each would make its own DDS participant."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    yield context
    rclpy.try_shutdown(context=context)


def rclpy_takes(file: Path, namespace: str, context: rclpy.Context) -> float | None:
    """Return the halt time that rclpy gives the policy node of a namespace, or None."""
    node = Node(
        NODE, namespace=namespace, context=context, cli_args=["--ros-args", "--params-file", str(file)],
        automatically_declare_parameters_from_overrides=True, start_parameter_services=False, enable_rosout=False,
    )  # fmt: skip
    try:
        name = "safety.halt_time"
        return float(node.get_parameter(name).value) if node.has_parameter(name) else None
    finally:
        node.destroy_node()


@pytest.mark.parametrize("first", SECTIONS)
def test_sections_are_chosen_as_rclpy_does(tmp_path: Path, context: rclpy.Context, first: str) -> None:
    pairs = [(first, second) for second in SECTIONS if first.strip("/") != second.strip("/")]
    for (one, other), namespace in itertools.product(pairs[::3], NAMESPACES):
        file = write(tmp_path / "p.yaml", (one, 0.25), (other, 0.75))
        expected = rclpy_takes(file, namespace, context)
        if expected is None:
            with pytest.raises(ConfigError):
                load_arm(file, (), namespace)
        else:
            assert load_arm(file, (), namespace)[0].safety.halt_time == expected


@pytest.mark.parametrize(
    ("content", "namespace", "count"),
    [
        *((f"/**: {{ros__parameters: {parameters}}}", "", 1) for parameters, _ in TWICE[:3]),
        ("/left/m2distill_policy: {ros__parameters: {slop: 0.5}}", "", 1),
        ("m2distill_policy: {ros__parameters: {slop: 0.5}}", "/left", 1),
        ("/left/m2distill_policy: {ros__parameters: {slop: 0.5}}", "/left", 0),
        (
            "/right/m2distill_policy: {ros__parameters: {slop: 0.5}}\n/left/*: {ros__parameters: {slop: 0.5}}",
            "/left",
            0,
        ),
    ],
)
def test_node_refuses_mistakes_that_rclpy_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, namespace: str, count: int
) -> None:
    from lifecycle_msgs.msg import State

    PolicyNode: Callable[[], Node] = pytest.importorskip("m2distill_policy.ros.policy_node").PolicyNode
    file = tmp_path / "p.yaml"
    file.write_text(content)
    words = ["node", "--ros-args", "--params-file", str(file), "-r", f"__ns:={namespace or '/'}"]
    monkeypatch.setattr("sys.argv", words)
    rclpy.init(args=words)
    try:
        node = PolicyNode()
        assert len(node._settings._invalid) == count
        node.trigger_configure()
        assert node._state_machine.current_state[0] == State.PRIMARY_STATE_UNCONFIGURED
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
