"""Hostile inputs: what is valid with a few things wrong, and what is nothing at all."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, 1, -1, 2**16, 2**31, 2**32 - 1, 2**32, 2**53, 2**63, 2**64 - 1, 2**64, 10**40, 0.5, 1e-320, 1e308]
# What a JSON parser may make of these is its own affair; json.dumps would not write them.
LITERALS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, '"\\ud800"', '"\\u0000"', "24000.0",
            "[" * 300 + "]" * 300, "[" * 945 + "]" * 945, '{"a":' * 300 + "1" + "}" * 300]
TEXTS = ["", "a", "\0", "\n", "é", "\U0001f600", "root", "../../etc/passwd", "a" * 600, "-1", "null", "ek_", "mm_"]
CHANGES = ["flip", "cut", "insert", "repeat", "zero", "swap"]
FLOATS = [float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 1e-45, -0.0, 0.5, 100.0]


def mutated(*seeds: bytes) -> st.SearchStrategy[bytes]:
    """One of these inputs with up to six things wrong with it, or bytes that have nothing to do with them."""
    change = st.tuples(st.sampled_from(CHANGES),
                       st.integers(0, 1 << 16), st.integers(0, 255), st.binary(min_size=1, max_size=12))
    return st.one_of(st.builds(_changed, st.sampled_from(seeds), st.lists(change, max_size=6)),
                     st.binary(max_size=300))


def changed_at_random(data: bytes, dice: random.Random) -> bytes:
    """An input with one to six things wrong with it."""
    return _changed(data, [(dice.choice(CHANGES), dice.randrange(1 << 16), dice.randrange(256),
                            dice.randbytes(dice.randint(1, 12))) for _ in range(dice.randint(1, 6))])


def _changed(data: bytes, changes: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    changed = bytearray(data)
    for kind, place, length, piece in changes:
        at = place % (len(changed) + 1)
        if kind == "flip" and at < len(changed):
            changed[at] ^= 1 << length % 8
        elif kind == "cut":
            del changed[at:at + length if length % 2 else None]
        elif kind == "insert":
            changed[at:at] = piece
        elif kind == "repeat":
            changed[at:at] = changed[at:at + length]
        elif kind == "zero":
            changed[at:at + length % 8] = bytes(length % 8)
        elif kind == "swap":
            changed[at:], changed[:at] = changed[:at], changed[at:]
    return bytes(changed)


def values(names: Sequence[str] = ("a",), texts: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """Anything that JSON can hold, with these names and texts more often than others."""
    leaf = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from([*TEXTS, *texts]),
                     st.sampled_from(LITERALS).map(Literal), st.text(max_size=8))
    return st.recursive(leaf, lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(names), inner, max_size=4)), max_leaves=12)


class Literal(str):
    """A piece of JSON as it stands."""


def written(value: Any) -> str:
    """A value as JSON, or as what somebody may take for JSON."""
    if isinstance(value, Literal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def messages(types: Sequence[str], names: Sequence[str], texts: Sequence[str] = ()) -> st.SearchStrategy[str]:
    """JSON objects with a type, and some with more wrong than that."""
    fields = st.dictionaries(st.sampled_from(names), values(names, texts), max_size=5)
    typed = st.builds(lambda kind, rest: written({"type": kind, **rest}), st.sampled_from(types), fields)
    return st.one_of(typed, st.one_of(values(names, texts).map(written), st.text(max_size=40)))
