"""Comparing two results, and the report in its three forms."""

import json

import numpy as np
import pytest

from npembed import Config
from npembed.conformance import Outcome, Status, compare
from npembed.conformance.outcome import around, describe, text_diff
from npembed.conformance.report import as_text, counts, golden_text, json_text
from tests.tensors import dtype_of

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
        ("abd", "abc", "the text differs from character 2: 'd', should be 'c'"),
        ("ab", "abc", "the text differs from character 2: '', should be 'c'"),
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
    assert compare(np.array([1.0], dtype=dtype_of("bfloat16")), np.array([1.0]), allowed=0.0) is None
    departure = compare(np.array([2.0], dtype=dtype_of("bfloat16")), np.array([1.0]), allowed=0.5)
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


def test_values_are_described_for_a_person() -> None:
    assert describe(np.array([1, 2])) == "[1, 2]"
    assert describe(np.arange(100.0)).endswith("(float64, shape (100,))")
    assert describe([np.array([1]), (True, None)]) == "[[1], (True, None)]"
    assert describe(Config(query_num=2)) == "Config(query_num=2)"
    assert len(describe("x" * 10_000)) < 1300


# Golden packs


GOLDEN = [
    Outcome("one / ids", Status.PASS, "equal"),
    Outcome("one / text", Status.FAIL, "the text parts", diff="  <image>\n- <unk> x 2\n+ <unk>", cause="short"),
    Outcome("one / tokens", Status.ABSENT, "not provided"),
    Outcome("two / ids", Status.KNOWN, "element [3] is 1, should be 2", came="[0:9] = 1", expected="[0:9] = 2"),
    Outcome("two / text", Status.FAIL, "the text parts", cause="short"),
    Outcome("three / buckets", Status.FAIL, "n = 3"),
]


def test_a_golden_report_has_failures_first_and_then_a_matrix() -> None:
    assert golden_text(GOLDEN, "It departs.").splitlines() == [
        "FAIL  one / text  the text parts",
        "      likely cause: short",
        "      difference: - expected, + came",
        "          <image>",
        "        - <unk> x 2",
        "        + <unk>",
        "      and in 1 more: two",
        "FAIL  three / buckets  n = 3",
        "know  two / ids  element [3] is 1, should be 2",
        "      came: [0:9] = 1",
        "      expected: [0:9] = 2",
        "          1  2  3",
        "ids       .  k",
        "text      F  F",
        "tokens    -",
        "buckets         F",
        "cases: 1 one, 2 two, 3 three",
        ". passed   F failed   k known departure   - not provided",
        "It departs.",
    ]


def test_the_matrix_is_in_the_json_of_a_golden_report_alone() -> None:
    report = json.loads(json_text(GOLDEN, "", ""))
    assert report["matrix"] == {
        "ids": {"one": "pass", "two": "known departure"},
        "text": {"one": "fail", "two": "fail"},
        "tokens": {"one": "not provided"},
        "buckets": {"three": "fail"},
    }
    assert "matrix" not in json.loads(json_text(OUTCOMES, "", ""))
    assert counts(GOLDEN) == "1 passed, 3 failed, 1 departs as expected, 1 not provided"


@pytest.mark.parametrize(
    ("shape", "index", "shown"),
    [
        ((), (), "0"),
        ((1,), (0,), "[0:1] = >0<"),
        ((20,), (0,), "[0:5] = >0<, 1, 2, 3, 4"),
        ((20,), (19,), "[15:20] = 15, 16, 17, 18, >19<"),
        ((2, 3, 20), (1, 2, 9), "[1, 2, 5:14] = 105, 106, 107, 108, >109<, 110, 111, 112, 113"),
    ],
)
def test_an_array_is_shown_around_one_element(shape: tuple[int, ...], index: tuple[int, ...], shown: str) -> None:
    assert around(np.arange(np.prod(shape, dtype=int)).reshape(shape), index) == shown


def test_floats_are_shown_in_nine_digits() -> None:
    assert around(np.array([1 / 3, np.nan], dtype=np.float32), (1,)) == "[0:2] = 0.333333343, >nan<"


@pytest.mark.parametrize(
    ("got", "expected", "lines"),
    [
        ("<a><unk></a>", "<a><unk><unk></a>", ["  <a>", "- <unk> x 2", "+ <unk>", "  </a>"]),
        ("<a></a><b></b>", "<a></a>\n<b></b>", ["  <a>", "  </a>", '- "\\n"', "  <b>", "  </b>"]),
        ("<a>\x1b[31m", "<a>", ["  <a>", '+ "\\u001b[31m"']),
        ("", "<a>", ["- <a>"]),
    ],
)
def test_texts_are_compared_mark_by_mark(got: str, expected: str, lines: list[str]) -> None:
    assert text_diff(got, expected).splitlines() == lines


def test_texts_that_differ_far_apart_are_cut_in_between() -> None:
    marks = [f"<{number}>" for number in range(30)]
    lines = text_diff("".join(["<x>", *marks[1:-1], "<y>"]), "".join(marks)).splitlines()
    assert lines == ["- <0>", "+ <x>", "  <1>", "  <2>", "  ...", "  <27>", "  <28>", "- <29>", "+ <y>"]
