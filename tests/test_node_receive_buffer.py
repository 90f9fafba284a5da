"""Whether images fit into the receive buffers, on real sockets."""

from __future__ import annotations

import socket

import pytest

from m2distill_policy.node import receive_buffer
from m2distill_policy.node.receive_buffer import SILENT_AFTER, ReceiveBuffer, largest_receive_buffer


def test_small_buffers_are_reported_once_per_image_size() -> None:
    before = largest_receive_buffer() or 0
    reports: list[str | None] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        held = largest_receive_buffer()
        assert held == max(before, 100_000)
        buffer = ReceiveBuffer(2, reports.append)
        buffer.expect(held // 2)
        buffer.expect(held // 2)
        assert reports == [None], "they fit, and the same size is not looked at again"
        buffer.expect(held // 2 + 1)
        assert reports[1] is not None and f"holds {held} bytes" in reports[1]
        assert "net.core.rmem_max" in reports[1] and "reliable_input" in reports[1]
        single: list[str | None] = []
        ReceiveBuffer(1, single.append).expect(held // 2 + 1)
        assert single[0] is not None, "of one camera too, two may come at once"
    assert (largest_receive_buffer() or 0) == before, "the socket itself was left alone"


def test_without_sockets_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive_buffer, "largest_receive_buffer", lambda: None)
    reports: list[str | None] = []
    ReceiveBuffer(2, reports.append).expect(1 << 30)
    assert reports == [None]


SMALL, LARGE = 1_000, 1 << 30


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The messages about a buffer of 100,000 bytes."""
    monkeypatch.setattr(receive_buffer, "largest_receive_buffer", lambda: 100_000)
    return []


def test_warning_ends_when_large_images_stop(reports: list[str | None]) -> None:
    buffer = ReceiveBuffer(2, reports.append)
    buffer.expect(LARGE, "a")
    buffer.expect(SMALL, "b")
    assert reports[-1] is not None and len(reports) == 1
    buffer.expect(SMALL, "a")
    assert reports[-1] is None, "the camera was given a smaller mode"
    buffer.expect(LARGE, "b")
    assert reports[-1] is not None


def test_warning_ends_when_the_camera_stops(reports: list[str | None]) -> None:
    buffer = ReceiveBuffer(2, reports.append)
    buffer.expect(SMALL, "a", 0.0)
    buffer.expect(LARGE, "b", 0.0)
    buffer.expect(SMALL, "a", SILENT_AFTER)
    buffer.forget_silent(SILENT_AFTER)
    assert reports[-1] is not None
    buffer.forget_silent(SILENT_AFTER + 0.1)
    assert reports[-1] is None


def test_image_size_replaces_the_announced_size(reports: list[str | None]) -> None:
    buffer = ReceiveBuffer(2, reports.append)
    buffer.announce(LARGE, "a", 0.0)
    assert reports[-1] is not None, "of pictures that are too large none may come"
    buffer.expect(SMALL, "a", 0.1)
    assert reports[-1] is None, "grey ones, say"
    buffer.announce(LARGE, "a", SILENT_AFTER + 1)
    buffer.forget_silent(SILENT_AFTER + 1)
    assert reports[-1] is not None, "and now none come"
