"""Damage to files and requests: bytes, texts, and JSON values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

_WORDS = (
    *(
        b"\0",
        b"\n",
        b"\r\n",
        b"\r",
        b'"',
        b'""',
        b",",
        b":",
        b" ",
        b"\t",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\\",
        b"\\ud800",
        b"-",
    ),
    *(b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xf0\x9f\x99\x82", b"\xc3", b"e999", b"1e-400", b"nan"),
    *(b"inf", b"-0", b"0x1", b"1_000", b"2147483647", b"2147483648", b"9223372036854775808", b"9" * 4400, b"null"),
    *(b"true", b"[" * 3000, b"0:0", b"1:", b":1", b"0,0", b"PK\x03\x04", b"\x1f\x8b\x08", b"\x80\x02", b"a" * 70000),
)
_NUMBERS = (-1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**70, -(2**63), 10**30, 0.5, 1e308)


def damaged(rng: random.Random, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """``content`` with some bytes or words changed, cut, moved, or replaced by those of ``others``."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 8, 100)))
        match rng.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at:at] = rng.choice(_WORDS)
            case 2:
                data[at:end] = rng.choice(_WORDS)
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 5:
                del data[at:]
            case 6 if others:
                other = rng.choice(others)
                begin = rng.randrange(len(other) + 1)
                data[at:end] = other[begin : begin + rng.choice((1, 10, 1000))]
            case _:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 16)))
    return bytes(data)


def changed_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it changed."""
    if rng.random() < 0.15 or not isinstance(value, (dict, list, int, float, str)) or value in ({}, []):
        return rng.choice((None, True, [], {}, "", "x" * 100, rng.choice(_NUMBERS), [rng.choice(_NUMBERS)], "\ud800"))
    if isinstance(value, dict):
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {**value, rng.choice(("x", "", "\ud800", "é")): rng.choice(_NUMBERS)}
            case _:
                return {**value, key: changed_value(rng, value[key])}
    if isinstance(value, list):
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at]
            case 1:
                return value * rng.choice((2, 100))
            case _:
                return [*value[:at], changed_value(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, str):
        return rng.choice((value + "x", value[1:], value.upper(), "\0", "\ud800", "é" * 100))
    return rng.choice((value + 1, -value, value * 1000, *_NUMBERS))
