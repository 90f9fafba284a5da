"""Whether images fit into the receive buffers, on real sockets."""

from __future__ import annotations

import socket

import pytest

from m2distill_policy.node import receive_buffer
from m2distill_policy.node.receive_buffer import SILENT_AFTER, ReceiveBuffer, largest_receive_buffer


def test_small_buffers_are_reported_once_per_image_size() -> None:
    before = largest_receive_buffer() or 0
    told: list[str | None] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        held = largest_receive_buffer()
        assert held == max(before, 100_000)
        buffer = ReceiveBuffer(2, told.append)
        buffer.expect(held // 2)
        buffer.expect(held // 2)
        assert told == [None], "they fit, and the same size is not looked at again"
        buffer.expect(held // 2 + 1)
        assert told[1] is not None and f"holds {held} bytes" in told[1]
        assert "net.core.rmem_max" in told[1] and "reliable_input" in told[1]
        single: list[str | None] = []
        ReceiveBuffer(1, single.append).expect(held // 2 + 1)
        assert single[0] is not None, "of one camera too, two may come at once"
    assert (largest_receive_buffer() or 0) == before, "the socket itself was left alone"


def test_without_sockets_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive_buffer, "largest_receive_buffer", lambda: None)
    told: list[str | None] = []
    ReceiveBuffer(2, told.append).expect(1 << 30)
    assert told == [None]


SMALL, LARGE = 1_000, 1 << 30


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The messages about a buffer of 100,000 bytes."""
    monkeypatch.setattr(receive_buffer, "largest_receive_buffer", lambda: 100_000)
    return []


def test_warning_ends_when_large_images_stop(told: list[str | None]) -> None:
    buffer = ReceiveBuffer(2, told.append)
    buffer.expect(LARGE, "a")
    buffer.expect(SMALL, "b")
    assert told[-1] is not None and len(told) == 1
    buffer.expect(SMALL, "a")
    assert told[-1] is None, "the camera was given a smaller mode"
    buffer.expect(LARGE, "b")
    assert told[-1] is not None


def test_warning_ends_when_the_camera_stops(told: list[str | None]) -> None:
    buffer = ReceiveBuffer(2, told.append)
    buffer.expect(SMALL, "a", 0.0)
    buffer.expect(LARGE, "b", 0.0)
    buffer.expect(SMALL, "a", SILENT_AFTER)
    buffer.forget_silent(SILENT_AFTER)
    assert told[-1] is not None
    buffer.forget_silent(SILENT_AFTER + 0.1)
    assert told[-1] is None


def test_image_size_replaces_the_announced_size(told: list[str | None]) -> None:
    buffer = ReceiveBuffer(2, told.append)
    buffer.announce(LARGE, "a", 0.0)
    assert told[-1] is not None, "of pictures that are too large none may come"
    buffer.expect(SMALL, "a", 0.1)
    assert told[-1] is None, "grey ones, say"
    buffer.announce(LARGE, "a", SILENT_AFTER + 1)
    buffer.forget_silent(SILENT_AFTER + 1)
    assert told[-1] is not None, "and now none come"
