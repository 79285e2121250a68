"""The cases of a golden pack: which slices, filled with what, through which model, and every stage's answer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npembed import Config, SlicingConfig, VisionConfig, random_model
from npembed.conformance.bounds import Scale, embed_scale, stage_allowed
from npembed.conformance.probes.probe import edited, fill, model_at, sizes_of
from npembed.family import Promise, Stage
from npembed.model import Model
from npembed.typing import Array, Ids, Pixels

_SMALL = VisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=4, image_size=280
)
CONFIGS = {
    "small": Config(vision=_SMALL, slicing=SlicingConfig(scale_resolution=16, patch_size=4), query_num=4, embed_dim=128),
    "patch14": Config(
        vision=replace(_SMALL, hidden_size=8, patch_size=14, image_size=980),
        slicing=SlicingConfig(scale_resolution=56),
        query_num=2,
        embed_dim=128,
    ),
}
"""The packs' own models, by name; both have the real position table's 70 rows per side."""


def own_model(name: str) -> Model:
    """One of the packs' own models; the kernels of "patch14" are positive, so that its sums are of one sign."""
    model = random_model(CONFIGS[name], seed=1, until="tokens")
    return edited(model, {"vpm.embeddings.patch_embedding.weight": np.abs}) if name == "patch14" else model


@dataclass(frozen=True)
class Case:
    """What one case is made of.

    Attributes
    ----------
    name : str
    about : str
        What it is there to show.
    sizes : tuple of (int, int)
        Rows and columns of patches per slice.
    kind : str
        What fills the strips: one of the strategies' `KINDS`.
    model : str
        One of the packs' own models.
    picture : (int, int)
        Width and height in pixels of the picture that is sliced.
    """

    name: str
    about: str
    sizes: tuple[tuple[int, int], ...]
    kind: str = "mixed"
    model: str = "small"
    picture: tuple[int, int] = (40, 30)


CASES = (
    Case("one-patch", "the smallest batch there is", ((1, 1),), "ramp", picture=(1, 1)),
    Case("boundaries", "sizes on which released position rules part", ((25, 2), (1, 49), (2, 50), (7, 5), (58, 1), (24, 1))),
    Case("full-side", "as many patches as the position table has per side, where the ids are 0 ... 69", ((70, 1), (1, 70))),
    Case("beyond", "more patches than the position table has per side", ((80, 1), (1, 107))),
    Case("extreme-aspect", "long and thin", ((1, 300), (300, 1)), picture=(3, 200)),
    Case("ragged", "slices of very different lengths, so that padding is most of the batch", ((2, 3), (1, 1), (9, 8), (3, 1))),
    Case("seed", "the grid sizes of a 640 x 480 picture", ((28, 37), (39, 26), (39, 26)), picture=(64, 48)),
    Case("faint", "pixels of little contrast, which show the layer norms' eps", ((3, 4), (2, 2)), "faint"),
    Case("one-sign", "pixels of one sign, which show a sum that is rounded too often", ((2, 3), (1, 2)), "one sign", "patch14"),
)

EQUAL = {"kind": "equal"}


@dataclass(frozen=True)
class Answer:
    """One stage's expected result.

    Attributes
    ----------
    stage : str
        Also the tensor's name.
    value : array
    tolerance : dict
        As the manifest has it: {"kind": "equal"}, or "componentwise" or "per slice" with their numbers.
    counts : list of int or None
        How many places of each slice count; None where every place does.
    companions : dict of str to array
        What the tolerance needs beside it.
    """

    stage: str
    value: Array
    tolerance: dict[str, Any]
    counts: list[int] | None
    companions: dict[str, Array]


def answer(
    stage: str, value: Array, tolerance: dict[str, Any] = EQUAL, counts: list[int] | None = None, **companions: Array
) -> Answer:
    """An `Answer`, its floats in float32."""
    stored = value.astype(np.float32) if value.dtype.kind == "f" else value
    return Answer(stage, stored, tolerance, counts, companions)


def case_inputs(case: Case, model: Model) -> dict[str, Array]:
    """What the stages of a case read: a picture, strips and their sizes, the ids and embeddings of a text."""
    config, vision, tokens = model.config, model.config.vision, _tokens_of_a_slice(model)
    inputs: dict[str, Array] = {"picture": _picture(*case.picture), "tgt_sizes": sizes_of(*case.sizes)}
    for number, (h, w) in enumerate(case.sizes):
        pixels = fill(case.kind, len(case.sizes), vision.num_channels, vision.patch_size, h * w * vision.patch_size)
        inputs[f"strips.{number}"] = pixels[number]  # each slice with pixels of its own
    inputs |= {"grid": np.array([3, 2]), "image_id": np.array(0)}
    inputs |= {"input_ids": _token_ids(tokens), "start_ids": np.array([290, 292]), "end_ids": np.array([291, 293])}
    inputs["text_embeds"] = fill("mixed", len(inputs["input_ids"]), config.embed_dim)
    inputs["vision_tokens"] = fill("ramp", 2, tokens, config.embed_dim)
    return inputs


def _picture(width: int, height: int) -> Pixels:
    """uint8 (H, W, 3): channel c at (x, y) is (7x + 13y + 50c + x*y // 97) mod 256."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(7 * x + 13 * y + 50 * c + x * y // 97) % 256 for c in range(3)], axis=-1).astype(np.uint8)


def _tokens_of_a_slice(model: Model) -> int:
    """How many tokens the text has for an image or a slice: as many as 4 x 4 patches give; 1 where no stage gives any."""
    stage = next((stage for stage in model.config.family.vision_stages if stage.name == "tokens"), None)
    return 1 if stage is None else int(stage.sizes_of(sizes_of((4, 4)), model.config).prod())


def _token_ids(tokens: int) -> Ids:
    """Text with an image and a slice in it."""
    return np.array([7, 8, 290, *[294] * tokens, 291, 292, *[294] * tokens, 293, 9])


def case_answers(inputs: dict[str, Array], model: Model) -> Iterator[Answer]:
    """The answer of every stage of the model's family, in turn, as far as the model has the arrays.

    Each is computed in float64 from the float32 tensors that the pack holds, those of the stage before among them, so a
    port can be fed with the pack's own values stage by stage.
    """
    values: dict[str, Any] = dict(inputs)
    exact = model_at(model, "float64")
    absent: set[str] = set()
    for stage in model.config.family.stages:
        if model.missing(stage) or absent & set(stage.reads):
            absent.add(stage.name)
            continue
        found = _ANSWERS[stage.promise](stage, values, model, exact)
        values[stage.name] = found.value
        yield found


def _equal(stage: Stage, values: dict[str, Any], model: Model, exact: Model) -> Answer:
    return answer(stage.name, stage.compute(values, model))


def _componentwise(stage: Stage, values: dict[str, Any], model: Model, exact: Model) -> Answer:
    strips, tgt_sizes = stage.arguments(values, model)[:2]
    scale: Scale = embed_scale(strips, tgt_sizes, model)
    tolerance = {
        "kind": "componentwise",
        "terms": scale.terms,
        "stores": scale.stores,
        "underflow": _rounded_up(scale.underflow.max()),
    }
    magnitude = np.nextafter(scale.magnitude.astype(np.float32), np.float32(np.inf))
    return answer(stage.name, stage.compute(values, exact), tolerance, magnitude=magnitude)


def _distance(stage: Stage, values: dict[str, Any], model: Model, exact: Model) -> Answer:
    in_float64 = stage.compute(values, exact)
    allowed = stage_allowed(stage.compute(values, model_at(model, "float32")), in_float64)
    tolerance = {"kind": "per slice", "float32": [_rounded_up(number) for number in allowed.ravel()]}
    counts = None
    if stage.sizes is not None and not stage.compares_padding:
        counts = stage.sizes(values["tgt_sizes"], model.config).prod(axis=1).tolist()
    return answer(stage.name, in_float64, tolerance, counts)


_ANSWERS = {Promise.EQUAL: _equal, Promise.COMPONENTWISE: _componentwise, Promise.DISTANCE: _distance}
"""How a stage's answer and its tolerance are made, by what the stage promises."""


def _rounded_up(number: float) -> float:
    """To two digits, so that no platform's last bit is in the manifest."""
    digits = f"{number * 1.05:.1e}"
    return float(digits)
