"""The command line as a whole: help, the version, exit codes, a stop, and a bug, which is not hidden."""

from pathlib import Path

import pytest

import npembed as package
from tests.command_line import assert_refused, assert_refused_and_unchanged, bad, done_well, failing, npembed


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_the_commands(words: list[str]) -> None:
    out = done_well(npembed(*words))
    assert out.startswith("Usage: npembed [OPTIONS] COMMAND [ARGS]...")
    assert all(f"\n  {command} " in out for command in ("embed", "rules", "golden", "check"))


@pytest.mark.parametrize("command", ["embed", "rules", "golden", "golden write", "golden check", "check"])
def test_every_command_has_help(command: str) -> None:
    assert done_well(npembed(*command.split(), "--help")).startswith(f"Usage: npembed {command} ")


def test_the_version_is_the_packages() -> None:
    assert done_well(npembed("--version")) == f"npembed {package.__version__}\n"


BAD_WORDS = [
    bad("emebd", r"No such command 'emebd'"),
    bad("--versions", r"No such option: --versions"),
    bad("golden --weights x", r"No such option: --weights"),
]


@pytest.mark.parametrize(("words", "message"), BAD_WORDS)
def test_bad_input_gets_one_line_and_changes_nothing(
    words: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused_and_unchanged(words.split(), message, site, monkeypatch)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nobody can write to")
@pytest.mark.parametrize(
    "words",
    [
        "embed picture.png --weights w/whole -o /proc/out.safetensors",
        "embed picture.png --weights w/whole -o /proc/out.npz",
        "golden write /proc/pack",
        "golden check pack pack --json /proc/report.json",
        "check port.py --examples 1 --html /proc/report.html",
    ],
)
def test_a_folder_that_takes_no_files_is_refused(words: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    assert_refused(npembed(*words.split()), "/proc.* cannot be written")


@pytest.mark.parametrize("error", [RuntimeError, KeyError, ZeroDivisionError, AssertionError, AttributeError])
def test_a_bug_is_not_put_in_a_line(
    error: type[Exception], picture: Path, old_output: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npembed.steps.embeddings.strip_to_patches", failing(error("a bug")))
    with pytest.raises(error, match="a bug"):
        npembed("embed", picture, "--weights", weights, "-o", old_output)
