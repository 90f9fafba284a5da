"""Message classes of plain DDS, under the names that :class:`~m2distill_policy.node.messages.Messages` uses."""

from __future__ import annotations

from types import SimpleNamespace

from m2distill_policy.dds import m2distill_msgs, types
from m2distill_policy.node.messages import Messages

MESSAGES = Messages(
    SimpleNamespace(
        CameraInfo=types.CameraInfo,
        DiagnosticArray=types.DiagnosticArray,
        DiagnosticStatus=types.DiagnosticStatus,
        Episode=m2distill_msgs.Episode,
        GripperCommand=types.GripperCommand,
        Header=types.Header,
        JointState=types.JointState,
        KeyValue=types.KeyValue,
        Point=types.Point,
        PolicyAction=m2distill_msgs.PolicyAction,
        PolicyStatus=m2distill_msgs.PolicyStatus,
        Pose=types.Pose,
        PoseStamped=types.PoseStamped,
        Quaternion=types.Quaternion,
        Time=types.Time,
        Twist=types.Twist,
        TwistStamped=types.TwistStamped,
        Vector3=types.Vector3,
    )
)
