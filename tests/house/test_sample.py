"""The sample picture is what the project's own script draws."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from npembed.cli.embed import SAMPLE
from npembed.data.draw_sample import draw


def test_the_stored_picture_is_the_drawn_one() -> None:
    with Image.open(SAMPLE) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (640, 480))
        drawn = draw()
        assert drawn.dtype == np.uint8
        assert np.array_equal(np.asarray(picture), drawn)


def test_it_is_small() -> None:
    assert SAMPLE.stat().st_size < 100_000


def test_it_is_a_picture_and_no_plane_of_one_colour() -> None:
    """Rows and columns differ, and so do the channels: an exchange of any two shows in the embeddings."""
    drawn = draw().astype(int)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1000
    assert all(
        np.abs(drawn - other).mean() > 5 for other in (drawn[::-1], drawn[:, ::-1], drawn[..., ::-1], drawn[..., [1, 0, 2]])
    )


def test_the_script_writes_it(tmp_path: Path) -> None:
    target = tmp_path / "drawn.png"
    words = [sys.executable, "-W", "error", "-m", "npembed.data.draw_sample", str(target)]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    with Image.open(target) as picture, Image.open(SAMPLE) as sample:
        assert np.array_equal(np.asarray(picture), np.asarray(sample))
