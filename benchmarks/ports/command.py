"""Install, check, write benchmarks/ports.json and benchmarks/PORTS.md. Exit 0 when it is done, 2 for wrong use."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import npembed
from benchmarks import machine
from benchmarks.ports import page
from benchmarks.ports.environment import CHECKOUT, Environment, NotRunError, environment
from benchmarks.ports.releases import RELEASES, Port, Release, releases
from npembed.weights.cache import cache_folder

JSON, PAGE = (CHECKOUT / "benchmarks" / name for name in ("ports.json", "PORTS.md"))

EXAMPLES = "20"
"""Drawn inputs per function, beside the fixed ones, which find what is known to be found."""

Json = dict[str, Any]


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ports", description=__doc__)
    names = ", ".join(release.name for release in RELEASES)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help=f"these alone; the others stay as they are in the JSON: {names}"
    )
    parser.add_argument(
        "--module", action="append", metavar="NAME", help="of these releases, these port modules alone; the others stay"
    )
    parser.add_argument("--keep", action="store_true", help="leave the environments there for the next run")
    parser.add_argument(
        "--cache", type=Path, default=cache_folder() / "ports", metavar="FOLDER", help="for the environments (%(default)s)"
    )
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="for each port (default %(default)s)")
    parser.add_argument("--page", action="store_true", help="write the page again from the JSON; run nothing")
    options = parser.parse_args(args)
    try:
        options.releases = releases(options.only)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    options = parse(args)
    for release in () if options.page else options.releases:
        print(f"{release.name}: installing", file=sys.stderr, flush=True)
        keep(
            release, check_release(_with_ports(release, options.module), options.cache.absolute(), options.keep, options.limit)
        )
    PAGE.write_text(page.markdown(read()), encoding="utf-8")
    return 0


def _with_ports(release: Release, modules: Sequence[str] | None) -> Release:
    """The release with the ports of these modules alone; with all of its own without any."""
    return replace(release, ports=tuple(port for port in release.ports if modules is None or port.module in modules))


def read() -> Json:
    """The JSON that is there, or one with nothing in it."""
    found: Json = json.loads(JSON.read_text(encoding="utf-8")) if JSON.is_file() else {"format": page.FORMAT, "releases": {}}
    return found


def keep(release: Release, about: Json) -> None:
    """Put one release into the JSON, which is read again for it: another run may have put others there meanwhile.

    Ports that were not looked at stay as they were.
    """
    known = read()["releases"]
    ports = {port["module"]: port for port in [*known.get(release.name, {"ports": []})["ports"], *about["ports"]]}
    about = about | {"ports": [ports[port.module] for port in release.ports if port.module in ports]}
    known |= {release.name: about}
    done = {"format": page.FORMAT, "releases": {each.name: known[each.name] for each in RELEASES if each.name in known}}
    JSON.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_release(release: Release, cache: Path, keep: bool, limit: float) -> Json:
    """All that the page says of one release; `not_run` where it could not be installed."""
    where = environment(release, cache)
    about: Json = {"when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "with": circumstances(), "ports": []}
    try:
        where.make()
        installed = where.versions()
        about["versions"] = {name: installed[name] for name in page.PACKAGES if name in installed}
        about["ports"] = check(release.ports, where, limit)
    except NotRunError as reason:
        about["not_run"] = str(reason)
    finally:
        if not keep:
            where.remove()
    return about


def circumstances() -> Json:
    """With what it is run: npembed and the last commit to it, and the machine."""
    last = ["git", "log", "-1", "--format=%h", "--", "npembed"]
    commit = subprocess.run(last, cwd=CHECKOUT, capture_output=True, text=True).stdout.strip()
    about = machine.describe_machine(threads=1)
    return {"npembed": npembed.__version__, "commit": commit or None} | {key: about[key] for key in ("processor", "system")}


def check(ports: Sequence[Port], where: Environment, limit: float) -> list[Json]:
    """What the kit says of each port; where its process died or was stopped, the port that it was at was not run."""
    done: list[Json] = []
    while len(done) < len(ports):
        left = ports[len(done) :]
        print(f"  {', '.join(port.title for port in left)}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "results")
            file.touch()
            words = ["check_ports.py", str(file), EXAMPLES, *(f"{port.module}:{port.family}" for port in left)]
            try:
                where.run(words, limit * len(left))
                reason = "the process said nothing"
            except NotRunError as error:
                reason = str(error)
            found = [json.loads(where.without_paths(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        done += found if len(found) == len(left) else [*found, {"not_run": reason}]
    return [
        {"module": port.module, "title": port.title, "family": port.family} | each
        for port, each in zip(ports, done, strict=True)
    ]
