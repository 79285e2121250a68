"""Checks of slicing; they need Pillow, and so may the port."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed import Config, SlicingConfig
from npembed.conformance import strategies as draw
from npembed.conformance.probes.probe import Call, FunctionCheck, Suspect, call
from npembed.patches import patches_to_strip, strip_to_patches

SMALL = Config(slicing=SlicingConfig(scale_resolution=8, patch_size=2))
"""Slices of about 4 x 4 patches."""


def _sweep() -> Iterator[Call]:
    for height, width in ((1, 1), (2, 1), (6, 8), (8, 20), (24, 20)):
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield call(picture, config=SMALL)
    yield call(np.arange(60 * 80 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 80, 3))


def _cases() -> st.SearchStrategy[Call]:
    return draw.pictures().map(lambda picture: call(picture, config=SMALL))


def _reversed_channels(image: Any, **kwargs: Any) -> Any:
    return npembed.slice_image(np.ascontiguousarray(image[..., ::-1]), **kwargs)


def _column_major(image: Any, **kwargs: Any) -> Any:
    strips, tgt_sizes = npembed.slice_image(image, **kwargs)
    turned = []
    for strip, (h, w) in zip(strips, tgt_sizes.tolist(), strict=True):
        order = np.arange(h * w).reshape(h, w).T.ravel()
        turned.append(patches_to_strip(strip_to_patches(strip)[order], strip.shape[1]))
    return turned, tgt_sizes


def _swapped_sizes(image: Any, **kwargs: Any) -> Any:
    strips, tgt_sizes = npembed.slice_image(image, **kwargs)
    return strips, tgt_sizes[:, ::-1]


CHECKS = (
    FunctionCheck(
        name="slice_image",
        sweep=_sweep,
        cases=_cases,
        suspects=(
            Suspect("the channels are reversed: BGR, not RGB", _reversed_channels),
            Suspect("the patches are laid column by column, not row by row", _column_major),
            Suspect("tgt_sizes have h and w swapped", _swapped_sizes),
        ),
    ),
)
