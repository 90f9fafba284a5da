"""The policy node on ROS 2 in this process, for tests that look into it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import rclpy
from rclpy.executors import SingleThreadedExecutor

from m2distill_policy.ros.policy_node import PolicyNode
from tests.sides import PATIENCE


@contextlib.contextmanager
def policy_node(**parameters: object) -> Iterator[PolicyNode]:
    """An unconfigured policy node that spins in a thread of its own; what it raises fails the test."""
    rclpy.init()
    node = PolicyNode({name.replace("__", "."): value for name, value in parameters.items()})
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop = threading.Event()
    failed: list[BaseException] = []

    def spin() -> None:
        try:
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.05)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield node
    finally:
        stop.set()
        thread.join(PATIENCE)
        node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()
        if failed:
            raise failed[0]
