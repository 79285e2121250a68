"""Hypothesis strategies for ragged batches of patches, for the tests of this project and of ports.

They shrink to small, readable cases: one slice of one patch, pixels that are all 1, a model of width 2. Sizes that tell the
released position rules apart are drawn often.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from npembed import FAMILIES, Config, Model, SlicingConfig, VisionConfig, random_model
from npembed.conformance.filling import KINDS as KINDS
from npembed.conformance.filling import changed_config as changed_config
from npembed.conformance.filling import peaked as peaked
from npembed.conformance.filling import with_dropped_layer as with_dropped_layer
from npembed.steps.positions import bucket_coords
from npembed.steps.positions.rules import RULES
from npembed.support.typing import Floats

try:
    from hypothesis import strategies as st
except ImportError:
    raise ImportError("the conformance kit needs Hypothesis: pip install 'npembed[testing]'") from None


@cache
def parting_sizes(num_patches_per_side: int = 70, up_to: int = 128) -> tuple[int, ...]:
    """For each two released rules, the smallest n at which their buckets part.

    Examples
    --------
    >>> 25 in parting_sizes(), 49 in parting_sizes()
    (True, True)
    """
    sizes = range(1, up_to + 1)
    buckets = {rule: [bucket_coords(n, num_patches_per_side, rule).tolist() for n in sizes] for rule in RULES}
    first = {
        next((n for n, one, other in zip(sizes, buckets[a], buckets[b], strict=True) if one != other), 1)
        for a, b in combinations(RULES, 2)
    }
    return tuple(sorted(first))


def sides(most: int = 64, num_patches_per_side: int = 70) -> st.SearchStrategy[int]:
    """Patches along one axis, from 1; the sizes that tell rules apart are drawn half the time."""
    telling = [n for n in parting_sizes(num_patches_per_side) if n <= most]
    return st.one_of(st.integers(1, most), st.sampled_from(telling)) if telling else st.integers(1, most)


@st.composite
def tgt_sizes(
    draw: st.DrawFn, max_slices: int = 3, max_patches: int = 256, num_patches_per_side: int = 70
) -> NDArray[np.int64]:
    """int (B, 2): rows and columns of 1 to `max_slices` slices, of at most `max_patches` patches each."""
    sizes = []
    for _ in range(draw(st.integers(1, max_slices))):
        h, w = (draw(sides(max_patches, num_patches_per_side)) for _ in range(2))
        w = min(w, max_patches // h)
        sizes.append((h, w) if draw(st.booleans()) else (w, h))
    return np.array(sizes, dtype=np.int64)


@st.composite
def floats(
    draw: st.DrawFn, shape: tuple[int, ...], dtype: DTypeLike = np.float32, kinds: tuple[str, ...] = tuple(KINDS)
) -> Floats:
    """An array of one of the `KINDS`."""
    kind = draw(st.sampled_from(kinds))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return np.asarray(KINDS[kind](rng, shape), dtype=dtype)


@st.composite
def strips(
    draw: st.DrawFn, sizes: NDArray[np.int64], channels: int = 3, patch_size: int = 2, dtype: DTypeLike = np.float32
) -> list[Floats]:
    """list of (C, P, L_i*P), one per row of `sizes`."""
    return [draw(floats((channels, patch_size, int(h * w) * patch_size), dtype)) for h, w in sizes]


@st.composite
def masks(draw: st.DrawFn, sizes: NDArray[np.int64], spare: int = 4) -> NDArray[np.bool_]:
    """bool (B, 1, K): h*w True places per slice, in any pattern; K is the most patches and up to `spare` more."""
    lengths = sizes.prod(axis=1)
    places = int(lengths.max()) + draw(st.integers(0, spare))
    mask = np.zeros((len(sizes), 1, places), dtype=np.bool_)
    for row, length in zip(mask[:, 0], lengths.tolist(), strict=True):
        row[:length] = True
        if draw(st.booleans()):
            row[:] = np.random.default_rng(draw(st.integers(0, 99))).permutation(row)
    return mask


@st.composite
def rectangles(draw: st.DrawFn, max_slices: int = 3, max_side: int = 8) -> NDArray[np.bool_]:
    """bool (B, H, W): in each slice the True places are a rectangle from the top left."""
    side = st.integers(1, max_side)
    sizes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=max_slices))
    rows, columns = (max(size[axis] for size in sizes) + draw(st.integers(0, 2)) for axis in (0, 1))
    mask = np.zeros((len(sizes), rows, columns), dtype=np.bool_)
    for slice_mask, (h, w) in zip(mask, sizes, strict=True):
        slice_mask[:h, :w] = True
    return mask


@dataclass(frozen=True, eq=False, repr=False)
class SmallModel(Model):
    """A random model that shows how it is made."""

    words: str = ""

    def __repr__(self) -> str:
        return self.words


@lru_cache(maxsize=256)
def small_model(
    until: str = "embeddings",
    *,
    hidden_size: int = 2,
    heads: int = 1,
    channels: int = 1,
    patch_size: int = 1,
    side: int = 70,
    layers: int = 1,
    queries: int = 1,
    embed_dim: int = 128,
    eps: float = 1e-6,
    drop_last: bool = False,
    peak: float = 1.0,
    seed: int = 0,
    one_sign: bool = False,
) -> SmallModel:
    """A random model of MiniCPM-V 2.6 in small sizes. With `one_sign` its kernels are positive; `peak` is a factor of queries.

    Examples
    --------
    >>> small_model(side=3)
    small_model('embeddings', side=3)
    >>> small_model("tokens").weights["resampler.query"].shape
    (1, 128)
    """
    sizes = {key: value for key, value in locals().items() if key != "until"}
    vision = VisionConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_channels=channels,
        image_size=side * patch_size,
        patch_size=patch_size,
        layer_norm_eps=eps,
    )
    slicing = SlicingConfig(patch_size=patch_size)
    config = Config(vision=vision, slicing=slicing, query_num=queries, embed_dim=embed_dim, drop_vision_last_layer=drop_last)
    weights = peaked(random_model(config, seed, until), peak)
    defaults = small_model.__wrapped__.__kwdefaults__ or {}
    shown = "".join(f", {key}={value!r}" for key, value in sizes.items() if value != defaults[key])
    if drop_last:
        weights = with_dropped_layer(config, weights, seed)
    if one_sign:
        kernels = "vpm.embeddings.patch_embedding.weight"
        weights = weights | {kernels: np.abs(weights[kernels])}
    return SmallModel(config, weights, words=f"small_model({until!r}{shown})")


@lru_cache(maxsize=256)
def family_model(key: str, until: str, *, peak: float = 1.0, seed: int = 0, **changes: Any) -> SmallModel:
    """The small model of a family, with some fields of its config changed, those of the configs within among them.

    Examples
    --------
    >>> family_model("idefics2", "embeddings", layer_norm_eps=0.001)
    family_model('idefics2', 'embeddings', layer_norm_eps=0.001)
    """
    family = FAMILIES[key]
    config = changed_config(family.small(), changes)
    own = {"peak": peak, "seed": seed} if (peak, seed) != (1.0, 0) else {}
    shown = "".join(f", {name}={value!r}" for name, value in (own | changes).items())
    weights = peaked(random_model(config, seed, until), peak)
    return SmallModel(config, weights, words=f"family_model({key!r}, {until!r}{shown})")


def models(until: str = "embeddings", num_patches_per_side: int | None = None) -> st.SearchStrategy[SmallModel]:
    """Random models of small sizes, until one of the stages."""
    heads = st.sampled_from((1, 2))
    return st.builds(
        lambda heads, head_dim, side, **sizes: small_model(
            until, hidden_size=heads * head_dim, heads=heads, side=side, **sizes
        ),
        heads=heads,
        head_dim=st.sampled_from((2, 4, 8, 16)),
        side=st.sampled_from((70, 1, 2, 7, 27)) if num_patches_per_side is None else st.just(num_patches_per_side),
        channels=st.sampled_from((1, 3)),
        patch_size=st.integers(1, 3),
        layers=st.integers(1, 2),
        queries=st.integers(1, 4),
        eps=st.sampled_from((1e-6, 1e-3)),
        embed_dim=st.sampled_from((128, 256)),
        seed=st.integers(0, 3),
    )


@dataclass(frozen=True)
class TokenSequence:
    """Token ids with images among them, and what is to be read off them."""

    input_ids: NDArray[np.int64]
    start_ids: list[int]
    end_ids: list[int]
    image_bound: NDArray[np.int64]


START_IDS, END_IDS, UNK_ID = [290, 292], [291, 293], 294
"""Of the image and slice tokens in the sequences that are drawn."""


@st.composite
def token_sequences(draw: st.DrawFn, max_images: int = 3, query_num: int | None = None) -> TokenSequence:
    """Text of up to three tokens, then an image or slice of `query_num` tokens, and so on; at least one image."""
    queries = draw(st.integers(1, 4)) if query_num is None else query_num
    text = st.lists(st.integers(1, 5), max_size=3)
    ids: list[int] = draw(text)
    bounds = []
    for _ in range(draw(st.integers(1, max_images))):
        kind = draw(st.sampled_from((0, 1)))
        ids.append(START_IDS[kind])
        bounds.append((len(ids), len(ids) + queries))
        ids += [UNK_ID] * queries + [END_IDS[kind]] + draw(text)
    return TokenSequence(np.array(ids), START_IDS, END_IDS, np.array(bounds))


def pictures(max_side: int = 24) -> st.SearchStrategy[NDArray[np.uint8]]:
    """uint8 (H, W, 3) of random pixels."""
    side = st.integers(1, max_side)
    return st.builds(
        lambda h, w, seed: np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8),
        side,
        side,
        st.integers(0, 9),
    )
