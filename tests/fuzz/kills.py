"""Signals at random moments over commands that write: the old or the new is there, whole, and the next run sweeps."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path

from npembed.cli import run
from npembed.conformance.golden import read_pack
from npembed.support import stops
from npembed.support.output_files import load_tensors
from tests.fuzz.originals import Originals

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Command:
    """A command that writes one thing, and how to tell that the thing is whole; `anew` if it replaces none that is there."""

    def __init__(self, words: list[str], target: str, whole: Callable[[Path], object], anew: bool = False) -> None:
        self.words, self.target, self.whole, self.anew = words, target, whole, anew


def commands(originals: Originals) -> list[Command]:
    tiny, pack, outputs = str(originals.checkpoints["tiny"]), str(originals.pack), str(originals.outputs)
    return [
        Command(["embed", "p.png", "--weights", tiny, "-o", "o.safetensors"], "o.safetensors", load_tensors),
        Command(["embed", "p.png", "--weights", tiny, "-o", "o.npz", "--until", "tokens"], "o.npz", load_tensors),
        Command(["golden", "check", pack, outputs, "--json", "r.json"], "r.json", lambda path: json.loads(path.read_text())),
        Command(["golden", "check", pack, outputs, "--html", "r.html"], "r.html", _whole_page),
        Command(["golden", "write", "pack"], "pack", read_pack, anew=True),
    ]


def _whole_page(path: Path) -> None:
    if not path.read_text().rstrip().endswith("</html>"):
        raise ValueError("half a page")


def _start(words: list[str], folder: Path) -> int:
    """A child that does what `npembed` does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # Python's own work after a fork is not at stake
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        return child
    code = 70
    try:
        os.chdir(folder)
        for stream, name in ((1, "../out"), (2, "../err")):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, stream)
        stops.leave_at_once()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        stops.unwind()
        code = run(words)
        stops.leave_with(code)
    except KeyboardInterrupt:
        code = stops.code()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _content(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def main(number: int, seed: int, folder: Path, originals: Originals) -> int:
    """So many of each signal, over each command in turn."""
    wrong, ended = [], Counter[str]()
    each = [_Site(command, folder / f"site-{place}", originals) for place, command in enumerate(commands(originals))]
    rng = random.Random(seed)
    for sent in SIGNALS:
        for turn in range(number):
            site = each[turn % len(each)]
            code, faults = site.kill(sent, rng)
            ended[f"{sent.name}: {code}"] += 1
            for fault in faults:
                wrong.append(f"{sent.name} over {site.command.words}, after {turn}: {fault}")
                print(wrong[-1], flush=True)
        print(f"{sent.name}: {number} sent, {len(wrong)} faults so far", flush=True)
    print(", ".join(f"{words} {count} times" for words, count in sorted(ended.items())))
    print(f"{len(wrong)} faults")
    if not wrong:
        for site in each:
            shutil.rmtree(site.folder)
    return bool(wrong)


class _Site:
    """A folder in which one command runs over and over."""

    def __init__(self, command: Command, folder: Path, originals: Originals) -> None:
        self.command, self.folder, self.place = command, folder, folder / "in"
        self.place.mkdir(parents=True)
        (self.place / "p.png").write_bytes(originals.pictures["PNG-0-RGB"])
        began = time.monotonic()
        code = _ended(_start(command.words, self.place))
        self.seconds = time.monotonic() - began
        if code not in (0, 1):
            raise AssertionError(f"{command.words} ends with {code}: {(folder / 'err').read_text()}")
        self.expected = _content(self.place / command.target)

    def kill(self, sent: signal.Signals, rng: random.Random) -> tuple[int, list[str]]:
        """One signal at a random moment of a run, and what is wrong then and after the next run."""
        self._make_room()
        before = set(os.listdir(self.place))  # what an earlier SIGKILL left lies there until a run comes so far that it sweeps
        child = _start(self.command.words, self.place)
        time.sleep(rng.uniform(0, 1.1 * self.seconds))  # when it comes does not matter
        os.kill(child, sent)
        code = _ended(child)
        faults = self._faults()
        if code not in (0, 1, -sent, 128 + sent):
            faults.append(f"exit code {code}: {(self.folder / 'err').read_text()}")
        if code == 128 + sent and (self.folder / "err").read_bytes() != b"npembed: stopped\n":
            faults.append(f"says {(self.folder / 'err').read_bytes()!r}")
        if sent != signal.SIGKILL:
            faults += self._litter(before)
        elif rng.random() < 0.2:
            self._make_room()
            next_run = _ended(_start(self.command.words, self.place))
            faults += self._faults() + self._litter() + ([] if next_run in (0, 1) else [f"the next run ends with {next_run}"])
        return code, faults

    def _make_room(self) -> None:
        if self.command.anew:
            shutil.rmtree(self.place / self.command.target, ignore_errors=True)

    def _faults(self) -> list[str]:
        target = self.place / self.command.target
        if self.command.anew and not target.exists():
            return []
        try:
            self.command.whole(target)
        except ValueError as error:
            return [f"not whole: {error}"]
        found = _content(target)
        if set(found) != set(self.expected):
            return ["other files than before"]
        return []

    def _litter(self, before: Set[str] = frozenset()) -> list[str]:
        left = sorted(set(os.listdir(self.place)) - before - {"p.png", self.command.target})
        return [f"left lying: {left}"] if left else []
