"""Running the command line in a test, what must hold of a refusal, and the reports that it writes into files."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

import npembed as package
from npembed import RULES, Model, slice_image
from npembed.cli import run
from npembed.steps.stages import run as run_stages
from tests import page_reading as pages

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits and names as POSIX has them")


@dataclass(frozen=True)
class Done:
    """What one run of the command line left."""

    code: int
    out: str
    err: str


def npembed(*words: object) -> Done:
    """One run in this process, on streams as strict as a terminal's."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(word) for word in words])
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def python_m_npembed(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """One run in a process of its own, with nothing in its environment but what is said."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    command = [sys.executable, "-m", "npembed", *words]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder, env=kept | environment)


def done_well(done: Done) -> str:
    """What it printed, if it did all that was asked and had nothing to complain of."""
    assert (done.code, done.err) == (0, "")
    return done.out


def assert_refused(done: Done, message: str) -> None:
    assert done.code == 2
    assert re.fullmatch(r"npembed: [^\n]+\n", done.err), done.err
    assert re.search(message, done.err), done.err
    assert "Traceback" not in done.out


def assert_refused_and_unchanged(words: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that folder, the words get one line with that message, and no byte under it is touched."""
    monkeypatch.chdir(folder)
    before = state(folder)
    assert_refused(npembed(*words), message)
    assert state(folder) == before


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        found: dict[str, str] = file.metadata()
    return found


def saved(picture: NDArray[np.uint8], path: Path, **options: Any) -> Path:
    Image.fromarray(picture).save(path, **options)
    return path


def final(picture: NDArray[np.uint8] | Image.Image, model: Model, until: str = "embeddings") -> NDArray[Any]:
    """What the functions make of a picture."""
    return run_stages(*slice_image(picture, model.config), model, until)[until]


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file and folder under one, hidden ones too: which it is, and when it was last written to."""
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def failing(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def bad(words: str, message: str) -> Any:
    return pytest.param(words, message, id=words)


KNOWN_RULES = re.escape(", ".join(RULES))


class Page(HTMLParser):
    """A page's tags, which must close in order, its attributes and its text; titles count as text."""

    EMPTY = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.text += dict(attrs).get("title") or ""  # what a cell says when it is pointed at
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_page(path: Path, names: list[str], verdict: str) -> None:
    """One page that needs nothing beside it and says it all."""
    content = path.read_text(encoding="utf-8")
    page = Page(content)
    assert {"html", "head", "title", "style", "body", "main"} <= page.tags
    assert pages.Page(content).outside() == []
    assert verdict in page.text
    assert all(name in page.text for name in names)


def assert_json(path: Path, subject: str, verdict: str, names: list[str], wrong: list[str]) -> list[dict[str, Any]]:
    """The report for a program, with its stable fields."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content)[:5] == ["npembed", "subject", "verdict", "passed", "outcomes"]
    assert set(content) <= {"npembed", "subject", "verdict", "passed", "outcomes", "matrix"}
    assert (content["npembed"], content["subject"]) == (package.__version__, subject)
    assert (content["verdict"], content["passed"]) == (verdict, not wrong)
    outcomes: list[dict[str, Any]] = content["outcomes"]
    assert [outcome["name"] for outcome in outcomes] == names
    assert [outcome["name"] for outcome in outcomes if outcome["status"] == "fail"] == wrong
    known = {"name", "status", "summary", "call", "came", "expected", "cause", "worst", "diff"}
    assert all({"name", "status", "summary"} <= set(outcome) <= known for outcome in outcomes)
    assert {outcome["status"] for outcome in outcomes} <= {"pass", "fail", "not provided"}
    return outcomes
