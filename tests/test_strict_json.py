"""JSON from elsewhere is read one way only, or refused with one error, soon."""

from __future__ import annotations

import json
import math
import random
import time
from typing import Any

import pytest

from m2distill_policy.strict_json import DEEPEST, JsonError, parse

REFUSED = {
    "a key twice": '{"a": 1, "a": 2}',
    "a key twice, the same value": '{"a": 1, "a": 1}',
    "a key twice, deep": '[[{"b": {"a": 1, "b": 2, "a": 3}}]]',
    "a key twice, one of them escaped": '{"a": 1, "\\u0061": 2}',
    "NaN": '{"a": NaN}',
    "Infinity": "[Infinity]",
    "-Infinity": "[-Infinity]",
    "beyond float64": "[1e400]",
    "a float of 400 digits": f"[{'9' * 400}.0]",
    "an integer of 400 digits": f"[{'9' * 400}]",
    "an integer of 5000 digits": f"[-{'9' * 5000}]",
    "an integer of 65 bits": f"[{2**63}]",
    "a long way to 0": f"[0.{'0' * 10000}1]",
    "too deep": "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
    "very deep, not closed": "[" * 100_000,
    "very deep objects": '{"a":' * 100_000,
    "half of a surrogate pair": '"\\ud800"',
    "half of a surrogate pair as a key": '{"\\udc00": 1}',
    "cut": '{"a": [1, 2',
    "two documents": "1 2",
    "nothing": "",
    "a byte order mark": "\ufeff{}",
    "a text that is not closed": '"' + "[" * 10_000,
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", [str, str.encode])
def test_refused(name: str, kind: Any) -> None:
    with pytest.raises(JsonError) as caught:
        parse(kind(REFUSED[name]))
    assert 0 < len(str(caught.value)) < 300


@pytest.mark.parametrize("data", [b"\xff\xfe[", b'"\xed\xa0\x80"', b'{"a": "\xc3"}'])
def test_bytes_that_are_no_text_are_refused(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse(data)


def test_too_long_is_refused() -> None:
    with pytest.raises(JsonError):
        parse(b"[" + b" " * 100 + b"]", longest=100)


def test_brackets_in_texts_do_not_count() -> None:
    text = "[" * 1000 + '\\"{'
    assert parse(json.dumps({"a": text})) == {"a": text}


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse('"\\ud83d\\ude00"') == "\U0001f600"


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 5 else 6)
    if kind < 6:
        integer = rng.randrange(-(2**63), 2**63)
        return [None, True, integer, rng.uniform(-1e307, 1e307), 5e-324, 'é\n"\\'][kind]
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f"k{i}": random_value(rng, depth + 1) for i in range(rng.randrange(4))}


def test_what_json_wrote_comes_back_and_damage_is_one_error() -> None:
    rng = random.Random(0)
    for _ in range(300):
        value = random_value(rng)
        data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        assert parse(data) == value
        damaged = bytearray(data)
        for _ in range(20):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                found = parse(bytes(damaged))
            except JsonError:
                continue
            json.dumps(found, allow_nan=False).encode()


@pytest.mark.parametrize("unit", ['"', "[", "{", "\\", '"a",', '{"a":', "9", "\\ud800"])
def test_any_repetition_is_answered_within_a_second(unit: str) -> None:
    data = '["' + unit * (1_000_000 // len(unit))
    began = time.perf_counter()
    with pytest.raises(JsonError):
        parse(data)
    assert time.perf_counter() - began < 1.0


def test_many_keys_are_read_fast_and_the_last_one_twice_is_found() -> None:
    keys = [f'"{i}": {i}' for i in range(50_000)]
    assert len(parse("{" + ",".join(keys) + "}")) == 50_000
    began = time.perf_counter()
    with pytest.raises(JsonError):
        parse("{" + ",".join([*keys, '"49999": 0']) + "}")
    assert time.perf_counter() - began < 1.0
    assert math.isfinite(parse("1e308"))


@pytest.mark.parametrize("text", ['"' + '\\"' * 1_000_000, '"' * 2_000_001, '["' + '\\\\"' * 500_000])
def test_strings_without_an_end_are_refused_at_once(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(JsonError):
        parse(text)
    assert time.monotonic() - began < 5
