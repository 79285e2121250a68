"""Why a port departs from a golden pack: for every wrong port the stage and the cause, with its weights or without."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import npembed
from npembed import FAMILIES
from npembed.conformance import Outcome, Pack, check_function, check_outputs, failed, first_departing, read_pack, write_pack
from npembed.conformance.golden.cases import CASES
from npembed.conformance.golden.more_stages import MORE_STAGES
from npembed.conformance.suspects import SUSPECTS
from npembed.records.arithmetic import EXACT
from npembed.records.model import Model
from npembed.support.output_files import save_tensors
from npembed.support.typing import Array
from tests.answering import answer
from tests.command_line import npembed as command
from tests.conformance.test_port import CAUSES
from tests.conftest import DATA
from tests.ports import (
    WRONG_PORTS,
    Port,
    QuickGelu,
    SwapsHeightAndWidth,
    WholeNumberBuckets,
    WideEpsilonAtTheEnd,
    WrongPort,
    as_module,
)

HEAVY = ("seed", "extreme-aspect", "full-side", "every-n")


def pack_of(folder: Path, names: Callable[[str], bool], **options: Any) -> Pack:
    """A pack of the cases of those names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npembed.conformance.golden.cases.CASES", [case for case in CASES if names(case.name)])
        write_pack(folder, **options)
    return read_pack(folder)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The small cases, for ports of which there are many."""
    return pack_of(tmp_path_factory.mktemp("golden") / "light", lambda name: name not in HEAVY)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny: Model) -> Pack:
    """For weights that are not in it."""
    return pack_of(tmp_path_factory.mktemp("golden") / "given", lambda name: name not in HEAVY, model=tiny)


def causes(pack: Pack, outcomes: list[Outcome]) -> dict[str, set[str]]:
    """Stage -> the faults that are named for it in any case, each without who shipped it."""
    found: dict[str, set[str]] = {}
    for outcome in outcomes:
        if failed([outcome]):
            words = (outcome.cause or "").split(" or: ")
            found.setdefault(outcome.name.split(" / ")[1], set()).update(word.split(" (as ")[0] for word in words if word)
    return found


NO_EPS_IN_LAST_NORM = (
    "eps 1e-5 in post_layernorm alone",
    "eps 1e-6 in post_layernorm alone, whatever the config says",
)
"""In a pack's cases these give the same numbers, as far as float32 can tell; so both are named."""

IN_PACKS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "padding with 1": {"pixel_values": ["pads with 1, not 0"], "embeddings": ["the strips are padded with 1, not 0"]},
    "float16 accumulation": {"embeddings": []},
    "digitize read as torch's bucketize": {"position_ids": ["off by one on boundaries: searchsorted side left"]},
    "coordinates rounded to bfloat16": {
        "position_ids": ["matches rule `step-bfloat16`, not `arange`", "matches rule `shrunk-bfloat16`, not `arange`"],
    },  # they part at 260 patches of one axis, which no small case has
    "digitize's ids": {
        "position_ids": ["matches rule `digitize`, not `arange`"],
        "embeddings": ["the position ids: matches rule `digitize`, not `arange`"],
    },
    "mask one short": {
        "patch_attn_mask": ["the mask is one place short"],
        "hidden": ["the mask is one place short: the last patch is set to 0 and not attended to"],
        "tokens": ["the mask is one place short: the last patch is not attended to"],
    },
    "mask one long": {
        "patch_attn_mask": ["the mask is one place long"],
        "hidden": ["the mask is one place long: the first padded place is attended to"],
        "tokens": ["the mask is one place long: the first padded place is attended to"],
    },
    "eps 1e-5 in post_layernorm": {"hidden": NO_EPS_IN_LAST_NORM},
    "eps 1e-6 in post_layernorm": {"hidden": NO_EPS_IN_LAST_NORM},
    "kv_proj always looked for": {"tokens": []},  # it raises, so that one case has no tensor, and that is told
    "softmax without its maximum": {
        "hidden": ["the softmax's maximum is not taken off its scores: it overflows"],
        "tokens": ["the softmax's maximum is not taken off its scores"],
    },
}
"""Stage -> causes of a wrong port in a pack, where they are not the one of its check."""


@pytest.mark.parametrize(
    "wrong",
    [wrong for wrong in WRONG_PORTS if wrong.stage not in (None, "bucket_coords")],
    ids=lambda wrong: wrong.name,
)
def test_a_wrong_ports_first_departing_stage_and_its_cause_are_named(light: Pack, tmp_path: Path, wrong: WrongPort) -> None:
    folder = answer(light, as_module(wrong.port()), tmp_path / "out", wrong.functions)
    outcomes = check_outputs(light, folder)
    assert first_departing(light, outcomes) == wrong.stage
    found = causes(light, outcomes)
    expected = IN_PACKS.get(wrong.name) or {str(wrong.stage): [CAUSES[wrong.name][1]]}
    assert {stage: found[stage] for stage in expected} == {stage: set(kinds) for stage, kinds in expected.items()}


def test_boundaries_by_products_show_in_the_case_of_every_n(tmp_path: Path) -> None:
    pack = pack_of(tmp_path / "pack", lambda name: name == "every-n")
    (wrong,) = (wrong for wrong in WRONG_PORTS if wrong.stage == "bucket_coords")
    outcomes = check_outputs(pack, answer(pack, as_module(wrong.port()), tmp_path / "out", wrong.functions))
    assert causes(pack, outcomes) == {"bucket_coords": {"the boundaries are f32(k) * f32(1/G)"}}


@pytest.mark.parametrize("rule", [rule for rule in npembed.RULES if rule != "arange"])
def test_every_rule_is_named_and_so_are_those_that_give_the_same(light: Pack, tmp_path: Path, rule: str) -> None:
    """In a pack's few sizes several rules may agree; among the sizes of a check none does, but for what is far out."""
    port = SimpleNamespace(position_ids=by_buckets(rule), bucket_coords=partial(npembed.bucket_coords, rule=rule))
    outcomes = check_outputs(light, answer(light, port, tmp_path / "out", ["position_ids"]), stages=["position_ids"])
    named = causes(light, outcomes)["position_ids"]
    assert f"matches rule `{rule}`, not `arange`" in named
    assert all("matches rule" in kind for kind in named)
    cause = check_function(port, "bucket_coords", examples=0).cause
    assert cause is not None
    assert [words.split(" (as ")[0] for words in cause.split(" or: ")] == [f"matches rule `{rule}`, not `arange`"]


def by_buckets(rule: str) -> Callable[..., Array]:
    """Ids made of the buckets of a rule as they are, those too that no row of the table stands for."""

    def position_ids(tgt_sizes: Array, side: int = 70, mask: Array | None = None) -> Array:
        rows = [
            np.add.outer(npembed.bucket_coords(h, side, rule) * side, npembed.bucket_coords(w, side, rule)).ravel()
            for h, w in tgt_sizes.tolist()
        ]
        if [len(row) for row in rows] != tgt_sizes.prod(axis=1).tolist():
            raise ValueError("more or fewer ids than patches")
        if mask is None:
            return npembed.pad_sequence(rows, batch_first=True)
        ids = np.zeros((len(rows), mask[0].size), dtype=np.int64)
        for row, own, places in zip(ids, rows, mask, strict=True):
            row[places.ravel()] = own
        return ids

    return position_ids


# Several faults at once


class TwoInTheTower(WideEpsilonAtTheEnd, QuickGelu):
    """As mlx-vlm's Idefics2, but for its mask."""


class ThreeInTheTower(TwoInTheTower):
    """As mlx-vlm's Idefics2."""

    def _mask_scores(self, scores: Array, allowed: Array, stage: str) -> Array:
        return scores


class ExactAndSwapped(WholeNumberBuckets, SwapsHeightAndWidth):
    pass


QUICK, EPS = "gelu in its quick form, x * sigmoid(1.702 x), not the tanh form", "eps 1e-5 in post_layernorm alone"
PADDING = "padding, set to 0, takes part in the attention's softmax"
TOGETHER = [
    (TwoInTheTower, "encode", "hidden", {QUICK, EPS}),
    (ThreeInTheTower, "encode", "hidden", {QUICK, EPS, PADDING}),
    (
        ExactAndSwapped,
        "position_ids",
        "position_ids",
        {"matches rule `exact`, not `arange`", "equals the reference with h and w swapped"},
    ),
]


def together(cause: str) -> list[set[str]]:
    """Each explanation's faults."""
    return [{fault.split(" (as ")[0] for fault in words.split(" and: ")} for words in cause.split(" or: ")]


@pytest.mark.parametrize(("port", "function", "stage", "faults"), TOGETHER)
def test_faults_at_once_are_told_apart(
    light: Pack, tmp_path: Path, port: type[Port], function: str, stage: str, faults: set[str]
) -> None:
    module = as_module(port())
    outcomes = check_outputs(light, answer(light, module, tmp_path / "out", [function]))
    cause = next(outcome.cause for outcome in outcomes if outcome.name.endswith(f" / {stage}") and failed([outcome]))
    assert cause is not None
    assert faults in together(cause)
    checked = check_function(module, function, examples=3).cause
    assert checked is not None
    assert together(checked) == [faults]


# Weights that are not in the pack


def answered(pack: Pack, folder: Path, model: Model, **changes: Callable[[dict[str, Any]], Any]) -> Path:
    """What the reference gives for those stages, after a change."""
    folder.mkdir()
    for case in pack.manifest["cases"]:
        read = {**pack.tensors(case["expected"]), **pack.tensors(case["input"]), "model": model}
        stages = [stage["stage"] for stage in case["stages"]]
        tensors = {stage: np.asarray(change(read)) for stage, change in changes.items() if stage in stages}
        if tensors:
            save_tensors(folder / case["expected"], tensors, {})
    return folder


def quick(read: dict[str, Any]) -> Array:
    quickly = EXACT.changed(gelu=lambda x: x / (1 + np.exp(-1.702 * x)))
    return npembed.encode(read["embeddings"], read["tgt_sizes"], read["model"].with_ops(quickly))


def test_a_pack_of_given_weights_names_causes_without_them_where_no_array_is_read(
    given: Pack, tmp_path: Path, tiny: Model
) -> None:
    folder = answered(
        given,
        tmp_path / "out",
        tiny,
        sliced_tgt_sizes=lambda read: npembed.slice_image(read["picture"], tiny.config)[1][:, ::-1],
        position_ids=lambda read: npembed.position_ids(read["tgt_sizes"], 70, "exact"),
        text=lambda read: np.frombuffer(read["text"].tobytes().replace(b"\n", b""), np.uint8),
        hidden=quick,
    )
    assert causes(given, check_outputs(given, folder)) == {
        "sliced_tgt_sizes": {"tgt_sizes have h and w swapped"},
        "position_ids": {"matches rule `exact`, not `arange`", "matches rule `quotient`, not `arange`"},
        "text": {"the newline between rows of slices is missing"},
        "hidden": set(),
    }


def test_with_the_weights_a_pack_of_them_names_the_causes_in_the_tower(given: Pack, tmp_path: Path, tiny: Model) -> None:
    folder = answered(
        given,
        tmp_path / "out",
        tiny,
        embeddings=lambda read: read["embeddings"] - tiny.weights["vpm.embeddings.patch_embedding.bias"],
        hidden=quick,
    )
    assert causes(given, check_outputs(given, folder, model=tiny)) == {"embeddings": {"the bias is missing"}, "hidden": {QUICK}}
    by_rule = answered(
        given,
        tmp_path / "by rule",
        tiny,
        position_ids=lambda read: npembed.position_ids(read["tgt_sizes"], 70, "exact"),
    )
    assert not failed(check_outputs(given, by_rule, rule="exact", model=tiny))


def test_on_the_command_line_the_weights_are_asked_for_and_taken(given: Pack, tmp_path: Path, tiny: Model) -> None:
    folder = answered(given, tmp_path / "out", tiny, hidden=quick)
    asked = command("golden", "check", given.folder, folder)
    assert asked.code == 1
    assert asked.out.endswith(
        "The first stage that departs is hidden. The causes of some failures can be looked for with the weights: "
        "--weights SOURCE.\n"
    )
    told = command("golden", "check", given.folder, folder, "--weights", DATA / "tiny-minicpmv")
    assert f"likely cause: {QUICK}" in told.out
    assert told.out.endswith("The first stage that departs is hidden.\n")


def test_other_weights_are_refused(given: Pack, light: Pack, tiny: Model) -> None:
    name = "vpm.post_layernorm.weight"
    other = Model(tiny.config, tiny.weights | {name: tiny.weights[name] * np.float32(1.01)})
    with pytest.raises(
        ValueError, match=r"these are not the weights that the pack was written for: with them one-patch / hidden"
    ):
        check_outputs(given, given.folder, model=other)
    with pytest.raises(ValueError, match=r"golden check: these weights cannot give the pack's tokens"):
        check_outputs(given, given.folder, model=Model(tiny.config, without(tiny.weights, "resampler.")))
    with pytest.raises(ValueError, match=r"golden check: the pack has models of its own, so no weights can be given"):
        check_outputs(light, light.folder, model=tiny)


def without(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name: array for name, array in weights.items() if not name.startswith(prefix)}


# Families


def suspected(key: str, stage: str, function: str, kind: str, pack: Pack, folder: Path) -> dict[str, set[str]]:
    """What is named for the reference with that fault, in one stage of a family's pack."""
    record = next(each for each in (*FAMILIES[key].stages, *MORE_STAGES) if each.name == stage)
    suspect = next(suspect for suspect in SUSPECTS[function] if suspect.kind == kind)
    folder.mkdir()
    for case in pack.manifest["cases"]:
        if stage in [told["stage"] for told in case["stages"]]:
            model = npembed.load_model(pack.folder / case["model"])
            read = {**pack.tensors(case["expected"]), **pack.tensors(case["input"])}
            result = replace(record, function=suspect.fault(record.function)).call(read, model)
            save_tensors(folder / case["expected"], {stage: result}, {})
    return causes(pack, check_outputs(pack, folder))


OF_FAMILIES = [
    ("minicpm-v-4.5", "frame_tokens", "resample", "the times of frames are not looked at"),
    ("minicpm-v-4.5", "frame_tokens", "resample", "the frames of a group are numbered 0, 1, 2 in place of their times"),
    ("minicpm-v-4.5", "frame_tokens", "resample", "only the first frame of a group is looked at"),
    ("minicpm-v-4.5", "frame_tokens", "resample", "the positions are added to the values in place of the keys"),
    ("minicpm-v-4.6", "hidden", "encode", "the window merger's norms have eps 1e-6, whatever the config says"),
    ("minicpm-v-4.6", "hidden", "encode", "eps 1e-5 in the window merger's layer_norm1 alone"),
    ("minicpm-v-4.6", "hidden", "encode", "eps 1e-5 in the window merger's pre_norm alone"),
    ("minicpm-v-4.6", "image_bound", "token_places", "the end is taken as inclusive: it is the last place"),
    ("phi-4-multimodal", "hidden", "encode", "the attention is causal where no patch of the batch is masked"),
    ("idefics3", "tokens", "shuffle_and_project", "rows and columns are exchanged in each square of the pixel shuffle"),
    ("idefics2", "tokens", "perceive", "the key heads are tiled, not repeated"),
    ("siglip2-naflex", "pooled", "pool", "the first patch, not the probe's result"),
]
FEW = ("ragged", "faint", "varied", "same-width", "whole-crops", "frames", "masked")


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pack]:
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda key: pack_of(folder / key, lambda name: name in FEW, family=key))


def test_a_page_shows_wrong_stages_that_only_some_cases_have(packs: Callable[[str], Pack], tmp_path: Path) -> None:
    pack = packs("minicpm-v-4.5")
    answers = {case["name"]: pack.tensors(case["expected"]) for case in pack.manifest["cases"]}
    (tmp_path / "out").mkdir()
    for name, stage in (("frames", "frame_tokens"), ("masked", "masked_position_ids")):
        save_tensors(tmp_path / "out" / f"{name}.safetensors", {stage: answers[name][stage][:, ::-1].copy()}, {})
    done = command("golden", "check", pack.folder, tmp_path / "out", "--html", tmp_path / "page.html")
    assert (done.code, done.err) == (1, "")
    assert "frame_tokens" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("key", "stage", "function", "kind"), OF_FAMILIES)
def test_a_fault_in_a_familys_pack_is_named(
    key: str, stage: str, function: str, kind: str, packs: Callable[[str], Pack], tmp_path: Path
) -> None:
    assert kind in suspected(key, stage, function, kind, packs(key), tmp_path / "out").get(stage, set())
