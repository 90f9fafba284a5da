"""The wire types: names, order, and descriptions that an older Cyclone DDS can read."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from cyclonedds.idl import IdlStruct
from cyclonedds.idl._type_normalize import get_extended_type_hints

from m2distill_policy.dds import m2distill_msgs, types
from m2distill_policy.dds.images import Image
from m2distill_policy.dds.types import (
    CameraInfo,
    DiagnosticArray,
    DiagnosticStatus,
    Header,
    JointState,
    KeyValue,
    PoseStamped,
    Time,
    TwistStamped,
)


def _messages() -> list[type[IdlStruct]]:
    found: set[type[IdlStruct]] = {Image}
    for module in (types, m2distill_msgs):
        found |= {
            kind
            for _, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, IdlStruct) and kind is not IdlStruct
        }
    return sorted(found, key=lambda kind: kind.__name__)


def _own(kind: type[IdlStruct]) -> bool:
    return kind.__module__ == m2distill_msgs.__name__


@pytest.mark.parametrize("kind", _messages(), ids=lambda kind: kind.__name__)
def test_names_are_ros_2s(kind: type[IdlStruct]) -> None:
    name = kind.__idl__.idl_transformed_typename
    assert re.fullmatch(rf"[a-z0-9_]+::msg::dds_::{kind.__name__}_", name)


@pytest.mark.parametrize("kind", _messages(), ids=lambda kind: kind.__name__)
def test_xcdr1_round_trip_of_the_defaults(kind: type[IdlStruct]) -> None:
    message = kind()
    wire = message.serialize(use_version_2=False)
    assert wire[:4] == b"\x00\x01\x00\x00"
    read = kind.deserialize(wire)
    assert kind.serialize(read, use_version_2=False) == wire


@pytest.mark.parametrize("kind", _messages(), ids=lambda kind: kind.__name__)
def test_no_field_type_crashes_an_older_peer(kind: type[IdlStruct]) -> None:
    """Cyclone DDS 0.10 crashed at the description of a uint8 or int8 field as version 11 writes it."""

    def elements(annotation: Any) -> list[Any]:
        return [annotation, *(e for inner in typing.get_args(annotation) for e in elements(inner))] + (
            elements(annotation.subtype) if hasattr(annotation, "subtype") else []
        )

    for name, annotation in get_extended_type_hints(kind).items():
        assert not {"uint8", "int8"} & {str(e) for e in elements(annotation)}, name
        assert "int8" not in repr(annotation), name


def test_joint_state_on_the_wire() -> None:
    message = JointState(Header(Time(1, 2), "base"), ["a"], [1.0], [], [])
    words = message.serialize(use_version_2=False).hex(" ", 4).split()
    assert words == [
        "00010000",  # encapsulation: CDR, little endian
        *("01000000", "02000000"),  # stamp
        *("05000000", "62617365", "00000000"),  # "base", its zero, padding
        *("01000000", "02000000", "61000000"),  # one name: "a", its zero, padding
        *("01000000", "00000000"),  # one position, padding to a multiple of 8 from the encapsulation's end
        *("00000000", "0000f03f"),  # 1.0
        *("00000000", "00000000"),  # no velocity, no effort
    ]


def test_camera_info_has_its_matrices_in_place() -> None:
    info = CameraInfo(height=3, width=4, d=[0.5], k=[float(i) for i in range(9)], p=[float(i) for i in range(12)])
    read = CameraInfo.deserialize(info.serialize(use_version_2=False))
    assert list(read.k) == list(range(9)) and list(read.p) == list(range(12)) and list(read.d) == [0.5]


def test_nested_messages_round_trip() -> None:
    health = DiagnosticArray(Header(Time(3, 4), ""), [DiagnosticStatus(1, "n", "m", "h", [KeyValue("k", "v")])])
    assert DiagnosticArray.deserialize(health.serialize(use_version_2=False)) == health
    twist = TwistStamped()
    twist.twist.angular.z = 0.25
    assert TwistStamped.deserialize(twist.serialize(use_version_2=False)) == twist
    pose = PoseStamped()
    pose.pose.orientation.w = 0.5
    assert PoseStamped.deserialize(pose.serialize(use_version_2=False)) == pose


def test_time_is_exact() -> None:
    at = Time.from_nanoseconds(1_700_000_000_123_456_789)
    assert (at.sec, at.nanosec, at.nanoseconds) == (1_700_000_000, 123_456_789, 1_700_000_000_123_456_789)


@pytest.mark.parametrize("kind", [k for k in _messages() if _own(k)], ids=lambda kind: kind.__name__)
def test_msg_text_is_the_type(kind: type[IdlStruct]) -> None:
    """The ``.msg`` text in the docstring has the type's fields in the same order."""
    text = inspect.getdoc(kind) or ""
    lines = [line.strip() for line in text.partition("::\n")[2].splitlines()]
    fields = [line.split("#")[0].split() for line in lines if line and not line.startswith("#")]
    assert [name for _, name in fields] == [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    ros_to_idl = {"uint8": "byte", "string": "str", "bool": "bool", "std_msgs/Header": "Header"}
    for ros, name in fields:
        plain = ros.removesuffix("[]")
        annotation = str(kind.__annotations__[name])
        assert ros_to_idl.get(plain, plain) in annotation, name
        assert ros.endswith("[]") == ("sequence" in annotation), name


@pytest.mark.parametrize("kind", [k for k in _messages() if _own(k)], ids=lambda kind: kind.__name__)
def test_ros_2_builds_the_same_text(kind: type[IdlStruct]) -> None:
    text = inspect.cleandoc(inspect.getdoc(kind) or "").partition("::\n")[2]
    file = Path(__file__).resolve().parent.parent / "ros2_ws/src/m2distill_msgs/msg" / f"{kind.__name__}.msg"
    assert [line.strip() for line in text.strip().splitlines()] == file.read_text(encoding="utf-8").splitlines()
