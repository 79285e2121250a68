"""The README's lines are the ones that CI runs, and its table is the one that the command prints."""

import re
from pathlib import Path

from npembed.positions.differences import rules_as_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_test_line_is_what_ci_runs() -> None:
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith("npembed embed")
    assert f"\n{lines[1]} || exit 1\n" in (ROOT / ".ci" / "run").read_text()


def test_the_rule_table_is_what_the_command_prints() -> None:
    found = re.search(r"<!-- rules -->\n(.*?)\n<!-- /rules -->", README, flags=re.DOTALL)
    assert found is not None, "the README has lost the marks around its table of rules"
    assert found[1] == rules_as_markdown(70, 1024), "run `npembed rules --markdown` and paste its table"


def test_no_link_or_image_points_at_a_file_that_is_not_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
