"""`python -m npembed`: the command line's exit code, and one line where a package that it needs is missing."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import npembed
import npembed.cli
from npembed.__main__ import main


def without(package: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m npembed` where one package cannot be imported, nor in a process that it starts."""
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
    with tempfile.TemporaryDirectory() as site:
        (Path(site) / "sitecustomize.py").write_text(code)
        paths = [site, str(Path(npembed.__file__).parent.parent)]
        command = [sys.executable, "-W", "error", "-m", "npembed", *words]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_command_lines_packages_a_line_says_what_to_install(package: str, tmp_path: Path) -> None:
    ran = without(package, "--version", folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == f"npembed: the command line needs {package}: pip install 'npembed[cli]'\n"


def test_any_other_missing_module_is_no_matter_of_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "npembed.cli", None)
    with pytest.raises(ModuleNotFoundError, match=r"npembed\.cli"):
        main()


@pytest.mark.parametrize(
    ("package", "words", "message"),
    [
        ("PIL", ["embed"], "pictures need Pillow: pip install 'npembed[image]'"),
        ("safetensors", ["embed"], "safetensors files need safetensors and ml_dtypes: pip install 'npembed[weights]'"),
        ("hypothesis", ["check", "npembed"], "the conformance kit needs Hypothesis: pip install 'npembed[testing]'"),
    ],
)
def test_a_command_without_its_extra_says_which(package: str, words: list[str], message: str, tmp_path: Path) -> None:
    ran = without(package, *words, folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == f"npembed: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_npz_needs_no_safetensors(tmp_path: Path) -> None:
    ran = without("safetensors", "embed", "-o", "out.npz", folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_without_pillow_a_port_is_checked_as_far_as_that_goes(tmp_path: Path) -> None:
    """Also a port that hands pictures on to the reference, and so fails for want of Pillow itself."""
    ran = without("PIL", "check", "npembed", "--examples", "0", folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "slice_image             not checked: pictures need Pillow: pip install 'npembed[image]'" in ran.stdout
    assert ran.stdout.endswith(" passed, 0 failed, 1 not provided.\n")
    required = without("PIL", "check", "npembed", "--examples", "0", "--require", "slice_image", folder=tmp_path)
    assert required.returncode == 1
    assert "FAIL  slice_image" in required.stdout


def test_main_leaves_with_the_command_lines_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["npembed", "--version"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert capsys.readouterr().out == f"npembed {npembed.__version__}\n"
    monkeypatch.setattr(sys, "argv", ["npembed", "rules", "--up-to", "0"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    assert capsys.readouterr().err.startswith("npembed: compare_rules: up_to must be")
