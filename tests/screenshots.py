"""Makes the pictures of pages that the READMEs show: `python -m tests.screenshots [FOLDER]`."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import npembed
from npembed import position_ids
from npembed.conformance import Outcome, Status, compare
from npembed.conformance.report import counts
from npembed.conformance.results import Results
from npembed.pages.explain import SAMPLE, explain
from npembed.pages.report import report_page
from npembed.pages.rules import rules_page
from npembed.pages.steps import Subject
from npembed.support.pictures import read_image
from tests.chromium import browser

FOLDER = Path(npembed.__file__).parent / "pages" / "images"
SHOTS = {
    "explain": ("explain", 900, 0, 780),
    "patches": ("explain", 900, "#patches-title", 820),
    "rules": ("rules", 900, 0, 900),
    "report": ("report", 900, 0, 860),
}
"""Picture -> page, width, where it begins (pixels or an element), height."""

LARGEST = 300_000
"""Bytes of a picture; a larger one gets fewer colours."""


def pages() -> dict[str, str]:
    """The pages that are shown."""
    subject = Subject(picture=read_image(SAMPLE).picture, config=npembed.MINICPM_V_2_6, compare="shrunk")
    return {"explain": explain(subject), "rules": rules_page(), "report": report()}


def report() -> str:
    """Of a port that numbers patches by `exact`, on sizes where that differs."""
    sizes = np.array([[25, 50], [20, 25]])
    ids, others = position_ids(sizes), position_ids(sizes, rule="exact")
    stages = ("sliced_strips", "pixel_values", "patch_attn_mask", "position_ids", "embeddings", "hidden", "tokens", "text")
    cases = ("one-patch", "boundaries", "full-side", "ragged", "seed")
    wrong = {f"boundaries / {stage}" for stage in ("position_ids", "embeddings", "hidden", "tokens")}
    outcomes = [
        Outcome(name, Status.FAIL if name in wrong else Status.PASS, "other numbers" if name in wrong else "equal")
        for name in (f"{case} / {stage}" for case in cases for stage in stages)
    ]
    (first,) = (number for number, outcome in enumerate(outcomes) if outcome.name == "boundaries / position_ids")
    departure = compare(others, ids)
    assert departure is not None
    cause = "matches rule `exact`, not `arange`"
    outcomes[first] = Outcome(outcomes[first].name, Status.FAIL, departure.what, cause=cause)
    verdict = f"my-port departs from the reference: {counts(outcomes)}. The first stage that departs is position_ids."
    return report_page(outcomes, verdict, "my-port", {outcomes[first].name: Results(others, ids, None, sizes)})


def shoot(page: Any, target: Path, start: int | str, height: int) -> None:
    """One picture of the page from there on."""
    if isinstance(start, str):
        page.evaluate("light(0, 18 * 37 + 13)")  # where the sail ends
        page.add_style_tag(content=".bar { display: none }")
        start = page.locator(start).evaluate("each => each.getBoundingClientRect().top + scrollY - 12")
        page.wait_for_timeout(500)
    clip = {"x": 0, "y": start, "width": page.viewport_size["width"], "height": height}
    page.screenshot(path=target, full_page=True, clip=clip)
    if target.stat().st_size > LARGEST:
        Image.open(target).convert("RGB").quantize(256).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def main(folder: Path) -> None:
    """Every picture, into that folder."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as own, tempfile.TemporaryDirectory() as user, browser(Path(user)) as context:
        for name, text in pages().items():
            (Path(own) / f"{name}.html").write_text(text, encoding="utf-8")
        for picture, (name, width, start, height) in SHOTS.items():
            page = context.new_page()
            page.set_viewport_size({"width": width, "height": height})
            page.goto((Path(own) / f"{name}.html").as_uri())
            page.wait_for_timeout(500)
            shoot(page, folder / f"{picture}.png", start, height)
            page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
