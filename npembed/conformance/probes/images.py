"""Checks of slicing; they need Pillow, and so may the port."""

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from npembed import Config, SlicingConfig
from npembed.conformance import strategies as draw
from npembed.conformance.probes.probe import Call, FunctionCheck, call
from npembed.support.typing import Pixels

SMALL = Config(slicing=SlicingConfig(scale_resolution=8, patch_size=2))
"""Slices of about 4 x 4 patches."""

UNEVEN = {"mean": (0.25, 0.5, 0.625), "std": (0.75, 0.5, 0.25)}
"""Of each channel other than of the next, and the one other than the other."""


def config(**slicing: object) -> Config:
    """`SMALL` with other fields of its slicing."""
    fields = {"scale_resolution": 8, "patch_size": 2} | slicing
    return Config(slicing=SlicingConfig(**fields))  # type: ignore[arg-type]


CONFIGS = (
    config(**UNEVEN),
    config(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    config(max_slice_nums=1),
    config(max_slice_nums=4),
    config(max_slice_nums=12),
    config(scale_resolution=12),
    config(slice_mode=False),
    config(patch_size=3, scale_resolution=9),
)
"""Every field of the slicing in its turn."""


def picture(height: int, width: int) -> Pixels:
    """uint8 (H, W, 3) of random pixels."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _sweep() -> Iterator[Call]:
    for height, width in ((1, 1), (2, 1), (6, 8), (8, 20), (24, 20)):
        yield call(picture(height, width), config=SMALL)
    for own in CONFIGS:
        yield from (call(picture(height, width), config=own) for height, width in ((3, 3), (10, 15), (30, 25)))
    for height, width in _TIES:
        yield call(picture(height, width), config=SMALL)
    yield call(np.arange(60 * 80 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 80, 3))


_TIES = ((11, 11), (12, 12), (16, 16), (20, 20), (7, 9), (9, 7), (5, 13), (30, 8))
"""Square pictures, for which two grids are as near, and sides that lie half-way between two multiples of a patch."""


def _cases() -> st.SearchStrategy[Call]:
    cut = [own for own in (SMALL, *CONFIGS) if own.slicing.slice_mode]  # what is not cut needs room for a patch
    return st.builds(lambda picture, own: call(picture, config=own), draw.pictures(), st.sampled_from(cut))


CHECKS = (FunctionCheck(name="slice_image", sweep=_sweep, cases=_cases),)
