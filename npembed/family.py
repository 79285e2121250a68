"""The two records from which everything else derives: a stage of the path, and a family of models.

A family says how its configs are recognised, how it cuts a picture, numbers its patches and writes its text, and which
stages its path has. A stage says what it reads, what it calls, which arrays that takes and how exact its result must be.
`run`, loading, `--until`, the output files, the golden packs and their verdicts all read these records. Nothing else
asks which family it is.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from npembed.typing import Array, Floats, Ids, Shapes, Size
from npembed.words import brief, did_you_mean


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
    reads : tuple of str
        The inputs and the earlier stages' arrays that it takes; "strips.*" is one array per slice.
    call : callable
        What computes it. The arguments are those that `arguments` picks.
    arguments : callable
        (arrays by name, model) -> the positional arguments of `call`.
    function : str
        The public function whose argument order `call` has, which a port may provide; "" where there is none.
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
        Whether `call` takes `progress=` and `patches_at_once=`, as `encode` does.
    gathers : callable or None
        (tgt_sizes, config) -> per slice int64 (M, K): the patches that each of the M tokens it makes is gathered from, -1 for a
        place that is no patch; None where tokens attend to patches, or are not made of them.
    axes, about : str
        Its shape in the letters of SPEC 0, and what it is, for a person.
    """

    name: str
    reads: tuple[str, ...]
    call: Callable[..., Any]
    arguments: Callable[[Mapping[str, Any], Any], tuple[Any, ...]]
    function: str = ""
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

    def sizes_of(self, tgt_sizes: Ids, config: Any) -> Ids:
        """`sizes`, for a stage whose results have places."""
        assert self.sizes is not None
        return self.sizes(tgt_sizes, config)

    def compute(self, values: Mapping[str, Any], model: Any, **options: Any) -> Any:
        """The stage's result, from the arrays by name."""
        return self.call(*self.arguments(values, model), **options)


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


def _kernels(model: Any) -> Floats:
    """(D, C, P, P) -> (D, C*P*P): the convolution's kernels, flattened."""
    weight: Floats = model.weights[f"{model.tower}embeddings.patch_embedding.weight"]
    return weight.reshape(len(weight), -1)


def _looked_up(model: Any, tgt_sizes: Ids, rule: str | None) -> Floats:
    """(B, Lmax, D): the rows of the position table that the ids pick, plus the bias; id 0 in padding."""
    config = model.config
    ids = config.family.position_ids(tgt_sizes, config, config.family.rule if rule is None else rule)  # (B, Lmax)
    result: Floats = model.position_plus_bias[ids]
    return result


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


def _every_place(tgt_sizes: Ids) -> Ids:
    return tgt_sizes


def _whole_units(sizes: Sequence[Size], config: Any) -> Sequence[Size]:
    """Each side up to whole units."""
    unit = config.family.unit(config)
    return [(-(-h // unit) * unit, -(-w // unit) * unit) for h, w in sizes]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Family:
    """A family of models that go one way from a picture to their tokens.

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
    read_config : callable
        (config.json, preprocessor_config.json, family) -> its config, or an error that names the key.
    cuts_by_config : bool
        Whether config.json alone says how pictures are cut, so that preprocessor_config.json may be missing.
    as_json : callable
        config -> (config.json, preprocessor_config.json) that `read_config` reads as that config.
    presets : mapping of str to config
        Released sizes by name; the first is the family's default.
    small : callable
        seed -> a config of small sizes, for tests and golden packs.
    prefix : str
        What the names of the vision tower's arrays begin with.
    owns : tuple of str
        Prefixes of which every array must be read by a stage, or the checkpoint is refused.
    unread : callable
        config -> names under those prefixes that released checkpoints hold and no stage reads.
    cut : callable
        (picture, config) -> `Slices`.
    layout : callable
        (config, names of a checkpoint's arrays) -> the config of the layout that those names have; the same, unless a family
        is saved under several prefixes that its config does not tell apart.
    rule : str or None
        The position rule of its own code; None where its positions follow no rule.
    position_ids : callable
        (tgt_sizes, config, rule) -> int64 (B, Lmax).
    kernels : callable
        model -> (D, C*P*P): the patch embedding's map, each row in the order of `strip_to_patches`.
    positions : callable
        (model, tgt_sizes, rule) -> (B, Lmax, D), new: each place's position plus the bias, to which the products of the patches
        are added; in padding it stays as it is.
    tower : callable
        model -> the steps from embeddings to hidden states.
    places : callable
        tgt_sizes -> rows and columns of the places that take part in the tower; all patches, unless a family says otherwise.
    groups : callable or None
        (rows, columns) of a slice's patches -> the places of each group that attends to itself alone in the tower's layers;
        None where all the places of a slice attend to each other.
    unit : callable
        config -> how many patches each side of a slice must be a multiple of.
    case_sizes : callable
        (sizes of slices, config) -> sizes near these that slices of this family have; it serves the golden packs.
    variants : callable
        family -> small configs by name that together vary what `small` leaves at its default; they serve the golden packs.
    frames : bool
        Whether its connector takes groups of frames, each with its time.
    placeholder : callable
        (grid, image_id, config, tgt_sizes) -> the text that stands for one picture.
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
    read_config: Callable[[Mapping[str, Any], Mapping[str, Any], "Family"], Any]
    cuts_by_config: bool = False
    as_json: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
    presets: Callable[["Family"], Mapping[str, Any]]
    small: Callable[["Family"], Any]
    prefix: str
    owns: tuple[str, ...]
    unread: Callable[[Any], Sequence[str]] = field(default=lambda config: ())
    cut: Callable[[Any, Any], Slices]
    layout: Callable[[Any, Collection[str]], Any] = field(default=lambda config, names: config)
    rule: str | None = "arange"
    position_ids: Callable[[Ids, Any, Any], Ids]
    kernels: Callable[[Any], Floats] = _kernels
    positions: Callable[[Any, Ids, str | None], Floats] = _looked_up
    tower: Callable[[Any], Sequence[Step]]
    places: Callable[[Ids], Ids] = _every_place
    groups: Callable[[Size], Sequence[Ids]] | None = None
    unit: Callable[[Any], int] = field(default=lambda config: 1)
    case_sizes: Callable[[Sequence[Size], Any], Sequence[Size]] = _whole_units
    variants: Callable[["Family"], Mapping[str, Any]] = field(default=lambda family: {})
    frames: bool = False
    placeholder: Callable[..., str]
    gguf: GgufNames | None = None
    stages: tuple[Stage, ...]
    checked: str

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
