"""What is in a golden pack: for every family, the same at every time and for any number of threads, and told in words."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import npembed
from npembed import FAMILIES
from npembed.conformance import Pack, check_outputs, failed, first_departing, read_pack, write_pack
from npembed.conformance.golden.cases import CASES
from npembed.conformance.golden.contents import digest, manifest_digest
from npembed.conformance.golden.flat import read_flat
from npembed.conformance.golden.more_stages import MORE_STAGES
from npembed.conformance.in_order import in_order, product
from npembed.records.model import Model
from npembed.support.output_files import load_tensors, save_tensors
from tests.command_line import npembed as command
from tests.house.test_imports import BLOCKED

FEW = ("one-patch", "boundaries", "ragged", "faint", "one-sign", "varied", "same-width")
FEW += ("masked", "peaked", "nan-in-embeddings", "nan-in-hidden", "frames")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of a few small cases."""
    monkeypatch.setattr("npembed.conformance.golden.cases.CASES", [case for case in CASES if case.name in FEW])


@pytest.fixture(scope="module")
def families_packs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pack]:
    """A family's pack of a few small cases, written once."""

    @cache
    def written(key: str) -> Pack:
        folder = tmp_path_factory.mktemp("golden") / "pack"
        write_pack(folder, family=key)
        return read_pack(folder)

    return written


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


# Families


OWN_IDS = ("minicpm-v-2.5", "siglip", "siglip2-naflex", "phi-4-multimodal")
"""Families whose ids are not by rows and columns of each slice."""

WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sliced_tgt_sizes": lambda array: array[:, ::-1] + 1,
    "sliced_strips": lambda array: np.nextafter(array, np.float32(9)),
    "pixel_values": lambda array: array[:, ::-1],
    "patch_attn_mask": lambda array: ~array,
    "position_ids": lambda array: array + (array == array.max()),
    "masked_position_ids": lambda array: array[:, ::-1],
    "frame_tokens": lambda array: array * np.float32(1.001),
    "embeddings": lambda array: array * np.float32(1.0001),
    "hidden": lambda array: array + np.float32(0.001),
    "tokens": lambda array: array * np.float32(1.001),
    "pooled": lambda array: array * np.float32(1.001),
    "text": lambda array: array[:-1],
    "image_bound": lambda array: array + 1,
    "inputs_embeds": lambda array: array[::-1],
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("key", FAMILIES)
def test_every_family_has_packs(key: str, families_packs: Callable[[str], Pack], tmp_path: Path) -> None:
    """Written, agreeing with itself; and each stage's wrong answers are caught, at that stage."""
    pack = families_packs(key)
    assert pack.manifest["family"] == key
    stages = [stage.name for stage in FAMILIES[key].stages]
    stages += ["masked_position_ids"] * (key not in OWN_IDS) + ["frame_tokens"] * FAMILIES[key].frames
    assert list(dict.fromkeys(stage["stage"] for case in pack.manifest["cases"] for stage in case["stages"])) == stages
    assert not failed(check_outputs(pack, pack.folder))
    for stage in stages:
        folder = tmp_path / stage
        folder.mkdir()
        for case in pack.manifest["cases"]:
            answer = pack.tensors(case["expected"]).get(stage)
            if answer is not None:
                save_tensors(folder / case["expected"], {stage: np.ascontiguousarray(WRONG[stage](answer))}, {})
        assert first_departing(pack, check_outputs(pack, folder)) == stage


ONE_OF_A_KIND = {(kind.frames, *(stage.function for stage in kind.stages)): key for key, kind in FAMILIES.items()}.values()
"""A family for each row of functions, with groups of frames and without; the others differ in sizes and in how they cut."""


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("key", ONE_OF_A_KIND)
def test_a_familys_pack_is_the_same_again(key: str, families_packs: Callable[[str], Pack], tmp_path: Path) -> None:
    write_pack(tmp_path / "again", family=key)
    assert contents(tmp_path / "again") == contents(families_packs(key).folder)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("key", FAMILIES)
def test_a_float32_run_of_the_reference_passes_each_familys_pack(
    key: str, families_packs: Callable[[str], Pack], tmp_path: Path
) -> None:
    pack = families_packs(key)
    (tmp_path / "out").mkdir()
    for case in pack.manifest["cases"]:
        model = npembed.load_model(pack.folder / case["model"])
        values: dict[str, Any] = {**pack.tensors(case["expected"]), **pack.tensors(case["input"])}
        records = {stage.name: stage for stage in (*model.config.family.stages, *MORE_STAGES)}
        tensors = {told["stage"]: records[told["stage"]].call(values, model) for told in case["stages"]}
        save_tensors(tmp_path / "out" / case["expected"], tensors, {})
    assert not failed(check_outputs(pack, tmp_path / "out"))


@pytest.mark.parametrize("key", FAMILIES)
def test_the_records_say_what_a_stage_gives(key: str) -> None:
    for stage in FAMILIES[key].stages:
        assert stage.axes, stage
        assert stage.about, stage


@pytest.mark.usefixtures("few")
def test_in_the_oldest_family_padding_counts(families_packs: Callable[[str], Pack]) -> None:
    """All places of the hidden states are compared, because all take part in the tower."""
    for key, counts in (("minicpm-v-2.5", [72] * 4), ("minicpm-v-2.6", [6, 1, 72, 3])):
        case = next(case for case in families_packs(key).manifest["cases"] if case["name"] == "ragged")
        assert next(stage["counts"] for stage in case["stages"] if stage["stage"] == "hidden") == counts


def test_a_familys_weights_are_of_that_family(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"family is 'idefics2', but the weights are of 'minicpm-v-2\.6'"):
        write_pack(tmp_path / "pack", tiny, family="idefics2")
    with pytest.raises(ValueError, match=r"golden write: family must be one of .*; got 'idefics'; did you mean"):
        write_pack(tmp_path / "pack", family="idefics")


# Every field of every config


@pytest.mark.parametrize("key", FAMILIES)
def test_together_the_models_vary_every_field(key: str) -> None:
    """Each field of a config, however deep, has at least two values among a family's models, or is listed."""
    family = FAMILIES[key]
    found: dict[str, set[str]] = {}
    for config in (family.small(), *family.variants().values()):
        for name, value in fields_of(config):
            found.setdefault(name, set()).add(repr(value))
    same = {name for name, values in found.items() if len(values) == 1}
    assert same == ALWAYS & set(found) | FIXED.get(key, set())


ALWAYS = {"family", "vision.num_channels", "image_token_id"}
"""Pictures have three channels; the id is of the text alone."""

FIXED: dict[str, set[str]] = {
    "minicpm-v-2.5": {"slicing.slice_mode", "use_image_id"},
    "idefics3": {"vision.patch_size"},
    "smolvlm": {"vision.patch_size"},
    "idefics2": {"vision.patch_size"},
    "minicpm-v-4.6": {"vision.patch_size", "slicing.patch_size"},
    "minicpm-v-4.7": {"vision.patch_size", "slicing.patch_size"},
    "minicpm-ocr": {"vision.patch_size", "slicing.patch_size"},
    "phi-4-multimodal": {"vision.patch_size", "crop_size", "feature_layer"},
    "siglip2-naflex": {"do_convert_rgb"},
}
"""What a family refuses to vary, or what does not vary in its packs."""


def fields_of(config: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        if hasattr(value, "__dataclass_fields__") and name != "family":
            yield from fields_of(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", getattr(value, "key", value)


def test_every_n_is_in_one_tensor(pack: Pack) -> None:
    buckets = pack.tensors("every-n.safetensors")["bucket_coords"]
    assert buckets.shape == (1024 * 1025 // 2,)
    for n in (1, 2, 49, 70, 1024):
        assert buckets[n * (n - 1) // 2 : n * (n + 1) // 2].tolist() == npembed.bucket_coords(n).tolist()


# The same for any number of threads


SHAPES = [
    ((3, 5), (5, 2)),
    ((33, 300), (300, 65)),
    ((2, 4, 7), (2, 7, 3)),
    ((4, 7), (2, 7, 3)),
    ((5,), (5, 3)),
    ((3, 5), (5,)),
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_products_in_order_are_products(shapes: tuple[tuple[int, ...], ...]) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape) for shape in shapes)
    assert product(a, b).shape == (a @ b).shape
    np.testing.assert_allclose(product(a, b), a @ b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("key", FAMILIES)
def test_the_products_of_every_stage_go_by_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a product that is off by one part in a thousand, so is every stage; with the right one, it is what it is without."""
    family = FAMILIES[key]
    model = npembed.random_model(family.small(), until=family.vision_stages[-1].name)
    exact = npembed.Model(model.config, {name: array.astype("float64") for name, array in model.weights.items()})
    sizes, side = np.array(family.case_sizes([(4, 4)], model.config)), model.config.vision.patch_size
    strips = [np.ones((3, side, h * w * side)) for h, w in sizes.tolist()]
    values: dict[str, Any] = {"strips.*": strips, "tgt_sizes": sizes, "rule": None}
    for stage in family.vision_stages:
        values[stage.name] = stage.call(values, exact)
        right = stage.call(values, in_order(model, "float64"))
        np.testing.assert_allclose(right, values[stage.name], rtol=1e-9, atol=1e-9)
        with monkeypatch.context() as patch:
            patch.setattr("npembed.conformance.in_order.product", lambda a, b: (a @ b) * 1.001)
            off = stage.call(values, in_order(model, "float64"))
        assert np.abs(off - right).max() > 1e-6 * np.abs(right).max()


def test_a_pack_is_the_same_for_one_thread_and_two(tmp_path: Path) -> None:
    for threads in ("1", "2"):
        count = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        code = f"from npembed.conformance import write_pack; write_pack({str(tmp_path / threads)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **count}, cwd=Path(__file__).parents[2])
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


# In words


def test_the_readme_tells_of_every_tensor_and_case(pack: Pack) -> None:
    text = (pack.folder / "README.md").read_text()
    for case in pack.manifest["cases"]:
        assert f"| `{case['name']}` | `{case['model']}` | {case['about']} |" in text
        for stage in case["stages"]:
            assert f"| `{stage['stage']}` | (" in text
        for name in case["inputs"]:
            assert f"| `{'strips.*' if name.startswith('strips.') else name}` | (" in text
    assert "$" not in text
    for name, sizes in pack.manifest["models"].items():
        assert f"| `{name}` | {' | '.join(str(value) for value in sizes.values())} |" in text


def test_the_flat_files_hold_the_same_tensors(pack: Pack) -> None:
    files = sorted(pack.folder.rglob("*.safetensors"))
    assert len(files) == 2 * len(pack.manifest["cases"]) + len(pack.manifest["models"])
    for file in files:
        tensors, flat = load_tensors(file), read_flat(file.with_suffix(""))
        assert set(tensors) == set(flat)
        for name, array in tensors.items():
            assert flat[name].dtype == array.dtype
            assert flat[name].shape == array.shape
            assert flat[name].tobytes() == array.tobytes()


# The manifest


def test_the_manifest_is_as_its_schema_says(pack: Pack) -> None:
    rules = json.loads((pack.folder / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(rules)
    jsonschema.validate(pack.manifest, rules)


def at(told: Any, *path: Any) -> Any:
    for step in path:
        told = told[step]
    return told


BROKEN: list[tuple[tuple[Any, ...], Any]] = [
    (("rule",), []),
    (("rule",), "exakt"),
    (("family",), "lattice"),
    (("family",), []),
    (("cases",), {"a": 1}),
    (("cases",), 5),
    (("cases", 0), 5),
    (("cases", 0, "name"), {}),
    (("cases", 0, "input"), "/etc/passwd"),
    (("cases", 0, "input"), []),
    (("cases", 0, "expected"), "../seed.safetensors"),
    (("cases", 0, "expected"), "none.safetensors"),
    (("cases", 0, "model"), "models/../.."),
    (("cases", 0, "model"), "models/none"),
    (("cases", 0, "stages"), None),
    (("cases", 0, "stages", 0, "stage"), "hidden"),
    (("cases", 0, "stages", 0, "stage"), "stride"),
    (("cases", 0, "stages", 6, "counts"), [1, 2]),
    (("cases", 0, "stages", 6, "counts"), ["x"]),
    (("cases", 0, "stages", 0, "shape"), [1, -2]),
    (("cases", 0, "stages", 0, "dtype"), 5),
    (("cases", 0, "stages", 0, "tolerance"), {"kind": "roughly"}),
    (("cases", 0, "stages", 0, "tolerance"), "equal"),
    (("cases", 0, "stages", 5, "tolerance", "terms"), "x"),
    (("cases", 0, "stages", 5, "tolerance", "companions", "steps", "shape"), [1]),
    (("cases", 0, "stages", 5, "tolerance", "companions", "steps"), 1),
    (("cases", 0, "stages", 6, "tolerance", "float32"), []),
    (("cases", 0, "stages", 6, "tolerance", "float32"), [1.0, 2.0]),
    (("cases", 0, "stages", 6, "tolerance", "float32"), ["x"]),
    (("cases", 0, "stages", 6, "tolerance", "float32"), [{}]),
    (("files",), []),
    (("files",), {}),
]


def broken(pack: Pack, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The pack with another manifest, whose digest is right."""
    shutil.copytree(pack.folder, folder)
    told = json.loads((folder / "manifest.json").read_text())
    change(told)
    told["digest"] = manifest_digest(told)
    (folder / "manifest.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=[f"{row[0]} {row[1]}" for row in BROKEN])
def test_a_manifest_with_a_right_digest_and_wrong_contents_gets_one_line(
    path: tuple[Any, ...], value: Any, pack: Pack, tmp_path: Path
) -> None:
    def change(told: dict[str, Any]) -> None:
        assert at(told, *path) != value
        at(told, *path[:-1])[path[-1]] = value

    folder = broken(pack, tmp_path / "pack", change)
    done = command("golden", "check", folder, pack.folder)
    if path[-1] == "name":  # it is but shown
        assert done.code == 0
    else:
        assert done.code == 2, done
        assert re.fullmatch(r"npembed: golden check: the pack is damaged: [^\n]+\n", done.err), done.err


def every_key(told: Any, within: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each key in the manifest, in so far as the schema requires it."""
    if isinstance(told, dict):
        for name, value in told.items():
            yield (*within, name)
            if name not in ("files", "inputs", "models"):
                yield from every_key(value, (*within, name))
    if isinstance(told, list) and told and within[-1:] != ("reads",):
        for number in (0, 5, 6):
            if number < len(told):
                yield from every_key(told[number], (*within, number))


def test_a_key_that_is_missing_is_one_line_or_no_matter(pack: Pack, tmp_path: Path) -> None:
    """One that the check needs is named; without another the verdict is what it is with it."""
    whole = {**pack.manifest, "cases": pack.manifest["cases"][:1]}
    needed = set()
    for path in every_key(whole):
        told = json.loads(json.dumps(whole))
        del at(told, *path[:-1])[path[-1]]
        try:
            found = check_outputs(replace(pack, manifest=told), pack.folder)
        except ValueError as error:
            needed.add((path[-1], str(error)))
        else:
            assert not failed(found), path
    assert all(re.fullmatch(r"golden check: the pack is damaged: .* KeyError: '\w+'", error) for _, error in needed)
    assert {key for key, _ in needed} >= {"family", "cases", "name", "stages", "stage", "tolerance", "kind", "shape", "float32"}


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "models/../../out.txt", "a/.hidden", "", "a\\..\\b", "c:x"])
def test_no_file_of_a_manifest_leaves_the_pack(name: str, pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("out")
    folder = broken(pack, tmp_path / "pack", lambda told: told["files"].update({name: digest(b"out")}))
    with pytest.raises(ValueError, match=r"the pack is damaged: .*manifest.json names .*, which is no file of the pack"):
        read_pack(folder)


@pytest.mark.parametrize("name", ["seed.safetensors", "models/small", "models"])
def test_a_link_in_a_pack_is_refused(name: str, pack: Pack, tmp_path: Path) -> None:
    shutil.copytree(pack.folder, tmp_path / "pack")
    (tmp_path / "pack" / name).rename(tmp_path / "moved")
    (tmp_path / "pack" / name).symlink_to(tmp_path / "moved")
    with pytest.raises(ValueError, match=rf"the pack is damaged: .*{name} is a link, which could lead out of the pack"):
        read_pack(tmp_path / "pack")
    (tmp_path / "link").symlink_to(pack.folder)
    read_pack(tmp_path / "link")  # the folder itself may be found through one


def test_tensors_that_are_not_as_the_manifest_tells_are_damage(pack: Pack, tmp_path: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["cases"][0]["stages"][0]["shape"] = [2, 2]

    folder = broken(pack, tmp_path / "pack", change)
    with pytest.raises(ValueError, match=r"one-patch\.safetensors has no tensor sliced_tgt_sizes of int64 and shape \(2, 2\)"):
        check_outputs(read_pack(folder), pack.folder)


def test_a_pack_of_another_format_is_to_be_written_again(pack: Pack, tmp_path: Path) -> None:
    folder = broken(pack, tmp_path / "pack", lambda told: told.update(format=1))
    with pytest.raises(ValueError, match=r"manifest\.json has format 1; this version reads 3: write the pack again"):
        read_pack(folder)


# What is never written, and what is not needed


@pytest.mark.usefixtures("few")
def test_a_pack_whose_answers_are_no_numbers_is_never_written(tiny: Model, tmp_path: Path) -> None:
    name = "vpm.encoder.layers.0.mlp.fc1.bias"
    spoilt = Model(tiny.config, tiny.weights | {name: np.full_like(tiny.weights[name], np.nan)})
    message = r"golden write: case one-patch: hidden\[0, 0, 0\] is nan; a pack's own answers must be finite numbers"
    with pytest.raises(ValueError, match=message):
        write_pack(tmp_path / "pack", spoilt)
    assert list(tmp_path.iterdir()) == []


def test_packs_need_neither_hypothesis_nor_torch(tmp_path: Path) -> None:
    """Writing and checking need Pillow and safetensors alone; and nothing else is imported on the way."""
    blocked = BLOCKED
    for extra in ("'PIL', ", "'safetensors', ", "'ml_dtypes', "):
        blocked = blocked.replace(extra, "")
    code = (
        blocked
        + f"""
import npembed
kit = npembed.conformance
kit.write_pack({str(tmp_path / "pack")!r})
pack = kit.read_pack({str(tmp_path / "pack")!r})
print(kit.failed(kit.check_outputs(pack, pack.folder)))
import numpy as np
from npembed.support.output_files import load_tensors, save_tensors
import pathlib
out = pathlib.Path({str(tmp_path / "out")!r}); out.mkdir()
for case in pack.manifest["cases"]:
    tensors = pack.tensors(case["expected"])
    if "position_ids" in tensors:
        given = pack.tensors(case["input"])
        side = pack.manifest["models"][case["model"]]["G"]
        ids = npembed.position_ids(given["tgt_sizes"], side, "exact")
        mask = np.ones_like(tensors["patch_attn_mask"])
        save_tensors(out / case["expected"], {{"position_ids": ids, "patch_attn_mask": mask}}, {{}})
print(sorted({{outcome.cause for outcome in kit.check_outputs(pack, out) if outcome.cause}}))
try:
    kit.strategies
except ImportError as error:
    print(error)
"""
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "False",
        "['every place is True', 'matches rule `exact`, not `arange`']",
        "the conformance kit needs Hypothesis: pip install 'npembed[testing]'",
    ]
