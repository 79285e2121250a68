"""What a corpus was asked to be: all that its numbers depend on beside the pictures and the weights."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from npembed.records.family import Family, Stage
from npembed.records.model import Model
from npembed.steps.pixels import PILLOW, get_pixel_rule
from npembed.steps.positions.rules import get_rule
from npembed.support import arguments

WHO = "corpus"
MOST_PIXELS = 89_478_485
"""Of a picture, by default: where Pillow begins to warn. Its pixels take 0.36 GB while it is decoded."""
SHARD_MB = 256


@dataclass(frozen=True)
class Settings:
    """How pictures become rows.

    Attributes
    ----------
    until : str
        The last stage.
    vector : str
        "mean": one vector per picture, the mean of its overview's tokens or hidden states; "" for the stage's own result.
    normalize : bool
        Whether vectors are brought to unit length.
    dtype : str
        "float32" or "float16", in which results are stored; "" for the model's own.
    max_slices : int or None
        In place of the checkpoint's own most slices of a picture.
    rule : str or None
        The position rule; None for the family's own.
    pages : str
        "first" or "all": which frames or pages of a file.
    upright : bool
        Whether pictures are turned as their EXIF asks.
    max_pixels : int
        A picture of more is a failed row.
    shard_mb : int
        Of 10**6 bytes: no shard is larger, unless one picture is.
    pixels : str
        The pixel rule.
    """

    until: str = "embeddings"
    vector: str = ""
    normalize: bool = False
    dtype: str = ""
    max_slices: int | None = None
    rule: str | None = None
    pages: str = "first"
    upright: bool = False
    max_pixels: int = MOST_PIXELS
    shard_mb: int = SHARD_MB
    pixels: str = PILLOW

    def __post_init__(self) -> None:
        for name, known in (("vector", ("", "mean")), ("dtype", ("", "float32", "float16")), ("pages", ("first", "all"))):
            if getattr(self, name) not in known:
                choices = " or ".join(repr(choice) for choice in known if choice)
                raise ValueError(f"{WHO}: --{name} must be {choices}; got {getattr(self, name)!r}")
        for name in ("max_pixels", "shard_mb"):
            arguments.as_count(getattr(self, name), name, WHO)
        if self.max_slices is not None:
            arguments.as_count(self.max_slices, "max_slices", WHO)
        if self.rule is not None:
            get_rule(self.rule, WHO)
        get_pixel_rule(self.pixels, WHO)

    @property
    def name(self) -> str:
        """Of the array that a shard holds: the stage's, or `pooled` where there is one vector per picture."""
        return "pooled" if self.vector else self.until


def default_until(family: Family, vector: str = "") -> str:
    """The stage that a family's corpus ends with: a vector per picture where there is one, or the stage to take a mean of."""
    last = family.vision_stages[-1]
    return last.name if vector or last.sizes is None else family.vision_stages[0].name


def check_stage(settings: Settings, family: Family) -> Stage:
    """The last stage, if the family has it and what is asked of it makes sense."""
    stage = family.stage(settings.until, WHO)
    family.pixel_rule(settings.pixels, WHO)
    if settings.vector and (stage.sizes is None or stage.name == family.vision_stages[0].name):
        names = " or ".join(s.name for s in family.vision_stages[1:] if s.sizes is not None)
        raise ValueError(f"{WHO}: --vector mean goes with --until {names}; got {stage.name}")
    if settings.normalize and not one_vector(settings, stage):
        raise ValueError(f"{WHO}: --normalize needs one vector per picture: add {_vector_option(family)}")
    return stage


def _vector_option(family: Family) -> str:
    """What gives one vector per picture: the family's own stage, or a mean."""
    own = [stage.name for stage in family.vision_stages if stage.sizes is None]
    return f"--until {own[0]}" if own else "--vector mean"


def one_vector(settings: Settings, stage: Stage) -> bool:
    """Whether a picture becomes one vector."""
    return bool(settings.vector) or stage.sizes is None


def weights_digest(model: Model) -> str:
    """sha256 of the arrays with their names, shapes and type, in hexadecimal."""
    found = hashlib.sha256()
    for name in sorted(model.weights):
        array = np.ascontiguousarray(model.weights[name])
        found.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def describe(settings: Settings, model: Model, origin: str, digest: str) -> dict[str, Any]:
    """What manifest.json says of how a corpus is made."""
    config, preprocessor = model.config.family.as_json(model.config)
    return {
        "settings": asdict(settings),
        "family": model.config.family.key,
        "rule": settings.rule or model.config.family.rule,
        "dtype": settings.dtype or str(model.dtype),
        "config": config,
        "preprocessor": preprocessor,
        "weights": {"source": origin, "sha256": digest},
    }


def digest_of(value: Any) -> str:
    """sha256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def numbers_digest(made: Mapping[str, Any]) -> str:
    """Of all that the numbers depend on; where the weights came from is no part of it."""
    return digest_of({**{name: made[name] for name in made if name != "weights"}, "weights": made["weights"]["sha256"]})


def refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], shown: str) -> None:
    """An error if a corpus was made with something else than what is asked for now."""
    for field in fields(Settings):
        old, new = before["settings"].get(field.name, field.default), now["settings"][field.name]
        if old != new:
            raise ValueError(f"{WHO}: {shown} was made with {field.name} {old!r}, not {new!r}; give another OUT")
    for name in ("family", "rule", "dtype", "config", "preprocessor"):
        if before[name] != now[name]:
            what = f" {before[name]!r}, not {now[name]!r}" if isinstance(now[name], str) else " of other values"
            raise ValueError(f"{WHO}: {shown} was made with {name}{what}; give another OUT")
    if before["weights"]["sha256"] != now["weights"]["sha256"]:
        raise ValueError(f"{WHO}: {shown} was made with other weights, from {before['weights']['source']}; give another OUT")
