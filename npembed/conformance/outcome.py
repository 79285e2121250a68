"""What a check found, in a form that every report is made from."""

import difflib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from npembed import Config
from npembed.conformance.compare import Departure, as_array
from npembed.conformance.results import Results
from npembed.support.messages import brief
from npembed.support.typing import Array

WHOLE = 40
"""Numbers that are shown, at most, without looking for the first difference."""

SEPARATOR = " / "
"""Between the case and the stage in the name of a golden pack's outcome."""


WITHIN_HALF = "within what float16 may be off: something is computed in float16 (llama.cpp does so with im2col and gelu)"
"""What a failure in float32 suggests that would pass for a float16 port."""


class Status(Enum):
    """How a check ended. What is not judged (its result could not be read) neither passed nor failed."""

    PASS = "pass"
    FAIL = "fail"
    ABSENT = "not provided"
    KNOWN = "known departure"
    UNJUDGED = "not judged"


@dataclass(frozen=True)
class Outcome:
    """One function of a port, or one stage of one golden case.

    Attributes
    ----------
    name : str
    status : Status
    summary : str
        In a line: what was compared, or how it departs.
    call : str or None
        The smallest input that was found to fail.
    came, expected : str or None
        The two results there.
    cause : str or None
        Which known fault explains the results.
    worst : float or None
        The largest error in units of the allowed one; None where there is none, or no number says it.
    diff : str or None
        The lines of a text that differ, marked as in a patch.
    results : Results or None
        The arrays themselves, for a picture of where they differ; they are no part of a report in words.
    """

    name: str
    status: Status
    summary: str
    call: str | None = None
    came: str | None = None
    expected: str | None = None
    cause: str | None = None
    worst: float | None = None
    diff: str | None = None
    results: Results | None = field(default=None, compare=False, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The fields that say something."""
        fields = {name: value for name, value in vars(self).items() if value is not None and name != "results"}
        worst = {} if self.worst is None else {"worst": self.worst if np.isfinite(self.worst) else "infinite"}
        return fields | {"status": self.status.value} | worst


def failed(outcomes: Sequence[Outcome]) -> bool:
    """Whether any of them is a failure."""
    return any(outcome.status is Status.FAIL for outcome in outcomes)


def unjudged(outcomes: Sequence[Outcome]) -> bool:
    """Whether there is something of which nothing can be said."""
    return any(outcome.status is Status.UNJUDGED for outcome in outcomes)


def around(array: Array, index: tuple[int, ...], reach: int = 4) -> str:
    """The elements of an array's row on both sides of one, which is marked; nothing in between is left out.

    Examples
    --------
    >>> around(np.arange(30).reshape(2, 15), (1, 7), reach=2)
    '[1, 5:10] = 20, 21, >22<, 23, 24'
    """
    if not index:
        return _number(array[()])
    *outer, place = index
    row = array[tuple(outer)]
    first, last = max(place - reach, 0), min(place + reach + 1, len(row))
    words = [_number(row[i]) if i != place else f">{_number(row[i])}<" for i in range(first, last)]
    return f"[{', '.join([*map(str, outer), f'{first}:{last}'])}] = {', '.join(words)}"


def shown_around(value: Any, departure: Departure) -> str:
    """A result for a person: a small one whole, of a large array the row of the first difference."""
    index = departure.index
    if departure.path and isinstance(value, (list, tuple)) and departure.path[0] < len(value):
        inner = shown_around(value[departure.path[0]], replace(departure, path=departure.path[1:]))
        return f"result {departure.path[0]}: {inner}"
    if not isinstance(value, (np.ndarray, list)) or index is None:
        return describe(value)
    array = as_array(value)
    if array.size <= WHOLE or array.ndim != len(index) or array.dtype == object:
        return describe(value)
    return f"{around(array, index)} ({array.dtype}, shape {array.shape})"


def _number(value: Any) -> str:
    return str(value) if value.dtype.kind in "iub" else f"{float(value):.9g}"


def text_diff(got: str, expected: str) -> str:
    """Where two texts differ, mark by mark: lines that begin with - are expected and missing, with + not expected.

    Examples
    --------
    >>> print(text_diff("<image><unk></image>", "<image><unk><unk></image>"))
      <image>
    - <unk> x 2
    + <unk>
      </image>
    """
    lines = difflib.unified_diff(_pieces(expected), _pieces(got), n=2, lineterm="")
    shown = [line for line in lines if not line.startswith(("---", "+++"))]
    return "\n".join(f"{line[0]} {line[1:]}" if not line.startswith("@@") else "  ..." for line in shown[1:])


def _pieces(text: str) -> list[str]:
    """The marks of a text and what is between them, one a line, a repeated one with its number."""
    runs = [(piece, len(list(same))) for piece, same in itertools.groupby(re.findall(r"<[^<>\n]*>|\n|[^<\n]+|<", text))]
    shown = [(piece if piece.isprintable() else json.dumps(piece), count) for piece, count in runs]
    return [piece if count == 1 else f"{piece} x {count}" for piece, count in shown]


def describe(value: Any) -> str:
    """A value for a person: small arrays whole, large ones by shape, type and ends. It may be a port's: nothing is trusted."""
    try:
        return _described(value, depth=8)
    except (Exception, SystemExit):
        return brief(value)


def _described(value: Any, depth: int) -> str:
    if isinstance(value, np.ndarray):
        numbers = np.array2string(value, threshold=WHOLE, edgeitems=3, precision=9, separator=", ", max_line_width=100)
        return numbers if value.size <= 8 and value.dtype.kind in "ib" else f"{numbers} ({value.dtype}, shape {value.shape})"
    if isinstance(value, (list, tuple)) and depth:
        inner = ", ".join(_described(element, depth - 1) for element in value[:200]) + ", ..." * (len(value) > 200)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, Config):
        return _config_words(value)
    text = repr(value) if depth else "..."
    return text if len(text) <= 2000 else f"{text[:1000]} ... {text[-200:]}"


def _config_words(config: Any) -> str:
    """A config by the fields that are not MiniCPM-V 2.6's."""
    default = type(config)()
    words = []
    for name, value in vars(config).items():
        if value != getattr(default, name):
            words.append(f"{name}={_config_words(value) if is_dataclass(value) else repr(value)}")
    return f"{type(config).__name__}({', '.join(words)})"
