"""Show the mixture's modes in RViz: for each mode an arrow from the end effector to its set-point."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from m2distill_policy.contract import Contract
from m2distill_policy.node.output import Output
from m2distill_policy.ros.messages import MESSAGES

#: Arrows are enlarged, because arrows of 5 cm would be hidden behind the hand.
_LONGER = 3.0
#: Sizes of an arrow's shaft and head, m.
_SHAFT, _HEAD = 0.008, 0.016


def markers(output: Output, contract: Contract, frame: str) -> MarkerArray | None:
    """Make an arrow for each mode. Opacity is its weight; green opens the gripper, red closes it.

    Returns:
        None if the cycle has no mixture, or the pose of the end effector is unknown.
    """
    mixture = output.decision.mixture
    if mixture is None or output.pose is None:
        return None
    x, y, z = (float(value) for value in output.pose[:3])
    weights = np.exp(mixture.logits - mixture.logits.max())
    weights /= weights.sum()
    found = MarkerArray()
    for mode, (weight, mean) in enumerate(zip(weights, mixture.means, strict=True)):
        way = np.clip(mean[:3], -1, 1) * contract.action.translation_scale * _LONGER
        closing = float(np.clip((mean[6] + 1) / 2, 0, 1))
        found.markers.append(
            Marker(
                header=MESSAGES.header(output.command_stamp, frame),
                ns="modes",
                id=mode,
                type=Marker.ARROW,
                action=Marker.ADD,
                points=[Point(x=x, y=y, z=z), Point(x=x + float(way[0]), y=y + float(way[1]), z=z + float(way[2]))],
                scale=MESSAGES.vector([_SHAFT, _HEAD, 0.0]),
                color=ColorRGBA(r=closing, g=1.0 - closing, b=0.0, a=max(0.05, float(weight))),
            )
        )
    return found
