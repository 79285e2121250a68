"""A video's frames -> strips and times, in groups whose frames share vision tokens (MiniCPM-V 4.5)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from npembed.families import image_placeholder
from npembed.records.config import FamilyConfig
from npembed.records.family import Family, Slices
from npembed.steps.resampler import as_times
from npembed.support import arguments
from npembed.support.typing import Floats, Ids, Pixels, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True, eq=False)
class Frames:
    """What groups of frames are cut into, in the order that `resample` wants.

    Attributes
    ----------
    strips : list of float32 (C, P, L_i*P)
        The first group's frames' first slices, then their second slices, and so on; then the next group's.
    tgt_sizes : int64 (B, 2)
        Rows and columns of patches per slice.
    temporal_ids : list of list of int
        One group per slice of a group's frames: the times of those frames.
    grids : list of (int, int) or None
        Of each group of frames: columns and rows of crops; None where the whole frame is the only slice.
    first_frames : list of int
        Of each group: the place of its first frame among all frames. Upstream numbers the groups in the text by it.
    """

    strips: list[Floats]
    tgt_sizes: Ids
    temporal_ids: list[list[int]]
    grids: list[Size | None]
    first_frames: list[int]


def slice_frames(frames: Iterable["Picture | Pixels"], temporal_ids: Iterable[Iterable[int]], config: FamilyConfig) -> Frames:
    """Frames and their times in groups -> strips, sizes and times in groups of slices.

    The frames of a group are cut alike; the k-th slices of its frames form one group of slices, which gets one run of
    vision tokens.

    Parameters
    ----------
    frames : iterable of PIL image or uint8 (H, W, 3)
        All groups' frames, in order.
    temporal_ids : groups of int
        Each group is a list with the time of each of its frames: from 0 to 71,999, in tenths of a second where the release's
        own code makes them. A picture among the frames is a group `[-1]`.
    config : Config
        Of a family that takes frames.

    Returns
    -------
    Frames

    Raises
    ------
    ValueError, TypeError
        A family that takes no frames; times that are not as above, with their place, or not as many as frames; frames of
        one group that are cut differently, with their number; and what `slice_image` refuses.

    Notes
    -----
    Source: SPEC 13.3.

    Examples
    --------
    >>> from npembed import FAMILIES, random_model, resample, run
    >>> family = FAMILIES["minicpm-v-4.5"]
    >>> model = random_model(family.small(), until="tokens")
    >>> video = [np.full((16, 16, 3), level, dtype=np.uint8) for level in (0, 50, 100, 150, 200)]
    >>> cut = slice_frames(video, [[0, 5, 10], [15, 20]], model.config)
    >>> cut.tgt_sizes.tolist(), cut.temporal_ids, cut.grids
    ([[4, 4], [4, 4], [4, 4], [4, 4], [4, 4]], [[0, 5, 10], [15, 20]], [None, None])
    >>> hidden = run(cut.strips, cut.tgt_sizes, model, until="hidden")["hidden"]
    >>> resample(hidden, cut.tgt_sizes, model, cut.temporal_ids).shape
    (2, 4, 128)
    """
    who = "slice_frames"
    family = _frames_family(config, who)
    times = as_times(temporal_ids, who)
    slices = [family.cut(frame, config) for frame in arguments.as_list(frames, "frames", who)]
    count = sum(map(len, times))
    if count != len(slices):
        raise ValueError(f"{who}: temporal_ids has {count} times in {len(times)} groups, but there are {len(slices)} frames")
    firsts = np.cumsum([0, *map(len, times[:-1])]).tolist()
    groups = [slices[first : first + len(group)] for first, group in zip(firsts, times, strict=True)]
    for first, group in zip(firsts, groups, strict=True):
        _check_alike(group, first, who)
    return Frames(
        strips=[strip for group in groups for alike in zip(*(cut.strips for cut in group), strict=True) for strip in alike],
        tgt_sizes=np.concatenate([size for group in groups for size in zip(*(cut.tgt_sizes for cut in group), strict=True)]),
        temporal_ids=[group_times for group, group_times in zip(groups, times, strict=True) for _ in group[0].strips],
        grids=[group[0].grid for group in groups],
        first_frames=firsts,
    )


def frames_placeholders(frames: Frames, config: FamilyConfig, *, use_image_id: bool = True) -> list[str]:
    """The text that stands for each group of frames: that of its first frame, with the first frame's number.

    The other frames of a group have no text.

    Parameters
    ----------
    frames : Frames
        As `slice_frames` gives them.
    config : Config
    use_image_id : bool
        Whether the text gives the number; the release's own examples for video say no.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError, TypeError
        A family that takes no frames.

    Notes
    -----
    Source: SPEC 13.3; the release's own processor.

    Examples
    --------
    >>> from npembed import FAMILIES
    >>> config = FAMILIES["minicpm-v-4.5"].small()
    >>> cut = slice_frames(np.zeros((5, 12, 12, 3), dtype=np.uint8), [[0, 5, 10], [15, 20]], config)
    >>> [text.replace("<unk>", ".") for text in frames_placeholders(cut, config)]
    ['<image_id>0</image_id><image>....</image>', '<image_id>3</image_id><image>....</image>']
    """
    _frames_family(config, "frames_placeholders")
    return [
        image_placeholder(grid, first if use_image_id else None, config)
        for grid, first in zip(frames.grids, frames.first_frames, strict=True)
    ]


def _frames_family(config: FamilyConfig, who: str) -> Family:
    if not isinstance(config, FamilyConfig):
        raise TypeError(f"{who}: config must be a Config; got {type(config).__name__}")
    if not config.family.frames:
        raise ValueError(f"{who}: {config.family.title} takes no frames: its tokens are made of each slice by itself")
    return config.family


def _check_alike(group: Sequence[Slices], first: int, who: str) -> None:
    """An error unless the frames of a group, the first of which has this number, are cut alike."""
    for number, cut in enumerate(group, first):
        if not np.array_equal(cut.tgt_sizes, group[0].tgt_sizes):
            raise ValueError(
                f"{who}: frames[{number}] makes slices of {cut.tgt_sizes.tolist()} patches, but the first of its group, "
                f"frames[{first}], {group[0].tgt_sizes.tolist()}; the frames of a group must be of one size"
            )
