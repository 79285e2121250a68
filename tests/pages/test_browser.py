"""The pages in a real browser: what they show, that they ask for nothing, keyboard, widths, light and dark, contrast."""

import base64
import hashlib
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import npembed
from npembed import FAMILIES, RULES, cli, position_ids, random_model
from npembed.conformance import Outcome, Status
from npembed.conformance.results import Results
from npembed.corpus import Neighbour
from npembed.pages.article import article_page
from npembed.pages.attention import stage_attention, tower_attention
from npembed.pages.corpus import corpus_page, neighbours_of, principal_components, search_page
from npembed.pages.explain import SAMPLE, default_config, explain
from npembed.pages.pixels import pixels_page
from npembed.pages.report import report_page
from npembed.pages.rules import rules_page
from npembed.pages.steps import Subject
from npembed.steps.positions.differences import compare_two
from npembed.support.pictures import read_image
from tests import chromium
from tests.synthetic import synthetic_picture

PICTURE = Image.fromarray(synthetic_picture(1000, 700))
SMALL = Image.fromarray(synthetic_picture(60, 40))
HOSTILE = '</script><img src=x onerror="window.hacked = 1">\'&{{ 7*7 }}\u2028'
AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
PANORAMA, ICON = (Image.fromarray(synthetic_picture(*size)) for size in ((3000, 300), (48, 48)))
WITH_WEIGHTS = [
    ("weights", "minicpm-v-2.6", "tokens"),
    ("hidden", "minicpm-v-2.6", "hidden"),
    ("perceiver", "idefics2", "tokens"),
    ("merged", "minicpm-v-4.6", "tokens"),
    ("pooled", "siglip2-naflex", "pooled"),
    ("averaged", "phi-4-multimodal", "tokens"),
]
"""A page's name, the family and the last stage that it shows."""
KEYS = list({(family.slices, family.position_ids): key for key, family in reversed(FAMILIES.items())}.values())[::-1]
"""A family for each way to cut a picture and to number patches."""
WIDTHS = (390, 768, 1440)

if chromium.PATH is None:
    pytest.skip("no chromium; apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright; pip install 'npembed[dev]'")


OUTCOMES = [
    Outcome("a / position_ids", Status.FAIL, "element [0, 1] is 3", came="[0, 3]", expected="[0, 2]", cause="rule `exact`"),
    Outcome("a / embeddings", Status.FAIL, "far", worst=9.0),
    Outcome("b / position_ids", Status.FAIL, "element [0, 1] is 4", cause="rule `exact`"),
    Outcome("b / text", Status.ABSENT, "not provided"),
    *(Outcome(f"a-rather-long-name-{i} / text", Status.PASS, "equal") for i in range(30)),
]
FUNCTIONS = [
    Outcome("bucketize", Status.PASS, "109 inputs"),
    Outcome("encode", Status.FAIL, f"raised {HOSTILE}", call=f"encode({HOSTILE})", cause=HOSTILE, diff=HOSTILE),
    Outcome(
        "embed",
        Status.FAIL,
        "far",
        results=Results(np.ones((1, 6, 2)), np.zeros((1, 6, 2)), np.full((1, 6, 2), 0.25), np.array([[2, 3]])),
    ),
    Outcome(HOSTILE, Status.ABSENT, "not provided"),
]
RESULTS = {"a / position_ids": Results(np.array([[0, 3, 7]]), np.array([[0, 2, 7]]), None, np.array([[1, 3]]))}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    """One browser for all the tests here, with a folder of its own."""
    with chromium.browser(tmp_path_factory.mktemp("user")) as opened:
        yield opened


VECTORS = np.random.default_rng(3).standard_normal((8, 5)).astype(np.float32)


def corpus_in(folder: Path) -> Any:
    """Eight pictures in that folder, as `npembed.corpus.open` gives a corpus."""
    for number in range(8):
        Image.new("RGB", (40, 30), (30 * number, 90, 200)).save(folder / f"{number}.png")
    files = [folder / f"{number}.png" for number in range(8)]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    rows = [{"path": str(a), "frame": 0, "status": "ok", "sha256": b} for a, b in zip(files, digests, strict=True)]
    rows.append({"path": "broken.png", "frame": 0, "status": "failed", "error": "it cannot be read"})
    return SimpleNamespace(
        index=SimpleNamespace(to_pylist=lambda: rows),
        manifest={"settings": {"until": "pooled", "vector": "", "upright": False}},
        shown="Photos",
        has_vectors=True,
        vectors=lambda: iter([("part-00000", VECTORS)]),
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Every page, made once."""
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "rules": rules_page(up_to=200),
        "pixels": pixels_page(PICTURE, "a.png"),
        "article": article_page(),
        "explain": explain(Subject(picture=PICTURE, name="a.png", config=npembed.MINICPM_V_2_6)),
    }
    sample = read_image(SAMPLE).picture
    for key in KEYS:
        texts[f"explain {key}"] = explain(Subject(picture=sample, config=default_config(key)))
    for name, key, until in WITH_WEIGHTS:
        model = random_model(FAMILIES[key].small(), until=until)
        texts[name] = explain(Subject(picture=SMALL, config=model.config, model=model, origin="w", until=until))
    texts["hostile"] = explain(Subject(picture=SMALL, name=HOSTILE, config=npembed.MINICPM_V_2_6))
    texts["panorama"] = explain(Subject(picture=PANORAMA, name="wide.jpg", config=npembed.MINICPM_V_2_6))
    texts["icon"] = explain(Subject(picture=ICON, name="icon.png", config=npembed.MINICPM_V_2_6))
    texts["check"] = report_page(FUNCTIONS, f"the port departs {HOSTILE}", HOSTILE)
    texts["corpus"] = corpus_page(corpus_in(folder))
    texts["search"] = search_page([Neighbour(str(folder / f"{n}.png"), 0, n, 1 - n / 8) for n in (1, 2)], "gone.png", "Alike")
    texts["report"] = report_page(OUTCOMES, "the port departs", "port", RESULTS)
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


EACH = ["explain", "weights", "merged", "rules", "pixels", "article", "report", "check", "corpus", "search"]
"""The pages that are looked at in every way."""


class Watched:
    """One tab of the browser, which notes each error that a page says and whatever it asks for."""

    def __init__(self, browser: Any) -> None:
        self.page, self.own, self.found = browser.new_page(), "", list[str]()
        self.page.set_default_timeout(5000)
        self.page.on("console", lambda message: self.found.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.found.append(f"error: {error}"))
        self.page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not _own(url, self.own):
            self.found.append(url[:80])

    def go(self, path: Path, width: int, scheme: str) -> Any:
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        if self.own != path.as_uri():
            self.own = path.as_uri()
            self.page.goto(self.own)
        return self.page


@pytest.fixture(scope="module")
def tab(browser) -> Watched:
    """The tab in which tests use a page; each test opens it anew."""
    return Watched(browser)


@pytest.fixture
def opened(tab, pages) -> Iterator[Any]:
    """Opens a page anew, and fails if it says an error or asks for anything."""

    def open_page(name: str, width: int = 1440, scheme: str = "light") -> Any:
        tab.own = ""
        return tab.go(pages[name], width, scheme)

    yield open_page
    assert tab.found == []


@pytest.fixture(scope="module")
def tabs(browser) -> dict[str, Watched]:
    """The pages that tests only look at, each in a tab of its own."""
    return {}


@pytest.fixture
def shown(browser, tabs, pages) -> Any:
    """A page that is only looked at, at some width: it is opened once for all tests."""

    def show(name: str, width: int = 1440, scheme: str = "light") -> Any:
        tabs.setdefault(name, Watched(browser))
        return tabs[name].go(pages[name], width, scheme)

    yield show
    assert [found for each in tabs.values() for found in each.found] == []


def _own(url: str, own: str) -> bool:
    return url.partition("#")[0] == own or url.startswith("data:image/")


def point_at(page: Any, selector: str, across: float, down: float) -> None:
    """The pointer over that share of the element."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    page.evaluate("selector => document.querySelector(selector).scrollIntoView({block: 'start'})", selector)
    box = element.bounding_box()
    page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])


# explain


def row_of(page: Any) -> list[str]:
    """The numbers of the lit patch, as the page shows them."""
    playwright.expect(page.locator("#row")).not_to_be_empty()
    return [number for line in page.locator("#row").inner_text().splitlines() if line[:1] != "#" for number in line.split()]


def row_by_the_functions(page: Any, slices: Any) -> list[str]:
    """The same, from the strip."""
    number, patch = page.evaluate("DATA.first")
    numbers = npembed.steps.patches.strip_to_patches(slices.strips[number])[patch]
    return [re.sub(r"\.0$", "", str(value)) for value in numbers]


@pytest.mark.parametrize("key", KEYS)
def test_the_page_of_each_way_to_cut_a_picture_opens(key, opened):
    page, config = opened(f"explain {key}"), default_config(key)
    slices = config.family.cut(read_image(SAMPLE).picture, config)
    if page.evaluate("DATA.slices[DATA.first[0]].levels === null"):
        assert "are left out" in page.locator("#row").inner_text()
    else:
        assert row_of(page) == row_by_the_functions(page, slices)
    assert sizes_of(page) == slices.tgt_sizes.tolist()
    assert "patch" in page.locator("#readout").inner_text()


@pytest.mark.parametrize(("name", "picture"), [("panorama", PANORAMA), ("icon", ICON)])
def test_a_panorama_and_an_icon_have_a_page(name, picture, opened):
    page, config = opened(name, 390), npembed.MINICPM_V_2_6
    slices = config.family.cut(picture, config)
    assert len(sizes_of(page)) == len(slices.strips) == (1 if name == "icon" else 7)
    assert row_of(page) == row_by_the_functions(page, slices)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# Photos that their EXIF turns


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict[Any, tuple[Path, Path]]:
    """For each turn that EXIF knows, a photo and its page, as the command makes it; "as it lies" without --upright."""
    folder, found = tmp_path_factory.mktemp("photos"), {}
    for turn in (*range(1, 9), "as it lies"):
        photo, exif = folder / f"{turn}.jpg", Image.Exif()
        exif[0x0112], exif[0x010E] = (turn if turn != "as it lies" else 6), HOSTILE
        Image.fromarray(synthetic_picture(90, 40)).save(photo, exif=exif)
        page = photo.with_suffix(".html")
        upright = ["--upright"] if turn != "as it lies" else []
        assert cli.run(["explain", str(photo), *upright, "-o", str(page)]) == 0
        found[turn] = photo, page
    return found


@pytest.mark.parametrize("turn", [*range(1, 9), "as it lies"])
def test_a_photo_that_its_exif_turns_is_shown_upright(turn, photos, tab):
    photo, path = photos[turn]
    lying = Image.open(photo)
    picture = lying if turn == "as it lies" else ImageOps.exif_transpose(lying)
    config = npembed.MINICPM_V_2_6
    slices = config.family.cut(picture.convert("RGB"), config)
    page = tab.go(path, 390, "light")
    assert page.evaluate("DATA.picture.size") == list(picture.size)
    assert (picture.size == (40, 90)) == (turn in (5, 6, 7, 8))
    assert sizes_of(page) == slices.tgt_sizes.tolist()
    assert row_of(page) == row_by_the_functions(page, slices)
    small = np.asarray(picture_at(page, "#overview image", picture.size)).astype(int)
    assert np.abs(small - np.asarray(picture.convert("RGB"))).mean() < 12  # a JPEG of a JPEG
    words = page.locator("main").inner_text()
    assert ("Its EXIF orientation was applied" in words) == (turn in range(2, 9))
    assert ("Its EXIF orientation was ignored" in words) == (turn == "as it lies")
    assert page.evaluate("window.hacked") is None
    assert "onerror" not in page.content()
    assert tab.found == []


def picture_at(page: Any, selector: str, size: tuple[int, int]) -> Image.Image:
    """The picture that an element of the page holds."""
    href = page.locator(selector).get_attribute("href")
    picture = Image.open(io.BytesIO(base64.b64decode(href.partition(",")[2])))
    assert picture.size == size
    return picture


# With weights


def bytes_of(page: Any, figure: str) -> np.ndarray:
    """uint8 (h, w, 3): the colours of a map."""
    found = page.evaluate(
        """id => {
            const element = document.querySelector(`[data-map="${id}"] canvas`);
            const pixels = element.getContext("2d").getImageData(0, 0, element.width, element.height).data;
            return [element.height, element.width, [...pixels]];
        }""",
        figure,
    )
    return np.array(found[2], dtype=np.uint8).reshape(found[0], found[1], 4)[:, :, :3]


def brightest(page: Any, figure: str) -> list[int]:
    """The place that is lightest."""
    light = bytes_of(page, figure).astype(int).sum(axis=2)
    return list(np.unravel_index(light.argmax(), light.shape))


@pytest.mark.parametrize(("name", "key", "until"), WITH_WEIGHTS)
def test_the_lit_patchs_attention_is_the_towers(name, key, until, opened):
    page = opened(name)
    model = random_model(FAMILIES[key].small(), until=until)
    slices = model.config.family.cut(SMALL, model.config)
    embeddings = npembed.embed(slices.strips, slices.tgt_sizes, model)
    number, (h, w) = len(slices.tgt_sizes) - 1, slices.tgt_sizes[-1].tolist()
    page.select_option("#choose-slice", str(number))
    point_at(page, "#slice", 1.5 / w, 0.5 / h)
    row, tower = page.evaluate("[DATA.seen.tower.stands[state.slice][1], DATA.seen.tower.from[state.slice]]")
    _, weights = tower_attention(embeddings, slices.tgt_sizes, model, [[0]] * number + [[tower[row]]])
    words = page.locator('[data-map="tower"] figcaption').inner_text()
    most = float(re.search(r"to ([\d.e-]+) \(light\)", words)[1])
    assert most == pytest.approx(weights[-1].max(), rel=1e-6)
    size = page.evaluate("DATA.seen.tower.size[state.slice]")
    assert np.divmod(weights[-1][0].argmax(), size[1]) == tuple(brightest(page, "tower"))
    assert ("The page holds" in words) == (tower[row] not in (0, 1))
    assert name != "merged" or "The window of the lit patch" in words


@pytest.mark.parametrize(("name", "key"), [("weights", "minicpm-v-2.6"), ("perceiver", "idefics2")])
def test_a_token_shows_the_patches_that_it_attends_to(name, key, opened):
    page = opened(name)
    model = random_model(FAMILIES[key].small(), until="tokens")
    slices = model.config.family.cut(SMALL, model.config)
    hidden = npembed.run(slices.strips, slices.tgt_sizes, model, "hidden")["hidden"]
    weights = stage_attention("tokens", hidden, slices.tgt_sizes, model)
    page.select_option("#choose-slice", "0")
    page.select_option("#token", "2")
    words = page.locator('[data-map="token"] figcaption').inner_text()
    assert words.startswith(f"Token 2 of {len(weights[0])}. From 0 (dark) to ")
    assert ("the rest goes to what is no patch" in words) == (name == "perceiver")
    assert np.divmod(weights[0][2].argmax(), slices.tgt_sizes[0, 1]) == tuple(brightest(page, "token"))


@pytest.mark.parametrize(("name", "key"), [("merged", "minicpm-v-4.6"), ("averaged", "phi-4-multimodal")])
def test_a_patch_shows_the_token_that_is_made_of_it(name, key, opened):
    page = opened(name)
    model_config = FAMILIES[key].small()
    sizes = model_config.family.cut(SMALL, model_config).tgt_sizes
    gathered = model_config.family.stage("tokens", "test").gathers(sizes, model_config)[0]
    (h, w), patch = sizes[0].tolist(), int(sizes[0, 1]) + 3
    page.select_option("#choose-slice", "0")
    point_at(page, "#slice", 3.5 / w, 1.5 / h)
    (token,) = np.argwhere((gathered == patch).any(axis=1)).ravel()
    words = page.locator('[data-map="token"] figcaption').inner_text()
    assert words.startswith(f"Token {token} of the {len(gathered)} of this slice is made of ")
    assert words.endswith(f" patches: {', '.join(map(str, gathered[token]))}.")
    light = bytes_of(page, "token").astype(int).sum(axis=2).ravel()
    assert np.flatnonzero(light == light.max()).tolist() == sorted(gathered[token].tolist())


@pytest.mark.parametrize("name", ["hostile", "check"])
def test_text_from_outside_stays_text(name, opened):
    page = opened(name)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    assert "{{ 7*7 }}" in page.locator("h1").inner_text()
    assert "onerror" in page.locator("h1").inner_text()


def sizes_of(page: Any) -> list[list[int]]:
    return page.evaluate("DATA.slices.map(slice => slice.size)")


def test_pointing_at_a_patch_shows_its_id_and_place(opened):
    page = opened("explain")
    sizes = sizes_of(page)
    h, w = sizes[1]
    page.select_option("#choose-slice", "1")
    point_at(page, "#slice", 5.5 / w, 3.5 / h)
    words = page.locator("#readout").inner_text()
    assert words.startswith("Slice 1 (crop in column 0, row 0) · ")
    assert f"patch {3 * w + 5} · row 3, column 5 · " in words
    assert words.endswith(f"id {position_ids(sizes)[1, 3 * w + 5]}")
    box = page.evaluate("DATA.slices[1].box")
    assert f"pixels ({_pixels(5, w, box[0], box[2])}, {_pixels(3, h, box[1], box[3])}) to" in words


def _pixels(place: int, count: int, start: float, end: float) -> str:
    return f"{round(start + (end - start) * place / count, 2):g}"


def test_a_lit_patch_is_lit_in_every_figure(opened):
    page = opened("explain")
    h, w = sizes_of(page)[1]
    point_at(page, "#slice", 7.5 / w, 2.5 / h)
    for lit in ("#slice .lit", "#ids-over .lit"):
        assert [page.locator(lit).get_attribute(name) for name in "xy"] == ["7", "2"]
    assert f"Patch {2 * w + 7} of {h * w}" in page.locator("#strip-words").inner_text()
    assert f"Patch 2 of {h}" in page.locator("#rows-words").inner_text()
    assert f"Patch 7 of {w}" in page.locator("#columns-words").inner_text()
    x, y = (float(page.locator("#overview .lit").get_attribute(name)) for name in "xy")
    left, top, right, bottom = page.evaluate("DATA.slices[1].box")
    assert (x, y) == pytest.approx((left + (right - left) * 7 / w, top + (bottom - top) * 2 / h))


def test_the_row_of_numbers_is_the_patchs(opened):
    page = opened("explain")
    assert row_of(page) == row_by_the_functions(page, npembed.MINICPM_V_2_6.family.cut(PICTURE, npembed.MINICPM_V_2_6))


@pytest.mark.parametrize("rule", ["exact", "shrunk", "step-bfloat16", "candle-left"])
def test_another_rule_lights_exactly_the_patches_that_differ(rule, opened):
    page = opened("explain")
    sizes = sizes_of(page)
    h, w = sizes[1]
    page.select_option("#rule", rule)
    rows, columns = (compare_two("arange", rule, n)["differ"] for n in (h, w))
    expected = [r * w + c for r in range(h) for c in range(w) if r in rows or c in columns]
    for figure in ("#slice", "#ids-over"):
        lit = page.locator(f"{figure} .changed").evaluate_all("all => all.map(each => Number(each.dataset.patch))")
        assert lit == expected
    assert f"the ids of {len(expected):,} of this slice's {h * w:,} patches change" in page.locator("#count").inner_text()
    page.select_option("#rule", "")
    assert page.locator(".changed").count() == 0


def test_a_ruler_shows_coordinates_and_boundaries(opened):
    page = opened("explain")
    h, _ = sizes_of(page)[1]
    point_at(page, "#rows", 0.001 + 8 / 1016, 0.28)
    assert page.locator("#rows-words").inner_text().startswith(f"Patch 0 of {h}. arange: coordinate 0, bucket 0.")
    point_at(page, "#rows", (8 + 1000 * 0.5 / 70) / 1016, 0.8)
    edge = str(npembed.boundaries(70)[0])  # as NumPy writes a float32
    assert f"bucket 0 of 70, from the beginning to {edge}: patch" in page.locator("#rows-words").inner_text()


def test_the_arrow_keys_move_the_patch(opened):
    page = opened("explain")
    _, w = sizes_of(page)[1]
    page.locator("#slice").focus()
    for key, place in [
        ("ArrowRight", (3, 6)),
        ("ArrowDown", (4, 6)),
        ("ArrowLeft", (4, 5)),
        ("ArrowUp", (3, 5)),
        ("End", (3, w - 1)),
        ("Home", (3, 0)),
    ]:
        page.keyboard.press(key)
        assert f"row {place[0]}, column {place[1]} " in page.locator("#readout").inner_text()
    page.keyboard.press("PageUp")
    assert page.locator("#readout").inner_text().startswith("Slice 0 (the whole picture)")
    page.keyboard.press("ArrowUp")
    assert "row 0, column 0" in page.locator("#readout").inner_text()
    page.locator("#columns").focus()
    page.keyboard.press("ArrowRight")
    assert "row 0, column 1" in page.locator("#readout").inner_text()


def test_a_tap_lights_a_patch(opened):
    page = opened("explain", 390)
    h, w = sizes_of(page)[1]
    page.evaluate("document.querySelector('#slice').scrollIntoView({block: 'start'})")
    box = page.locator("#slice").bounding_box()
    page.locator("#slice").dispatch_event(
        "pointerdown",
        {"pointerType": "touch", "clientX": box["x"] + 2.5 / w * box["width"], "clientY": box["y"] + 1.5 / h * box["height"]},
    )
    assert "row 1, column 2 " in page.locator("#readout").inner_text()


# rules


def test_a_bar_says_how_many_patches_differ_and_a_click_compares_there(opened):
    page = opened("rules")
    bar = '[data-rule="exact"] canvas'
    point_at(page, bar, 48.5 / 70, 0.5)
    count = len(compare_two("arange", "exact", 49)["differ"])
    assert page.locator("#cell").inner_text() == f"exact, n = 49: {count} of 49 patches differ from arange."
    page.locator(bar).click(position={"x": 48.5 / 70 * page.locator(bar).bounding_box()["width"], "y": 5})
    differ = ", ".join(map(str, compare_two("arange", "exact", 49)["differ"]))
    assert page.locator("#differ").inner_text() == f"{count} of 49 patches differ: {differ}."
    assert 'compare_two("arange", "exact", 49, 70)' in page.locator("#line").inner_text()


@pytest.mark.parametrize(
    ("one", "two", "n"), [("shrunk", "candle-left", 70), ("candle-right", "arange", 107), ("exact", "mlx", 1)]
)
def test_any_two_rules_are_compared_as_compare_two_does(one, two, n, opened):
    page = opened("rules")
    page.select_option("#one", one)
    page.select_option("#two", two)
    page.fill("#n", str(n))
    page.keyboard.press("Enter")
    differ = compare_two(one, two, n)["differ"]
    words = (
        f"{len(differ)} of {n} patches differ: {', '.join(map(str, differ))}." if differ else f"No patch differs at n = {n}."
    )
    assert page.locator("#differ").inner_text() == words


def test_a_size_whose_rulers_the_page_does_not_hold_is_said(opened):
    page = opened("rules")
    page.fill("#n", "150")
    page.keyboard.press("Enter")
    count = len(compare_two("arange", "exact", 150)["differ"])
    words = page.locator("#differ").inner_text()
    assert words.startswith("This page holds the rulers of n up to 128. exact, n = 150: ")
    assert (f"{count} of 150 patches differ" if count else "no patch differs") in words


@pytest.mark.parametrize(
    ("software", "version", "rules"),
    [
        ("transformers", "4.56.1", ["arange", "shrunk", "shrunk-bfloat16", "shrunk-float16"]),
        ("transformers", "4.54", ["arange"]),
        ("transformers", "5.20", ["step", "step-bfloat16", "step-float16", "quotient"]),
        ("the checkpoints' own code", "", ["arange", "arange-lanes4"]),
        ("mllm", "", ["mllm"]),
        ("mistral.rs", "0.5.0", ["candle-left"]),
        ("llama.cpp", "9.9", []),
    ],
)
def test_the_filters_leave_the_rules_of_a_release(software, version, rules, opened):
    page = opened("rules")
    page.select_option("#software", software)
    page.fill("#version", version)
    shown = page.evaluate("[...document.querySelectorAll('.rule:not([hidden])')].map(each => each.dataset.rule)")
    assert shown == rules
    assert page.locator("#none").is_visible() == (not shown)


def test_the_keyboard_goes_through_the_sizes(opened):
    page = opened("rules")
    page.locator('[data-rule="step"] canvas').focus()
    page.keyboard.press("Home")
    assert page.locator("#cell").inner_text().startswith("step, n = 1: no patch differs")
    page.keyboard.press("ArrowRight")
    assert page.locator("#cell").inner_text().startswith("step, n = 2:")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.input_value("#n") == "70"
    about = page.locator('[data-rule="step"] .about')
    assert not about.is_visible()
    page.locator('[data-rule="step"] button').click()
    assert RULES["step"].arithmetic in about.inner_text()


# report


def test_the_report_draws_where_arrays_differ(opened):
    page = opened("report")
    assert page.locator(".panels h4").all_inner_texts() == [
        f"{each}, slice 0" for each in ("came", "expected", "where they differ")
    ]
    canvas = page.locator(".panels canvas").nth(2)
    canvas.scroll_into_view_if_needed()
    canvas.hover(position={"x": canvas.bounding_box()["width"] / 2, "y": 5})
    assert page.locator(".panels figcaption").nth(2).inner_text() == "Row 0, column 1: 1."


def test_a_cell_of_the_matrix_leads_to_its_failure(opened):
    page = opened("report")
    assert not page.get_by_text("element [0, 1] is 4").is_visible()
    page.get_by_label("b / position_ids departs").click()
    assert page.get_by_text("element [0, 1] is 4").is_visible()


# corpus


def test_a_picture_that_is_chosen_shows_what_is_like_it(opened):
    page = opened("corpus")
    nearest, cosines = neighbours_of(VECTORS, 6)
    page.locator("#all button").nth(5).click()
    assert page.locator("#chosen-name").inner_text().endswith("5.png")
    shown = page.locator("#alike button").all_inner_texts()[1:]
    assert [words.split()[0] for words in shown] == [f"{cosine:.4f}" for cosine in cosines[5]]
    assert [words[-5:] for words in shown] == [f"{number}.png" for number in nearest[5]]
    near = page.locator("#map .near").evaluate_all("all => all.map(each => Number(each.dataset.picture))")
    assert near == sorted(nearest[5].tolist())
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#chosen-name").inner_text().endswith("6.png")


def test_the_map_has_a_dot_for_each_picture_at_its_place(opened):
    page = opened("corpus")
    places = np.array(
        page.locator("#map circle").evaluate_all("all => all.map(each => [each.cx, each.cy].map(v => v.baseVal.value))")
    )
    expected, _ = principal_components(VECTORS)
    for axis, sign in ((0, 1), (1, -1)):
        assert np.corrcoef(places[:, axis], sign * expected[:, axis])[0, 1] > 0.999999


# Every page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EACH)
def test_nothing_overflows(name, width, shown):
    page = shown(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        """width => [...document.querySelectorAll('main *, header *, .bar *')]
            .filter(each => !each.closest('svg, .scroll, .numbers') && each.getBoundingClientRect().right > width + 1)
            .map(each => each.outerHTML.slice(0, 80))""",
        width,
    )
    assert beyond == []


CONTRAST = """
() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const straight = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * straight(r) + 0.7152 * straight(g) + 0.0722 * straight(b);
  const behind = (element) => { for (let each = element; each; each = each.parentElement) {
    const found = parse(getComputedStyle(each).backgroundColor);
    if (found[3] === 1) return found; } return [255, 255, 255, 1]; };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest("svg:not(.plot), script, style, noscript") || !element.checkVisibility()) continue;
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    const style = getComputedStyle(element), front = light(parse(style.color)), back = light(behind(element));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)}: ${element.outerHTML.slice(0, 100)}`);
  }
  return low;
}
"""
"""Text whose contrast with what is behind it is below 4.5, which is WCAG 2's AA for text of any size."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", EACH)
def test_text_stands_out_in_light_and_dark(name, scheme, shown):
    page = shown(name, scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 384) == (scheme == "light")
    assert page.evaluate(CONTRAST) == []


def test_text_that_does_not_stand_out_is_seen(opened):
    page = opened(EACH[0])
    page.evaluate("document.querySelector('h1').style.color = '#999'")
    (found,) = page.evaluate(CONTRAST)
    assert "<h1" in found


NO_AXE = pytest.mark.skipif(
    not AXE.exists(), reason="no axe-core; npm install --no-save axe-core in the checkout, as .ci/run does"
)
AXE_RUN = """
axe.run({ resultTypes: ["violations"] })
    .then(({ violations }) => violations.map(each => [each.id, each.impact, each.nodes.map(node => node.html)]))
"""


def violations(page: Any) -> list[list[Any]]:
    """What axe finds on a page: rule, impact and elements."""
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found: list[list[Any]] = page.evaluate(AXE_RUN)
    return found


@NO_AXE
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", EACH)
def test_axe_finds_nothing(name, scheme, shown):
    assert violations(shown(name, scheme=scheme)) == []


@NO_AXE
def test_axe_sees_what_is_wrong(opened):
    page = opened("search")
    page.evaluate("document.querySelector('h1').style.color = '#aaa'; document.documentElement.lang = ''")
    assert {rule for rule, impact, _ in violations(page) if impact == "serious"} == {"color-contrast", "html-has-lang"}


@pytest.mark.parametrize("name", EACH)
def test_the_tab_key_visits_everything_that_can_be_used_in_order(name, opened):
    page = opened(name)
    wanted = page.evaluate(
        """() => [...document.querySelectorAll('a[href], button, select, input, summary, [tabindex="0"]')]
            .filter(each => each.checkVisibility() && !each.disabled)
            .filter(each => !each.closest('details:not([open])') || each.matches('summary'))
            .map((each, i) => (each.dataset.tab = i))"""
    )
    visited = []
    for _ in wanted:
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.dataset.tab"))
    assert visited == list(map(str, wanted))
    assert page.evaluate("[...document.querySelectorAll('[tabindex]')].every(each => each.tabIndex <= 0)")


@pytest.mark.parametrize("name", EACH)
def test_everything_that_can_be_used_has_a_name(name, shown):
    page = shown(name)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, img, [tabindex="0"], [role=img], svg')]
            .filter(each => !each.ariaHidden)
            .filter(each => !['aria-label', 'aria-labelledby', 'alt'].some(name => each.hasAttribute(name)))
            .filter(each => !each.labels?.length && !each.textContent.trim())
            .map(each => each.outerHTML.slice(0, 100))"""
    )
    assert nameless == []
    headings = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(each => Number(each.tagName[1]))")
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
