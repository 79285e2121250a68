"""A port in a process of its own: whatever it does there, the report comes; `serving` is that process's side.

It may loop for ever, leave, crash, or use up the memory: the process is ended, that function has failed, and the next function
is checked in a new one. What the port prints is kept from the screen; its last line is shown if the process ends.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from npembed.conformance.outcome import Outcome, Status
from npembed.conformance.results import from_words
from npembed.support.messages import shown

TIMEOUT = 60.0
"""Seconds that one call of a port's function may take."""

MEMORY = 2**33
"""Bytes that a port may use, where the system can bound them (Linux)."""

OWN_WORK = 300.0
"""Seconds that the kit itself may take between two calls, and a port to be imported: only against a wait without end."""

_START = "import sys; sys.path[:] = {path!r}; from npembed.conformance.serving import serve; serve({name!r}, {memory})"


class IsolatedPort:
    """A port by its name, for `check_port` and `check_function`, in a process of its own.

    Parameters
    ----------
    name : str
        A module's dotted name or its file.
    timeout : float
        Seconds that one call may take.
    memory : int
        Bytes that the port may use, where the system can bound them.

    Attributes
    ----------
    files : tuple of str
        Of all modules that are loaded with the port.
    provided : frozenset of str
        The public functions that it has.

    Raises
    ------
    ValueError
        A port that cannot be imported, or whose import ends the process.

    Examples
    --------
    >>> from npembed.conformance import check_function
    >>> with IsolatedPort("npembed") as port:
    ...     check_function(port, "boundaries", examples=1).status.value
    'pass'
    """

    def __init__(self, name: str, *, timeout: float = TIMEOUT, memory: int = MEMORY) -> None:
        self.name, self.timeout, self.memory = name, timeout, memory
        self._process: _Process | None = None
        loaded = self._started()
        self.files: tuple[str, ...] = tuple(loaded["files"])
        self.provided: frozenset[str] = frozenset(loaded["provided"])

    def __enter__(self) -> "IsolatedPort":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A public function, so that it counts as provided; it is called in the other process only."""
        if name.startswith("_") or name not in self.provided:
            raise AttributeError(name)

        def elsewhere(*_: Any, **__: Any) -> Any:
            raise TypeError(f"check: {name} runs in a process of its own; check_function calls it there")

        return elsewhere

    def check(self, name: str, options: Mapping[str, Any]) -> Outcome:
        """Check one function there; the options are those of `check_function`, as JSON can say them."""
        if self._process is None:
            self._started()
        process, call, within = self._process, None, OWN_WORK
        assert process is not None
        process.ask({"function": name, "options": options})
        while True:
            message = process.next(within)
            if message is None:
                why = process.why(within)
                self.close()
                return Outcome(name, Status.FAIL, why, call=call)
            if "outcome" in message:
                found = message["outcome"]
                return Outcome(**found | {"status": Status[found["status"]], "results": from_words(found["results"])})
            if "refused" in message:
                raise ValueError(message["refused"])
            within = self.timeout if "call" in message else OWN_WORK
            call = message.get("call", call)

    def _started(self) -> dict[str, Any]:
        """A new process, in which the port is loaded; what it says of it."""
        self._process = process = _Process(self.name, self.memory)
        message = process.next(OWN_WORK)
        if message is not None and "loaded" in message:
            loaded: dict[str, Any] = message["loaded"]
            return loaded
        if message is not None:
            why = str(message.get("refused"))
        else:
            why = f"check: the port {self.name} cannot be imported: its import {process.why(OWN_WORK)}"
        self.close()
        raise ValueError(why)


class _Process:
    """The other process, and the messages to and from it."""

    def __init__(self, name: str, memory: int) -> None:
        code = _START.format(path=[*sys.path], name=name, memory=memory)
        self._popen = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._printed: deque[bytes] = deque(maxlen=2)
        self._timed_out = False
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._listen, self._collect)]
        for thread in self._threads:
            thread.start()

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request; one that cannot be sent is answered with the end."""
        assert self._popen.stdin is not None
        self._printed.clear()
        with suppress(OSError):
            self._popen.stdin.write(json.dumps(request).encode() + b"\n")
            self._popen.stdin.flush()

    def next(self, within: float) -> dict[str, Any] | None:
        """The next message; None if it has ended, or is silent for so many seconds."""
        try:
            return self._messages.get(timeout=within)
        except queue.Empty:
            self._timed_out = True
            return None

    def why(self, within: float) -> str:
        """After `next` gave None: what happened."""
        if self._timed_out:
            return f"did not come back within {within:g} s"
        try:
            code = self._popen.wait(10)
        except subprocess.TimeoutExpired:
            return "closed the way to the report"
        self._threads[1].join(1)
        last = shown(b"".join(self._printed).decode(errors="replace").strip().rpartition("\n")[2], 200)
        how = f"by {_signal(-code)}" if code < 0 else f"with exit code {code}"
        return f"ended the process {how}" + (f"; its last words were: {last}" if last else "")

    def end(self) -> None:
        """Kill it, and what it started."""
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._popen.pid, signal.SIGKILL)
            else:
                self._popen.kill()
        self._popen.wait()
        for thread in self._threads:
            thread.join(1)
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        with suppress(OSError, ValueError):  # what is no message is no word of ours: the port has broken the way
            for line in self._popen.stdout:
                message = json.loads(line)
                if not isinstance(message, dict):
                    break
                self._messages.put(message)
        self._messages.put(None)

    def _collect(self) -> None:
        assert self._popen.stderr is not None
        with suppress(OSError, ValueError):
            for piece in iter(lambda: os.read(self._popen.stderr.fileno(), 4096), b""):  # type: ignore[union-attr]
                self._printed.append(piece)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
