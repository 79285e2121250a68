"""Which frames of a video are taken, and which times they get: upstream's own functions, and SPEC 16 written out anew."""

import math
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial import cKDTree
from transformers.models.minicpmv4_6.video_processing_minicpmv4_6 import MiniCPMV4_6VideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.video_utils import VideoMetadata

import npembed
from npembed import FAMILIES, TIME_RULES, choose_frames

CONFIGS = {key: family.small() for key, family in FAMILIES.items()}
EVERY_SECOND = ("minicpm-v-2.6", "minicpm-v-4.0", "minicpm-o-2.6")
IN_GROUPS = ("minicpm-v-4.5", "minicpm-o-4.5")
CANVASES = ("minicpm-v-4.6", "minicpm-v-4.7")
WITH_VIDEO = (*EVERY_SECOND, *IN_GROUPS, *CANVASES, "smolvlm")
RATES = (1, 6, 10, 12.5, 15, 20, 24000 / 1001, 24, 25, 30000 / 1001, 30, 50, 60000 / 1001, 60, 0.7, 2.5, 7.3, 119.88)


def videos(count: int, seed: int, longest: float = 1200) -> list[tuple[int, float]]:
    """Numbers of frames and frames a second: of cameras, and any; short videos as often as long ones."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        fps = float(rng.choice(RATES) if number % 3 else rng.uniform(0.6, 130))
        seconds = rng.choice([1, 10, longest / 4, longest]) * rng.uniform(0, 1)
        found.append((max(int(seconds * fps), 1), fps))
    return found


def upstream(num_frames: int, fps: float) -> VideoMetadata:
    return VideoMetadata(total_num_frames=num_frames, fps=fps, duration=num_frames / fps)


# MiniCPM-V 4.6 and SmolVLM2: transformers' own functions


def compare_with_4_6(drawn: list[tuple[int, float]]) -> None:
    config, rng = CONFIGS["minicpm-v-4.6"], np.random.default_rng(1)
    for num_frames, fps in drawn:
        most, stack = (int(rng.choice(numbers)) for numbers in ((1, 5, 64, 128), (1, 1, 2, 3, 4, 5, 9)))
        own = SimpleNamespace(max_num_frames=most, stack_frames=stack)
        expected = MiniCPMV4_6VideoProcessor.sample_frames(own, upstream(num_frames, fps))
        if max(expected) == num_frames:  # frame 21 of 21, at 0.7 frames a second
            with pytest.raises(ValueError, match=rf"MiniCPM-V 4\.6 would take frame {num_frames}, which it has not$"):
                choose_frames(num_frames, fps, config, max_num_frames=most, stack_frames=stack)
            continue
        found = choose_frames(num_frames, fps, config, max_num_frames=most, stack_frames=stack)
        assert found.indices.tolist() == expected, (num_frames, fps, most, stack)
        assert np.array_equal(found.times, np.array(expected) / fps)
        assert found.temporal_ids is None


def compare_with_smolvlm(drawn: list[tuple[int, float]]) -> None:
    rng = np.random.default_rng(2)
    for num_frames, fps in drawn:
        most, rate = int(rng.choice([1, 3, 8, 64])), float(rng.choice([1, 0.5, 2, 0.1, 30]))
        own = SimpleNamespace(num_frames=most, fps=rate)
        expected = SmolVLMVideoProcessor.sample_frames(own, upstream(num_frames, fps))
        found = choose_frames(num_frames, fps, CONFIGS["smolvlm"], choose_fps=rate, max_num_frames=most)
        assert found.indices.tolist() == expected.tolist(), (num_frames, fps, most, rate)
        assert (found.temporal_ids, found.stacked) == (None, None)


def test_the_frames_of_4_6_are_transformers() -> None:
    compare_with_4_6(videos(10_000, 1, longest=200))
    compare_with_4_6(videos(100, 2, longest=4000))


def test_the_frames_of_smolvlm_are_transformers() -> None:
    compare_with_smolvlm(videos(10_000, 3))


def test_the_options_of_4_6_and_smolvlm_come_from_the_config() -> None:
    """Upstream's own defaults: 128 frames and no canvases; of SmolVLM2 what the checkpoint says."""
    for fps in (1.0, 25.0):
        own = SimpleNamespace(max_num_frames=128, stack_frames=1)
        expected = MiniCPMV4_6VideoProcessor.sample_frames(own, upstream(5000, fps))
        assert choose_frames(5000, fps, CONFIGS["minicpm-v-4.6"]).indices.tolist() == expected


# MiniCPM-V 4.6's canvases


def canvases_as_upstream_pairs_them(num_frames: int, fps: float, most: int, stack: int) -> list[list[int]]:
    """SPEC 16.3 in loops: the main frame of each second, then the canvas of the frames within it."""
    duration = num_frames / fps
    within = [s + j / stack for s in range(math.ceil(duration)) for j in range(1, stack) if s + j / stack < duration]
    if len(within) > most * (stack - 1):
        within = [within[i] for i in np.linspace(0, len(within) - 1, most * (stack - 1), dtype=int)]
    own = SimpleNamespace(max_num_frames=most, stack_frames=stack)
    mains = len(MiniCPMV4_6VideoProcessor.sample_frames(own, upstream(num_frames, fps))) - len(within)
    units = []
    for second in range(mains):
        units.append([second])
        of_the_second = [mains + place for place, time in enumerate(within) if math.floor(time) == second]
        if of_the_second:
            units.append(of_the_second)
    return units


def test_each_second_is_a_frame_and_a_canvas() -> None:
    found = choose_frames(70, 30.0, CONFIGS["minicpm-v-4.6"], stack_frames=4)
    assert found.indices.tolist() == [0, 30, 60, 7, 15, 22, 37, 45, 52, 67]
    assert found.stacked == [[0], [3, 4, 5], [1], [6, 7, 8], [2], [9]]


def test_canvases_are_paired_with_frames_by_their_seconds() -> None:
    for number, (num_frames, fps) in enumerate(videos(150, 3, longest=400)):
        most, stack = (1, 5, 64, 128)[number % 4], (2, 3, 4, 5)[number // 4 % 4]
        found = choose_frames(num_frames, fps, CONFIGS["minicpm-v-4.7"], max_num_frames=most, stack_frames=stack)
        assert found.stacked == canvases_as_upstream_pairs_them(num_frames, fps, most, stack)


# MiniCPM-V 2.6, 4.0 and o 2.6: SPEC 16.1 in loops


def oracle_2_6(num_frames: int, fps: float, most: int) -> list[int]:
    step = round(fps)
    candidates = [index for index in range(num_frames) if index % step == 0]
    if len(candidates) <= most:
        return candidates
    return [candidates[math.floor((2 * i + 1) * len(candidates) / most / 2)] for i in range(most)]


@pytest.mark.parametrize("key", EVERY_SECOND)
def test_the_frames_of_2_6_are_one_a_second(key: str) -> None:
    for number, (num_frames, fps) in enumerate(videos(300, 4)):
        most = (64, 64, 5, 1)[number % 4]
        expected = oracle_2_6(num_frames, fps, most)
        assert choose_frames(num_frames, fps, CONFIGS[key], max_num_frames=most).indices.tolist() == expected
        if most == 64:
            assert choose_frames(num_frames, fps, CONFIGS[key]).indices.tolist() == expected


def test_half_a_frame_a_second_goes_to_the_even_number() -> None:
    """A port that rounds half up takes every third frame here."""
    assert choose_frames(10, 2.5, CONFIGS["minicpm-v-2.6"]).indices.tolist() == [0, 2, 4, 6, 8]
    assert choose_frames(10, 3.5, CONFIGS["minicpm-v-2.6"]).indices.tolist() == [0, 4, 8]


# MiniCPM-V 4.5 and o 4.5: SPEC 16.2 in loops


def oracle_4_5(num_frames: int, fps: float, rate: float, most: int, forced: int | None) -> tuple[list[int], list[list[int]]]:
    duration = num_frames / fps
    if rate * math.floor(duration) <= most:
        packing, count = 1, round(min(rate, round(fps)) * min(most, duration))
    else:
        packing = math.ceil(duration * rate / most)
        count = round(duration * rate) if packing <= 3 else most * 3
    packing = min(packing, 3) if forced is None else min(forced, 3)
    gap = num_frames / count
    indices = [int(i * gap + gap / 2) for i in range(count)]
    tenths = np.arange(0, duration, 0.1)
    nearest = tenths[cKDTree(tenths[:, None]).query(np.array(indices)[:, None] / fps)[1]]
    ids = (nearest / 0.1).astype(np.int32).tolist()
    return indices, [ids[first : first + packing] for first in range(0, len(ids), packing)]


@pytest.mark.parametrize("key", IN_GROUPS)
def test_the_frames_of_4_5_and_their_groups(key: str) -> None:
    rng, compared = np.random.default_rng(5), 0
    for num_frames, fps in videos(400, 5):
        rate, most, forced = float(rng.choice([3, 1, 5, 0.5])), int(rng.choice([180, 20])), rng.choice([None, 1, 2, 3, 5])
        if round(min(rate, round(fps)) * num_frames / fps) == 0:
            continue  # no frame is taken
        options: dict[str, Any] = {} if (rate, most, forced) == (3, 180, None) else {"choose_fps": rate, "max_num_frames": most}
        expected, groups = oracle_4_5(num_frames, fps, rate, most, forced)
        found = choose_frames(num_frames, fps, CONFIGS[key], force_packing=forced, **options)
        assert found.indices.tolist() == expected, (num_frames, fps, rate, most, forced)
        assert found.temporal_ids == groups
        compared += 1
    assert compared > 300


def test_a_time_has_the_number_of_the_nearest_tenth() -> None:
    """By brute force, where no frame lies half way between two."""
    indices, times, groups, _ = choose_frames(5000, 30.0, CONFIGS["minicpm-v-4.5"], force_packing=1)
    tenths = np.arange(0, 5000 / 30, 0.1)
    distances = np.abs(times[:, None] - tenths)
    nearest, second = np.sort(distances, axis=1)[:, :2].T
    assert (second - nearest).min() > 1e-9
    assert groups is not None
    assert [own for (own,) in groups] == [int(tenths[row.argmin()] / 0.1) for row in distances]
    assert np.array_equal(times, indices / 30.0)


def test_no_frame_has_the_time_43() -> None:
    """tenths[43] / 0.1 is 42.99999999999999, so the release gives 42 twice: a port that rounds gives 43."""
    numbers = {}
    for name in TIME_RULES:
        groups = choose_frames(60, 10.0, CONFIGS["minicpm-v-4.5"], choose_fps=10, time_rule=name).temporal_ids
        assert groups is not None
        numbers[name] = list(chain(*groups))
    assert numbers["nearest"] == list(range(60))
    assert numbers["released"] == [*range(43), 42, *range(44, 60)]


def test_how_many_tenths_the_release_cuts_off() -> None:
    tenths = np.arange(0, 7200, 0.1)
    released, nearest = (rule.ids(tenths) for rule in TIME_RULES.values())
    assert np.array_equal(nearest, np.arange(72_000))
    assert np.flatnonzero(released != nearest)[:6].tolist() == [43, 81, 86, 91, 162, 167]
    assert (released != nearest).sum() == 3270
    assert (nearest - released).max() == 1


def test_half_way_between_two_tenths_scipys_tree_decides() -> None:
    """At 20 frames a second every other frame lies there; the lower number and the higher one both come."""
    groups = choose_frames(1200, 20.0, CONFIGS["minicpm-v-4.5"], choose_fps=20, max_num_frames=2000).temporal_ids
    assert groups is not None
    tenths = np.arange(0, 60, 0.1)
    expected = (tenths[cKDTree(tenths[:, None]).query(np.arange(1200)[:, None] / 20)[1]] / 0.1).astype(int)
    found = list(chain(*groups))
    assert found == expected.tolist()
    middles = [frame for frame in range(1, 1199, 2) if frame / 20 - tenths[frame // 2] == tenths[frame // 2 + 1] - frame / 20]
    assert len(middles) > 100
    assert {found[frame] - found[frame - 1] for frame in middles} >= {0, 1}


# Everything of all


def test_a_choice_unpacks() -> None:
    chosen = choose_frames(90, 30.0, CONFIGS["minicpm-v-4.5"])
    indices, times, temporal_ids, stacked = chosen
    assert (indices.dtype, times.dtype) == (np.int64, np.float64)
    assert temporal_ids is chosen.temporal_ids
    assert stacked is None
    assert chosen.duration == 3.0


@pytest.mark.parametrize("key", WITH_VIDEO)
def test_frames_a_second_of_any_kind_of_number(key: str) -> None:
    options = {"choose_fps": 1, "max_num_frames": 8} if key == "smolvlm" else {}
    expected = choose_frames(300, 25.0, CONFIGS[key], **options)
    for fps in (25, Fraction(25), np.float32(25), np.int64(25)):
        assert np.array_equal(choose_frames(np.int64(300), fps, CONFIGS[key], **options).indices, expected.indices)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", sorted(set(FAMILIES) - set(WITH_VIDEO)))
def test_a_family_without_video_refuses_by_name(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^choose_frames: {FAMILIES[key].title} takes no videos$"):
        choose_frames(100, 25.0, CONFIGS[key])


OPTIONS = {
    **dict.fromkeys(EVERY_SECOND, ("max_num_frames",)),
    **dict.fromkeys(IN_GROUPS, ("choose_fps", "max_num_frames", "force_packing")),
    **dict.fromkeys(CANVASES, ("max_num_frames", "stack_frames")),
    "smolvlm": ("choose_fps", "max_num_frames"),
}


@pytest.mark.parametrize("key", WITH_VIDEO)
@pytest.mark.parametrize("option", ["choose_fps", "max_num_frames", "force_packing", "stack_frames"])
def test_an_option_that_a_family_has_not_is_refused_by_name(key: str, option: str) -> None:
    if option in OPTIONS[key]:
        choose_frames(100, 25.0, CONFIGS[key], **({"choose_fps": 1, "max_num_frames": 4} if key == "smolvlm" else {option: 1}))
        return
    with pytest.raises(ValueError, match=rf"^choose_frames: {FAMILIES[key].title} has no {option}; it has "):
        choose_frames(100, 25.0, CONFIGS[key], **{option: 1})


@pytest.mark.parametrize("key", sorted(set(WITH_VIDEO) - set(IN_GROUPS)))
def test_a_time_rule_is_refused_where_frames_have_no_time_numbers(key: str) -> None:
    options = {"choose_fps": 1, "max_num_frames": 8} if key == "smolvlm" else {}
    with pytest.raises(ValueError, match=f"^choose_frames: the frames of {FAMILIES[key].title} have no time numbers, so no "):
        choose_frames(100, 25.0, CONFIGS[key], time_rule="nearest", **options)


V_4_5, V_2_6, V_4_6 = CONFIGS["minicpm-v-4.5"], CONFIGS["minicpm-v-2.6"], CONFIGS["minicpm-v-4.6"]
RATE = "must be a number above 0 and up to 10000000, in frames a second; got"
WRONG: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((0, 25.0, V_4_5), {}, ValueError, "num_frames must be a whole number from 1 to 2147483647; got 0"),
    ((-3, 25.0, V_4_5), {}, ValueError, "num_frames must be a whole number from 1 to 2147483647; got -3"),
    ((2**40, 25.0, V_4_5), {}, ValueError, "num_frames must be a whole number from 1 to 2147483647; got 1099511627776"),
    ((2.5, 25.0, V_4_5), {}, TypeError, "num_frames must be a whole number from 1 to 2147483647; got 2.5"),
    ((100, 0, V_4_5), {}, ValueError, f"fps {RATE} 0"),
    ((100, -25.0, V_4_5), {}, ValueError, f"fps {RATE} -25.0"),
    ((100, math.nan, V_4_5), {}, ValueError, f"fps {RATE} nan"),
    ((100, math.inf, V_4_5), {}, ValueError, f"fps {RATE} inf"),
    ((100, None, V_4_5), {}, TypeError, f"fps {RATE} None"),
    ((100, "25", V_4_5), {}, TypeError, f"fps {RATE} '25'"),
    ((100, True, V_4_5), {}, TypeError, f"fps {RATE} True"),
    ((100, 10**400, V_4_5), {}, ValueError, f"fps {RATE} "),
    ((100, 1j, V_4_5), {}, TypeError, f"fps {RATE} 1j"),
    ((100, 25.0, {}), {}, TypeError, "config must be a Config; got dict"),
    ((100, 25.0, V_4_5), {"choose_fps": 0}, ValueError, f"choose_fps {RATE} 0"),
    ((100, 25.0, V_4_5), {"choose_fps": math.nan}, ValueError, f"choose_fps {RATE} nan"),
    ((100, 25.0, V_4_5), {"max_num_frames": 0}, ValueError, "max_num_frames must be a whole number from 1 to 16384; got 0"),
    ((100, 25.0, V_4_5), {"force_packing": 7}, ValueError, "force_packing must be a whole number from 1 to 6; got 7"),
    ((100, 25.0, V_4_5), {"force_packing": 0}, ValueError, "force_packing must be a whole number from 1 to 6; got 0"),
    ((100, 25.0, V_4_6), {"stack_frames": 0}, ValueError, "stack_frames must be a whole number from 1 to 100; got 0"),
    (
        (100, 25.0, V_4_5),
        {"time_rule": "nearst"},
        ValueError,
        "time_rule must be one of released, nearest; got 'nearst'; did you",
    ),
    ((100, 0.5, V_2_6), {}, ValueError, "fps must be more than 0.5, so that a second has a whole frame; got 0.5"),
    ((1, 30.0, V_4_5), {}, ValueError, "of a video of 1 frame at 30 frames a second MiniCPM-V 4.5 takes no frame"),
    ((3, 0.4, V_4_5), {}, ValueError, "of a video of 3 frames at 0.4 frames a second MiniCPM-V 4.5 takes no frame"),
    (
        (36_000 * 30, 30.0, V_4_5),
        {},
        ValueError,
        "a frame at 35966.7 s is beyond the last time that the model has a number for",
    ),
    (
        (2**31 - 1, 1e-3, V_4_6),
        {},
        ValueError,
        "2147483647 frames at 0.001 frames a second last 2.14748e+12 s; 10000000 at most",
    ),
    ((5 * 10**6, 1e7, V_4_5), {"choose_fps": 1e7}, ValueError, "choose_fps 10000000.0 takes 5000000 frames; 49152 at most"),
    ((100, 25.0, CONFIGS["smolvlm"]), {}, ValueError, "choose_fps must be given: the config of SmolVLM says nothing of videos"),
]


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), WRONG)
def test_what_is_wrong_is_said(arguments: Any, options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        choose_frames(*arguments, **options)
    assert str(caught.value).startswith(f"choose_frames: {message}")
    assert "\n" not in str(caught.value)


def test_a_frame_that_would_not_exist_is_refused() -> None:
    """In 4.6 a video's last second can begin where rounding puts its end."""
    found = []
    for n in range(1, 3000):
        for k in (3, 7, 11, 13, 23, 29, 41, 47):
            fps = n / k
            if int((math.ceil(n / fps) - 1) * fps) >= n:
                found.append((n, fps))
    assert len(found) > 10
    for n, fps in found:
        with pytest.raises(
            ValueError, match=rf"^choose_frames: of a video of {n} frames at .* would take frame {n}, which it "
        ):
            choose_frames(n, fps, V_4_6)


def test_ten_hours_are_chosen_from_where_times_have_no_numbers() -> None:
    for key in ("minicpm-v-2.6", "minicpm-v-4.6"):
        assert len(choose_frames(36_000 * 30, 30.0, CONFIGS[key]).indices) in (64, 128)


def test_the_readme_has_a_line_for_each_time_rule() -> None:
    rows = [f"| `{rule.name}` | {rule.arithmetic} | {'; '.join(rule.releases)} |" for rule in TIME_RULES.values()]
    text = (Path(npembed.__file__).parent / "steps" / "video" / "README.md").read_text("utf-8")
    assert "\n".join(rows) in text
