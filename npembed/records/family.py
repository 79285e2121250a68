"""The two from which everything else derives: a stage of the path, which is a record, and a family of models, a class.

A family says how its configs are recognised, how it cuts a picture, numbers its patches and writes its text, and which
stages its path has. A stage says what it takes, which function computes it, which arrays that reads and how exact its
result must be. `run`, loading, `--until`, the output files, the golden packs and their verdicts all ask these two. Nothing
else asks which family it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Self

from npembed.steps.pixels import PILLOW, PixelRule, get_pixel_rule
from npembed.steps.video.choices import Choice
from npembed.support.messages import brief, did_you_mean
from npembed.support.typing import Array, Floats, Ids, Shapes, Size


class Promise(Enum):
    """How exact a stage's result must be (SPEC 11)."""

    EQUAL = "equal"
    """Bit for bit."""
    COMPONENTWISE = "componentwise"
    """Within Higham's bound, element by element."""
    DISTANCE = "distance"
    """Within a multiple of float32's own distance from float64, slice by slice."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Stage:
    """One step of the path from a picture to the language model.

    Attributes
    ----------
    name : str
        Also the name of the array that it gives.
    function : callable
        What computes it; where it is a public function, a port may provide one of that name.
    takes : tuple of str
        The function's arguments in order, by name: inputs, earlier stages' arrays, and what is `OF_THE_MODEL`. "strips.*" is
        a list of one array per slice.
    arrays : callable or None
        config -> name and shape of the model's arrays that it reads; None for a stage that reads none.
    sizes : callable or None
        (tgt_sizes, config) -> int64 (N, 2): rows and columns of the places of each of the N results; None where a result
        has no places, as a vector for a whole picture.
    padding : callable
        (model, tgt_sizes) -> what the places beyond `sizes` hold: one number, one per channel, or (N, 1, D) for each result.
    compares_padding : bool
        Whether those places must be right in a port too.
    companions : callable
        (tgt_sizes, config) -> arrays that go into an output file with the result.
    promise : Promise
    by_rule : bool
        Whether the position rule changes it.
    steps : bool
        Whether the function takes `progress=` and `patches_at_once=`, as `encode` does.
    gathers : callable or None
        (tgt_sizes, config) -> per slice int64 (M, K): the patches that each of the M tokens it makes is gathered from, -1 for a
        place that is no patch; None where tokens attend to patches, or are not made of them.
    axes, about : str
        Its shape in the letters of SPEC 0, and what it is, for a person.
    """

    name: str
    function: Callable[..., Any]
    takes: tuple[str, ...]
    arrays: Callable[[Any], Shapes] | None = None
    sizes: Callable[[Ids, Any], Ids] | None = None
    padding: Callable[[Any, Ids], Floats | float] = field(default=lambda model, tgt_sizes: 0.0)
    compares_padding: bool = True
    companions: Callable[[Ids, Any], dict[str, Array]] = field(default=lambda tgt_sizes, config: {})
    promise: Promise = Promise.EQUAL
    by_rule: bool = False
    steps: bool = False
    gathers: Callable[[Ids, Any], list[Ids]] | None = None
    axes: str = ""
    about: str = ""

    def __repr__(self) -> str:
        return f"Stage({self.name!r})"

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs and the earlier stages' arrays among what it takes."""
        return tuple(name for name in self.takes if name not in OF_THE_MODEL)

    def sizes_of(self, tgt_sizes: Ids, config: Any) -> Ids:
        """`sizes`, for a stage whose results have places."""
        assert self.sizes is not None
        return self.sizes(tgt_sizes, config)

    def call(self, values: Mapping[str, Any], model: Any, **options: Any) -> Any:
        """The stage's result, from the arrays by name."""
        return self.function(*self.arguments(values, model), **options)

    def arguments(self, values: Mapping[str, Any], model: Any) -> list[Any]:
        """What the function takes, in order. A rule among the values goes before the family's own."""
        return [_argument(name, values, model) for name in self.takes]


OF_THE_MODEL: Mapping[str, Callable[[Any], Any]] = {
    "model": lambda model: model,
    "config": lambda model: model.config,
    "G": lambda model: model.config.vision.num_patches_per_side,
    "rule": lambda model: model.config.family.rule,
    "pixels": lambda model: PILLOW,
}
"""What a stage takes that is no array, by name."""


def _argument(name: str, values: Mapping[str, Any], model: Any) -> Any:
    """One argument of a stage; a file holds the arrays of "strips.*" one by one."""
    if name in OF_THE_MODEL:
        return OF_THE_MODEL[name](model) if values.get(name) is None else values[name]
    if name.endswith("*") and name not in values:
        return [values[name.replace("*", str(number))] for number in range(len(values["tgt_sizes"]))]
    return values[name]


@dataclass(frozen=True, eq=False)
class Slices:
    """What a family cuts one picture into.

    Attributes
    ----------
    strips : list of float32 (C, P, L_i*P)
    tgt_sizes : int64 (B, 2)
        Rows and columns of patches per slice.
    boxes : float64 (B, 4)
        Each slice's rectangle in the original picture: left, top, right, bottom in pixels.
    grid : (int, int) or None
        Columns and rows of crops; None where the whole picture is the only slice.
    """

    strips: list[Floats]
    tgt_sizes: Ids
    boxes: Floats
    grid: Size | None = None


Step = Callable[[Floats, Size], tuple[Floats, Size]]
"""One step of a vision tower on n slices of one size: (n, L, D), (rows, columns) -> the same after it."""


@dataclass(frozen=True, kw_only=True)
class GgufNames:
    """What llama.cpp's mmproj files call the arrays of a family's checkpoints.

    In a name, `*` stands for weight and bias, and `N` for the number of a block. A checkpoint's array to which several of
    the file's are mapped is those, laid end to end by rows in this order.

    Attributes
    ----------
    projector : str
        The file's `clip.projector_type`.
    names : mapping of str to str
        The file's name -> the checkpoint's.
    turned : frozenset of str
        The checkpoint's arrays that the file holds transposed.
    ignored : frozenset of str
        The file's arrays that no stage reads.
    legacy : bool
        Written by the converter that gives fc1 and fc2 each other's names, and may state a block too few.
    """

    projector: str
    names: Mapping[str, str]
    turned: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    legacy: bool = False


class Family(ABC):
    """A family of models that go one way from a picture to their tokens: a subclass for each, in a module of its own.

    The methods take the config, or the model with its config, of which there are many to a family.

    Attributes
    ----------
    key : str
        Its name in `FAMILIES` and on the command line.
    title : str
        For a person.
    model_types : tuple of str
        config.json's `model_type` of its checkpoints.
    versions : tuple of float
        config.json's `version`; empty for a family whose configs have none.
    other_layouts : mapping of str to str
        The `model_type` of its checkpoints in a layout that is not read -> what that is, and which one is read.
    cuts_by_config : bool
        Whether config.json alone says how pictures are cut, so that preprocessor_config.json may be missing.
    prefix : str
        What the names of the vision tower's arrays begin with.
    owns : tuple of str
        Prefixes of which every array must be read by a stage, or the checkpoint is refused.
    rule : str or None
        The position rule of its own code; None where its positions follow no rule.
    frames : bool
        Whether its connector takes groups of frames, each with its time.
    choice : Choice or None
        How it chooses frames of a video; None for a family that takes no videos.
    pixel_rules : tuple of str
        The rules of `PIXEL_RULES` by which released software makes pixels for it; the default first.
    one_size : bool
        Whether every slice has as many patches as the position table has rows.
    gguf : GgufNames or None
        What llama.cpp's mmproj files call its arrays; None where there are no such files.
    stages : tuple of Stage
        In order.
    checked : str
        What its results were compared with.
    """

    key: str
    title: str
    model_types: tuple[str, ...]
    versions: tuple[float, ...] = ()
    other_layouts: Mapping[str, str] = MappingProxyType({})
    cuts_by_config: bool = False
    prefix: str
    owns: tuple[str, ...]
    rule: str | None = "arange"
    frames: bool = False
    choice: Choice | None = None
    pixel_rules: tuple[str, ...] = (PILLOW,)
    one_size: bool = False
    gguf: GgufNames | None = None
    stages: tuple[Stage, ...]
    checked: str

    def changed(self, **values: Any) -> Self:
        """The same family with other attributes, or with functions in place of methods."""
        other = copy(self)
        vars(other).update(values)
        return other

    # Its configs

    @abstractmethod
    def read_config(self, top: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Any:
        """config.json, preprocessor_config.json -> its config, or an error that names the key."""

    @abstractmethod
    def as_json(self, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """config.json and preprocessor_config.json that `read_config` reads as that config."""

    @abstractmethod
    def presets(self) -> Mapping[str, Any]:
        """The configs of released sizes by name; the first is the family's default."""

    @abstractmethod
    def small(self) -> Any:
        """A config of small sizes, for tests and golden packs."""

    def variants(self) -> Mapping[str, Any]:
        """Small configs by name that together vary what `small` leaves at its default; they serve the golden packs."""
        return {}

    def layout(self, config: Any, names: Collection[str]) -> Any:
        """The config of the layout that a checkpoint's names of arrays have.

        It is the same, unless a family is saved under several prefixes that its config does not tell apart.
        """
        return config

    def unread(self, config: Any) -> Sequence[str]:
        """Names of arrays under `owns` that released checkpoints hold and no stage reads."""
        return ()

    # From a picture to its tokens

    def cut(self, picture: Any, config: Any, pixels: str = PILLOW) -> Slices:
        """What the picture is cut into, with pixels by the rule of that name, or an error where the family has not the rule."""
        return self.slices(picture, config, self.pixel_rule(pixels, "slice_image"))

    def pixel_rule(self, name: str, who: str) -> PixelRule:
        """The pixel rule of that name, or an error that lists the family's."""
        rule = get_pixel_rule(name, who)
        if rule.name in self.pixel_rules:
            return rule
        known = ", ".join(self.pixel_rules)
        raise ValueError(f"{who}: {self.title} has no pixel rule {name}: no software makes its pixels so; it has {known}")

    @abstractmethod
    def slices(self, picture: Any, config: Any, rule: PixelRule) -> Slices:
        """What the picture is cut into, with pixels by the rule."""

    @abstractmethod
    def position_ids(self, tgt_sizes: Ids, config: Any, rule: Any) -> Ids:
        """(B, 2) -> int64 (B, Lmax): the row of the position table for each patch."""

    def kernels(self, model: Any) -> Floats:
        """(D, C*P*P): the patch embedding's map, each row in the order of `strip_to_patches`."""
        weight: Floats = model.weights[f"{model.tower}embeddings.patch_embedding.weight"]  # (D, C, P, P)
        return weight.reshape(len(weight), -1)

    def positions(self, model: Any, tgt_sizes: Ids, rule: str | None) -> Floats:
        """(B, Lmax, D), new: each place's position plus the bias, to which the products of the patches are added.

        In padding it stays as it is: here, what id 0 has.
        """
        ids = self.position_ids(tgt_sizes, model.config, self.rule if rule is None else rule)  # (B, Lmax)
        result: Floats = model.position_plus_bias[ids]
        return result

    @abstractmethod
    def tower(self, model: Any) -> Sequence[Step]:
        """The steps from embeddings to hidden states."""

    def places(self, tgt_sizes: Ids) -> Ids:
        """Rows and columns of the places that take part in the tower: all patches, unless a family says otherwise."""
        return tgt_sizes

    def groups(self, size: Size) -> Sequence[Ids] | None:
        """Rows and columns of a slice's patches -> the places of each group that attends to itself alone in the tower's layers.

        None where all the places of a slice attend to each other.
        """
        return None

    @abstractmethod
    def placeholder(self, grid: Size | None, image_id: int | None, config: Any, tgt_sizes: Ids | None = None) -> str:
        """The text that stands for one picture."""

    # Which slices it has

    def unit(self, config: Any) -> int:
        """How many patches each side of a slice must be a multiple of."""
        return 1

    def case_sizes(self, sizes: Sequence[Size], config: Any) -> Sequence[Size]:
        """Sizes near these that slices of this family have, here each side up to whole units; it serves the golden packs."""
        unit = self.unit(config)
        return [(-(-h // unit) * unit, -(-w // unit) * unit) for h, w in sizes]

    # Its stages

    def __repr__(self) -> str:
        return f"FAMILIES[{self.key!r}]"

    @property
    def vision_stages(self) -> tuple[Stage, ...]:
        """The stages that read the model's arrays, in order: what `until` can be."""
        return tuple(stage for stage in self.stages if stage.arrays is not None)

    def stage(self, name: Any, who: str) -> Stage:
        """The vision stage of that name, or an error that lists the family's."""
        known = {stage.name: stage for stage in self.vision_stages}
        if isinstance(name, str) and name in known:
            return known[name]
        names = ", ".join(known)
        raise ValueError(f"{who}: {self.title} has no stage {brief(name)}; it has {names}{did_you_mean(name, known)}")

    def stages_until(self, name: Any, who: str) -> tuple[Stage, ...]:
        """The vision stages up to and with that one."""
        stages = self.vision_stages
        return stages[: stages.index(self.stage(name, who)) + 1]
