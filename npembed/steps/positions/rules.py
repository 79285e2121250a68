"""The position rules that released software uses: a table.

A rule says where patch i of n lies on [0, 1) (`coords`), where the G buckets of the position table begin
(`boundaries`), and how the one is looked up in the other (`search`, `offset`). All of it is float32 unless the rule
says otherwise. Sources: SPEC 5.1 and 5.2, which name the files and versions that were read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from npembed.steps.positions.arange import torch_arange
from npembed.support.messages import brief, did_you_mean
from npembed.support.typing import Floats

BELOW_ONE = np.float32(1 - 1e-6)
"""The largest coordinate that several releases allow."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """One way, as released, to sort n patches of an axis into the G rows of the position table.

    Attributes
    ----------
    name : str
    arithmetic : str
        The coordinate of patch i of n, in one line.
    releases : tuple of str
        The software that computes it, with versions.
    coords : callable or None
        n -> float (n,); None for the rule that has no coordinates.
    boundaries : callable or None
        G -> float (G-1,) or (G,), where buckets 1, 2, … begin.
    boundaries_words : str
        The same in words.
    search : {"right", "left"}
        Whether a coordinate on a boundary lies right of it (torch.bucketize's right=True) or left.
    offset : int
        Added to the number of boundaries found.
    buckets : callable or None
        (n, G) -> int64 (n,), for the rule that searches nothing.
    sound : bool
        Whether it gives n non-decreasing buckets in [0, G-1] for every n and G to 32,768.
    """

    name: str
    arithmetic: str
    releases: tuple[str, ...]
    coords: Callable[[int], Floats] | None = None
    boundaries: Callable[[int], Floats] | None = None
    boundaries_words: str = "arange(1/G, 1, 1/G), 8 lanes"
    search: Literal["right", "left"] = "right"
    offset: int = 0
    buckets: Callable[[int, int], NDArray[np.int64]] | None = None
    sound: bool = True

    def check(self, buckets: NDArray[np.int64], num_patches: int, side: int, who: str) -> None:
        """An error unless these are n buckets in [0, G-1]."""
        outside = buckets[(buckets < 0) | (buckets >= side)]
        if len(buckets) == num_patches and not len(outside):
            return
        given = f"bucket {outside[0]}, outside 0..{side - 1}," if len(outside) else f"{len(buckets)} buckets"
        raise ValueError(
            f"{who}: rule {brief(self.name)}, as released, gives {given} for {num_patches} patches on a table of {side} per "
            "side; no position id stands for that"
        )

    @property
    def search_words(self) -> str:
        """How the bucket is found, in words."""
        if self.buckets is not None:
            return "none"
        side = "at or below" if self.search == "right" else "below"
        return f"number of boundaries {side} the coordinate" + (f", {self.offset:+d}" if self.offset else "")


def _arange_coords(num_patches: int, lanes: int = 8) -> Floats:
    return torch_arange(0.0, 1 - 1e-6, float(np.float32(1) / np.float32(num_patches)), lanes=lanes)


def _arange_boundaries(side: int, lanes: int = 8) -> Floats:
    return torch_arange(1 / side, 1.0, 1 / side, lanes=lanes)


def _index(num_patches: int) -> Floats:
    return np.arange(num_patches, dtype=np.float32)


def _rounded(values: Floats, half: str) -> Floats:
    """float32 -> the nearest number of float16 or bfloat16 (the upper half of a float32), ties to even; as float32."""
    if half == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def _shrunk_coords(num_patches: int) -> Floats:
    return _index(num_patches) / np.float32(num_patches) * BELOW_ONE


def _shrunk_half_coords(num_patches: int, half: str) -> Floats:
    # From n = 4,128 on torch's own bfloat16 arange rounds some i otherwise (vectors of 16 that count on from a rounded
    # base); the rule is SPEC 5.2's, which rounds each i by itself.
    quotient = _rounded(_rounded(_index(num_patches), half) / np.float32(num_patches), half)
    return _rounded(quotient * BELOW_ONE, half)


def _step_coords(num_patches: int) -> Floats:
    return np.minimum(_index(num_patches) * (np.float32(1) / np.float32(num_patches)), BELOW_ONE)


def _step_half_coords(num_patches: int, half: str) -> Floats:
    return _rounded(_step_coords(num_patches), half)


def _quotient_coords(num_patches: int) -> Floats:
    return _index(num_patches) / np.float32(num_patches)


def _exact_buckets(num_patches: int, side: int) -> NDArray[np.int64]:
    return np.arange(num_patches, dtype=np.int64) * side // num_patches


def _running_sum(start: np.float32, step: np.float32, count: int) -> Floats:
    """start, start + step, (start + step) + step, …: each sum rounded to float32 before the next."""
    terms = np.full(count, step, dtype=np.float32)
    terms[0] = start
    return np.add.accumulate(terms)


def _openvino_coords(num_patches: int) -> Floats:
    step = np.float32(1) / np.float32(num_patches)
    return _running_sum(-step, step, num_patches + 1)[1:]


def _openvino_boundaries(side: int) -> Floats:
    return _running_sum(np.float32(0), np.float32(1) / np.float32(side), side)[1:]


def _mlx_coords(num_patches: int) -> Floats:
    return np.minimum(_quotient_coords(num_patches), BELOW_ONE)


def _mlx_boundaries(side: int) -> Floats:
    step = np.float32(1) / np.float32(side)
    return _running_sum(step, step, len(_arange_boundaries(side)) + 1)[:-1]


def _mllm_coords(num_patches: int) -> Floats:
    return _index(num_patches) * (np.float32(1) / np.float32(num_patches))


def _mllm_boundaries(side: int) -> Floats:
    return _mllm_coords(side)[1:]


def _sum_while_below(start: np.float32, step: np.float32, end: np.float32) -> Floats:
    """The running sum's elements below `end`; rounding can make them more or fewer than end / step."""
    enough = int(1.125 / step) + 8
    values = _running_sum(start, step, enough)
    return values[values < end]


def _candle_coords(num_patches: int) -> Floats:
    return _sum_while_below(np.float32(0), np.float32(1) / np.float32(num_patches), BELOW_ONE)


def _candle_boundaries(side: int) -> Floats:
    step = np.float32(1) / np.float32(side)
    return _sum_while_below(step, step, np.float32(1))


def _digitize_coords(num_patches: int) -> Floats:
    return np.linspace(0, 1, num_patches, endpoint=False)


def _digitize_boundaries(side: int) -> Floats:
    return np.linspace(1 / side, 1, side, endpoint=False)


_SHRUNK_HALF = "i rounded to {0}, / n, rounded to {0}; * f32(1 - 1e-6), rounded to {0}"
_STEP_HALF = "min(f32(i) * (f32(1) / f32(n)), f32(1 - 1e-6)), rounded to {0}"
_CANDLE = "running sum from 0 by 1/n while < f32(1 - 1e-6)"
_CANDLE_BOUNDARIES = "running sum from 1/G by 1/G while < 1"

_TABLE = (
    Rule(
        name="arange",
        arithmetic="torch.arange(0, 1 - 1e-6, f32(1) / f32(n)), 8 lanes",
        releases=(
            "the checkpoints' own code (MiniCPM-V 2.5, 2.6, o 2.6), and so the seed article",
            "transformers Idefics2/3, SmolVLM 4.41-4.54.1",
            "transformers Phi-4-multimodal 4.53-4.57",
            "transformers MiniCPM-V 4.6 5.7-5.12",
            "sglang 0.4.6, 0.5.23",
            "vLLM idefics2 tower",
            "TGI",
        ),
        coords=_arange_coords,
        boundaries=_arange_boundaries,
    ),
    Rule(
        name="arange-lanes4",
        arithmetic="torch.arange(0, 1 - 1e-6, f32(1) / f32(n)), 4 lanes",
        releases=("the same code as `arange` on 64-bit ARM with 128-bit vectors, torch 2.6 and later",),
        coords=partial(_arange_coords, lanes=4),
        boundaries=partial(_arange_boundaries, lanes=4),
        boundaries_words="arange(1/G, 1, 1/G), 4 lanes",
    ),
    Rule(
        name="shrunk",
        arithmetic="f32(i) / n * f32(1 - 1e-6)",
        releases=("transformers Idefics2/3, SmolVLM 4.55.0-4.57.6 with float32 pixels (4.55.1-4.55.4: with any)",),
        coords=_shrunk_coords,
        boundaries=_arange_boundaries,
    ),
    Rule(
        name="shrunk-bfloat16",
        arithmetic=_SHRUNK_HALF.format("bfloat16"),
        releases=("transformers Idefics2/3, SmolVLM 4.55.0 and 4.56.0-4.57.6 with bfloat16 pixels",),
        coords=partial(_shrunk_half_coords, half="bfloat16"),
        boundaries=_arange_boundaries,
        sound=False,
    ),
    Rule(
        name="shrunk-float16",
        arithmetic=_SHRUNK_HALF.format("float16"),
        releases=("transformers Idefics2/3, SmolVLM 4.55.0 and 4.56.0-4.57.6 with float16 pixels",),
        coords=partial(_shrunk_half_coords, half="float16"),
        boundaries=_arange_boundaries,
        sound=False,
    ),
    Rule(
        name="step",
        arithmetic="min(f32(i) * (f32(1) / f32(n)), f32(1 - 1e-6))",
        releases=(
            "transformers Idefics2/3, SmolVLM, Phi-4-multimodal 5.21-5.23",
            "the same 5.0-5.20 with float32 pixels",
        ),
        coords=_step_coords,
        boundaries=_arange_boundaries,
    ),
    Rule(
        name="step-bfloat16",
        arithmetic=_STEP_HALF.format("bfloat16"),
        releases=("transformers Idefics2/3, SmolVLM, Phi-4-multimodal 5.0-5.20 with bfloat16 pixels",),
        coords=partial(_step_half_coords, half="bfloat16"),
        boundaries=_arange_boundaries,
        sound=False,
    ),
    Rule(
        name="step-float16",
        arithmetic=_STEP_HALF.format("float16"),
        releases=("transformers Idefics2/3, SmolVLM, Phi-4-multimodal 5.0-5.20 with float16 pixels",),
        coords=partial(_step_half_coords, half="float16"),
        boundaries=_arange_boundaries,
        sound=False,
    ),
    Rule(
        name="quotient",
        arithmetic="f32(i) / f32(n)",
        releases=("transformers MiniCPM-V 4.6, 4.7 and OCR since 5.13",),
        coords=_quotient_coords,
        boundaries=_arange_boundaries,
    ),
    Rule(
        name="exact",
        arithmetic="none: bucket = G*i // n",
        releases=(
            "llama.cpp and what vendors it (G fixed at 70)",
            "OpenVINO GenAI minicpm since 2025.4 (the same by float32 i/n against float32 k/G)",
        ),
        boundaries_words="none",
        buckets=_exact_buckets,
    ),
    Rule(
        name="openvino-sum",
        arithmetic="running sum from -1/n, + 1/n before each patch",
        releases=("OpenVINO GenAI minicpm 2024.5-2025.3",),
        coords=_openvino_coords,
        boundaries=_openvino_boundaries,
        boundaries_words="running sum from 0, + 1/G before each of G - 1",
    ),
    Rule(
        name="mlx",
        arithmetic="min(f32(i) / n, f32(1 - 1e-6))",
        releases=("mlx-vlm idefics3, minicpmo, minicpmv4_6 up to 0.7.10, on the CPU",),
        coords=_mlx_coords,
        boundaries=_mlx_boundaries,
        boundaries_words="running sum from 1/G by 1/G, as many as arange has",
        sound=False,
    ),
    Rule(
        name="mllm",
        arithmetic="f32(i) * (f32(1) / n)",
        releases=("mllm minicpm_o2_6",),
        coords=_mllm_coords,
        boundaries=_mllm_boundaries,
        boundaries_words="f32(k) * (f32(1) / G), k = 1 ... G - 1",
    ),
    Rule(
        name="candle-right",
        arithmetic=_CANDLE,
        releases=("mistral.rs idefics2/3 0.1.20-0.3.4, 0.8-0.9.2",),
        coords=_candle_coords,
        boundaries=_candle_boundaries,
        boundaries_words=_CANDLE_BOUNDARIES,
        sound=False,
    ),
    Rule(
        name="candle-left",
        arithmetic=_CANDLE,
        releases=("mistral.rs idefics2/3 0.4-0.7",),
        coords=_candle_coords,
        boundaries=_candle_boundaries,
        boundaries_words=_CANDLE_BOUNDARIES,
        search="left",
        sound=False,
    ),
    Rule(
        name="digitize",
        arithmetic="float64 linspace(0, 1, n, endpoint=False)",
        releases=("mlx-vlm idefics2 0.0.7-0.7.10",),
        coords=_digitize_coords,
        boundaries=_digitize_boundaries,
        boundaries_words="float64 linspace(1/G, 1, G, endpoint=False)",
        search="left",
        offset=-1,
        sound=False,
    ),
)

RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _TABLE})
"""Each rule by its name; `arange`, the original, first."""


def get_rule(name: "str | Rule", who: str) -> Rule:
    """The rule of this name, or a rule as it is, or an error that lists the known ones."""
    if isinstance(name, Rule):
        return name
    try:
        return RULES[name]
    except (KeyError, TypeError):
        words = f"{who}: rule must be one of {', '.join(RULES)}; got {brief(name)}{did_you_mean(name, RULES)}"
        raise ValueError(words) from None
