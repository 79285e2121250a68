"""`npembed explain --article`: each figure that the seed article prints, beside what one line gives here."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

import npembed
from npembed.pages.page import render
from npembed.pages.rulers import edges_of, ruler
from npembed.support.pictures import read_image

TITLE = "MINICPM-V2_6图像得到embedding-代码解读"

SETUP = """\
import numpy as np
import npembed
from importlib.resources import files
from npembed.support.pictures import read_image
picture = read_image(files("npembed") / "data" / "sample.png").picture
strips, tgt_sizes = npembed.slice_image(picture)
pixel_values = npembed.pad_pixel_values(strips)
mask = npembed.patch_attention_mask(tgt_sizes)
ids = npembed.position_ids(tgt_sizes)"""
"""What every line on the page can use: a picture of 640 × 480 pixels gives the article's sizes."""


@dataclass(frozen=True)
class Figure:
    """One figure of the article.

    Attributes
    ----------
    what : str
    printed : object
        What the article prints, as a value.
    line : str
        What gives it here.
    note : str
        What is wrong or easily misread there; "" where nothing is.
    differs : bool
        Whether the article's value is not ours.
    """

    what: str
    printed: Any
    line: str
    note: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Part:
    """A part of the article, with its figures."""

    title: str
    figures: tuple[Figure, ...]


_ROWS = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 40, 42, 45, 47, 50, 52, 55, 57, 60, 62, 65, 67]
_COLUMNS = [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 18, 20, 22, 24, 26, 28, 30, 32, 34, 35]
_COLUMNS += [37, 39, 41, 43, 45, 47, 49, 51, 52, 54, 56, 58, 60, 62, 64, 66, 68]

PARTS = (
    Part(
        "Random position codes",
        (
            Figure(
                "N positions out of L = 2000, N = 40, given as 0, 50, 100, …",
                [0, 50, 100],
                "npembed.randomized_positions(40, 2000, rng=0)[:3].tolist()",
                "Evenly spaced positions are not what the paper does: it draws them at random, each as likely as any other, "
                "without replacement, and sorts them. The line draws with seed 0. And the model's code does not draw at all: "
                "its ids, below, are the same at every call.",
                True,
            ),
        ),
    ),
    Part(
        "What goes in",
        (
            Figure("tgt_sizes", [[28, 37], [39, 26], [39, 26]], "tgt_sizes.tolist()"),
            Figure(
                "img1, img2, img3",
                [(3, 14, 14504), (3, 14, 14196), (3, 14, 14196)],
                "[strip.shape for strip in strips]",
                "There they are random numbers of these shapes. They are called three pictures; they are one picture and its "
                "two crops.",
            ),
            Figure(
                "image_bound",
                [[18, 82], [84, 148], [150, 214]],
                "npembed.image_bounds(np.where(np.isin(np.arange(216), [17, 83, 149]), 1, "
                "np.where(np.isin(np.arange(216), [82, 148, 214]), 2, 0)), [1], [2]).tolist()",
                "The line puts a start token at 17, 83 and 149 and an end token at 82, 148 and 214. Each bound holds 64.",
            ),
            Figure("the largest slice, 28 · 37", 1036, "int(tgt_sizes.prod(axis=1).max())"),
        ),
    ),
    Part(
        "The batch and its mask",
        (
            Figure("flatten(end_dim=1)", (42, 14504), "strips[0].reshape(42, -1).shape"),
            Figure("flatten(end_dim=2)", 609168, "strips[0].size"),
            Figure("the transpose", (14504, 42), "strips[0].reshape(42, -1).T.shape"),
            Figure(
                "after pad_sequence",
                (3, 14504, 42),
                "npembed.pad_sequence([strip.reshape(42, -1).T for strip in strips], batch_first=True).shape",
            ),
            Figure("all_pixel_values", (3, 3, 14, 14504), "pixel_values.shape"),
            Figure(
                "patch_attn_mask, in a comment, twice",
                (3, 1, 1306),
                "mask.shape",
                "Two digits are exchanged: 28 · 37 = 1036. The code there computes the right size.",
                True,
            ),
            Figure("the first slice's mask: all True", True, "bool(mask[0, 0].all())"),
            Figure("the others' from 39 · 26 on: any True", False, "bool(mask[1:, 0, 39 * 26:].any())"),
        ),
    ),
    Part(
        "The convolution",
        (
            Figure(
                "patch_embeds",
                (3, 1152, 1, 1036),
                "npembed.patch_conv(pixel_values, np.zeros((1152, 3, 14, 14), dtype=np.float32)).shape",
                "The function there sets batch_size = 1 and never reads it; its demo has a batch of 3.",
            ),
            Figure("num in the demos: patch_size · h · w", 14504, "pixel_values.shape[3]"),
        ),
    ),
    Part(
        "The position ids",
        (
            Figure("rows of the table", 4900, "npembed.MINICPM_V_2_6.vision.num_patches_per_side ** 2"),
            Figure("how many boundaries", 69, "len(npembed.boundaries(70))"),
            Figure(
                "the first and the last boundaries",
                [0.0143, 0.0286, 0.9714, 0.985],
                "npembed.boundaries(70)[[0, 1, -2, -1]].astype(float).round(4).tolist()",
                "The last one, 69/70, is cut off there and not rounded: 0.9857.",
                True,
            ),
            Figure("coordinates of 28 rows and 37 columns", [28, 37], "[len(npembed.fractional_coords(n)) for n in (28, 37)]"),
            Figure(
                "the first coordinates of the rows",
                [0.0, 0.0357, 0.0714, 0.1071, 0.1429, 0.1786, 0.2143, 0.25, 0.2857],
                "npembed.fractional_coords(28)[:9].astype(float).round(4).tolist()",
                "Beside them stands 0.1000 = 0.1071 < 0.1143; the first sign should be <. And 0.0714 = 0.0714 is the "
                "interesting one: the third row begins exactly on a boundary, where the last bit of a float decides.",
            ),
            Figure("bucket_coords_h", _ROWS, "npembed.bucket_coords(28).tolist()"),
            Figure("bucket_coords_w", _COLUMNS, "npembed.bucket_coords(37).tolist()"),
            Figure(
                "row buckets times 70",
                [0, 140, 350, 490, 4690],
                "(npembed.bucket_coords(28) * 70)[[0, 1, 2, 3, -1]].tolist()",
            ),
            Figure(
                "pos_ids: the first three and the last of rows 0 to 3 and of the last",
                [[0, 1, 3, 68], [140, 141, 143, 208], [350, 351, 353, 418], [490, 491, 493, 558], [4690, 4691, 4693, 4758]],
                "ids[0].reshape(28, 37)[[[0], [1], [2], [3], [-1]], [0, 1, 2, -1]].tolist()",
            ),
            Figure(
                "position_ids: the ends of each slice's row",
                [[0, 1, 3, 4754, 4756, 4758], [0, 2, 5, 0, 0, 0], [0, 2, 5, 0, 0, 0]],
                "ids[:, [0, 1, 2, -3, -2, -1]].tolist()",
            ),
            Figure(
                "the else-branch, without tgt_sizes: the rows of slice 0",
                28,
                "int(mask[:, 0].sum())",
                "The branch sums the whole batch's mask in place of the slice's: 3,064 rows, which is all the patches there "
                "are. A mask with rows and columns, (B, H, W), says them: npembed.tgt_sizes_from_mask.",
                True,
            ),
        ),
    ),
    Part(
        "The sum",
        (
            Figure(
                "embeddings",
                (3, 1036, 1152),
                "(*ids.shape, npembed.MINICPM_V_2_6.vision.hidden_size)",
                "The demo of the second function uses B and max_patches, which are set outside of it: run alone, it stops.",
            ),
        ),
    ),
)


def article_page() -> str:
    """The page, as text of one HTML file."""
    parts = [(part.title, [(figure, given, same(figure.printed, given)) for figure, given in results(part)]) for part in PARTS]
    agree = sum(equal for _, rows in parts for _, _, equal in rows)
    return render(
        "article.html.j2",
        ("base.js", "rulers.js", "article.js"),
        data={"rulers": [ruler(n, 70, "arange") for n in (28, 37)], "edges": edges_of(70, "arange")},
        title="The article's figures, beside ours",
        article=TITLE,
        setup=SETUP,
        parts=parts,
        agree=agree,
        count=sum(len(rows) for _, rows in parts),
    )


def names() -> dict[str, Any]:
    """What the lines can use: what `SETUP` makes."""
    picture = read_image(str(files("npembed") / "data" / "sample.png")).picture
    strips, tgt_sizes = npembed.slice_image(picture)
    return {
        "np": np,
        "npembed": npembed,
        "strips": strips,
        "tgt_sizes": tgt_sizes,
        "pixel_values": npembed.pad_pixel_values(strips),
        "mask": npembed.patch_attention_mask(tgt_sizes),
        "ids": npembed.position_ids(tgt_sizes),
    }


def results(part: Part) -> list[tuple[Figure, Any]]:
    """Each figure, and what its line gives."""
    known = names()
    return [(figure, eval(figure.line, known)) for figure in part.figures]  # the lines above, and no others


def same(printed: Any, given: Any) -> bool:
    """Whether the article's value is ours; a float32 to the four digits that are printed."""
    if isinstance(printed, list) and printed and isinstance(printed[0], float):
        return bool(np.allclose(printed, given, rtol=0, atol=1e-6))
    return bool(printed == given)
