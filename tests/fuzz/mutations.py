"""What is done to bytes and to JSON; every choice is the generator's, so a seed says all."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)


def mutated_bytes(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """The bytes after one to four changes."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        rng.choice(BYTES)(rng, content, other)
    return bytes(content)


def _place(rng: random.Random, content: bytearray) -> int:
    """Often near the beginning, where headers are."""
    end = len(content)
    return rng.randrange(min(end, 256) if rng.random() < 0.6 else end) if end else 0


def _flip(rng: random.Random, content: bytearray, _: bytes) -> None:
    if content:
        content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _scatter(rng: random.Random, content: bytearray, _: bytes) -> None:
    for _each in range(rng.randrange(1, 30)):
        if content:
            content[_place(rng, content)] = rng.randrange(256)


def _edge(rng: random.Random, content: bytearray, _: bytes) -> None:
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    at = _place(rng, content)
    content[at : at + width] = (rng.choice(EDGES) % 2 ** (8 * width)).to_bytes(width, order)  # type: ignore[arg-type]


def _cut(rng: random.Random, content: bytearray, _: bytes) -> None:
    del content[_place(rng, content) :]


def _drop(rng: random.Random, content: bytearray, _: bytes) -> None:
    at = _place(rng, content)
    del content[at : at + rng.choice((1, 2, 4, 16, 64, 1000))]


def _double(rng: random.Random, content: bytearray, _: bytes) -> None:
    at = _place(rng, content)
    content[at:at] = content[at : at + rng.choice((1, 4, 16, 64, 1000))] * rng.choice((1, 1, 2, 100))


def _insert(rng: random.Random, content: bytearray, _: bytes) -> None:
    at = _place(rng, content)
    content[at:at] = rng.randbytes(rng.choice((1, 4, 16, 64)))


def _zeros(rng: random.Random, content: bytearray, _: bytes) -> None:
    at, length = _place(rng, content), rng.choice((4, 16, 256))
    content[at : at + length] = bytes(length)


def _splice(rng: random.Random, content: bytearray, other: bytes) -> None:
    if other:
        at, start = _place(rng, content), rng.randrange(len(other))
        content[at : at + 200] = other[start : start + 200]


def _trail(rng: random.Random, content: bytearray, _: bytes) -> None:
    content += rng.randbytes(rng.randrange(1, 100))


BYTES: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    *(_flip, _scatter, _edge, _edge, _cut, _drop),
    *(_double, _insert, _zeros, _splice, _trail),
)


class Raw(str):
    """A text that stands in the JSON as it is."""


def hostile(rng: random.Random) -> Any:
    """A value that a reader may not expect."""
    return rng.choice(
        (
            *(None, True, False, 0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e300, 2**31, 2**63, 10**30, [], {}, "", [[]], [None]),
            *("a\nb", "\x1b[2J\x1b[31m", "\u202eabc", "\x00", "\ud800", "x" * 100_000, "../../etc/passwd", "/dev/zero", "°×é"),
            *([1] * 1000, {"a": {"b": {}}}, list(range(50)), {str(i): i for i in range(50)}, [0.5, 0.5, 0.5], [1e-30] * 3),
            *(
                Raw("NaN"),
                Raw("Infinity"),
                Raw("-Infinity"),
                Raw("1e999"),
                Raw("1" * 400),
                Raw("9" * 6000),
                Raw("-" + "9" * 400),
            ),
            *(
                Raw("[" * 100_000),
                Raw("[" * 70 + "]" * 70),
                Raw('{"a":' * 100_000),
                Raw('{"a":1,"a":2}'),
                Raw("tru"),
                Raw("'a'"),
            ),
            *(rng.randrange(10**6), rng.uniform(-10, 10), rng.randrange(200), str(rng.random())),
        )
    )


def mutated_json(rng: random.Random, value: Any) -> str:
    """The JSON text of a value after one to three changes."""
    changed = {"": deepcopy(value)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed, ""))
        if places:
            _change(rng, *rng.choice(places))
    return _text(changed.get(""))


def _places(holder: Any, _: str) -> Any:
    """Every place of a value: what holds it, and its key there."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from _places(holder[key], key)


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    what, value = rng.random(), holder[key]
    if what < 0.6:
        holder[key] = hostile(rng)
    elif what < 0.7:
        del holder[key]
    elif what < 0.8 and isinstance(value, (int, float)) and not isinstance(value, bool):
        holder[key] = rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, value / 3, float(value), str(value)))
    elif what < 0.9 and isinstance(holder, dict):
        holder[rng.choice(("quantization_config", "version", str(key) + "_", "é", "\x1b]0;x\x07", "_" + str(key)))] = value
    else:
        holder[key] = [value, value]


def _text(value: Any) -> str:
    """JSON in which a `Raw` stands as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return json.dumps(value)
