"""Files and JSON from outside, read within bounds: a regular file of a bounded size, and JSON of a bounded depth.

Nothing here can wait for ever: a FIFO or a device is refused before a byte is read from it.
"""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

from npembed.support.messages import brief, shown

MOST_JSON = 2**24
"""Bytes of a JSON file, at most."""

MOST_INDEX = 2**26
"""Bytes of the index of a checkpoint in shards, at most."""

MOST_DEPTH = 64
"""Of JSON: how many objects and lists may lie in one another."""

MOST_NESTED = 1_000_000
"""Objects and lists in one JSON text, at most: each takes far more memory than the two bytes that it is written with."""


class MissingFileError(ValueError):
    """There is no such file."""


def is_here(path: str) -> bool:
    """Whether a name, as it stands, is one of this machine: no URL, and on Windows no share of another machine.

    Examples
    --------
    >>> is_here("Photos/1.jpg"), is_here("ftp://host/1.jpg")
    (True, False)
    """
    return "://" not in path and not os.path.splitdrive(path)[0].startswith(("\\\\", "//"))


def open_regular(path: str | Path, most: int | None = None, who: str = "") -> BinaryIO:
    """A regular file, opened to read its bytes.

    Parameters
    ----------
    path : path
    most : int, optional
        Bytes that it may have.
    who : str
        What the message begins with.

    Raises
    ------
    MissingFileError
        No such file.
    ValueError
        A folder, a FIFO, a socket, a device; a file of more bytes; the file system's own refusal, in words.

    Examples
    --------
    >>> open_regular("no/such/file", who="load_model")
    Traceback (most recent call last):
    ...
    npembed.support.reading.MissingFileError: load_model: no/such/file is missing
    """
    name = f"{who}: {path}" if who else str(path)
    try:
        file = open_at_once(path)
    except FileNotFoundError:
        raise MissingFileError(f"{name} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ValueError(f"{name} {_refusal(path, error)}") from None
    size = os.fstat(file.fileno()).st_size
    if most is not None and size > most:
        file.close()
        raise ValueError(f"{name} has {size:,} bytes; at most {most:,} are read")
    return file


def open_at_once(path: str | Path) -> BinaryIO:
    """A regular file, opened to read its bytes; a FIFO to which nobody writes is not waited for.

    Raises
    ------
    OSError
        The file system's own refusal.
    ValueError
        What is no regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags)
    try:
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(_kind(mode))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def _refusal(path: str | Path, error: Exception) -> str:
    """Why a file cannot be opened: on some systems a folder cannot, and nowhere a socket."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        mode = stat.S_IFREG
    reason = getattr(error, "strerror", None) or str(error)
    return f"cannot be read: {reason}" if stat.S_ISREG(mode) else _kind(mode)


def _kind(mode: int) -> str:
    return "is a folder, not a file" if stat.S_ISDIR(mode) else "is no regular file"


def check_regular(path: str | Path, most: int | None = None, who: str = "") -> None:
    """As `open_regular`, for a file that a library opens by its name.

    Raises
    ------
    ValueError
        As `open_regular`; and a git-lfs pointer, or a web page, in the file's place.
    """
    with open_regular(path, most, who) as file:
        words = stand_in(file.read(200))
    if words:
        raise ValueError(f"{who}: {path} {words}" if who else f"{path} {words}")


def read_regular(path: str | Path, most: int, who: str = "") -> bytes:
    """All bytes of a regular file, of at most `most`: also one that grows while it is read."""
    name = f"{who}: {path}" if who else str(path)
    with open_regular(path, most, who) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror or error}") from None
    if len(content) > most:
        raise ValueError(f"{name} has more than {most:,} bytes")
    return content


def stand_in(head: bytes) -> str | None:
    """What a file is, and what to do, if its first bytes are those of what often lies in another file's place."""
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself; `git lfs pull` fetches the file"
    if re.match(rb"\s*<(!doctype html|html)", head, re.IGNORECASE):
        return "is a web page, not the file itself; was the page saved in place of the download?"
    return None


def json_value(raw: bytes | str, where: str) -> Any:
    """The value of a JSON text.

    Parameters
    ----------
    raw : bytes or str
    where : str
        What the message begins with: the function and the file.

    Raises
    ------
    ValueError
        What is no JSON; a key that an object has twice; NaN, Infinity, and numbers that float64 can't hold; lists and objects
        more than `MOST_DEPTH` deep, or more than `MOST_NESTED` of them.

    Examples
    --------
    >>> json_value('{"a": [1, 2.5]}', "a file")
    {'a': [1, 2.5]}
    """
    words = stand_in(raw[:200]) if isinstance(raw, bytes) else None
    if words:
        raise ValueError(f"{where} {words}")
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        _check_nesting(text)
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_int=_whole_number, parse_float=_number
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read as JSON: {shown(error)}") from None


def json_object(raw: bytes | str, where: str) -> dict[str, Any]:
    """As `json_value`, for a text that must hold an object."""
    content = json_value(raw, where)
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold a JSON object; got {type(content).__name__}")
    return content


_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
_NO_BRACKET = re.compile(r"[^][{}]+")


def _check_nesting(text: str) -> None:
    """Counted before the text is parsed: the parser goes one call deeper per level."""
    brackets = _NO_BRACKET.sub("", _STRING.sub("", text))
    if brackets.count("[") + brackets.count("{") > MOST_NESTED:
        raise ValueError(f"it has more than {MOST_NESTED:,} objects and lists")
    depth = 0
    for bracket in brackets[: 2 * MOST_NESTED]:  # with more there are too many that close, which the parser refuses
        depth += 1 if bracket in "[{" else -1
        if depth > MOST_DEPTH:
            raise ValueError(f"it is nested too deeply: more than {MOST_DEPTH} objects and lists in one another")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has {brief(name)} twice")
        found[name] = value
    return found


def _constant(word: str) -> Any:
    raise ValueError(f"it holds {word}, which is no JSON")


def _whole_number(text: str) -> int:
    _number(text)
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"it holds the number {shown(text, 40)}, which is beyond float64")
    return number
