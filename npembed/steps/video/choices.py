"""The ways in which families choose frames of a video: a function for each, and the records that families hold (SPEC 16)."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npembed.support.typing import Ids

MOST_CHOSEN = 2**14
"""Frames that are taken of a video, at most."""

RELEASED_PACKING = 3
"""Frames that the release puts into one group, at most."""

Sampler = Callable[..., tuple[NDArray[Any] | Sequence[int], list[list[int]] | None]]
"""(number of frames, frames a second, its options by name) -> indices, and what is stacked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """How a family chooses frames.

    Attributes
    ----------
    sample : callable
        (number of frames, frames a second, options by name) -> indices, and what is stacked or None.
    options : callable
        config -> the options that it takes, with their values by default; None for one that must be given.
    packing : callable or None
        (number of frames, frames a second, options by name) -> frames of a group, for a family whose frames have time numbers.
    """

    sample: Sampler
    options: Callable[[Any], Mapping[str, Any]]
    packing: Callable[..., int] | None = None


def uniform(count: int, wanted: int) -> Ids:
    """Of 0 ... count-1 so many, each from the middle of its part.

    Examples
    --------
    >>> uniform(10, 4).tolist()
    [1, 3, 6, 8]
    """
    gap = count / wanted
    return np.array([int(number * gap + gap / 2) for number in range(wanted)], dtype=np.int64)


def each_second(num_frames: int, fps: float, *, max_num_frames: int) -> tuple[Ids, None]:
    """One frame of each second, or so many spread evenly over these (SPEC 16.1)."""
    step = round(fps)
    if step < 1:
        raise ValueError(f"choose_frames: fps must be more than 0.5, so that a second has a whole frame; got {fps}")
    seconds = math.ceil(num_frames / step)
    return (np.arange(seconds) if seconds <= max_num_frames else uniform(seconds, max_num_frames)) * step, None


def _packed(num_frames: int, fps: float, choose_fps: float, max_num_frames: int) -> tuple[int, int]:
    """How many frames are taken, and how many make a group."""
    duration = num_frames / fps
    if choose_fps * int(duration) <= max_num_frames:
        return round(min(choose_fps, round(fps)) * min(max_num_frames, duration)), 1
    packing = math.ceil(duration * choose_fps / max_num_frames)
    if packing <= RELEASED_PACKING:
        return round(duration * choose_fps), packing
    return max_num_frames * RELEASED_PACKING, RELEASED_PACKING


def spread_in_groups(
    num_frames: int, fps: float, *, choose_fps: float, max_num_frames: int, force_packing: int | None
) -> tuple[Ids, None]:
    """So many frames of each second, spread evenly; if they would be too many, as many as fit into groups (SPEC 16.2)."""
    count = _packed(num_frames, fps, choose_fps, max_num_frames)[0]
    if count > RELEASED_PACKING * MOST_CHOSEN:
        raise ValueError(
            f"choose_frames: choose_fps {choose_fps} takes {count} frames; {RELEASED_PACKING * MOST_CHOSEN} at most"
        )
    return uniform(num_frames, count) if count else np.zeros(0, dtype=np.int64), None


def group_size(num_frames: int, fps: float, *, choose_fps: float, max_num_frames: int, force_packing: int | None) -> int:
    """Frames of a group (SPEC 16.2)."""
    if force_packing is not None:
        return min(force_packing, RELEASED_PACKING)
    return _packed(num_frames, fps, choose_fps, max_num_frames)[1]


def seconds_and_canvases(
    num_frames: int, fps: float, *, max_num_frames: int, stack_frames: int
) -> tuple[list[int], list[list[int]] | None]:
    """A frame of each second, or so many evenly; with stacking also frames within each second, on a canvas (SPEC 16.3)."""
    duration = num_frames / fps
    if duration > max_num_frames:  # seconds against frames, as released
        tenths = _evenly(int(duration / 0.1), max_num_frames)
        main = [min(int(round(tenth * 0.1, 1) * fps), num_frames - 1) for tenth in tenths]
    else:
        main = [int(second * fps) for second in range(math.ceil(duration))]
    if stack_frames == 1:
        return main, None
    within = _within_seconds(duration, stack_frames, max_num_frames)
    stacked: list[list[int]] = []
    edges = [bisect_left(within, second) for second in range(len(main) + 1)]
    for second in range(len(main)):
        own = [len(main) + place for place in range(*edges[second : second + 2])]
        stacked += [[second], own] if own else [[second]]
    return main + [min(int(time * fps), num_frames - 1) for time in within], stacked


def _within_seconds(duration: float, stack_frames: int, max_num_frames: int) -> list[float]:
    """The times between whole seconds at which frames are taken for canvases."""
    parts, last = stack_frames - 1, math.ceil(duration) - 1
    count = last * parts + sum(last + part / stack_frames < duration for part in range(1, stack_frames))
    return [n // parts + (n % parts + 1) / stack_frames for n in _evenly(count, max_num_frames * parts)]


def _evenly(count: int, most: int) -> list[int]:
    """0 ... count-1, or so many of them."""
    numbers = np.linspace(0, count - 1, most, dtype=int) if count > most else np.arange(count)
    return [int(number) for number in numbers]


def spread_between(num_frames: int, fps: float, *, choose_fps: float, max_num_frames: int) -> tuple[NDArray[Any], None]:
    """So many frames of each second, from the first to the last, without a second at both ends of a long video (SPEC 16.4)."""
    duration = num_frames / fps
    wanted = max(min(round(choose_fps * duration), max_num_frames), 1)
    start, end = 0, num_frames - 1
    if duration - 2 > max_num_frames * choose_fps:  # seconds against frames times rate, as released
        start, end = int(fps), min(int(num_frames - fps), end)
        if start >= end:
            start, end = 0, num_frames - 1
    return np.unique(np.linspace(start, end, wanted, dtype=int)), None


EACH_SECOND = Choice(sample=each_second, options=lambda config: {"max_num_frames": 64})
IN_GROUPS = Choice(
    sample=spread_in_groups,
    options=lambda config: {"choose_fps": 3, "max_num_frames": 180, "force_packing": None},
    packing=group_size,
)
SECONDS_AND_CANVASES = Choice(sample=seconds_and_canvases, options=lambda config: {"max_num_frames": 128, "stack_frames": 1})
SPREAD = Choice(sample=spread_between, options=lambda config: {"choose_fps": None, "max_num_frames": None})
