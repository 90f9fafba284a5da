"""Whether pictures fit through the receive buffers, on real sockets."""

from __future__ import annotations

import socket

import pytest

from m2distill_policy.node import receive_buffer
from m2distill_policy.node.receive_buffer import ReceiveBuffer, largest_receive_buffer


def test_small_buffers_are_told_once_a_size() -> None:
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


def test_without_sockets_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive_buffer, "largest_receive_buffer", lambda: None)
    told: list[str | None] = []
    ReceiveBuffer(2, told.append).expect(1 << 30)
    assert told == [None]
