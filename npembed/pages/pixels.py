"""`npembed rules --pixels --html`: a picture under each pixel rule, enlarged where they differ most."""

from typing import Any

import numpy as np

from npembed.pages.drawing import picture_uri, png_uri
from npembed.pages.page import render
from npembed.steps.pixels import PIXEL_RULES
from npembed.steps.pixels.differences import PixelComparison, compare_pixel_rules, table_row
from npembed.support.typing import Pixels

SEEN = 24
"""Pixels along each side of the part that is enlarged."""

TIMES = 10
"""How many times it is enlarged."""

GREEN = (0, 158, 115)
"""What shows where nothing differs."""


def pixels_page(picture: Any, name: str) -> str:
    """The page, as text of one HTML file.

    Parameters
    ----------
    picture : PIL image or uint8 (H, W, 3)
    name : str
        What the picture is called.
    """
    rows = compare_pixel_rules(picture)
    return render(
        "pixels.html.j2",
        title="One picture, two kinds of pixels",
        called=name,
        original=picture_uri(picture),
        rules=PIXEL_RULES.values(),
        width=rows[0].pixels.shape[1],
        height=rows[0].pixels.shape[0],
        filters=[_shown(rows, resample) for resample in dict.fromkeys(row.resample for row in rows)],
    )


def _shown(rows: list[PixelComparison], resample: str) -> dict[str, Any]:
    """One filter: each rule's figures and the enlarged part around the greatest difference of any."""
    own = [row for row in rows if row.resample == resample]
    worst = max(own, key=lambda row: row.most)
    top, left = (_first(place, length) for place, length in zip(worst.place, worst.pixels.shape, strict=False))
    return {
        "filter": resample,
        "left": left,
        "top": top,
        "rules": [
            {
                "name": row.rule.name,
                "cells": table_row(row)[2:5],
                "part": _enlarged(row.pixels[top : top + SEEN, left : left + SEEN]),
                "gaps": _enlarged(_as_gaps(row)[top : top + SEEN, left : left + SEEN]),
                "most": row.most,
            }
            for row in own
        ],
    }


def _first(place: int, length: int) -> int:
    """Where a part begins that has the place in its middle, as far as the picture allows."""
    return max(min(place - SEEN // 2, length - SEEN), 0)


def _as_gaps(row: PixelComparison) -> Pixels:
    """Green where nothing differs; else the brighter, the more it differs: white is the greatest difference there is."""
    gaps = row.gaps.max(axis=2)
    shades = np.rint(gaps * 255 / max(row.most, 1)).astype(np.uint8)
    return np.where((gaps == 0)[:, :, None], np.array(GREEN, dtype=np.uint8), shades[:, :, None])


def _enlarged(pixels: Pixels) -> str:
    return png_uri(pixels.repeat(TIMES, axis=0).repeat(TIMES, axis=1))
