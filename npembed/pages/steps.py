"""What the page of `npembed explain` says in words: names, sizes, shapes, and the lines of Python under each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import npembed
from npembed.pages.drawing import fixed
from npembed.records.config import FamilyConfig
from npembed.records.family import Family, Slices
from npembed.records.model import Model
from npembed.steps.padding import pad_pixel_values, patch_attention_mask
from npembed.steps.pixels.strips import as_rgb
from npembed.support.pictures import Turn

FIRST = (3, 5)
"""Row and column of the patch that is lit when the page opens, where the slice has them."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a page explains.

    Attributes
    ----------
    picture : PIL image
    name : str
        Of its file; "" for the sample.
    config : FamilyConfig
    origin : str
        The source of the weights; "" without any.
    model : Model or None
    until : str
        The last stage to show.
    rule : str or None
        The position rule; the family's own where None was asked for, and None for a family without rules.
    compare : str or None
        The rule that the page starts to compare with.
    turn : Turn
        What became of the turn that the file asks for.
    upright : bool
        Whether pictures are to be turned.
    """

    picture: Any
    config: FamilyConfig
    name: str = ""
    origin: str = ""
    model: Model | None = None
    until: str = "embeddings"
    rule: str | None = None
    compare: str | None = None
    turn: Turn = Turn.NONE
    upright: bool = False

    @property
    def family(self) -> Family:
        """The config's."""
        return self.config.family


def slice_names(slices: Slices, size: Sequence[int]) -> list[str]:
    """What each slice is called: the whole picture, where it shows most of it, or a crop by its column and row, from 0."""
    columns, rows = slices.grid or (1, 1)
    steps, names = np.array(size) / (columns, rows), []
    for box in slices.boxes:
        shown = np.minimum(box[2:], size) - box[:2]
        column, row = np.rint(box[:2] / steps).astype(int).tolist()
        whole = shown.prod() > 0.6 * np.prod(size)  # a crop shows half of it at most
        names.append("the whole picture" if whole else f"crop in column {column}, row {row}")
    return names


def first_patch(slices: Slices) -> list[int]:
    """Slice and patch that are lit when the page opens."""
    number = min(1, len(slices.tgt_sizes) - 1)
    h, w = slices.tgt_sizes[number].tolist()
    return [number, min(FIRST[0], h - 1) * w + min(FIRST[1], w - 1)]


def size_rows(subject: Subject, slices: Slices) -> list[dict[str, str]]:
    """Per slice, in words: its rectangle, its size there, its size after the resize, and how much that stretches it."""
    side = subject.config.vision.patch_size
    names, rows = slice_names(slices, as_rgb(subject.picture).size), []
    for name, (left, top, right, bottom), (h, w) in zip(names, slices.boxes, slices.tgt_sizes.tolist(), strict=True):
        across, down = w * side / (right - left), h * side / (bottom - top)
        rows.append(
            {
                "name": name,
                "before": f"{fixed(right - left)} × {fixed(bottom - top)}",
                "after": f"{w * side} × {h * side}",
                "patches": f"{h} × {w}",
                "count": f"{h * w:,}",
                "scale": f"{across:.3f} across, {down:.3f} down",
                "stretch": f"{(across / down - 1) * 100:+.1f} %",
            }
        )
    return rows


def shapes(subject: Subject, slices: Slices) -> dict[str, str]:
    """The shapes that the text of the page names."""
    vision, sizes = subject.config.vision, slices.tgt_sizes
    batch, longest = len(sizes), int(sizes.prod(axis=1).max())
    channels, side = vision.num_channels, vision.patch_size
    numbers_of = {
        "strip": tuple(slices.strips[first_patch(slices)[0]].shape),
        "pixel_values": pad_pixel_values(slices.strips).shape,
        "mask": patch_attention_mask(sizes).shape,
        "patch": (channels, side, side),
        "embeddings": (batch, longest, vision.hidden_size),
        "kernels": (vision.hidden_size, channels * side * side),
        "table": (vision.num_patches_per_side**2, vision.hidden_size),
    }
    return {name: " × ".join(map(str, shape)) for name, shape in numbers_of.items()} | {
        "row": str(channels * side * side),
        "padding": f"{int((longest - sizes.prod(axis=1)).sum()):,}",
        "real": f"{int(sizes.prod(axis=1).sum()):,}",
        "places": f"{batch * longest:,}",
    }


def joins(subject: Subject, slices: Slices, ids: Any) -> dict[str, bool]:
    """What the text says of the family: whether its padding takes part in the tower, has id 0, and how the rulers lie."""
    sizes, side = slices.tgt_sizes, subject.config.vision.num_patches_per_side
    places = subject.family.places(sizes)
    beyond = [] if ids is None else [row[length:] for row, length in zip(ids, sizes.prod(axis=1), strict=True)]
    return {
        "padding": not np.array_equal(places.prod(axis=1), sizes.prod(axis=1)),
        "one_row": bool((places[:, 0] == 1).all()),
        "tiles": bool((sizes > side).any()) and subject.rule is not None,
        "zero": not any(row.any() for row in beyond),
    }


def code_lines(subject: Subject, slices: Slices, lengths: Sequence[int]) -> dict[str, str]:
    """Step -> the lines of Python that give what it shows; they run one after the other."""
    number, patch = first_patch(slices)
    side = subject.config.vision.num_patches_per_side
    rule = repr(subject.rule) if subject.rule else "None"
    upright = ", upright=True" if subject.upright else ""
    path = repr(subject.name) if subject.name else 'files("npembed") / "data" / "sample.png"'
    start = [] if subject.name else ["from importlib.resources import files"]
    lines = {
        "picture": [
            *start,
            "import npembed",
            "from npembed.support.pictures import read_image",
            f"picture = read_image({path}{upright}).picture",
            "picture.size",
        ],
        "cut": [*config_lines(subject), "slices = config.family.cut(picture, config)", "slices.tgt_sizes, slices.boxes"],
        "patches": [
            "from npembed.steps.patches import strip_to_patches",
            f"patches = strip_to_patches(slices.strips[{number}])",
            f"patches[{patch}]",
        ],
        "batch": [
            "pixel_values = npembed.pad_pixel_values(slices.strips)",
            "mask = npembed.patch_attention_mask(slices.tgt_sizes)",
        ],
        "rulers": [f"npembed.bucket_coords({n}, {side}, {rule})" for n in lengths],
        "ids": [f"ids = config.family.position_ids(slices.tgt_sizes, config, {rule})", f"ids[{number}, {patch}]"],
        "sum": [
            *(["model = npembed.random_model(config)"] if subject.model is None else []),
            f"embeddings = npembed.embed(slices.strips, slices.tgt_sizes, model, {rule})",
        ],
        "after": [
            f"arrays = npembed.run(slices.strips, slices.tgt_sizes, model, {subject.until!r}, {rule})",
            *_attention_lines(subject, slices, number),
        ],
    }
    return {step: "\n".join(words) for step, words in lines.items()}


def _attention_lines(subject: Subject, slices: Slices, number: int) -> list[str]:
    """The lines that give which patches the tower and the tokens look at, or which ones a token is made of."""
    if subject.until == "embeddings":
        return []
    count = len(slices.tgt_sizes)
    lines = [
        "from npembed.pages.attention import stage_attention, tower_attention",
        f'hidden, looked = tower_attention(arrays["embeddings"], slices.tgt_sizes, model, [[0]] * {count})  # from place 0',
        f"looked[{number}]",
    ]
    if subject.until == "hidden":
        return lines
    if subject.family.stage(subject.until, "explain").gathers is not None:
        gathered = f"config.family.stage({subject.until!r}, {'explain'!r}).gathers(slices.tgt_sizes, config)"
        return [*lines, f"gathered = {gathered}", f"gathered[{number}]"]
    return [*lines, f"weights = stage_attention({subject.until!r}, hidden, slices.tgt_sizes, model)"]


def config_lines(subject: Subject) -> list[str]:
    """The lines that make `config`, and `model` where the weights are the user's."""
    if subject.model is not None:
        return [f"model = npembed.load_model({subject.origin!r}, {subject.until!r})", "config = model.config"]
    if subject.config == npembed.MINICPM_V_2_6:
        return ["config = npembed.MINICPM_V_2_6"]
    family = subject.family
    name = next(name for name, config in family.presets().items() if config == subject.config)
    return [f"family = npembed.FAMILIES[{family.key!r}]", f"config = family.presets()[{name!r}]"]
