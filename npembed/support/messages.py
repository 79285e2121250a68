"""Text for people: what comes from outside is shown on one line, bounded, without characters that move the cursor."""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

MOST = 500
"""Characters of a line that shows text from outside."""


def shown(text: object, most: int = MOST) -> str:
    r"""Text from outside as it may stand on a screen: on one line, its middle left out where it is long.

    What is not printable (escape sequences, marks that turn the direction of writing, halves of surrogates) is spelt out. It
    can neither move the cursor nor forge a line.

    Examples
    --------
    >>> shown("a\n  b\x1b[2J")
    'a b\\x1b[2J'
    >>> shown("0123456789" * 3, most=20)
    '0123456789 ... 56789'
    """
    try:
        whole = str(text)
    except (Exception, SystemExit) as error:
        whole = f"a {type(text).__name__} whose text raises {type(error).__name__}"
    if len(whole) > 4 * most:
        whole = f"{whole[: 2 * most]} ... {whole[-2 * most :]}"
    line = re.sub(r"\s*[\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", whole).rstrip()
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
    if len(line) <= most:
        return line
    tail = most // 4
    return f"{line[: most - tail - 5]} ... {line[-tail:]}"


class _Brief(reprlib.Repr):
    """Bounds the number of elements, their depth, and the length of each."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, 120, 200, 60
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write a number of more than 4,300 digits."""
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a whole number of {x.bit_length():,} bits"


_BRIEF = _Brief()


def brief(value: Any) -> str:
    """A value from outside in a message: as `repr` gives it, but bounded, and never an error.

    Examples
    --------
    >>> itself = []
    >>> itself.append(itself)
    >>> brief(itself), brief(1 << 20_000)
    ('[[[[[...]]]]]', 'a whole number of 20,001 bits')
    """
    try:
        return shown(_BRIEF.repr(value))
    except (Exception, SystemExit) as error:
        return f"a {type(value).__name__} whose text raises {type(error).__name__}"


def raised(error: BaseException) -> str:
    """An exception in words: its kind, and its text where it has one.

    Examples
    --------
    >>> raised(KeyError("a")), raised(MemoryError())
    ("KeyError: 'a'", 'MemoryError')
    """
    text = shown(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that is nearest, or nothing.

    Examples
    --------
    >>> did_you_mean("embedings", ["embeddings", "hidden"]), did_you_mean("xyz", ["embeddings", "hidden"])
    ("; did you mean 'embeddings'?", '')
    """
    close = difflib.get_close_matches(word, known, n=1) if isinstance(word, str) and len(word) <= 100 else []
    return f"; did you mean {close[0]!r}?" if close else ""
