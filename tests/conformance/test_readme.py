"""The kit's guide: its port runs, and its commands print what it shows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import npembed
from npembed.conformance import bounds
from tests.command_line import npembed as command

GUIDE = Path(npembed.__file__).with_name("conformance") / "README.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def run(line: str) -> str:
    """What one line of a shell prints."""
    words = shlex.split(line)
    target = words.pop() if ">" in words else None
    words = [word for word in words if word != ">"]
    if words[0] == "npembed":
        done = command(*words[1:])
        assert done.err == ""
        out = done.out
    elif words[0] == "tail":
        out = Path(words[-1]).read_text().splitlines()[-1] + "\n"
    else:
        assert words[0] == "python"
        out = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True).stdout
    if target is not None:
        Path(target).write_text(out)
        return ""
    return out


def test_the_commands_print_what_the_guide_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = blocks("python")
    (tmp_path / "ids.py").write_text(program)
    steps = [step for block in blocks("console") for step in re.split(r"^\$ ", block, flags=re.MULTILINE) if step]
    assert len(steps) == 7
    for step in steps:
        line, _, shown = step.partition("\n")
        assert run(line) == shown, line


def test_every_link_within_the_guide_leads_somewhere() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^##+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings


@pytest.mark.parametrize("listed", [bounds.INDISTINGUISHABLE, bounds.INDISTINGUISHABLE_IN_PACKS])
def test_the_guide_lists_what_cannot_be_told_apart(listed: dict[str, dict[str, tuple[str, ...]]]) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for precision, functions in listed.items():
        assert f"| {precision} | {' | '.join('; '.join(kinds) or 'none' for kinds in functions.values())} |\n" in text
