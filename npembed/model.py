"""A model: its sizes, and its arrays under the checkpoint's own names; from safetensors, or seeded random ones."""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npembed import checks
from npembed.checkpoint import Checkpoint
from npembed.config import MINICPM_V_2_6, Config, read_config

Floats = NDArray[Any]

STAGES = ("embeddings", "hidden", "tokens")
"""The vision stages in order: what `until` can be."""


def _embedding_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    vision, width = config.vision, config.vision.hidden_size
    return {
        "vpm.embeddings.patch_embedding.weight": (width, vision.num_channels, vision.patch_size, vision.patch_size),
        "vpm.embeddings.patch_embedding.bias": (width,),
        "vpm.embeddings.position_embedding.weight": (vision.num_patches_per_side**2, width),
    }


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _encoder_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    width, inner = config.vision.hidden_size, config.vision.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(config.encoder_layers):
        layer = f"vpm.encoder.layers.{number}"
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", width, width)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, width) | _linear(f"{layer}.mlp.fc2", width, inner)
    return shapes | _norm("vpm.post_layernorm", width)


def _resampler_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    width, wide = config.vision.hidden_size, config.embed_dim
    shapes: dict[str, tuple[int, ...]] = {"resampler.query": (config.query_num, wide), "resampler.proj": (wide, wide)}
    if width != wide:
        shapes["resampler.kv_proj.weight"] = (wide, width)
    shapes |= {"resampler.attn.in_proj_weight": (3 * wide, wide), "resampler.attn.in_proj_bias": (3 * wide,)}
    shapes |= _linear("resampler.attn.out_proj", wide, wide)
    return shapes | _norm("resampler.ln_q", wide) | _norm("resampler.ln_kv", wide) | _norm("resampler.ln_post", wide)


_SHAPES = {"embeddings": _embedding_shapes, "hidden": _encoder_shapes, "tokens": _resampler_shapes}


def check_stage(until: Any, who: str) -> str:
    """`until`, if it names a stage."""
    if until not in STAGES:
        raise ValueError(f"{who}: until must be one of {', '.join(STAGES)}; got {until!r}")
    return str(until)


def stage_shapes(config: Config, stage: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays that one stage reads (SPEC 10)."""
    return _SHAPES[check_stage(stage, "stage_shapes")](config)


def shapes_until(config: Config, until: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays that the stages up to and with `until` read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage in STAGES[: STAGES.index(check_stage(until, "shapes_until")) + 1]:
        shapes |= stage_shapes(config, stage)
    return shapes


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """Sizes and arrays, all of one float type.

    Parameters
    ----------
    config : Config
    weights : mapping of str to float array
        Under the names of SPEC 10 (`vpm....`, `resampler....`). float16 and bfloat16 are widened to float32; if one array
        is float64, all become float64. The arrays are shared, not copied, and read-only here: what is computed from them
        once per model is kept.

    Raises
    ------
    ValueError, TypeError
        An array whose shape is not what `config` says, or that does not hold floats.

    Examples
    --------
    >>> from npembed import Config, VisionConfig
    >>> model = random_model(Config(vision=VisionConfig(hidden_size=8, num_attention_heads=2, image_size=42)))
    >>> model
    Model(hidden_size=8, num_patches_per_side=3, float32, stages: embeddings)
    >>> model.weights["vpm.embeddings.position_embedding.weight"].shape
    (9, 8)
    """

    config: Config
    weights: dict[str, Floats]

    def __post_init__(self) -> None:
        if not isinstance(self.config, Config):
            raise TypeError(f"Model: config must be a Config; got {self.config!r}")
        if not isinstance(self.weights, Mapping):
            raise TypeError(f"Model: weights must map names to arrays; got {type(self.weights).__name__}")
        arrays = {name: checks.as_floats(array, f"weights[{name!r}]", "Model") for name, array in self.weights.items()}
        for name, shape in shapes_until(self.config, STAGES[-1]).items():
            if name in arrays and arrays[name].shape != shape:
                raise ValueError(f"Model: weights[{name!r}] must have shape {shape} by the config; got {arrays[name].shape}")
        dtype = np.result_type(*arrays.values()) if arrays else np.dtype(np.float32)
        views = {name: array.astype(dtype, copy=False).view() for name, array in arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        object.__setattr__(self, "weights", views)

    def __repr__(self) -> str:
        vision = self.config.vision
        stages = ", ".join(stage for stage in STAGES if not self.missing(stage)) or "none"
        return (
            f"Model(hidden_size={vision.hidden_size}, num_patches_per_side={vision.num_patches_per_side}, {self.dtype}, "
            f"stages: {stages})"
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: the type of every array, and of every result."""
        return next(iter(self.weights.values())).dtype if self.weights else np.dtype(np.float32)

    def missing(self, stage: str) -> list[str]:
        """The names of the arrays that one stage reads and the model lacks."""
        return [name for name in stage_shapes(self.config, stage) if name not in self.weights]

    def require(self, stage: str, who: str) -> None:
        """An error unless the arrays of one stage are there."""
        missing = self.missing(stage)
        if missing:
            raise ValueError(f"{who}: the model lacks {_some(missing)}, which the stage {stage!r} needs")

    @cached_property
    def position_plus_bias(self) -> Floats:
        """(G*G, D): the position table with the convolution's bias in each row, so that one addition does both."""
        table = self.weights["vpm.embeddings.position_embedding.weight"]
        return np.asarray(table + self.weights["vpm.embeddings.patch_embedding.bias"])


def _some(names: Collection[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def random_model(config: Config = MINICPM_V_2_6, seed: int = 0, until: str = "embeddings") -> Model:
    """A model of seeded random arrays, float32.

    Weights are normal with variance 1 / fan-in (the position table, the query and biases: standard deviation 0.02),
    norms about 1, so that values stay of one size through the stages. Each array hangs on the seed and its own name alone: a
    model until "tokens" starts with the arrays of the one until "embeddings".

    Parameters
    ----------
    config : Config
    seed : int
        At least 0.
    until : {"embeddings", "hidden", "tokens"}
        The last stage that it gets arrays for.

    Returns
    -------
    Model

    Raises
    ------
    ValueError, TypeError
        A negative seed, an unknown stage.

    Examples
    --------
    >>> from npembed import Config, VisionConfig
    >>> tiny = Config(vision=VisionConfig(hidden_size=8, num_attention_heads=2, image_size=28))
    >>> random_model(tiny, seed=1).weights["vpm.embeddings.position_embedding.weight"].shape
    (4, 8)
    """
    number = checks.as_count(seed, "seed", "random_model", least=0)
    shapes = shapes_until(config, check_stage(until, "random_model"))
    return Model(config, {name: _random_array(name, shape, number) for name, shape in shapes.items()})


def _random_array(name: str, shape: tuple[int, ...], seed: int) -> Floats:
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if name.endswith(("position_embedding.weight", "query", "bias")):
        return normal * np.float32(0.02)
    if len(shape) == 1:  # the weight of a layer norm
        return np.float32(1) + normal * np.float32(0.02)
    return normal * np.float32(np.prod(shape[1:]) ** -0.5)


def load_model(folder: str | Path, until: str | None = None) -> Model:
    """The model in a checkpoint's folder; only the arrays that are needed are read.

    Parameters
    ----------
    folder : path
        With config.json, and model.safetensors or shards with model.safetensors.index.json.
    until : {"embeddings", "hidden", "tokens"}, optional
        The last stage that is wanted. Without it: every vision stage that the checkpoint holds.

    Returns
    -------
    Model
        Under the names of SPEC 10, whatever prefix the checkpoint gives them.

    Raises
    ------
    ValueError
        No folder, no config.json, no weights; a shard that is missing, truncated or no safetensors file; an index that is
        not JSON or that points outside the folder; an array that is missing, of a dtype other than F16, BF16, F32 or F64,
        or of a shape that the config does not give; a prefix that could be two towers.
    ImportError
        Without the extra `weights`.

    Notes
    -----
    Source: SPEC 10.

    Examples
    --------
    >>> load_model("no/such/folder")
    Traceback (most recent call last):
    ...
    ValueError: load_model: no/such/folder is not a folder
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"load_model: {folder} is not a folder")
    wanted = None if until is None else STAGES.index(check_stage(until, "load_model"))
    config = read_config(folder)
    checkpoint = Checkpoint(folder)
    weights: dict[str, Floats] = {}
    for number, stage in enumerate(STAGES if wanted is None else STAGES[: wanted + 1]):
        shapes = stage_shapes(config, stage)
        ours, tail = _ANCHORS[stage]
        prefix = checkpoint.prefix_of(ours, tail)
        theirs = {name: prefix + name.removeprefix(ours) for name in shapes}
        missing = [name for name in theirs.values() if name not in checkpoint]
        if wanted is None and number and len(missing) == len(shapes):
            break
        if missing:
            works = f"; until={STAGES[number - 1]!r} still works" if number else ""
            raise ValueError(f"load_model: {folder} lacks {_some(missing)}, which the stage {stage!r} needs{works}")
        weights |= {name: checkpoint.read(theirs[name], shape) for name, shape in shapes.items()}
    return Model(config, weights)


_ANCHORS = {
    "embeddings": ("vpm.", "embeddings.patch_embedding.weight"),
    "hidden": ("vpm.", "embeddings.patch_embedding.weight"),
    "tokens": ("resampler.", "ln_kv.weight"),
}
"""Per stage our prefix, and the tail by which a checkpoint's own prefix for it is known."""
