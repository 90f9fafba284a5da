"""Decisions of a generator, made by a random number generator or by hypothesis; and odd values of every kind."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

#: Numbers at which code breaks: not finite, huge, tiny, at the edges of integer types, and ordinary ones.
NUMBERS: tuple[float, ...] = (
    *(0, 1, -1, 2, 3, 7, 8, 16, 32, 100, 255, 256, 65535, 10**6, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**18),
    *(-(2**31), -(2**63), 0.0, -0.0, 0.5, 1.5, -0.5, 1e-9, 1e-300, 5e-324, 1e9, 1e18, 1e100, 1.7976931348623157e308),
    *(math.nan, math.inf, -math.inf, 0.1, 0.02, 0.05, 3.4, 19.999999, 20.0),
)
TEXTS: tuple[str, ...] = (
    *("", " ", "0", "1", "-1", "0.2", "nan", "NaN", "inf", "-inf", "1e400", "null", "true", "false", "yes", "~", "[]"),
    *("a", "a\x00b", "a\nb", "\x1b[31m", "../../x", "/etc/passwd", "x" * 5000, "☃🤖", "%s{}", "{0}", "é", "\ud800"),
    *("lift the red box", "agentview_rgb", "joint_states", "panda_joint1", "base", "9" * 400, "=", "a.b", "__class__"),
)
#: Pieces of text formats and lengths that promise too much, for damage to bytes.
TOKENS: tuple[bytes, ...] = (
    *(b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"false", b"1e400", b"-1e-400", b'"0.2"', b"9" * 400, b"{}"),
    *(b"[]", b"[" * 2000, b"{" * 500, b'{"a":' * 300, b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system", b"\x00"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\t", b"'''", b'"""', b"=", b"inf", b"nan", b"0x10", b"1_000", b"---\n"),
    *(b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 8, b"\x00" * 64, b"\x00" * 1024),
)


class Choice:
    """Source of decisions; everything else is made of :meth:`integer` and :meth:`raw`."""

    def integer(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        raise NotImplementedError

    def raw(self, most: int) -> bytes:
        """At most ``most`` bytes."""
        raise NotImplementedError

    def chance(self, one_in: int) -> bool:
        """True in one of ``one_in`` cases."""
        return self.integer(1, one_in) == one_in

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self.integer(0, len(options) - 1)]

    def number(self) -> float:
        """An odd number (int or float) or an ordinary one."""
        if self.chance(3):
            return self.integer(-1000, 1000) / self.pick((1, 10, 1000))
        return self.pick(NUMBERS)

    def real(self) -> float:
        """As :meth:`number`, always a float."""
        number = self.number()
        return float(number)

    def text(self) -> str:
        """An odd text."""
        if self.chance(8):
            return self.raw(40).decode("utf-8", "replace")
        return self.pick(TEXTS)

    def value(self, depth: int = 2) -> Any:
        """Any value of JSON's types, not finite numbers included."""
        kind = self.integer(0, 7 if depth else 5)
        if kind <= 1:
            return self.number()
        if kind <= 3:
            return self.text()
        if kind == 4:
            return self.pick((True, False))
        if kind == 5:
            return None
        if kind == 6:
            return [self.value(depth - 1) for _ in range(self.integer(0, 3))]
        return {self.text(): self.value(depth - 1) for _ in range(self.integer(0, 3))}

    def near(self, value: Any) -> Any:
        """``value`` changed a little, or replaced by something of another type."""
        if self.chance(3):
            return self.value()
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float)):
            factor = self.pick((0, -1, 2, 0.5, 10, 1000, 1e-3, 1e6, 1 + 1e-9))
            try:
                return self.pick(
                    (value * factor, value + 1, value - 1, str(value), [value], float(value), self.number())
                )
            except OverflowError:
                return self.number()
        if isinstance(value, str):
            return self.pick((value + "x", value[:-1], value.upper(), value * 3, "", self.text()))
        if isinstance(value, list):
            if value and self.chance(2):
                index = self.integer(0, len(value) - 1)
                kind = self.integer(0, 3)
                if kind == 0:
                    return value[:index] + value[index + 1 :]
                if kind == 1:
                    return [*value, copy.deepcopy(value[index])]
                if kind == 2:
                    return value[::-1]
                return value * self.pick((2, 50))
            return [*value, self.value(1)]
        if isinstance(value, dict):
            return {**value, self.text(): self.value(1)}
        return self.value()

    def edited(self, tree: Any, edits: int = 1) -> Any:
        """A copy of a tree of JSON's types with ``edits`` places changed, removed or added."""
        tree = copy.deepcopy(tree)
        for _ in range(edits):
            parent: Any = None
            key: Any = None
            at = tree
            # Walk down to a place; containers themselves are changed more rarely than what they hold.
            while isinstance(at, (dict, list)) and at and not (parent is not None and self.chance(6)):
                parent = at
                key = self.pick(list(at)) if isinstance(at, dict) else self.integer(0, len(at) - 1)
                at = at[key]
            if parent is None:
                tree = self.near(tree)
            elif self.chance(8):
                del parent[key]
            elif isinstance(parent, dict) and self.chance(12):
                parent[self.text()] = parent.pop(key)
            else:
                parent[key] = self.near(at)
        return tree

    def damaged(self, data: bytes) -> bytes:
        """``data`` with bytes changed, cut, repeated or put in."""
        found = bytearray(data)
        for _ in range(self.pick((1, 1, 1, 2, 4, 8))):
            size = len(found)
            kind = self.integer(0, 8)
            at = self.integer(0, max(0, size - 1))
            if kind == 0 and size:
                found[at] ^= 1 << self.integer(0, 7)
            elif kind == 1 and size:
                found[at] = self.integer(0, 255)
            elif kind == 2:
                token = self.pick(TOKENS)
                found[at:at] = token
            elif kind == 3:
                token = self.pick(TOKENS)
                found[at : at + len(token)] = token
            elif kind == 4:
                del found[at : at + self.integer(1, self.pick((1, 4, 64, 1024)))]
            elif kind == 5:
                length = self.integer(1, self.pick((4, 64, 1024)))
                found[at:at] = found[at : at + length]
            elif kind == 6:
                found[at : at + 4] = self.integer(0, 2**32 - 1).to_bytes(4, "little")
            elif kind == 7:
                length = self.pick((16, 64, 256, 1024))
                found[at : at + length] = bytes(min(length, max(0, size - at)))
            elif self.chance(4):
                del found[at:]
            else:
                piece = self.raw(16)
                found[at : at + len(piece)] = piece
        return bytes(found)


class RandomChoice(Choice):
    """Decisions of a seeded generator."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        """See :class:`Choice`."""
        return self._rng.randint(low, high)

    def raw(self, most: int) -> bytes:
        """See :class:`Choice`."""
        return self._rng.randbytes(self._rng.randint(0, most))


class DrawnChoice(Choice):
    """Decisions that hypothesis makes, and can reduce."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def integer(self, low: int, high: int) -> int:
        """See :class:`Choice`."""
        return self._data.draw(st.integers(low, high))

    def raw(self, most: int) -> bytes:
        """See :class:`Choice`."""
        return self._data.draw(st.binary(max_size=most))
