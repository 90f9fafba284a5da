"""``ros2 run m2distill_policy policy_node``."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from m2distill_policy.errors import M2DistillError
from m2distill_policy.ros.policy_node import PolicyNode


def main() -> None:
    """Spin until SIGINT or SIGTERM, then ramp to a halt; exits 0 unless something failed."""
    # rclpy's own handlers end the context at once, and a ramp to a halt could no longer be published.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stop = False

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    node = PolicyNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    code = 0
    try:
        while not stop:
            executor.spin_once(timeout_sec=0.2)
    except M2DistillError as error:
        node.get_logger().fatal(str(error))
        code = 1
    finally:
        node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    sys.exit(code)


if __name__ == "__main__":
    main()
