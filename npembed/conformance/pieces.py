"""Other pieces in the place of npembed's own, for as long as a block runs: how a faulty or a rounding reference is made."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

Function = Callable[..., Any]


def pieces_of(name: str) -> list[tuple[Any, str]]:
    """Every module of npembed that has the piece of that name, `module.piece`, under the same name or another."""
    return _pieces_of(name, len(sys.modules))


@lru_cache(maxsize=256)
def _pieces_of(name: str, modules_loaded: int) -> list[tuple[Any, str]]:
    """Looked for once, as long as no other module is imported: all of them change together."""
    home, piece = name.rsplit(".", 1)
    original = getattr(sys.modules[home], piece)
    modules = [module for key, module in list(sys.modules.items()) if key.startswith("npembed.") and module is not None]
    return [
        (module, attribute)
        for module in modules
        if not module.__name__.startswith("npembed.conformance")
        for attribute, value in list(vars(module).items())
        if value is original
    ]


@contextmanager
def with_pieces(pieces: Mapping[str, Function]) -> Iterator[None]:
    """Within, npembed's own code has other pieces: (module.name -> (the piece now) -> another)."""
    with ExitStack() as stack:
        for name, change in pieces.items():
            home, piece = name.rsplit(".", 1)
            changed = change(getattr(sys.modules[home], piece))
            for module, attribute in pieces_of(name):
                stack.enter_context(mock.patch.object(module, attribute, changed))
        yield
