"""The README of the wing: its examples run, and print what it says."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_line import npembed

README = Path(__file__).parents[2] / "npembed" / "corpus" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Seven good pictures, two of them alike, and a broken one; and the two corpora of the README."""
    here = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    (here / "Photos").mkdir()
    for number in range(6):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        size = (640, 480) if number % 2 else (200, 300)
        coarse.resize(size, Image.Resampling.BICUBIC).save(here / f"Photos/{number}.jpg", quality=90)
    with Image.open(here / "Photos/3.jpg") as picture:
        picture.resize((320, 240)).save(here / "Photos/3 again.jpg", quality=60)
    whole = (here / "Photos/0.jpg").read_bytes()
    (here / "Photos/broken.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        words = ("--weights", data / "tiny-minicpmv", "--workers", 1)
        assert npembed("corpus", "Photos", "Corpus", *words).code == 1
        assert npembed("corpus", "Photos", "Vectors", "--vector", "mean", "--normalize", *words).code == 1
        page = npembed("corpus", "search", "Vectors", "Photos/3.jpg", "-k", 3, "--html", "like-3.html")
        assert page.code == 0
        assert "Photos/3 again.jpg" in page.out
    return here


def test_there_are_nine_examples() -> None:
    assert len(EXAMPLES) == 9


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_an_example_prints_what_the_readme_says(code: str, printed: str, folder: Path) -> None:
    """In a process of its own: a library of another maker may set up its own as it likes."""
    for module in re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    own = {"PYTHONPATH": str(README.parents[2]), "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", code]
    ran = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", check=False, cwd=folder, env=os.environ | own)
    assert (ran.returncode, ran.stdout) == (0, printed), ran.stderr
