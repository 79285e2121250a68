"""Where the pixel rules differ on a picture: the figures behind `npembed rules --pixels`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npembed.steps.pixels.resize import FILTERS
from npembed.steps.pixels.rules import PIXEL_RULES, PixelRule
from npembed.steps.pixels.strips import as_rgb_on_white
from npembed.support.typing import Floats, Pixels, Size

SIDE = 448
"""Pixels of the longer side that a picture is resized to, for a comparison."""

HALVES = (0.5, 0.5, 0.5)
"""The mean and the deviation of a comparison: those of every released checkpoint but a few."""

TABLE_HEAD = ("rule", "filter", "bytes that differ", "by, at most", "numbers that differ")


@dataclass(frozen=True, eq=False)
class PixelComparison:
    """One rule with one filter, compared with Pillow's resize of the same picture.

    Attributes
    ----------
    rule : PixelRule
    resample : str
        The filter, by Pillow's name.
    pixels : uint8 (H, W, 3)
        The picture, resized by the rule.
    gaps : int64 (H, W, 3)
        By how many grey levels each byte differs.
    normalised : float
        The share of numbers that differ once they are normalised, by the rules' own arithmetic.
    """

    rule: PixelRule
    resample: str
    pixels: Pixels
    gaps: Any
    normalised: float

    @property
    def share(self) -> float:
        """Of the bytes, how many differ."""
        return float((self.gaps > 0).mean())

    @property
    def most(self) -> int:
        """Levels by which a byte differs, at most."""
        return int(self.gaps.max())

    @property
    def place(self) -> tuple[int, int]:
        """Row and column of the pixel that differs most: the first of them."""
        row, column = np.unravel_index(self.gaps.max(axis=2).argmax(), self.gaps.shape[:2])
        return int(row), int(column)


def compared_size(size: Size) -> Size:
    """Width and height of a picture -> those that it is resized to: the longer side is `SIDE`, up or down.

    Examples
    --------
    >>> compared_size((4000, 3000)), compared_size((3, 300))
    ((448, 336), (4, 448))
    """
    longest = max(size)
    return max(round(size[0] * SIDE / longest), 1), max(round(size[1] * SIDE / longest), 1)


def compare_pixel_rules(picture: Any) -> list[PixelComparison]:
    """Every rule with every filter, each compared with the rule `pillow`.

    Parameters
    ----------
    picture : PIL image or uint8 (H, W, 3)
        It is resized so that its longer side has `SIDE` pixels.

    Returns
    -------
    list of PixelComparison

    Examples
    --------
    >>> rows = compare_pixel_rules(np.zeros((30, 40, 3), dtype=np.uint8))
    >>> [(row.rule.name, row.resample, row.most) for row in rows[:3]]
    [('pillow', 'BILINEAR', 0), ('torchvision', 'BILINEAR', 0), ('torchvision-bicubic', 'BILINEAR', 0)]
    """
    pictured = as_rgb_on_white(picture)
    size, rows = compared_size(pictured.size), []
    for resample in FILTERS:
        original = next(iter(PIXEL_RULES.values()))
        expected = original.resize(pictured, size, resample)
        for rule in PIXEL_RULES.values():
            pixels = rule.resize(pictured, size, resample)
            gaps = np.abs(pixels.astype(np.int64) - expected)
            differ = float((_normalised(pixels, rule) != _normalised(expected, original)).mean())
            rows.append(PixelComparison(rule, resample, pixels, gaps, differ))
    return rows


def _normalised(pixels: Pixels, rule: PixelRule) -> Floats:
    return np.take(rule.levels(HALVES, HALVES)[0], pixels)  # the same for each channel


def table_row(row: PixelComparison) -> tuple[str, ...]:
    """One comparison in words, a cell for each of `TABLE_HEAD`."""
    differ, normalised = (f"{100 * share:.2g} %" if share else "none" for share in (row.share, row.normalised))
    return row.rule.name, row.resample, differ, f"{row.most} level{'s' * (row.most != 1)}", normalised


def pixel_rules_as_json(rows: list[PixelComparison], size: Size) -> dict[str, Any]:
    """What `npembed rules --pixels --json` prints."""
    found: dict[str, Any] = {
        rule.name: {"arithmetic": rule.arithmetic, "releases": list(rule.releases), "filters": {}}
        for rule in PIXEL_RULES.values()
    }
    for row in rows:
        found[row.rule.name]["filters"][row.resample] = {
            "differing_bytes": row.share,
            "most_levels": row.most,
            "differing_numbers": row.normalised,
        }
    return {"size": list(size), "resized": list(row.pixels.shape[1::-1]), "rules": found}


def pixel_rules_as_markdown(rows: list[PixelComparison]) -> str:
    """The table as Markdown, for documents."""
    head, line = "| " + " | ".join(TABLE_HEAD) + " |", "|" + "---|" * len(TABLE_HEAD)
    return "\n".join([head, line, *("| " + " | ".join(cells) + " |" for cells in table_rows(rows))])


def table_rows(rows: list[PixelComparison]) -> list[tuple[str, ...]]:
    """The rows of the table: without those of `pillow`, from which nothing differs."""
    return [table_row(row) for row in rows if row.rule is not next(iter(PIXEL_RULES.values()))]


def legend() -> list[str]:
    """What the columns and the rules are, a line each."""
    lines = [f"{rule.name}: {rule.arithmetic}. Released in: {'; '.join(rule.releases)}" for rule in PIXEL_RULES.values()]
    return ["numbers that differ: once they are normalised with mean and deviation 0.5, in the last bit at least", *lines]
