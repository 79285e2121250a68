"""The READMEs' lines are the ones that CI runs, their tables and links are what is there."""

import configparser
import re
from pathlib import Path

import pytest

from npembed import FAMILIES
from npembed.steps.positions.differences import rules_as_markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("npembed/**/*.md")), *sorted(ROOT.glob("benchmarks/*.md"))]


def test_the_readmes_test_line_is_what_ci_runs() -> None:
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith("npembed embed")
    assert f"\n{lines[1]} || exit 1\n" in (ROOT / ".ci" / "run").read_text()


def test_the_readme_is_a_door() -> None:
    assert len(README.splitlines()) <= 120


def test_the_readmes_table_names_every_family() -> None:
    table = [line for line in README.splitlines() if line.startswith("| ")]
    assert set(re.findall(r"`((?:minicpm|siglip|idefics|smolvlm|phi)[\w.-]*)`", "\n".join(table))) == set(FAMILIES)


def test_the_rule_table_is_what_the_command_prints() -> None:
    page = (ROOT / "npembed" / "steps" / "positions" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- rules -->\n(.*?)\n<!-- /rules -->", page, flags=re.DOTALL)
    assert found is not None, "the README has lost the marks around its table of rules"
    assert found[1] == rules_as_markdown(70, 1024), "run `npembed rules --markdown` and paste its table"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_or_image_points_at_a_file_that_is_not_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_a_wheel_holds_every_file_that_the_package_reads() -> None:
    """Under `*` are the patterns of every package; setuptools knows no other wildcard there."""
    card = configparser.ConfigParser()
    card.read(ROOT / "setup.cfg", encoding="utf-8")
    data = {key: [pattern.strip() for pattern in value.split(",")] for key, value in card["options.package_data"].items()}
    assert set(data) == {"npembed", "*"}
    house = ROOT / "npembed"
    packages = [path.parent for path in house.rglob("__init__.py")]
    held = {file for package in packages for pattern in data["*"] for file in package.glob(pattern)}
    held |= {file for pattern in data["npembed"] for file in house.glob(pattern)}
    read = [*house.glob("pages/templates/*"), *house.rglob("*.json"), *house.glob("data/*.png"), house / "SPEC.md"]
    assert [str(file) for file in read if file not in held] == []
