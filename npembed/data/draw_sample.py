"""Draws the sample picture: `python -m npembed.data.draw_sample [FILE]`. NumPy does the drawing, Pillow the PNG."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 480


def draw() -> NDArray[np.uint8]:
    """uint8 (480, 640, 3): hills under an evening sky, a sun with its reflection in a lake, and a boat."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    horizon = 270
    picture = np.empty((HEIGHT, WIDTH, 3))
    dusk = np.clip(y / horizon, 0, 1)[..., None]
    picture[:] = (1 - dusk) * [38, 54, 110] + dusk * [250, 170, 110]  # the sky
    _paint(picture, (x - 420) ** 2 + (y - 205) ** 2 < 42**2, [255, 236, 170])  # the sun
    for height, period, shade in ((70, 190, [96, 88, 130]), (45, 120, [62, 66, 100]), (24, 75, [36, 44, 70])):
        hills = horizon - height * (0.6 + 0.4 * np.sin(x / period * 2 + period))
        _paint(picture, (y > hills) & (y <= horizon), shade)
    depth = np.clip((y - horizon) / (HEIGHT - horizon), 0, 1)[..., None]
    lake = (1 - depth) * [226, 150, 112] + depth * [24, 40, 82]
    lake += 9 * np.sin(y * 0.9 + 2.2 * np.sin(x / 37) + x / 90)[..., None]  # ripples
    _paint(picture, y > horizon, lake)
    glitter = (abs(x - 420) < 16 + (y - horizon) * 0.2) & (np.sin(y * 1.1 + 3 * np.sin(x / 23)) > 0.1)
    _paint(picture, (y > horizon) & glitter, [250, 206, 150])
    _paint(picture, (abs(y - 372) < 10) & (abs(x - 200) < 74 - 2.2 * (y - 362)), [44, 26, 30])  # the hull
    _paint(picture, (x > 196) & (x < 200) & (y > 262) & (y < 364), [44, 26, 30])  # the mast
    _paint(picture, (x >= 202) & (y < 354) & (x - 202 < (y - 266) * 0.66), [240, 232, 220])  # the sail
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _paint(picture: NDArray[np.float64], where: NDArray[np.bool_], colour: Any) -> None:
    """Give those pixels a colour, or theirs out of a whole picture."""
    picture[where] = np.broadcast_to(colour, picture.shape)[where]


if __name__ == "__main__":
    from PIL import Image

    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("sample.png")
    Image.fromarray(draw()).save(target, optimize=True)
