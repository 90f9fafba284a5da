"""ROS 2's message classes, under the names that :class:`~m2distill_policy.node.messages.Messages` uses."""

from __future__ import annotations

from types import SimpleNamespace

from builtin_interfaces.msg import Time
from control_msgs.msg import GripperCommand
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Twist, TwistStamped, Vector3
from m2distill_msgs.msg import Episode, PolicyAction, PolicyStatus
from sensor_msgs.msg import CameraInfo, JointState
from std_msgs.msg import Header

from m2distill_policy.node.messages import Messages

MESSAGES = Messages(
    SimpleNamespace(
        CameraInfo=CameraInfo,
        DiagnosticArray=DiagnosticArray,
        DiagnosticStatus=DiagnosticStatus,
        Episode=Episode,
        GripperCommand=GripperCommand,
        Header=Header,
        JointState=JointState,
        KeyValue=KeyValue,
        Point=Point,
        PolicyAction=PolicyAction,
        PolicyStatus=PolicyStatus,
        Pose=Pose,
        PoseStamped=PoseStamped,
        Quaternion=Quaternion,
        Time=Time,
        Twist=Twist,
        TwistStamped=TwistStamped,
        Vector3=Vector3,
    ),
    byte=lambda number: bytes([number]),
)
