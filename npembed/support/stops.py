"""Signals that stop the command line: one line, the shell's exit code, and nothing left half done.

What a stop does depends on how far a run is. While modules are imported, nothing is begun: the process says so and leaves.
While a command runs, a stop is an exception that unwinds it. While a file is put in place, the stop waits until that is done.
When the exit code is settled, the process leaves with it. A program that imports npembed keeps its own handlers.
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A stop, by whichever signal: what treats Ctrl-C rightly treats it rightly."""


class _State:
    """What the handler knows. One process has one set of handlers, so one such record."""

    first: int | None = None
    """The signal that came first."""
    count = 0
    raised = False
    held = False


def code() -> int:
    """The exit code after a stop, as shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_State.first or signal.SIGINT)


def leave_at_once() -> None:
    """From here on a stop says so and leaves: nothing is begun."""
    atexit.register(_handle, signal.SIG_IGN)  # registered first, so that it comes last: after it, no handler of ours would run
    _handle(_leave)


def unwind() -> None:
    """From here on the first stop raises `Stopped`."""
    _State.first, _State.count, _State.raised, _State.held = None, 0, False, False
    _handle(_raise)


def leave_with(exit_code: int) -> None:
    """From here on a stop leaves with this code: all is done and said."""
    _handle(lambda number, frame: os._exit(exit_code))


@contextmanager
def held_back() -> Iterator[None]:
    """A stop that comes within waits until the block ends; it comes to the main thread alone, so others hold nothing back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _State.held = _State.held, True
    try:
        yield
    finally:
        _State.held = before
        _raise_if_waiting()


@contextmanager
def let_through() -> Iterator[None]:
    """Within a block of `held_back`: stops are raised at once again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _State.held = _State.held, False
    try:
        _raise_if_waiting()
        yield
    finally:
        _State.held = before


def _raise_if_waiting() -> None:
    if _State.first is not None and not _State.held and not _State.raised:
        _State.raised = True
        raise Stopped


def _raise(number: int, frame: FrameType | None) -> None:
    """The first stop unwinds, the second changes nothing, so that what unwinds can finish; the third leaves at once."""
    _State.first = _State.first or number
    _State.count += 1
    if _State.count > 2:
        _leave(_State.first, frame)
    _raise_if_waiting()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    try:
        os.write(2, b"npembed: stopped\n")
    finally:  # even where the screen is closed
        os._exit(128 + number)


def _handle(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and background jobs want it
            try:
                signal.signal(number, handler)
            except ValueError:  # not in the main thread, where alone handlers can be set
                return
