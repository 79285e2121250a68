"""Comparing two results, and the report in its three forms."""

import json
from html.parser import HTMLParser

import ml_dtypes
import numpy as np
import pytest

from npembed import Config
from npembed.conformance import Outcome, Status, compare
from npembed.conformance.outcome import describe
from npembed.conformance.report import as_html, as_text, counts, json_text

OUTCOMES = [
    Outcome("bucketize", Status.PASS, "109 inputs"),
    Outcome("encode", Status.ABSENT, "not provided"),
    Outcome(
        "embed",
        Status.FAIL,
        "element [0] is 1 <b>",
        call="embed([1])",
        came="[1 & 2]",
        expected="[2]",
        cause="bias",
        worst=float("inf"),
    ),
]


@pytest.mark.parametrize(
    ("got", "expected", "what"),
    [
        (np.zeros(3), np.zeros(2), "shape (3,), should be (2,)"),
        (np.zeros(2), np.zeros(2, dtype=np.int64), "dtype float64, should be integer"),
        (np.zeros(2, dtype=np.int64), np.zeros(2, dtype=bool), "dtype int64, should be bool"),
        (["a"], np.zeros(1), "dtype <U1, should be float"),
        ([[1, 2], [3]], np.zeros((2, 2)), "shape (2,), should be (2, 2)"),
        (np.array([1, 5, 5]), np.array([1, 2, 3]), "element [1] is 5, should be 2 (2 of 3 elements differ)"),
        ("abd", "abc", "the text parts at character 2: 'd', should be 'c'"),
        ("ab", "abc", "the text parts at character 2: '', should be 'c'"),
        (7, "abc", "a int, should be text"),
        ([np.zeros(1)], (np.zeros(1), np.zeros(2)), "1 results, should be 2 results"),
        (3, (np.zeros(1),), "a int, should be 1 results"),
        ((np.zeros(1), np.ones(2)), (np.zeros(1), np.zeros(2)), "result 1: element [0] is 1.0, should be 0.0"),
    ],
)
def test_a_difference_is_told(got: object, expected: object, what: str) -> None:
    departure = compare(got, expected)
    assert departure is not None
    assert departure.what.startswith(what)


def test_equal_things_do_not_depart() -> None:
    assert compare([1, 2], np.array([1, 2])) is None
    assert compare(np.int32([1, 2]), np.array([1, 2])) is None
    assert compare("a", "a") is None
    assert compare((np.zeros(1), "a"), [np.zeros(1), "a"]) is None


def test_a_distance_is_told_in_units_of_the_allowed_one() -> None:
    departure = compare(np.array([1.0, 1.5]), np.array([1.0, 1.0]), allowed=0.125)
    assert departure is not None
    assert departure.index == (1,)
    assert departure.worst == 4
    assert compare(np.array([1.125]), np.array([1.0]), allowed=0.125) is None


def test_a_bfloat16_result_is_a_float() -> None:
    assert compare(np.array([1.0], dtype=ml_dtypes.bfloat16), np.array([1.0]), allowed=0.0) is None
    departure = compare(np.array([2.0], dtype=ml_dtypes.bfloat16), np.array([1.0]), allowed=0.5)
    assert departure is not None
    assert departure.worst == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_infinitely_far(value: float) -> None:
    departure = compare(np.array([value]), np.array([1.0]), allowed=1e9)
    assert departure is not None
    assert departure.worst == np.inf
    assert "not a number" in departure.what


def test_a_place_that_does_not_count_may_hold_anything() -> None:
    got = np.array([[[1.0], [np.nan]]])
    places = np.array([[True, False]])
    assert compare(got, np.ones((1, 2, 1)), allowed=0.1, places=places) is None
    assert compare(got, np.ones((1, 2, 1)), allowed=0.1, places=~places) is not None


def test_the_text_has_a_line_per_outcome_and_what_is_known_of_a_failure() -> None:
    assert as_text(OUTCOMES, "It departs.").splitlines() == [
        "pass  bucketize  109 inputs",
        "      encode     not provided",
        "FAIL  embed      element [0] is 1 <b>",
        "      smallest input: embed([1])",
        "      came: [1 & 2]",
        "      expected: [2]",
        "      likely cause: bias",
        "It departs.",
    ]


def test_the_counts() -> None:
    assert counts(OUTCOMES) == "1 passed, 1 failed, 1 not provided"
    assert counts(OUTCOMES[:1]) == "1 passed, 0 failed"


def test_the_json_holds_what_is_known() -> None:
    report = json.loads(json_text(OUTCOMES, "It departs.", "my_port"))
    assert (report["subject"], report["verdict"], report["passed"]) == ("my_port", "It departs.", False)
    assert report["outcomes"][0] == {"name": "bucketize", "status": "pass", "summary": "109 inputs"}
    assert report["outcomes"][2]["worst"] == "infinite"
    assert json.loads(json_text(OUTCOMES[:2], "", ""))["passed"] is True


class _Page(HTMLParser):
    """The tags that are open, the text, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [name for name, _ in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_self_contained_and_escaped() -> None:
    text = as_html(OUTCOMES, "It departs.", "<my port>")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert {"src", "href"} & set(page.attributes) == set()
    assert "://" not in text
    words = " ".join(page.words)
    assert all(part in words for part in ("<my port>", "element [0] is 1 <b>", "[1 & 2]", "bias", "not provided"))


def test_values_are_described_for_a_person() -> None:
    assert describe(np.array([1, 2])) == "[1, 2]"
    assert describe(np.arange(100.0)).endswith("(float64, shape (100,))")
    assert describe([np.array([1]), (True, None)]) == "[[1], (True, None)]"
    assert describe(Config(query_num=2)) == "Config(query_num=2)"
    assert len(describe("x" * 10_000)) < 1300
