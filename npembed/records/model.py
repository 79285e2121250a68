"""A model: its sizes, its arrays under the checkpoint's own names, and the arithmetic that it is computed with."""

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from npembed.records.arithmetic import EXACT, Arithmetic
from npembed.records.config import FamilyConfig
from npembed.records.family import Stage
from npembed.support import arguments
from npembed.support.messages import brief
from npembed.support.typing import Floats, Shapes


def shapes_of(stage: Stage, config: FamilyConfig) -> Shapes:
    """Name -> shape of the arrays that one stage reads (SPEC 10)."""
    return {} if stage.arrays is None else stage.arrays(config)


def all_shapes(config: FamilyConfig) -> Shapes:
    """Name -> shape of the arrays that any stage of the config's family reads."""
    shapes: Shapes = {}
    for stage in config.family.vision_stages:
        shapes |= shapes_of(stage, config)
    return shapes


def linear_shapes(name: str, rows: int, columns: int) -> Shapes:
    """Of a linear map with its bias."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm_shapes(name: str, width: int) -> Shapes:
    """Of a layer norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """Sizes and arrays, all of one float type.

    Parameters
    ----------
    config : Config, or another family's
    weights : mapping of str to float array
        Under the names of SPEC 10 (`vpm....`, `resampler....`). float16 and bfloat16 are widened to float32; if one array
        is float64, all become float64. The arrays are shared, not copied, and read-only here.
    ops : Arithmetic
        What every step computes with; exact by default.

    Raises
    ------
    ValueError, TypeError
        An array whose shape is not what `config` says, or that does not hold floats.

    Examples
    --------
    >>> from npembed import Config, VisionConfig, random_model
    >>> model = random_model(Config(vision=VisionConfig(hidden_size=8, num_attention_heads=2, image_size=42)))
    >>> model
    Model(hidden_size=8, num_patches_per_side=3, float32, stages: embeddings)
    >>> model.weights["vpm.embeddings.position_embedding.weight"].shape
    (9, 8)
    """

    config: FamilyConfig
    weights: dict[str, Floats]
    ops: Arithmetic = EXACT

    def __post_init__(self) -> None:
        if not isinstance(self.config, FamilyConfig):
            raise TypeError(f"Model: config must be a Config; got {brief(self.config)}")
        if not isinstance(self.weights, Mapping):
            raise TypeError(f"Model: weights must map names to arrays; got {type(self.weights).__name__}")
        arrays = {name: arguments.as_floats(array, f"weights[{brief(name)}]", "Model") for name, array in self.weights.items()}
        for name, shape in all_shapes(self.config).items():
            if name in arrays and arrays[name].shape != shape:
                raise ValueError(
                    f"Model: weights[{brief(name)}] must have shape {shape} by the config; got {arrays[name].shape}"
                )
        dtype = np.result_type(*arrays.values()) if arrays else np.dtype(np.float32)
        views = {name: array.astype(dtype, copy=False).view() for name, array in arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        object.__setattr__(self, "weights", views)

    def __repr__(self) -> str:
        vision = self.config.vision
        stages = ", ".join(stage.name for stage in self.config.family.vision_stages if not self.missing(stage)) or "none"
        return (
            f"Model(hidden_size={vision.hidden_size}, num_patches_per_side={vision.num_patches_per_side}, {self.dtype}, "
            f"stages: {stages})"
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: the type of every array, and of every result."""
        return next(iter(self.weights.values())).dtype if self.weights else np.dtype(np.float32)

    def with_ops(self, ops: Arithmetic) -> Self:
        """The model computed with another arithmetic; its arrays are the very same."""
        other = copy(self)
        object.__setattr__(other, "ops", ops)
        return other

    def missing(self, stage: Stage) -> list[str]:
        """The names of the arrays that one stage reads and the model lacks."""
        return [name for name in shapes_of(stage, self.config) if name not in self.weights]

    def require(self, stage: str, who: str, reads: str = "") -> None:
        """An error unless the family has the stage, the stage reads the array of that name, and its arrays are there."""
        family = self.config.family
        if reads and reads not in shapes_of(family.stage(stage, who), self.config):
            raise ValueError(
                f"{who}: in {family.title} this does not give the stage {brief(stage)}, which does not read {reads}"
            )
        missing = self.missing(family.stage(stage, who))
        if missing:
            raise ValueError(f"{who}: the model lacks {some(missing)}, which the stage {brief(stage)} needs")

    def pair(self, name: str) -> tuple[Floats, Floats]:
        """The weight and the bias of one linear map or layer norm, by the name that they share."""
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    @cached_property
    def position_plus_bias(self) -> Floats:
        """(G*G, D): the position table with the convolution's bias in each row; made once, because it is large."""
        table = self.weights[f"{self.tower}embeddings.position_embedding.weight"]
        return np.asarray(table + self.weights[f"{self.tower}embeddings.patch_embedding.bias"])

    @property
    def tower(self) -> str:
        """What the names of the vision tower's arrays begin with."""
        return self.config.family.prefix


def as_model(value: Any, who: str) -> Model:
    """`value`, if it is a `Model`."""
    if not isinstance(value, Model):
        raise TypeError(f"{who}: model must be a Model; got {type(value).__name__}")
    return value


def some(names: Collection[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
