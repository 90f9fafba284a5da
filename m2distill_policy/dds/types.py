"""ROS 2's messages as Cyclone DDS types: the same names, fields and order, so that ROS 2 can read and write them.

``sensor_msgs/msg/Image`` is the DDS type ``sensor_msgs::msg::dds_::Image_``. CDR has no field names, so the order of
the fields must not change. A sequence of numbers is written from a list or a tuple, never from an array, and is read as
a list.

No field may be ``uint8`` or ``int8``: Cyclone DDS 11 describes these types to its peers in a way that version 0.10,
which is part of ROS 2 Jazzy, cannot read; a 0.10 process that inspects them crashes. ``byte`` is sent as the same byte,
with a description that 0.10 can read.

``Image`` is in :mod:`m2distill_policy.dds.images`, because it has its own serialiser. The policy's own messages are in
:mod:`m2distill_policy.dds.m2distill_msgs`.
"""
# No ``from __future__ import annotations`` here: the serialiser is made from the annotations themselves.

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, byte, float64, int32, sequence, uint32

if TYPE_CHECKING:
    # For type checkers; the serialiser needs the exact form below.
    Strings = Sequence[str]
    Float64s = Sequence[float]
    Matrix3x3 = Float64s
    Matrix3x4 = Float64s
else:
    Strings = sequence[str]
    Float64s = sequence[float64]
    Matrix3x3 = array[float64, 9]
    Matrix3x4 = array[float64, 12]

NANOSECONDS = 1_000_000_000


# ---------------------------------------------------------------------------------------------- builtin_interfaces


@dataclass
class Time(IdlStruct, typename="builtin_interfaces.msg.dds_.Time_"):
    """A time: ``sec`` (int32) and ``nanosec`` (uint32, 0 to 999999999) since the clock's origin."""

    sec: int32 = 0
    nanosec: uint32 = 0

    @staticmethod
    def from_nanoseconds(nanoseconds: int) -> "Time":
        """Make the time that is ``nanoseconds`` after the clock's origin."""
        return Time(nanoseconds // NANOSECONDS, nanoseconds % NANOSECONDS)

    @property
    def nanoseconds(self) -> int:
        """Nanoseconds since the clock's origin."""
        return self.sec * NANOSECONDS + self.nanosec

    @property
    def seconds(self) -> float:
        """Seconds since the clock's origin."""
        return self.nanoseconds / NANOSECONDS


# -------------------------------------------------------------------------------------------------------- std_msgs


@dataclass
class Header(IdlStruct, typename="std_msgs.msg.dds_.Header_"):
    """Stamp and frame of a message."""

    stamp: Time = field(default_factory=Time)
    frame_id: str = ""


@dataclass
class String(IdlStruct, typename="std_msgs.msg.dds_.String_"):
    """One string; on ``~/instruction`` the instruction of the task."""

    data: str = ""


@dataclass
class Bool(IdlStruct, typename="std_msgs.msg.dds_.Bool_"):
    """A bool; on ``~/emergency_stop`` whether it is pressed, on ``~/dead_man`` whether it is held."""

    data: bool = False


# --------------------------------------------------------------------------------------------------- geometry_msgs


@dataclass
class Vector3(IdlStruct, typename="geometry_msgs.msg.dds_.Vector3_"):
    """A vector of three numbers."""

    x: float64 = 0.0
    y: float64 = 0.0
    z: float64 = 0.0


@dataclass
class Point(IdlStruct, typename="geometry_msgs.msg.dds_.Point_"):
    """A position, in m."""

    x: float64 = 0.0
    y: float64 = 0.0
    z: float64 = 0.0


@dataclass
class Quaternion(IdlStruct, typename="geometry_msgs.msg.dds_.Quaternion_"):
    """A rotation as a unit quaternion (x, y, z, w)."""

    x: float64 = 0.0
    y: float64 = 0.0
    z: float64 = 0.0
    w: float64 = 1.0


@dataclass
class Pose(IdlStruct, typename="geometry_msgs.msg.dds_.Pose_"):
    """A position and a rotation."""

    position: Point = field(default_factory=Point)
    orientation: Quaternion = field(default_factory=Quaternion)


@dataclass
class PoseStamped(IdlStruct, typename="geometry_msgs.msg.dds_.PoseStamped_"):
    """A pose in ``header.frame_id``."""

    header: Header = field(default_factory=Header)
    pose: Pose = field(default_factory=Pose)


@dataclass
class Twist(IdlStruct, typename="geometry_msgs.msg.dds_.Twist_"):
    """A velocity: ``linear`` in m/s, ``angular`` in rad/s."""

    linear: Vector3 = field(default_factory=Vector3)
    angular: Vector3 = field(default_factory=Vector3)


@dataclass
class TwistStamped(IdlStruct, typename="geometry_msgs.msg.dds_.TwistStamped_"):
    """A velocity in ``header.frame_id``."""

    header: Header = field(default_factory=Header)
    twist: Twist = field(default_factory=Twist)


# ----------------------------------------------------------------------------------------------------- sensor_msgs


@dataclass
class JointState(IdlStruct, typename="sensor_msgs.msg.dds_.JointState_"):
    """Positions in rad or m by joint name; ``velocity`` and ``effort`` may be empty."""

    header: Header = field(default_factory=Header)
    name: Strings = field(default_factory=list)
    position: Float64s = field(default_factory=list)
    velocity: Float64s = field(default_factory=list)
    effort: Float64s = field(default_factory=list)


@dataclass
class RegionOfInterest(IdlStruct, typename="sensor_msgs.msg.dds_.RegionOfInterest_"):
    """The part of the full image that was sent; all zero means all of it."""

    x_offset: uint32 = 0
    y_offset: uint32 = 0
    height: uint32 = 0
    width: uint32 = 0
    do_rectify: bool = False


@dataclass
class CameraInfo(IdlStruct, typename="sensor_msgs.msg.dds_.CameraInfo_"):
    """A camera's intrinsics; ``k`` is row-major 3 x 3, ``p`` 3 x 4, in pixels."""

    header: Header = field(default_factory=Header)
    height: uint32 = 0
    width: uint32 = 0
    distortion_model: str = "plumb_bob"
    d: Float64s = field(default_factory=list)
    k: Matrix3x3 = field(default_factory=lambda: [0.0] * 9)
    r: Matrix3x3 = field(default_factory=lambda: [0.0] * 9)
    p: Matrix3x4 = field(default_factory=lambda: [0.0] * 12)
    binning_x: uint32 = 0
    binning_y: uint32 = 0
    roi: RegionOfInterest = field(default_factory=RegionOfInterest)


# ---------------------------------------------------------------------------------------------------- control_msgs


@dataclass
class GripperCommand(IdlStruct, typename="control_msgs.msg.dds_.GripperCommand_"):
    """A command to a gripper.

    ``position`` is in the unit of the gripper's driver, m or rad; ``max_effort`` is in N, 0 for the gripper's default.
    """

    position: float64 = 0.0
    max_effort: float64 = 0.0


# ------------------------------------------------------------------------------------------------- diagnostic_msgs


@dataclass
class KeyValue(IdlStruct, typename="diagnostic_msgs.msg.dds_.KeyValue_"):
    """One figure of a diagnostic status."""

    key: str = ""
    value: str = ""


if TYPE_CHECKING:
    KeyValues = Sequence[KeyValue]
else:
    KeyValues = sequence[KeyValue]


@dataclass
class DiagnosticStatus(IdlStruct, typename="diagnostic_msgs.msg.dds_.DiagnosticStatus_"):
    """The diagnostics of one component. ``level``: 0 ok, 1 warn, 2 error, 3 stale."""

    level: byte = 0
    name: str = ""
    message: str = ""
    hardware_id: str = ""
    values: KeyValues = field(default_factory=list)


if TYPE_CHECKING:
    DiagnosticStatuses = Sequence[DiagnosticStatus]
else:
    DiagnosticStatuses = sequence[DiagnosticStatus]


@dataclass
class DiagnosticArray(IdlStruct, typename="diagnostic_msgs.msg.dds_.DiagnosticArray_"):
    """The diagnostics of a node."""

    header: Header = field(default_factory=Header)
    status: DiagnosticStatuses = field(default_factory=list)
