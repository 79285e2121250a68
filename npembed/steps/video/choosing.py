"""Which frames of a video each family takes, and which times they get (SPEC 16)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from npembed.records.config import FamilyConfig
from npembed.steps.video.choices import MOST_CHOSEN, Choice
from npembed.steps.video.rules import TENTH, TimeRule, get_time_rule
from npembed.support import arguments
from npembed.support.messages import brief
from npembed.support.typing import Floats, Ids

MOST_FRAMES = 2**31 - 1
"""Of a video."""

MOST_SECONDS = 10_000_000
"""That a video lasts."""

MOST_RATE = 10_000_000
"""Frames a second."""

MOST_STACKED = 100
"""Frames of one second, at most."""

MOST_PACKED = 6
"""Frames of one group, at most."""

MAX_TIME = 71_999
"""The last number of a time that the resampler's table has."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """The frames of a video that a family takes. It unpacks into the first four.

    Attributes
    ----------
    indices : int64 (k,)
        Each frame's number in the video, from 0.
    times : float64 (k,)
        The same in seconds.
    temporal_ids : list of list of int, or None
        The frames in groups, each frame by the number of its time; None where a family has no groups.
    stacked : list of list of int, or None
        For each picture that the model sees, the places in `indices` of the frames that it is made of; None where each
        frame is a picture by itself. Of a long video MiniCPM-V 4.6 also chooses frames that no picture uses, as released.
    duration : float
        Of the video, in seconds.
    """

    indices: Ids
    times: Floats
    temporal_ids: list[list[int]] | None
    stacked: list[list[int]] | None
    duration: float

    def __iter__(self) -> Iterator[Any]:
        return iter((self.indices, self.times, self.temporal_ids, self.stacked))


def choose_frames(
    num_frames: int,
    fps: float,
    config: FamilyConfig,
    *,
    choose_fps: float | None = None,
    max_num_frames: int | None = None,
    force_packing: int | None = None,
    stack_frames: int | None = None,
    time_rule: str = "released",
) -> Chosen:
    """Which frames of a video the family takes, their times, and what becomes of them.

    Parameters
    ----------
    num_frames : int
        Of the whole video.
    fps : float
        Its frames a second, on average.
    config : Config
        Of a family that takes videos.
    choose_fps : float, optional
        Frames to take of each second (MiniCPM-V 4.5, SmolVLM2).
    max_num_frames : int, optional
        Frames to take, at most; in MiniCPM-V 4.5 groups of frames. What a checkpoint's file for videos states is not read: the
        default is the release's own code's. SmolVLM2, whose code has none, needs `choose_fps` and this one, which are
        `fps` and `max_frames` of the checkpoint's `video_sampling`.
    force_packing : int, optional
        Frames of a group (MiniCPM-V 4.5); above 3 it is 3, as released.
    stack_frames : int, optional
        Frames of each second, of which all but the first are laid out on one canvas (MiniCPM-V 4.6).
    time_rule : str
        The name of one of `TIME_RULES` (MiniCPM-V 4.5).

    Returns
    -------
    Chosen
        It unpacks into indices, times, temporal_ids and what is stacked.

    Raises
    ------
    ValueError, TypeError
        A family that takes no videos, or has not the option; a number of frames below 1; frames a second that are no finite
        number above 0; a video of which no frame is taken; a frame that would not exist; a time above 71,999 tenths of a
        second.

    Notes
    -----
    Source: SPEC 16. How a decoder makes pictures of a file is not part of it.

    Examples
    --------
    >>> from npembed import FAMILIES
    >>> config = FAMILIES["minicpm-v-4.5"].small()
    >>> indices, times, temporal_ids, stacked = choose_frames(150, 30.0, config, choose_fps=1, force_packing=2)
    >>> indices.tolist(), times.tolist(), temporal_ids, stacked
    ([15, 45, 75, 105, 135], [0.5, 1.5, 2.5, 3.5, 4.5], [[5, 15], [25, 35], [45]], None)
    """
    who = "choose_frames"
    choice = _choice(config, who)
    count = arguments.as_count(num_frames, "num_frames", who, most=MOST_FRAMES)
    rate = _as_rate(fps, "fps", who)
    given = {"choose_fps": choose_fps, "max_num_frames": max_num_frames}
    given |= {"force_packing": force_packing, "stack_frames": stack_frames}
    options = _options(given, choice, config, who)
    rule = get_time_rule(time_rule, who)
    if choice.packing is None and time_rule != "released":
        raise ValueError(f"{who}: the frames of {config.family.title} have no time numbers, so no time_rule can be chosen")
    if count / rate > MOST_SECONDS:
        raise ValueError(
            f"{who}: {count} frames at {rate:.6g} frames a second last {count / rate:.6g} s; {MOST_SECONDS} at most"
        )
    sampled, stacked = choice.sample(count, rate, **options)
    indices = np.asarray(sampled, dtype=np.int64)
    _check_frames(indices, count, rate, config.family.title)
    times, duration = indices / rate, count / rate
    if choice.packing is None:
        return Chosen(indices, times, None, stacked, duration)
    ids, size = _time_ids(times, duration, rule).tolist(), choice.packing(count, rate, **options)
    return Chosen(indices, times, [ids[first : first + size] for first in range(0, len(ids), size)], stacked, duration)


def _choice(config: Any, who: str) -> Choice:
    if not isinstance(config, FamilyConfig):
        raise TypeError(f"{who}: config must be a Config; got {type(config).__name__}")
    choice: Choice | None = config.family.choice
    if choice is None:
        raise ValueError(f"{who}: {config.family.title} takes no videos")
    return choice


def _as_rate(value: Any, name: str, who: str) -> float:
    """A number above 0, and no higher than any camera has."""
    words = f"{who}: {name} must be a number above 0 and up to {MOST_RATE}, in frames a second; got {brief(value)}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Real, np.number)):
        raise TypeError(words)
    try:
        rate = float(value)
    except (OverflowError, TypeError, ValueError):
        rate = math.inf
    if not 0 < rate <= MOST_RATE:
        raise ValueError(words)
    return rate


def _options(given: Mapping[str, Any], choice: Choice, config: FamilyConfig, who: str) -> dict[str, Any]:
    """The family's options, checked; an error for one that it has not, or that it has no value for."""
    title, known = config.family.title, choice.options(config)
    most = {"max_num_frames": MOST_CHOSEN, "force_packing": MOST_PACKED, "stack_frames": MOST_STACKED}
    options = dict(known)
    for name, value in given.items():
        if value is None:
            continue
        if name not in known:
            raise ValueError(f"{who}: {title} has no {name}; it has {', '.join(known)}")
        options[name] = (
            _as_rate(value, name, who) if name == "choose_fps" else arguments.as_count(value, name, who, most=most[name])
        )
    for name, value in options.items():
        if value is None and name != "force_packing":
            raise ValueError(f"{who}: {name} must be given: the config of {title} says nothing of videos")
    return options


def _check_frames(indices: Ids, count: int, rate: float, title: str) -> None:
    """An error where no frame is taken, or one that is not there."""
    video = f"choose_frames: of a video of {count} frame{'s' * (count > 1)} at {rate:.6g} frames a second"
    if not len(indices):
        raise ValueError(f"{video} {title} takes no frame")
    if indices.max() >= count:
        raise ValueError(f"{video} {title} would take frame {indices.max()}, which it has not")


def _time_ids(times: Floats, duration: float, rule: TimeRule) -> Ids:
    """(k,) -> int64 (k,): the number of each time.

    Half way between two tenths of a second the layout of SciPy's tree decides, as released; `KDTree` has smaller leaves and
    gives other numbers there.
    """
    from scipy.spatial import cKDTree  # here, because SciPy takes longer to import than the rest of the package

    longest = float(times.max())
    if longest < (MAX_TIME + 2) * TENTH:  # before a table of the whole video is made
        tenths = np.arange(0, duration, TENTH)
        ids = rule.ids(tenths[cKDTree(tenths[:, None]).query(times[:, None])[1]])
        if ids.max() <= MAX_TIME:
            return ids
    raise ValueError(
        f"choose_frames: a frame at {longest:.1f} s is beyond the last time that the model has a number for, "
        f"{MAX_TIME / 10} s; cut the video"
    )
