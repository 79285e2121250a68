"""Makes the pictures of pages that the READMEs show: `python -m tests.screenshots [FOLDER]`."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

import npembed
from npembed.images import read_image
from npembed.pages.article import article_page
from npembed.pages.explain import SAMPLE, explain
from npembed.pages.rules import rules_page
from npembed.pages.steps import Subject
from tests.chromium import browser

FOLDER = Path(npembed.__file__).parent / "pages" / "images"
SHOTS = {
    "explain": ("explain", 960, 0, 1500),
    "rulers": ("explain", 960, "#rulers-title", 760),
    "rules": ("rules", 960, 0, 900),
    "article": ("article", 960, 0, 900),
}
"""Picture -> page, width, where it begins (pixels or an element), height."""


def pages() -> dict[str, str]:
    """The pages that are shown."""
    subject = Subject(picture=read_image(SAMPLE)[0], config=npembed.MINICPM_V_2_6, compare="shrunk")
    return {"explain": explain(subject), "rules": rules_page(), "article": article_page()}


def shoot(page: Any, target: Path, start: int | str, height: int) -> None:
    """One picture, in 128 colours."""
    page.add_style_tag(content=".bar { position: static !important }") if start else None
    top = (
        start
        if isinstance(start, int)
        else page.locator(start).evaluate("each => each.getBoundingClientRect().top + scrollY - 12")
    )
    width = page.viewport_size["width"]
    page.screenshot(path=target, full_page=True, clip={"x": 0, "y": top, "width": width, "height": height})
    Image.open(target).convert("RGB").quantize(128).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def main(folder: Path) -> None:
    """Every picture, into that folder."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as own, tempfile.TemporaryDirectory() as user, browser(Path(user)) as context:
        for name, text in pages().items():
            (Path(own) / f"{name}.html").write_text(text, encoding="utf-8")
        for picture, (name, width, start, height) in SHOTS.items():
            page = context.new_page()
            page.set_viewport_size({"width": width, "height": 1000})
            page.goto((Path(own) / f"{name}.html").as_uri())
            page.wait_for_timeout(500)
            shoot(page, folder / f"{picture}.png", start, height)
            page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
