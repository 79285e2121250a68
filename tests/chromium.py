"""Debian's chromium, started so that it asks for nothing by itself."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATH = shutil.which("chromium")
QUIET = """
--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync
""".split()


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """A browser with that empty folder as its own; its `new_page` opens a page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        context = started.chromium.launch_persistent_context(folder, executable_path=PATH, args=QUIET, headless=True)
        yield context
        context.close()
