"""The executable ``policy_node``: ``ros2 run m2distill_policy policy_node``."""

from __future__ import annotations

import sys

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from m2distill_policy.errors import M2DistillError, printable
from m2distill_policy.node.loop import UNINTERRUPTED
from m2distill_policy.ros.policy_node import PolicyNode
from m2distill_policy.settings.definitions import check
from m2distill_policy.signals import stop_on_signals
from m2distill_policy.streams import flush_or_discard


def main() -> None:
    """Run until SIGINT or SIGTERM, then ramp to a halt. The exit status is 0 unless something failed."""
    reason = ""

    def ask_to_stop(why: str) -> None:
        nonlocal reason
        reason = why

    try:
        # rclpy's own signal handlers end the context at once; then a ramp to a halt could not be published.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        stop_on_signals(ask_to_stop, UNINTERRUPTED)
        node = PolicyNode()
    except RuntimeError as error:  # from rclpy, for arguments and parameter files that it cannot read
        print(f"policy_node: {printable(str(error).strip())}", file=sys.stderr)
        rclpy.try_shutdown()
        sys.exit(2)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    code = 0
    try:
        if check("autostart", node.get_parameter("autostart").value) and not node.bring_up():
            reason, code = "the node could not be activated", 1
        while not reason:
            executor.spin_once(timeout_sec=0.2)
    except M2DistillError as error:
        node.get_logger().fatal(printable(str(error)))
        code = 1
    finally:
        node.shut_down(reason or "the node failed")
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        flush_or_discard()
    sys.exit(code)


if __name__ == "__main__":
    main()
