"""`npembed rules`: the tables for a screen, for a document and for a program, and what is refused."""

import json
from pathlib import Path

import pytest

from npembed import RULES
from npembed.steps.positions.differences import TABLE_HEAD, compare_rules, compare_two, rules_as_markdown, table_row
from tests.command_line import KNOWN_RULES, assert_refused_and_unchanged, bad, done_well, npembed, python_m_npembed


@pytest.mark.parametrize("side", [70, 26])
def test_the_json_of_the_rules_holds_upstreams_lists(side: int, data: Path) -> None:
    upstream = json.loads((data / "positions.json").read_text())["rules"]
    found = json.loads(done_well(npembed("rules", "--side", side, "--up-to", "1024", "--json")))
    assert (found["num_patches_per_side"], found["up_to"]) == (side, 1024)
    assert set(found["rules"]) == set(upstream)
    for name, row in found["rules"].items():
        expected = upstream[name][str(side)]
        assert row["differs_from_arange"] == expected["differs_from_arange"], name
        assert row["wrong_length"] == expected.get("wrong_length", []), name
        assert (row["min"], row["max"]) == (expected["min"], expected["max"]), name
        assert row["in_range"] == (0 <= expected["min"] <= expected["max"] < side), name


def cells_of(table: str) -> list[list[str]]:
    """The cells of each rule's row, each without its blanks, whatever lines it is broken into."""
    lines = table.splitlines()
    head = next(line for line in lines if line.strip().startswith(TABLE_HEAD[0]))
    starts = [head.index(column) for column in TABLE_HEAD[:-1]]
    rows: list[list[str]] = []
    for line in lines[lines.index(head) + 2 :]:
        parts = [line[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
        if parts[0].strip():
            rows.append([""] * len(starts))
        if any(part.strip() for part in parts):
            rows[-1] = [cell + "".join(part.split()) for cell, part in zip(rows[-1], parts, strict=True)]
    return rows


@pytest.mark.parametrize("columns", [80, 120, 300])
def test_the_table_loses_nothing_on_a_narrow_screen(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = done_well(npembed("rules", "--up-to", "60", "--side", "27"))
    assert max(map(len, out.splitlines())) <= columns
    expected = [table_row(row, 27)[:-1] for row in compare_rules(27, 60)]
    assert cells_of(out) == [["".join(cell.split()) for cell in row] for row in expected]
    assert all(any(line.startswith(f"  {name} ") for line in out.splitlines()) for name in RULES), "names are not broken"


def test_the_markdown_is_the_documents() -> None:
    assert done_well(npembed("rules", "--up-to", "60", "--markdown")) == rules_as_markdown(70, 60) + "\n"


@pytest.mark.parametrize(
    ("first", "second", "n", "side"),
    [
        ("arange", "exact", 25, 70),
        ("arange", "step", 24, 70),
        ("arange", "digitize", 5, 27),
        ("candle-right", "arange", 14, 70),
    ],
)
def test_two_rules_stand_side_by_side_and_differing_patches_are_marked(first: str, second: str, n: int, side: int) -> None:
    words = ("rules", "--compare", first, second, "--n", n, "--side", side)
    head, *rows, total = done_well(npembed(*words)).splitlines()
    pair = compare_two(first, second, n, side)
    assert head.split() == ["patch", first, second]
    one, other = pair["rules"].values()
    longer = max(len(one), len(other))
    filled = [[str(bucket) for bucket in buckets] + ["-"] * (longer - len(buckets)) for buckets in (one, other)]
    assert [row.split()[:3] for row in rows] == [[str(i), a, b] for i, (a, b) in enumerate(zip(*filled, strict=True))]
    marked = [i for i, row in enumerate(rows) if row.endswith("  <- differ")]
    assert marked == pair["differ"] == [i for i, (a, b) in enumerate(zip(*filled, strict=True)) if a != b]
    assert total == f"{len(marked)} of {n} patches differ (G = {side})"
    assert json.loads(done_well(npembed(*words, "--json"))) == pair


def test_a_patch_that_one_rule_does_not_have_is_a_dash(data: Path) -> None:
    wrong = json.loads((data / "positions.json").read_text())["rules"]["candle-right"]["70"]["wrong_length"][0]
    row = done_well(npembed("rules", "--compare", "arange", "candle-right", "--n", wrong)).splitlines()[-2]
    assert row.split() == [str(wrong), "-", "69", "<-", "differ"]


def test_the_table_on_a_screen_that_knows_ascii_alone(here: Path) -> None:
    ran = python_m_npembed("rules", folder=here, PYTHONIOENCODING="ascii", COLUMNS="80")
    assert (ran.returncode, ran.stderr) == (0, b"")
    lines = ran.stdout.decode("ascii").splitlines()
    assert lines[0].strip() == "Position rules against arange: n = 1 ... 1024 patches, G = 70"
    assert max(map(len, lines)) == 80
    assert all(any(line.startswith(f"| {name} ") for line in lines) for name in RULES)


BAD_RULES = [
    bad("rules --side 0", r"num_patches_per_side must be a whole number from 1 to 32768; got 0"),
    bad("rules --side 32769", r"num_patches_per_side must be a whole number from 1 to 32768; got 32769"),
    bad("rules --side wide", r"Invalid value for '--side'"),
    bad("rules --up-to 0", r"up_to must be a whole number from 1 to 32768; got 0"),
    bad("rules --up-to -1", r"up_to must be a whole number from 1 to 32768; got -1"),
    bad("rules --up-to 2.5", r"Invalid value for '--up-to'"),
    bad("rules --n 5", r"rules: --compare A B and --n N go together"),
    bad("rules --compare arange exact", r"rules: --compare A B and --n N go together"),
    bad("rules --compare arange", r"Option '--compare' requires 2 arguments"),
    bad("rules --compare arange nearest --n 5", rf"rule must be one of {KNOWN_RULES}; got 'nearest'"),
    bad("rules --compare nearest arange --n 5", rf"rule must be one of {KNOWN_RULES}; got 'nearest'"),
    bad("rules --compare arange exact --n 0", r"num_patches must be a whole number from 1 to 32768; got 0"),
    bad("rules arange", r"arange: a picture is for --pixels$"),
]


@pytest.mark.parametrize(("words", "message"), BAD_RULES)
def test_bad_input_gets_one_line_and_changes_nothing(
    words: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused_and_unchanged(words.split(), message, site, monkeypatch)
