"""The state of a node that its ROS services and its ROS action share: settings, policy server and control loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from m2distill_policy.node.lockstep import LockstepLoop
from m2distill_policy.node.output import Output
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.ros.images import Frame
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.settings.node import NodeSettings

#: Loop of a node on ROS 2.
Loop: TypeAlias = RealTimeLoop[Frame] | LockstepLoop[Frame]


@dataclass
class PolicyState:
    """State of the configured policy; fields are None while the node is not configured.

    Attributes:
        settings: The parameters when the node was configured.
        server: Answers observations.
        loop: The current loop; each activation makes a new one.
        is_active: Whether observations are answered.
        last_output: Output of the newest cycle; None before the first one.
    """

    settings: NodeSettings | None = None
    server: PolicyServer | None = None
    loop: Loop | None = None
    is_active: bool = False
    last_output: Output | None = None

    def require_loop(self) -> Loop:
        """Return the current loop; only for code that runs while the node is configured."""
        assert self.loop is not None
        return self.loop
