"""Where the pixel rules differ on a picture: the figures, the table, the command and its page."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npembed.pages.explain import SAMPLE
from npembed.pages.pixels import pixels_page
from npembed.steps.pixels import PIXEL_RULES, resize_bytes
from npembed.steps.pixels.differences import compare_pixel_rules, compared_size, table_rows
from npembed.steps.pixels.resize import FILTERS
from tests.command_line import assert_refused, done_well, npembed
from tests.page_reading import Page
from tests.synthetic import synthetic_picture

PHOTO = Image.fromarray(synthetic_picture(600, 400))


def test_the_figures_are_those_of_the_pictures() -> None:
    rows = compare_pixel_rules(PHOTO)
    assert [(row.rule.name, row.resample) for row in rows] == [(rule, name) for name in FILTERS for rule in PIXEL_RULES]
    size = compared_size(PHOTO.size)
    for row in rows:
        pillow = np.asarray(PHOTO.resize(size, Image.Resampling[row.resample])).astype(int)
        filter_ = "BICUBIC" if (row.rule.name, row.resample) == ("torchvision-bicubic", "LANCZOS") else row.resample
        expected = pillow if row.rule.name == "pillow" else resize_bytes(np.asarray(PHOTO), size, filter_).astype(int)
        gaps = np.abs(expected - pillow)
        assert np.array_equal(row.pixels, expected)
        assert (row.share, row.most) == ((gaps > 0).mean(), gaps.max())
        assert gaps[row.place].max() == row.most
        assert (row.normalised > 0.4) == (row.rule.name != "pillow"), "half of the levels differ in the last bit"


def test_the_command_prints_what_was_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    PHOTO.save(tmp_path / "a.png")
    rows = compare_pixel_rules(PHOTO)
    out = done_well(npembed("rules", "--pixels", tmp_path / "a.png"))
    for cells in table_rows(rows):
        assert any(all(cell in line for cell in cells) for line in out.splitlines()), cells
    assert all("; ".join(rule.releases) in out for rule in PIXEL_RULES.values())
    found = json.loads(done_well(npembed("rules", "--pixels", tmp_path / "a.png", "--json")))
    assert (found["size"], found["resized"]) == ([600, 400], [448, 299])
    for row in rows:
        figures = found["rules"][row.rule.name]["filters"][row.resample]
        assert figures == {"differing_bytes": row.share, "most_levels": row.most, "differing_numbers": row.normalised}
    markdown = done_well(npembed("rules", "--pixels", tmp_path / "a.png", "--markdown")).splitlines()
    assert markdown[2:] == ["| " + " | ".join(cells) + " |" for cells in table_rows(rows)]


def test_without_a_picture_it_is_the_sample() -> None:
    found = json.loads(done_well(npembed("rules", "--pixels", "--json")))
    with Image.open(SAMPLE) as sample:
        assert found["size"] == list(sample.size)


def test_the_page_shows_each_rule_with_each_filter(tmp_path: Path) -> None:
    page = Page(pixels_page(PHOTO, "</script>photo"))
    assert page.outside() == []
    assert "</script>photo" not in page.text
    pictures = [tag for tag, _ in page.tags if tag == "img"]
    assert len(pictures) == 1 + 2 * len(FILTERS) * len(PIXEL_RULES)
    assert all(rule.arithmetic in page.words for rule in PIXEL_RULES.values())
    done_well(npembed("rules", "--pixels", "--html", tmp_path / "rules.html"))
    assert Page((tmp_path / "rules.html").read_text()).outside() == []


def test_a_thin_picture_and_one_of_a_single_pixel_are_shown() -> None:
    for size in ((1, 1), (1, 700), (900, 2)):
        assert Page(pixels_page(Image.new("RGB", size, (9, 90, 200)), "one")).outside() == []


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "a.png")
    assert_refused(npembed("rules", tmp_path / "a.png"), "a picture is for --pixels$")
    assert_refused(npembed("rules", "--pixels", "--compare", "arange", "exact", "--n", 5), "--pixels excludes --compare")
    assert_refused(npembed("rules", "--pixels", "--html", tmp_path / "x.html", "--json"), "--html excludes --json")
    assert_refused(npembed("rules", "--pixels", tmp_path / "missing.png"), "is missing$")
    assert_refused(npembed("rules", "--pixels", tmp_path / "a.png", "--html", tmp_path / "a.png"), "")
