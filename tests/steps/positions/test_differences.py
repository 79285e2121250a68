"""Where the rules differ: upstream's own lists, a naive recount, and the tables that are made of it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed import RULES, bucket_coords
from npembed.steps.positions import differences
from npembed.steps.positions.differences import (
    ORIGINAL,
    TABLE_HEAD,
    RuleComparison,
    compare_rules,
    compare_two,
    rules_as_json,
    rules_as_markdown,
    table_row,
)

NAMES = list(RULES)


def test_the_original_is_the_checkpoints_own() -> None:
    assert ORIGINAL == "arange"


# Every rule


@pytest.mark.parametrize("side", [64, 27])
def test_the_lists_are_upstreams(side: int, data: Path) -> None:
    expected = json.loads((data / "positions.json").read_text())["rules"]
    rows = compare_rules(side, 1024)
    assert [row.rule for row in rows] == list(RULES.values())
    for row in rows:
        upstream = expected[row.rule.name][str(side)]
        assert list(row.differs) == upstream["differs_from_arange"]
        assert list(row.wrong_length) == upstream.get("wrong_length", [])
        assert (row.least, row.greatest) == (upstream["min"], upstream["max"])


@settings(max_examples=25)
@given(side=st.integers(1, 90), up_to=st.integers(1, 60))
def test_a_row_is_what_a_naive_recount_finds(side: int, up_to: int) -> None:
    for row in compare_rules(side, up_to):
        vectors = {n: bucket_coords(n, side, row.rule.name).tolist() for n in range(1, up_to + 1)}
        flat = [bucket for vector in vectors.values() for bucket in vector]
        assert row.differs == tuple(n for n in vectors if vectors[n] != bucket_coords(n, side).tolist())
        assert row.wrong_length == tuple(n for n in vectors if len(vectors[n]) != n)
        assert (row.least, row.greatest) == (min(flat), max(flat))
        assert row.in_range == all(0 <= bucket < side for bucket in flat)
        assert row.rises == all(vector == sorted(vector) for vector in vectors.values())


def test_the_side_is_minicpm_v_2_6s_by_default() -> None:
    differing = {row.rule.name: row.differs for row in compare_rules(up_to=60)}
    assert differing["arange-lanes4"] == (49, 50, 58)
    assert differing["exact"] == differing["quotient"] == (25, 49, 50, 55, 58)
    assert differing["digitize"] == tuple(range(1, 61))


MADE_UP = {"step": [[0], [2, 1], [0, 1, 2]], "exact": [[0], [0, 1], [0, 1, 3]], "mlx": [[0], [0, 1, 2], [-1, 1]]}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, RuleComparison]:
    """Rows of three rules with faults that no released one has at G = 3: one falls, one leaves the table at either end."""

    def buckets(n: int, side: int, rule: str = "arange") -> NDArray[np.int64]:
        return np.array(MADE_UP.get(rule, [[0], [0, 1], [0, 1, 2]])[n - 1])

    monkeypatch.setattr(differences, "bucket_coords", buckets)
    return {row.rule.name: row for row in compare_rules(3, 3)}


def test_buckets_that_fall_or_leave_the_table_are_told(made_up: dict[str, RuleComparison]) -> None:
    found = {name: (row.differs, row.wrong_length, row.least, row.greatest) for name, row in made_up.items()}
    assert found["arange"] == ((), (), 0, 2)
    assert found["step"] == ((2,), (), 0, 2)
    assert found["exact"] == ((3,), (), 0, 3)
    assert found["mlx"] == ((2, 3), (2, 3), -1, 2), "too many are wrong, and so are too few"
    assert [name for name, row in made_up.items() if not row.rises] == ["step"]
    assert [name for name, row in made_up.items() if not row.in_range] == ["exact", "mlx"]


def test_the_table_puts_them_in_words(made_up: dict[str, RuleComparison]) -> None:
    cells = {name: table_row(row, 3)[:3] for name, row in made_up.items()}
    assert cells["arange"] == ("arange", "none", "0..2, rise")
    assert cells["step"] == ("step", "1: 2", "0..2, fall")
    assert cells["exact"] == ("exact", "1: 3", "0..3, not in 0..2, rise")
    assert cells["mlx"] == ("mlx", "2: 2, 3", "-1..2, not in 0..2, rise, wrong number at 2 n")


@pytest.mark.parametrize(
    ("count", "words"), [(0, "none"), (1, "1: 1"), (6, "6: 1, 2, 3, 4, 5, 6"), (7, "7: 1, 2, 3, 4, 5, 6, …")]
)
def test_six_sizes_are_named_and_more_are_hinted_at(count: int, words: str) -> None:
    row = RuleComparison(RULES["step"], tuple(range(1, count + 1)), (), 0, 69, True, True)
    name, differ, _, releases, arithmetic = table_row(row, 70)
    assert (name, differ, arithmetic) == ("step", words, RULES["step"].arithmetic)
    assert releases.split("; ") == list(RULES["step"].releases)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((70, 0), ValueError, "compare_rules: up_to must be a whole number from 1 to 32768; got 0"),
        ((70, 32769), ValueError, "compare_rules: up_to must be a whole number from 1 to 32768; got 32769"),
        ((70, 2.5), TypeError, "compare_rules: up_to must be a whole number from 1 to 32768; got 2.5"),
        ((0, 5), ValueError, "compare_rules: num_patches_per_side must be a whole number from 1 to 32768; got 0"),
        ((32769, 5), ValueError, "compare_rules: num_patches_per_side must be a whole number from 1 to 32768; got 32769"),
        ((True, 5), TypeError, "compare_rules: num_patches_per_side must be a whole number from 1 to 32768; got True"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        compare_rules(*arguments)


# For a program and for documents


def test_the_json_has_its_stable_fields() -> None:
    content = rules_as_json(70, 60)
    assert json.loads(json.dumps(content)) == content, "of JSON's own types alone"
    assert list(content) == ["num_patches_per_side", "up_to", "rules"]
    assert (content["num_patches_per_side"], content["up_to"]) == (70, 60)
    assert list(content["rules"]) == NAMES
    kinds = {
        "arithmetic": str,
        "boundaries": str,
        "search": str,
        "releases": list,
        "differs_from_arange": list,
        "wrong_length": list,
        "min": int,
        "max": int,
        "in_range": bool,
        "rises": bool,
    }
    for name, row in content["rules"].items():
        assert {field: type(value) for field, value in row.items()} == kinds
        assert row["releases"] == list(RULES[name].releases)
        assert (row["arithmetic"], row["boundaries"]) == (RULES[name].arithmetic, RULES[name].boundaries_words)
    assert content["rules"]["exact"]["differs_from_arange"] == [25, 49, 50, 55, 58]
    assert (content["rules"]["exact"]["search"], content["rules"]["exact"]["boundaries"]) == ("none", "none")
    assert (content["rules"]["digitize"]["min"], content["rules"]["digitize"]["in_range"]) == (-1, False)


def test_the_markdown_is_a_table_of_the_rows() -> None:
    lines = rules_as_markdown(70, 60).split("\n")
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    assert cells[0] == list(TABLE_HEAD)
    assert cells[1] == ["---"] * len(TABLE_HEAD)
    expected = [table_row(row, 70) for row in compare_rules(70, 60)]
    assert cells[2:] == [[f"`{name}`", *rest] for name, *rest in expected]


# Two rules


rules = st.sampled_from(NAMES)


@given(first=rules, second=rules, n=st.integers(1, 300), side=st.integers(1, 100))
def test_two_rules_differ_where_their_buckets_do(first: str, second: str, n: int, side: int) -> None:
    pair = compare_two(first, second, n, side)
    one, other = (bucket_coords(n, side, name).tolist() for name in (first, second))
    assert (pair["n"], pair["num_patches_per_side"]) == (n, side)
    assert pair["rules"] == {first: one, second: other}
    assert list(pair["rules"]) == list(dict.fromkeys((first, second)))
    assert pair["differ"] == [i for i in range(max(len(one), len(other))) if one[i : i + 1] != other[i : i + 1]]
    assert json.loads(json.dumps(pair)) == pair


def test_a_patch_that_only_one_rule_has_differs(data: Path) -> None:
    upstream = json.loads((data / "positions.json").read_text())["rules"]["candle-right"]["70"]
    n = upstream["wrong_length"][0]
    pair = compare_two("arange", "candle-right", n)
    assert len(pair["rules"]["candle-right"]) == n + 1
    assert pair["differ"][-1] == n
    assert compare_two("candle-right", "arange", n)["differ"] == pair["differ"]


def test_the_known_differences() -> None:
    assert compare_two("arange", "exact", 25)["differ"] == [5, 10, 15, 20]
    assert compare_two("arange", "arange", 49)["differ"] == []
    assert compare_two("arange", "digitize", 3)["rules"] == {"arange": [0, 23, 46], "digitize": [-1, 22, 46]}


@pytest.mark.parametrize("names", [("arange", "torch"), ("torch", "arange")])
def test_an_unknown_rule_is_refused_with_the_known_ones(names: tuple[str, str]) -> None:
    message = f"compare_two: rule must be one of {', '.join(RULES)}; got 'torch'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compare_two(*names, 25)


@pytest.mark.parametrize("n", [0, -1, 32769])
def test_no_such_number_of_patches_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"num_patches must be a whole number from 1 to 32768; got {n}$"):
        compare_two("arange", "exact", n)
    with pytest.raises(ValueError, match=r"num_patches_per_side must be a whole number from 1 to 32768; got 0$"):
        compare_two("arange", "exact", 5, 0)
