"""The process in which a port runs: it loads the port, checks one function per request, and tells of each call."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import IO, Any

from npembed.conformance.expressions import call_text
from npembed.conformance.outcome import Outcome, Status
from npembed.conformance.port import check_function, load_port
from npembed.conformance.results import as_words
from npembed.support.messages import raised


def serve(name: str, memory: int) -> None:
    """Load the port, then check one function per request until there are no more."""
    asked, told = _own_streams()
    _bound(memory)

    def tell(**message: Any) -> None:
        told.write(json.dumps(message) + "\n")
        told.flush()

    try:
        port = load_port(name)
        provided = [each for each in dir(port) if not each.startswith("_") and callable(getattr(port, each, None))]
    except BaseException as error:
        refused = str(error) if isinstance(error, ValueError) else f"check: the port {name} cannot be used: {raised(error)}"
        tell(refused=refused)
        return
    files = [file for module in [port, *sys.modules.values()] if isinstance(file := getattr(module, "__file__", None), str)]
    tell(loaded={"files": files, "provided": provided})
    for line in asked:
        request = json.loads(line)
        tell(**_answer(_Watched(port, tell), request["function"], request["options"]))


def _answer(port: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        outcome = check_function(port, name, **options)
    except ValueError as error:
        return {"refused": str(error)}
    except BaseException as error:  # KeyboardInterrupt from the port, or no memory left for the kit
        outcome = Outcome(name, Status.FAIL, f"raised {raised(error)}")
    return {"outcome": vars(outcome) | {"status": outcome.status.name, "results": as_words(outcome.results)}}


class _Watched:
    """A port that tells of each call before it begins and when it has come back."""

    def __init__(self, port: Any, tell: Callable[..., None]) -> None:
        self._port, self._tell = port, tell

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if not callable(found):
            return found

        @wraps(found)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._tell(call=call_text(name, args, kwargs, getattr(self._port, "__name__", "")))
            try:
                return found(*args, **kwargs)
            except MemoryError as error:
                traceback.clear_frames(error.__traceback__)  # they hold what fills the memory
                raise
            finally:
                self._tell(back=name)

        return watched


def _own_streams() -> tuple[IO[str], IO[str]]:
    """The streams to and from the parent, out of the port's reach: its input is empty; it prints to the error stream."""
    asked = os.fdopen(os.dup(0), encoding="utf-8")
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return asked, told


def _bound(memory: int) -> None:
    """Bound what this process may use; and let it end with its parent, also where that is killed."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    with suppress(Exception):
        import ctypes

        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, int(signal.SIGKILL))
