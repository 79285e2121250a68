"""What was found, as a page in Markdown, from the JSON alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.ports.releases import RELEASES
from npembed.families import FAMILIES

FORMAT = 1
"""Of the JSON; it changes when a key changes its name or its meaning."""

PACKAGES = (
    "transformers", "mlx-vlm", "mlx", "mlx-cpu", "onnxruntime", "onnx", "openvino", "torch", "numpy", "scipy", "hypothesis",
)  # fmt: skip
"""Whose versions are kept, where they are installed."""

STAGES = {
    "position_ids": "ids",
    "embed": "embeddings",
    "encode": "tower",
    **dict.fromkeys(("resample", "perceive", "shuffle_and_project", "merge_patches", "pool", "assemble"), "connector or head"),
}
"""A function -> its column; every other one is a piece of these."""

PIECES = "pieces"
COLUMNS = (*dict.fromkeys(STAGES.values()), PIECES)

LONGEST = 400
"""Characters of a call or a cause on the page; the JSON has all of it."""

Json = Mapping[str, Any]

INTRODUCTION = """\
# The state of the ports

npembed's conformance kit, run on released software: which stages of the path from a picture to its tokens agree with the
reference, and where they do not, by how much and at which smallest input. Written by

```sh
python -m benchmarks.ports                      # all; each release in an environment of its own
python -m benchmarks.ports --only mlx-vlm --keep
```

from small random models, so that nothing is downloaded but the releases themselves. [ports.json](ports.json) has every result
whole. The port modules are in [port_modules](port_modules): a release's own classes under npembed's names, with what lays
numbers out.

**How to read it.** The rule is the one of [npembed's rules](../npembed/steps/positions/README.md) that the release's position
ids follow for every slice of 1 × n and of n × 1 patches, n to 300, on a table of 70 × 70; where several fit, also for the
slices of 1 × n on which they part first, n to 4,096. In bold where it is the family's own. The stages are judged by the
port's own rule, so that the rule hides no other fault: another rule than the family's is a known difference, which moves some
patches to another row of the position table, and the page does not count it as a failure. A rule whose ids are no rows of the
table is one; its port is judged by the family's. "pass" means within what npembed promises for the port's precision; "FAIL
7.9 ×" that the largest error is 7.9 times what is allowed. A stage without an entry is not wrapped by the port module.
"""


def markdown(done: Json) -> str:
    """The page."""
    parts = [INTRODUCTION, _circumstances(done), "## At a glance", _table(done), "## What departs", *_departures(done)]
    not_run = list(_not_run(done))
    parts += ["## What was not run", "\n".join(not_run) if not_run else "Everything was run."]
    parts += ["## With what", _versions(done)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _circumstances(done: Json) -> str:
    """When and on what, in a line for each different answer."""
    said: dict[str, list[str]] = {}
    for name, release in done["releases"].items():
        about = release["with"]
        commit = f" ({about['commit']})" if about["commit"] else ""
        line = f"{release['when'][:10]}, npembed {about['npembed']}{commit}, {about['processor']}, {about['system']}"
        said.setdefault(line, []).append(name)
    if len(said) == 1:
        return f"Run on {next(iter(said))}."
    return "\n".join(f"- {', '.join(names)}: run on {line}." for line, names in said.items())


def _table(done: Json) -> str:
    lines = ["| release | what | rule | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name, release in done["releases"].items():
        if "not_run" in release:
            lines.append(f"| {name} | not run, see below |" + " |" * (len(COLUMNS) + 1))
        for port in release["ports"]:
            cells = [_title(name, release), port["title"], _rule(port), *_cells(port)]
            lines.append("| " + " | ".join(cells) + " |")
    missing = [release.name for release in RELEASES if release.name not in done["releases"]]
    return "\n".join([*lines, *([f"\nNot in this run at all: {', '.join(missing)}."] if missing else [])])


def _title(name: str, release: Json) -> str:
    """The release with the version that was installed, where its name does not say it."""
    package = next(each.package for each in RELEASES if each.name == name)
    version = release.get("versions", {}).get(package, "")
    return name if name.endswith(version) else f"{package} {version}" + (" (newest)" if name.endswith("newest") else "")


def _rule(port: Json) -> str:
    """The rules that fit, the family's own in bold."""
    if "not_run" in port or port["nearest"] is None:
        return ""
    if not port["rules"]:
        nearest, misses = port["nearest"]
        return f"none; nearest is `{nearest}`, {misses} of 600 sizes differ"
    own = FAMILIES[port["family"]].rule
    return " or ".join(f"**`{rule}`**" if rule == own else f"`{rule}`" for rule in port["rules"])


def _cells(port: Json) -> list[str]:
    """A cell for each stage: pass, by how much it fails, or nothing."""
    if "not_run" in port:
        return ["not run"] + [""] * (len(COLUMNS) - 1)
    found: dict[str, list[str]] = {column: [] for column in COLUMNS}
    for outcome in port["outcomes"]:
        found[STAGES.get(outcome["name"], PIECES)].append(_verdict(outcome))
    return [_worst(verdicts) for verdicts in found.values()]


def _worst(verdicts: list[str]) -> str:
    """The failures among several functions, or else "pass", or nothing where there is no function."""
    failures = [verdict for verdict in verdicts if verdict != "pass"]
    return ", ".join(failures) if failures else "pass" if verdicts else ""


def _verdict(outcome: Json) -> str:
    if outcome["status"] == "pass":
        return "pass"
    return f"**FAIL**{_size(outcome)}"


def _size(outcome: Json) -> str:
    """How many times what is allowed, where a number says it."""
    worst = outcome.get("worst")
    return f" {worst:.2g} ×" if isinstance(worst, float | int) else ""


def _departures(done: Json) -> Iterator[str]:
    """A section for each port that fails somewhere; releases that fail alike have one together."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for name, release in done["releases"].items():
        for port in release["ports"]:
            failures = [outcome for outcome in port.get("outcomes", ()) if outcome["status"] == "fail"]
            if failures:
                text = "\n".join(line for outcome in failures for line in _departure(outcome))
                said.setdefault((port["module"], port["title"], text), []).append(_title(name, release))
    notes = {port.module: port.note for release in RELEASES for port in release.ports}
    for (module, title, text), names in said.items():
        yield f"### {', '.join(names)}: {title}"
        yield text
        if notes.get(module):
            yield f"Found by hand: {notes[module]}"
    if not said:
        yield "Nothing."


def _departure(outcome: Json) -> Iterator[str]:
    """A failure as an item of a list, with what is known of it under it."""
    yield f"- **{outcome['name']}**: {_short(outcome['summary'])}"
    for label, key in (("smallest input", "call"), ("came", "came"), ("should be", "expected")):
        if outcome.get(key):
            yield f"  - {label}: `{_short(outcome[key])}`"
    yield f"  - likely cause: {_short(outcome['cause'])}" if outcome.get("cause") else "  - no known cause"


def _short(text: str) -> str:
    """In one line, and its beginning where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _not_run(done: Json) -> Iterator[str]:
    """A line for each release or port that says nothing, with the reason; like reasons together."""
    said: dict[str, list[str]] = {}
    for name, release in done["releases"].items():
        if "not_run" in release:
            said.setdefault(release["not_run"], []).append(_title(name, release))
        for port in release["ports"]:
            if "not_run" in port:
                said.setdefault(port["not_run"], []).append(f"{_title(name, release)}: {port['title']}")
    for release in RELEASES:
        if release.name not in done["releases"]:
            said.setdefault("the command has not been run for it", []).append(release.name)
    return (f"- {'; '.join(names)}: {_short(reason)}" for reason, names in said.items())


def _versions(done: Json) -> str:
    lines = ["| release | when | versions |", "|---|---|---|"]
    for name, release in done["releases"].items():
        versions = ", ".join(f"{package} {version}" for package, version in release.get("versions", {}).items())
        lines.append(f"| {name} | {release['when']} | {versions} |")
    return "\n".join(lines)
