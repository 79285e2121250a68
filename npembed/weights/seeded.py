"""Seeded random weights: for tests, golden packs and a first look without a checkpoint."""

import zlib

import numpy as np

from npembed.families import MINICPM_V_2_6
from npembed.records.config import FamilyConfig
from npembed.records.model import Model, shapes_of
from npembed.support import arguments
from npembed.support.typing import Floats


def random_model(config: FamilyConfig = MINICPM_V_2_6, seed: int = 0, until: str = "embeddings") -> Model:
    """A model of seeded random arrays, float32.

    Weights are normal with variance 1 / fan-in (the position table, the query and biases: standard deviation 0.02),
    norms about 1, so that values stay of one size through the stages. Each array depends on the seed and its own name alone: a
    model until "tokens" starts with the arrays of the one until "embeddings".

    Parameters
    ----------
    config : Config, or another family's
    seed : int
        At least 0.
    until : str
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
    who = "random_model"
    if not isinstance(config, FamilyConfig):
        raise TypeError(f"{who}: config must be a Config; got {type(config).__name__}")
    number = arguments.as_count(seed, "seed", who, least=0)
    stages = config.family.stages_until(until, who)
    shapes = {name: shape for stage in stages for name, shape in shapes_of(stage, config).items()}
    return Model(config, {name: _random_array(name, shape, number) for name, shape in shapes.items()})


def _random_array(name: str, shape: tuple[int, ...], seed: int) -> Floats:
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if name.endswith(("position_embedding.weight", "query", "bias")):
        return normal * np.float32(0.02)
    if len(shape) == 1:  # the weight of a layer norm
        return np.float32(1) + normal * np.float32(0.02)
    return normal * np.float32(np.prod(shape[1:]) ** -0.5)
