"""The page of `npembed rules --html` and the article's, without a browser."""

import ast
from itertools import combinations

import numpy as np
import pytest

from npembed import RULES, bucket_coords, cli
from npembed.pages import article
from npembed.pages.rules import MOST, RULERS_UP_TO, SOFTWARE, first_difference, release, releases, rules_page
from npembed.steps.positions.differences import compare_rules, compare_two, differing
from tests.page_reading import Page

UP_TO = 140


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(rules_page(up_to=UP_TO))


# The rules


def test_the_counts_are_those_of_compare_two(page):
    for name in RULES:
        counts = page.data["counts"][name]
        assert counts == [len(compare_two("arange", name, n)["differ"]) for n in range(1, UP_TO + 1)]


def test_the_sizes_that_differ_are_those_of_compare_rules(page):
    for row in compare_rules(70, UP_TO):
        counts = page.data["counts"][row.rule.name]
        assert tuple(n for n, count in enumerate(counts, 1) if count) == row.differs
        assert f"{len(row.differs)} of the {UP_TO} sizes differ" in page.words


def test_the_page_holds_the_rulers_of_the_first_sizes(page):
    for name, rulers in page.data["rulers"].items():
        assert [each["n"] for each in rulers] == list(range(1, RULERS_UP_TO + 1))
        for n in (1, 25, 49, RULERS_UP_TO):
            assert rulers[n - 1]["buckets"] == bucket_coords(n, 70, name).tolist()


def test_patches_that_only_one_rule_has_differ():
    assert differing(np.array([0, 1, 2]), np.array([0, 5])).tolist() == [1, 2]
    assert differing(np.array([0, 1]), np.array([0, 1])).tolist() == []


@pytest.mark.parametrize(("one", "two"), [("arange", "exact"), ("shrunk", "candle-left"), ("digitize", "mlx")])
def test_the_patches_that_differ_between_two_rules_are_those_of_compare_two(one, two, page):
    differ = page.data["differ"]
    held = differ["of"].get(f"{one} {two}") or differ["of"][f"{two} {one}"]
    assert len(held) == RULERS_UP_TO
    for n, number in enumerate(held, 1):
        assert differ["lists"][number] == compare_two(one, two, n)["differ"]


def test_every_two_rules_are_held(page):
    names = {frozenset(pair.split()) for pair in page.data["differ"]["of"]}
    assert names == {frozenset(pair) for pair in combinations(RULES, 2)}


def test_a_page_opens_with_a_difference():
    assert first_difference({"arange": [0, 0], "exact": [0, 1]}) == ["exact", 2]
    assert first_difference({"arange": [0, 0], "exact": [0, 0], "mlx": [3, 0]}) == ["mlx", 1]
    assert first_difference({"arange": [0], "exact": [0]}) == ["exact", 1]


def test_the_page_asks_for_nothing_and_names_every_release(page):
    assert page.outside() == []
    assert len(page.text.encode()) < 5_000_000
    for rule in RULES.values():
        assert rule.arithmetic in page.words
        assert all(words in page.words for words in rule.releases)


@pytest.mark.parametrize("name", RULES)
def test_every_rules_software_is_known_to_the_filter(name):
    for entry in releases()[name]:
        assert entry["software"]
        assert set(entry["software"]) <= set(SOFTWARE)


@pytest.mark.parametrize(
    ("words", "spans"),
    [
        ("a 1.2-1.4.1", [[[1, 2], [1, 4, 1]]]),
        ("a since 5.13", [[[5, 13], None]]),
        ("a up to 0.7.10", [[None, [0, 7, 10]]]),
        ("a 2.6 and later", [[[2, 6], None]]),
        ("a 1.0 and 1.2-1.3", [[[1, 0], [1, 0]], [[1, 2], [1, 3]]]),
        ("transformers MiniCPM-V 4.6, 4.7 and OCR since 5.13", [[[5, 13], None]]),
        ("code (MiniCPM-V 2.5, 2.6, o 2.6)", []),
        ("float32 idefics2/3", []),
    ],
)
def test_versions_are_read_from_the_words(words, spans):
    assert release(words)["spans"] == spans


def test_the_line_of_python_runs(page):
    *lines, last = page.python[0].splitlines()
    names: dict = {}
    exec("\n".join(lines), names)
    rule, n = page.data["first"]
    assert len(eval(last, names)) == page.data["counts"][rule][n - 1]


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.run(["rules", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_the_page(capsys, tmp_path):
    target = tmp_path / "r.html"
    code, out, err = run(capsys, "--html", str(target), "--side", "32", "--up-to", "40")
    assert (code, err) == (0, "")
    assert str(target) in out
    data = Page(target.read_text()).data
    assert (data["side"], data["up_to"]) == (32, 40)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--html", "r.html", "--json"], "rules: --html excludes --json, --markdown and --compare"),
        (["--html", "r.html", "--compare", "arange", "exact", "--n", "3"], "rules: --html excludes"),
        (["--html", "r.txt"], "must end in .html"),
        (["--html", "r.html", "--up-to", str(MOST + 1)], f"rules: --html shows at most {MOST} sizes"),
        (["--html", "r.html", "--side", "0"], "side must be a whole number"),
    ],
)
def test_wrong_use_is_one_line(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.iterdir())


# The article

FIGURES = [(figure, given) for part in article.PARTS for figure, given in article.results(part)]


@pytest.mark.parametrize(("figure", "given"), FIGURES, ids=[figure.what for figure, _ in FIGURES])
def test_each_figure_of_the_article_is_ours_or_is_said_to_be_wrong(figure, given):
    assert article.same(figure.printed, given) != figure.differs
    assert figure.note or not figure.differs


def test_the_lines_of_the_articles_page_run_and_give_what_it_shows():
    page = Page(article.article_page())
    setup, *lines = page.python
    names: dict = {}
    exec(setup, names)
    assert len(lines) == len(FIGURES)
    for line, (figure, given) in zip(lines, FIGURES, strict=True):
        assert line == figure.line
        assert eval(line, names) == given
        assert str(given) in page.words
        assert str(figure.printed) in page.words
    assert page.outside() == []


def test_what_the_lines_can_use_is_what_the_page_says():
    tree = ast.parse(article.SETUP)
    targets = {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for name in ast.walk(node.targets[0])
        if isinstance(name, ast.Name)
    }
    assert targets - {"picture", "_"} | {"np", "npembed"} == set(article.names())


def test_a_figure_that_is_not_ours_is_seen():
    assert not article.same([28, 37], [28, 38])
    assert not article.same([0.9714], [0.9715])
    assert article.same([0.9714], [0.9714])


def test_the_command_writes_the_articles_page(capsys, tmp_path):
    target = tmp_path / "a.html"
    assert cli.run(["explain", "--article", "-o", str(target)]) == 0
    assert "the article's figures beside ours" in capsys.readouterr().out
    assert "23 of 27 are the same" in Page(target.read_text()).words
