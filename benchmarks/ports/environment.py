"""An environment for each release: made, reused while it is what was asked for, and what runs in it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ports.releases import Release

CHECKOUT = Path(__file__).parents[2]
MODULES = CHECKOUT / "benchmarks" / "port_modules"
INSTALL_LIMIT = 1800
"""Seconds for one call of pip."""


class NotRunError(Exception):
    """Something could not be installed or run; the message is for the page."""


@dataclass(frozen=True)
class Environment:
    """A release's environment: its folder and what is in it."""

    folder: Path
    requirements: tuple[str, ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def _mark(self) -> Path:
        """Written when all is installed: an environment without it was cut off."""
        return self.folder / "requirements.txt"

    def make(self) -> None:
        """Install what is asked for, unless it is there, and npembed: this checkout itself, so that it is as it is now."""
        wanted = "\n".join(self.requirements)
        if not self._mark.is_file() or self._mark.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._call([sys.executable, "-m", "venv", str(self.folder)], INSTALL_LIMIT)
            self._pip(*self.requirements, "--editable", f"{CHECKOUT}[cli,testing]")
            self._mark.write_text(wanted, encoding="utf-8")

    def remove(self) -> None:
        """The whole folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def versions(self) -> dict[str, str]:
        """Package -> version of all that is installed."""
        listed = self._call([str(self.python), "-m", "pip", "list", "--format", "json"], 120)
        return {each["name"]: each["version"] for each in json.loads(listed)}

    def run(self, words: Sequence[str], limit: float) -> str:
        """What its interpreter prints for `python WORDS` in the folder of the port modules."""
        return self._call([str(self.python), *words], limit)

    def _pip(self, *words: str) -> None:
        self._call([str(self.python), "-m", "pip", "install", "--quiet", "--no-compile", *words], INSTALL_LIMIT)

    def _call(self, command: list[str], limit: float) -> str:
        options: Any = {"cwd": MODULES, "env": self._variables(), "capture_output": True, "text": True, "encoding": "utf-8"}
        try:
            done: subprocess.CompletedProcess[str] = subprocess.run(command, timeout=limit, **options)
        except subprocess.TimeoutExpired:
            raise NotRunError(f"stopped after {limit:.0f} seconds") from None
        if done.returncode:
            raise NotRunError(self.without_paths(last_words(done.stderr or done.stdout) or f"exit code {done.returncode}"))
        return done.stdout

    def _variables(self) -> dict[str, str]:
        """One thread; nothing is looked up on the Hub; bytecode in the environment's folder, not in the checkout."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        bytecode = {"PYTHONPYCACHEPREFIX": str(self.folder / "bytecode")}
        return kept | bytecode | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}

    def without_paths(self, text: str) -> str:
        """The text without this machine's folders."""
        return text.replace(str(self.folder), "ENVIRONMENT").replace(str(CHECKOUT), ".").replace(str(Path.home()), "~")


def environment(release: Release, cache: Path) -> Environment:
    """The release's environment in that cache folder."""
    return Environment(cache / release.name, release.requirements)


def last_words(text: str) -> str:
    """The last line that says something; pip's own start with ERROR."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1]
