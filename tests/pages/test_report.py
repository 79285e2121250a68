"""The kit's report as a page, without a browser: what became of each stage, and where the arrays differ."""

import base64
import sys
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

import npembed
from npembed import FAMILIES, cli, load_model, position_ids, random_model
from npembed.conformance import IsolatedPort, Outcome, Status, check_function, check_outputs, compare
from npembed.conformance.results import MAX_NUMBERS, Results, results_of
from npembed.pages.report import depends_on, error_units, golden_results, kinds_of, panels, report_page
from npembed.steps.patches import picture_to_strip
from npembed.steps.positions.differences import compare_two
from npembed.support.output_files import load_tensors, save_tensors
from tests.page_reading import Page

HOSTILE = "<script>alert(1)</script>&{{ 7*7 }}"
GOLDEN = [
    Outcome("a / sliced_strips", Status.PASS, "equal"),
    Outcome("a / position_ids", Status.FAIL, f"element [0, 1] is {HOSTILE}", cause="matches rule `exact`"),
    Outcome("a / embeddings", Status.FAIL, "far"),
    Outcome("b / position_ids", Status.FAIL, "element [0, 2] is 3", cause="matches rule `exact`"),
    Outcome("b / pixel_values", Status.FAIL, "near"),
    Outcome("b / text", Status.ABSENT, "not provided"),
]
FUNCTIONS = [
    Outcome("bucketize", Status.PASS, "109 inputs"),
    Outcome("encode", Status.ABSENT, "not provided"),
    Outcome("embed", Status.FAIL, "element [0] is 1", call=f"embed({HOSTILE})", came="1", expected="2", cause="bias"),
]


@pytest.fixture(scope="module")
def page() -> Page:
    results = {
        "a / position_ids": Results(np.array([[0, 1], [2, 3]]), np.array([[0, 2], [2, 3]]), None, np.array([[1, 2]] * 2))
    }
    return Page(report_page(GOLDEN, f"out departs {HOSTILE}", HOSTILE, results))


def test_what_follows_from_what_is_by_the_records_of_stages():
    kinds = kinds_of(GOLDEN)
    assert kinds["a / sliced_strips"] == "pass"
    assert kinds["a / position_ids"] == "fail"
    assert kinds["a / embeddings"] == "follows"
    assert kinds["b / pixel_values"] == "fail", "padding does not depend on ids"
    assert kinds["b / text"] == "not provided"
    assert kinds_of(FUNCTIONS)["embed"] == "fail"
    assert {"sliced_strips", "position_ids", "embeddings", "hidden"} <= depends_on("tokens")
    assert depends_on("sliced_tgt_sizes") == frozenset()


def test_the_matrix_has_a_cell_for_each_outcome(page):
    cells = [attributes["title"] for tag, attributes in page.tags if tag == "td" and "title" in attributes]
    assert sorted(cells) == sorted(f"{outcome.name}: {outcome.summary}" for outcome in GOLDEN)
    links = [attributes["href"].removeprefix("#") for tag, attributes in page.tags if tag == "a" and "aria-label" in attributes]
    targets = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(links) == 4
    assert set(links) <= set(targets)


def test_the_failure_that_follows_from_none_comes_first(page):
    places = [page.words.index(f" {name} ") for name in ("a / position_ids", "b / pixel_values", "a / embeddings")]
    assert page.words.index("The first departure") < places[0]
    reordered = Page(report_page([GOLDEN[1], *GOLDEN[2:]], "v", "s"))
    assert "a / position_ids" in reordered.words.partition("Every stage")[0]
    assert "and in 1 more case" in page.words


@pytest.mark.parametrize("outcomes", [GOLDEN, FUNCTIONS])
def test_text_of_a_port_stays_text(outcomes):
    page = Page(report_page(outcomes, "v", HOSTILE))
    assert page.outside() == []
    assert HOSTILE in page.words
    assert sum(tag == "script" for tag, _ in page.tags) == 2


def test_a_report_of_functions_has_calls_and_no_matrix():
    page = Page(report_page(FUNCTIONS, "v", "s"))
    assert "Every stage" not in page.words
    for words in ("smallest input", f"embed({HOSTILE})", "likely cause bias", "encode not provided", "bucketize 109 inputs"):
        assert words in page.words


def test_a_report_without_failures_says_so():
    page = Page(report_page(GOLDEN[:1], "v", "s"))
    assert "✓ agrees" in page.words
    assert "departure" not in page.words.partition("Every stage")[0]


def values(panel: dict) -> np.ndarray:
    found = np.frombuffer(base64.b64decode(panel["values"]), dtype="<f4")
    return found.reshape(panel["rows"], panel["columns"])


def test_ids_are_drawn_in_the_slices_rows_and_columns():
    sizes = np.array([[2, 3], [1, 2]])
    expected = position_ids(sizes)
    came = expected.copy()
    came[1, 1] += 5
    one, other, where = panels("position_ids", Results(came, expected, None, sizes))
    assert (values(one)[0] == came[1, :2]).all()
    assert (values(other)[0] == expected[1, :2]).all()
    assert values(where).tolist() == [[0, 1]]
    came = expected.copy()
    came[0, 4] = -1
    assert values(panels("position_ids", Results(came, expected, None, np.array([[2, 3], [1, 2]])))[2]).tolist() == [
        [0, 0, 0],
        [0, 1, 0],
    ]


def test_hidden_states_are_drawn_as_errors_in_units_of_the_allowed():
    expected = np.zeros((2, 6, 4))
    came = expected.copy()
    came[1, 2, 3], came[1, 3, 0] = 0.5, np.nan
    (panel,) = panels("hidden", Results(came, expected, np.full(1, 0.25), np.array([[2, 3], [2, 3]])))
    assert values(panel).tolist() == [[0, 0, 2], [2, 0, 0]]
    assert panel["title"] == "the error, in units of the allowed, slice 1"
    assert error_units(np.array([1, 2]), np.array([1, 3]), None).tolist() == [0, 2]


@pytest.mark.parametrize("padded", [True, False])
def test_pixels_are_drawn_as_pictures(padded):
    pictures = [
        np.random.default_rng(i).random((3, 2 * h, 2 * w)).astype(np.float32) for i, (h, w) in enumerate([(2, 3), (1, 2)])
    ]
    strips = [picture_to_strip(picture, 2) for picture in pictures]
    wrong = pictures[1].copy()
    wrong[1, 0, 3] += 0.5
    changed = [strips[0], picture_to_strip(wrong, 2)]

    def lay(each):
        if not padded:
            return np.concatenate(each, axis=-1)
        return np.stack([np.pad(strip, ((0, 0), (0, 0), (0, 12 - strip.shape[-1]))) for strip in each])

    stage = "pixel_values" if padded else "sliced_strips"
    one, other, difference = panels(stage, Results(lay(changed), lay(strips), None, np.array([[2, 3], [1, 2]])))
    assert one["title"] == "came, slice 1"
    np.testing.assert_allclose(values(one), wrong.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(values(other), pictures[1].mean(axis=0), rtol=1e-6)
    assert np.argwhere(values(difference)).tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("came", "expected"),
    [(np.zeros(3), np.zeros(4)), (np.array(1.0), np.array(2.0)), (np.array(["a", "b"]), np.array(["a", "c"]))],
)
def test_what_cannot_be_drawn_is_not(came, expected):
    assert panels("hidden", Results(came, expected)) == []


# The failing call of a Python port


def exact_ids(tgt_sizes, num_patches_per_side=70, rule="exact", mask=None):
    return position_ids(tgt_sizes, num_patches_per_side, "exact", mask)


def brighter(strips):
    return npembed.pad_pixel_values(strips) + np.float32(0.5)


def last_strip_changed(image, config=npembed.MINICPM_V_2_6):
    strips, sizes = npembed.slice_image(image, config)
    changed = strips[-1].copy()
    changed[1, -1, -1] += np.float32(0.25)
    return [*strips[:-1], changed], sizes


def last_place_far(embeddings, tgt_sizes, model):
    hidden = npembed.encode(embeddings, tgt_sizes, model)
    return hidden * np.where(np.arange(hidden.shape[1]) == hidden.shape[1] - 1, 1.5, 1).astype(hidden.dtype)[:, None]


def one_output_off(pixel_values, weight, bias=None):
    result = npembed.patch_conv(pixel_values, weight, bias)
    result[:, 0, -1, -1] += result[0, 0].size > 1
    return result


PORTS = {
    "position_ids": exact_ids,
    "pad_pixel_values": brighter,
    "slice_image": last_strip_changed,
    "encode": last_place_far,
    "patch_conv": one_output_off,
    "bucket_coords": lambda n, side=70, rule="": npembed.bucket_coords(n, side, "exact"),
    "image_placeholder": lambda *args, **kwargs: npembed.image_placeholder(*args, **kwargs).replace("<unk>", "", 1),
}


SMALL = random_model(FAMILIES["minicpm-v-4.6"].small(), until="hidden")
CALLS = {
    "slice_image": (np.zeros((40, 60, 3), dtype=np.uint8), SMALL.config),
    "encode": (np.ones((1, 32, 16), dtype=np.float32), np.array([[4, 8]]), SMALL),
}
"""Calls of functions whose checks take long: only their results are drawn."""


@cache
def failed_call(name):
    """What the check of a wrong port finds, or, for `CALLS`, what it would make of that call."""
    if name not in CALLS:
        return check_function(SimpleNamespace(**{name: PORTS[name]}), name, examples=0)
    function, args = getattr(npembed, name), CALLS[name]
    came, expected = PORTS[name](*args), function(*args)
    allowed, path = (None, (0, len(expected[0]) - 1)) if name == "slice_image" else (0.01, ())
    return Outcome(name, Status.FAIL, "wrong", results=results_of(function, args, came, expected, allowed, path))


@pytest.mark.parametrize("name", [name for name in PORTS if name != "image_placeholder"])
def test_the_failing_call_of_a_port_is_drawn(name):
    outcome = failed_call(name)
    found = outcome.results
    departure = compare(found.came, found.expected, found.allowed)
    assert departure is not None
    (drawn,) = Page(report_page([outcome], "v", "s")).data.values()
    wrong = error_units(found.came, found.expected, found.allowed) > 1
    last = values(drawn[-1])
    if name in ("slice_image", "pad_pixel_values"):
        assert [panel["title"].partition(",")[0] for panel in drawn] == ["came", "expected", "the difference"]
        assert np.count_nonzero(last) == 1
    elif name in ("position_ids", "bucket_coords"):
        assert [panel["title"].partition(",")[0] for panel in drawn] == ["came", "expected", "where they differ"]
        assert np.array_equal(last.ravel() == 1, wrong.ravel())
        assert compare_two("arange", "exact", last.size)["differ"] == np.flatnonzero(last.ravel()).tolist()
    else:
        assert "in units of the allowed" in drawn[0]["title"]
        assert (last > 1).any()
    if name == "encode":
        assert last.shape == (2, 4), "a merging tower's places"
        assert (last > 1).ravel().tolist() == [False] * 7 + [True]
    if name == "slice_image":
        assert drawn[0]["title"] == f"came, slice {len(npembed.slice_image(*CALLS[name])[0]) - 1}"


def test_two_texts_are_shown_by_what_differs():
    assert "- <unk> x 2\n+ <unk>" in failed_call("image_placeholder").diff
    assert Page(report_page([failed_call("image_placeholder")], "v", "s")).data == {}


class Rude:
    """What a port may give: everything one asks of it raises."""

    def __getattr__(self, name):
        raise SystemExit(3)

    def __array__(self, *_, **__):
        raise SystemExit(3)


NO_PICTURE = {
    "rude": Rude,
    "nothing": lambda: None,
    "text": lambda: "text",
    "ragged": lambda: [[1], [2, 3]],
    "words": lambda: np.array(["a"]),
    "another shape": lambda: np.zeros((9, 9)),
}


@pytest.mark.parametrize("came", NO_PICTURE)
def test_what_makes_no_picture_is_left_out(came):
    assert results_of(position_ids, ([[1, 2]],), NO_PICTURE[came](), position_ids([[1, 2]]), None, ()) is None


def test_a_larger_result_than_a_page_holds_is_left_out():
    large = np.zeros(MAX_NUMBERS + 1)
    assert results_of(position_ids, (), large, large, None, ()) is None
    assert results_of(position_ids, (), large[1:], large[1:], None, ()) is not None


def test_the_arrays_come_from_the_ports_own_process(tmp_path, capsys):
    port = tmp_path / "port.py"
    body = "    return npembed.position_ids(sizes, side, 'exact')"
    port.write_text(f"import npembed\n\ndef position_ids(sizes, side=70):\n{body}\n")
    with IsolatedPort(str(port)) as isolated:
        there = check_function(isolated, "position_ids", examples=0)
    np.testing.assert_array_equal(there.results.came, failed_call("position_ids").results.came)
    np.testing.assert_array_equal(there.results.sizes, failed_call("position_ids").results.sizes)
    assert there.results.allowed is None
    assert "results" not in there.as_json()
    target, report = tmp_path / "c.html", tmp_path / "c.json"
    arguments = ["check", str(port), "--examples", "0", "--html", str(target), "--json", str(report)]
    assert cli.run(arguments) == 1
    capsys.readouterr()
    assert [panel["title"] for panel in Page(target.read_text()).data["position_ids"]][2] == "where they differ, slice 0"
    assert "base64" not in report.read_text()


# Golden packs


@pytest.fixture(scope="module")
def checked(pack, tmp_path_factory):
    """A pack, and a port's files whose ids are by another rule."""
    out = tmp_path_factory.mktemp("out")
    for case in pack.manifest["cases"]:
        expected = pack.tensors(case["expected"])
        tensors = {stage["stage"]: expected[stage["stage"]] for stage in case["stages"]}
        if "position_ids" in tensors:
            side = load_model(pack.folder / case["model"]).config.vision.num_patches_per_side
            tensors["position_ids"] = position_ids(pack.tensors(case["input"])["tgt_sizes"], side, "exact")
        save_tensors(out / case["expected"], tensors, {})
    return pack, out


def test_the_arrays_of_a_golden_check_are_the_files(checked):
    pack, out = checked
    outcomes = check_outputs(pack, out)
    found = golden_results(pack, out, outcomes)
    (name,) = found
    case, _, stage = name.partition(" / ")
    assert stage == "position_ids"
    np.testing.assert_array_equal(found[name].came, load_tensors(out / f"{case}.safetensors")["position_ids"])
    assert found[name].sizes.tolist() == pack.tensors(f"{case}.input.safetensors")["tgt_sizes"].tolist()
    data = Page(report_page(outcomes, "v", "s", found)).data
    assert [panel["title"].partition(",")[0] for panel in data[name]] == ["came", "expected", "where they differ"]


def test_the_command_writes_the_page(checked, tmp_path):
    pack, out = checked
    target = tmp_path / "g.html"
    assert cli.run(["golden", "check", str(pack.folder), str(out), "--html", str(target)]) == 1
    page = Page(target.read_text())
    assert "Every stage of every case" in page.words
    assert len(page.data) == 1


def test_without_jinja_a_page_is_refused_before_the_work(checked, capsys, tmp_path, monkeypatch):
    pack, out = checked
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr("npembed.pages.page._environment", __import__("npembed.pages.page").pages.page._environment.__wrapped__)
    target = str(tmp_path / "page.html")
    for command in (
        ["golden", "check", str(pack.folder), str(out), "--html"],
        ["check", "npembed", "--html"],
        ["explain", "-o"],
    ):
        assert cli.run([*command, target]) == 2
        assert capsys.readouterr() == ("", "npembed: pages need Jinja: pip install 'npembed[pages]'\n")
    assert list(tmp_path.iterdir()) == []
