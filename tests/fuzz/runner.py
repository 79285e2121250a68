"""A child per case, under limits of time and memory, and the verdict on how it ended."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.cases import Case, Make
from tests.fuzz.kinds import KINDS
from tests.fuzz.originals import Originals
from tests.fuzz.watch import watch

CPU, WALL = 30, 300
"""Seconds of a case: of the processor, and on the clock, which only a case that waits for something reaches."""
MOST_MEMORY = 2**30
"""Bytes over a clean run, at most."""
HARD_MEMORY = 4 * 2**30
"""Where the system itself stops a case."""
MOST_DIGESTED = 2**26
"""Bytes of a file whose content is compared."""
BROKEN = 70
"""The exit code of a case that raised what no command may."""


@dataclass
class Ended:
    """How one case ended."""

    number: int
    kind: str
    words: list[str]
    code: int
    """Minus the signal, or the exit code."""
    memory: int
    folder: Path
    fault: str | None = None


@dataclass
class Count:
    """What came of all."""

    codes: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[Ended] = field(default_factory=list)
    memory: int = 0


def make_of(seed: int, number: int, kinds: dict[Make, int]) -> tuple[random.Random, Make]:
    """The generator and the kind of one case: each stands for itself, so that one alone can be run again."""
    rng = random.Random(f"{seed}/{number}")
    return rng, rng.choices(list(kinds), list(kinds.values()))[0]


def start(seed: int, number: int, folder: Path, originals: Originals, kinds: dict[Make, int]) -> int:
    """The process of one case."""
    folder.mkdir(parents=True)
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        code = _child(seed, number, folder, originals, kinds)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _child(seed: int, number: int, folder: Path, originals: Originals, kinds: dict[Make, int]) -> int:
    _limit()
    rng, make = make_of(seed, number, kinds)
    (folder / "in").mkdir()
    case = make(rng, folder / "in", originals)
    (folder / "case.json").write_text(json.dumps({"words": case.words, "codes": case.codes, "kind": make.__name__}))
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.chdir(folder / "in")
    before = _digests()
    seen: list[str] = []
    if case.secrets is not None:
        seen = watch(folder, frozenset(map(os.path.realpath, case.secrets)), case.hosts)
    code = case.run()
    sys.stdout.flush()
    sys.stderr.flush()
    if seen:
        raise AssertionError(f"it {seen[0]}, and {len(seen) - 1} more such: {case.words} (exit {code})")
    _check_inputs(before, case, code)
    return code


def _limit() -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**31, 2**31))
    resource.setrlimit(resource.RLIMIT_DATA, (HARD_MEMORY, HARD_MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(WALL)


def _digests() -> dict[str, str]:
    """Every regular file of the case, by its content; one that is huge by its size and date."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        if (about := path.stat()).st_size <= MOST_DIGESTED
        else f"{about.st_size} {about.st_mtime_ns}"
        for path in sorted(Path().rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


OUTPUTS = re.compile(r"(o|embeddings|hidden|tokens|pooled)\.(npz|safetensors)|r\.(json|html)|.*[^\w].*")


def _check_inputs(before: dict[str, str], case: Case, code: int) -> None:
    """Inputs are as they were; nothing of ours is left lying."""
    after = _digests()
    for name, digest in before.items():
        if after.get(name) != digest and not re.match(case.changes, name):
            raise AssertionError(f"{name} was changed by {case.words} (exit {code})")
    litter = [name for name in after if "/.npembed-" in f"/{name}"]
    if litter:
        raise AssertionError(f"left lying: {litter}")


def verdict(folder: Path, code: int, memory: int, clean: int) -> str | None:
    """What is wrong with how a case ended; None if it is a success or the proper refusal."""
    case = json.loads((folder / "case.json").read_text()) if (folder / "case.json").is_file() else {"codes": []}
    out, err = ((folder / name).read_bytes() if (folder / name).is_file() else b"" for name in ("out", "err"))
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if code not in case["codes"]:
        return f"exit code {code}: {err.decode(errors='replace').strip()[-300:]}"
    if memory > clean + MOST_MEMORY:
        return f"{(memory - clean) / 1e9:.2f} GB over a clean run"
    several = case["words"][:1] == ["embed"]
    return wrong_text(code, out.decode(errors="backslashreplace"), err.decode(errors="backslashreplace"), several)


def wrong_text(code: int, out: str, err: str, several: bool = False) -> str | None:
    """What is wrong with what was printed; `several` where each of several pictures may have its line."""
    if "Traceback (most recent call last)" in out + err:
        return "a traceback"
    odd = next((each for each in out + err if not each.isprintable() and each != "\n"), None)
    if odd is not None:
        return f"prints {odd!r}"
    if code == 2 and not re.fullmatch(r"(npembed: [^\n]{1,500}\n)" + "+" * several, err):
        return f"no refusal of one line: {err[:300]!r}"
    if code == 1 and several and re.fullmatch(r"(npembed: [^\n]{1,500}\n)+", err):
        return None
    if code in (0, 1) and err:
        return f"exit code {code}, but says {err[:300]!r}"
    return None


def clean_memory(originals: Originals, folder: Path) -> int:
    """Bytes that a run on a picture as it is takes, in a child as all others."""

    def clean(rng: random.Random, place: Path, originals: Originals) -> Case:
        (place / "p.png").write_bytes(originals.pictures["PNG-0-RGB"])
        return Case(["embed", "p.png", "--weights", str(originals.checkpoints["tiny"]), "-o", "o.npz", "--until", "tokens"])

    ended = next(run([0], 0, folder, originals, {clean: 1}, jobs=1, clean=2**40))
    if ended.fault or ended.code:
        raise AssertionError(f"the clean run fails: {ended.fault}; see {ended.folder}")
    return ended.memory


def run(
    numbers: Iterable[int],
    seed: int,
    folder: Path,
    originals: Originals,
    kinds: dict[Make, int] | None = None,
    *,
    jobs: int,
    clean: int,
) -> Iterator[Ended]:
    """Each case as it ends; the folders of those without a fault are gone by then."""
    kinds = KINDS if kinds is None else kinds
    running: dict[int, tuple[int, Path]] = {}
    waiting = iter(numbers)
    while True:
        while len(running) < jobs and (number := next(waiting, None)) is not None:
            place = folder / f"case-{seed}-{number}"
            shutil.rmtree(place, ignore_errors=True)
            running[start(seed, number, place, originals, kinds)] = number, place
        if not running:
            return
        child, status, usage = os.wait4(-1, 0)
        if child not in running:
            continue
        number, place = running.pop(child)
        _end_group(child)
        yield _ended(seed, number, place, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, clean, kinds)


def _end_group(leader: int) -> None:
    """What the case has started ends with it."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except OSError:
        return


def _ended(seed: int, number: int, folder: Path, code: int, memory: int, clean: int, kinds: dict[Make, int]) -> Ended:
    case = json.loads((folder / "case.json").read_text()) if (folder / "case.json").is_file() else {"words": []}
    ended = Ended(number, make_of(seed, number, kinds)[1].__name__, case["words"], code, memory, folder)
    ended.fault = verdict(folder, code, memory, clean)
    if ended.fault is None:
        shutil.rmtree(folder, ignore_errors=True)
    return ended


def count(ends: Iterable[Ended], say: Callable[[str], None], every: int = 500) -> Count:
    """What came of all, said as it comes."""
    total, began = Count(), time.monotonic()
    for done, ended in enumerate(ends, 1):
        total.codes[ended.code] += 1
        total.kinds[ended.kind] += 1
        total.memory = max(total.memory, ended.memory)
        if ended.fault is not None:
            total.faults.append(ended)
            say(f"case {ended.number} ({ended.kind}): {ended.fault}\n  {ended.words}\n  kept in {ended.folder}")
        if done % every == 0:
            say(f"{done} cases, {len(total.faults)} faults, {time.monotonic() - began:.0f} s")
    return total
