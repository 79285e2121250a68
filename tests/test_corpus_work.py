"""One group of pictures in this process: its memory, and that doing it again gives the same bytes."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npembed import Config, Model, SlicingConfig, VisionConfig, random_model
from npembed.corpus.place import Place
from npembed.corpus.settings import Settings, describe, limited, numbers_digest, refuse_other, weights_digest
from npembed.corpus.shards import map_tensors
from npembed.corpus.sources import Item, list_pictures
from npembed.corpus.vectors import _stored
from npembed.corpus.work import compute_group, try_picture, versions
from npembed.files import write_safetensors

SETTINGS = Settings(shard_mb=1)


@pytest.fixture(scope="module")
def model() -> Model:
    """A picture makes a little more than a quarter of a megabyte: three fit into a shard."""
    vision = VisionConfig(hidden_size=256, num_attention_heads=2)
    return random_model(Config(vision=vision, slicing=SlicingConfig(scale_resolution=224, max_slice_nums=1)))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return list_pictures([str(folder)]).items


def job(out: Path, model: Model) -> dict[str, Any]:
    """As a run hands it to its workers."""
    made = describe(SETTINGS, model, "", weights_digest(model))
    Place(str(out)).write("model.safetensors", lambda path: write_safetensors(path, model.weights, {}))
    return {"out": str(out), "made": made, "model": "model.safetensors", "digest": numbers_digest(made), "versions": versions()}


def peak(out: Path, model: Model, items: list[Item]) -> int:
    out.mkdir()
    prepared = job(out, model)
    compute_group(prepared, 1, items[:3])  # what is made once
    tracemalloc.start()
    try:
        compute_group(prepared, 0, items)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path, model: Model, items: list[Item]) -> None:
    few, many = peak(tmp_path / "few", model, items[:8]), peak(tmp_path / "many", model, items)
    assert many < 1.1 * few
    assert few < 12e6, "a shard of one megabyte, a picture and what is computed of it"


def test_a_group_that_is_done_again_gives_the_same_bytes(tmp_path: Path, model: Model, items: list[Item]) -> None:
    prepared = job(tmp_path, model)
    assert compute_group(prepared, 3, items[:10]) == {"pictures": 10, "failed": 0}
    first = {path.name: path.read_bytes() for path in tmp_path.glob("part-*")}
    assert sorted(first) == [*(f"part-00003-{n}.safetensors" for n in (1, 2, 3)), "part-00003.safetensors"]
    compute_group(prepared, 3, items[:10])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("part-*")} == first
    compute_group(prepared, 3, items[:2])
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-00003.safetensors"], "what is no longer needed is gone"


def test_weights_are_mapped_not_read(tmp_path: Path, model: Model) -> None:
    write_safetensors(tmp_path / "a.safetensors", model.weights, {})
    mapped = map_tensors(tmp_path / "a.safetensors")
    assert mapped.keys() == model.weights.keys()
    for name, array in mapped.items():
        assert np.array_equal(array, model.weights[name])
        assert not array.flags.writeable
        assert not array.flags.owndata


@pytest.mark.parametrize("damage", [slice(0, 4), slice(0, -1), slice(0, 0)])
def test_a_damaged_shard_is_refused(tmp_path: Path, model: Model, damage: slice) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, model.weights, {})
    path.write_bytes(path.read_bytes()[damage])
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        map_tensors(path)


def test_every_change_that_changes_numbers_changes_the_digest_and_is_refused(model: Model) -> None:
    made = describe(SETTINGS, model, "here", "digest")
    again = describe(SETTINGS, model, "elsewhere", "digest")
    refuse_other(made, again, "OUT")
    assert numbers_digest(again) == numbers_digest(made), "where weights come from does not count"
    others = [
        describe(Settings(shard_mb=1, upright=True), model, "here", "digest"),
        describe(SETTINGS, Model(limited(model.config, 3), model.weights), "here", "digest"),
        describe(SETTINGS, model, "here", "another digest"),
    ]
    for other in others:
        assert numbers_digest(other) != numbers_digest(made)
        with pytest.raises(ValueError, match="OUT was made with"):
            refuse_other(made, other, "OUT")


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("float16", 65_519.0, True),  # is rounded to the largest that there is
        ("float16", 65_520.0, False),
        ("float16", -65_520.0, False),
        ("float32", 3e38, True),
        ("float32", np.inf, False),
        ("", -np.inf, False),
        ("", np.nan, False),
        ("float16", np.nan, False),
    ],
)
def test_what_the_stored_type_cannot_hold_is_refused(dtype: str, value: float, fits: bool) -> None:
    parts = [np.ones((2, 3), np.float32), np.array([[0, value, -1]], np.float32)]
    if fits:
        stored = _stored(parts, Settings(dtype=dtype))
        assert np.array_equal(stored, np.concatenate(parts).astype(dtype))
        assert stored.dtype == dtype
    else:
        with pytest.raises(ValueError, match=rf"a value of size \S+ does not fit {dtype or 'float32'}"):
            _stored(parts, Settings(dtype=dtype))


def test_a_picture_that_is_tried_leaves_nothing(tmp_path: Path, model: Model, items: list[Item]) -> None:
    prepared = job(tmp_path, model)
    before = sorted(tmp_path.rglob("*"))
    assert try_picture(prepared, items[0])
    assert try_picture(prepared, Item("gone", str(tmp_path / "gone"))), "what is wrong with it does not matter"
    assert sorted(tmp_path.rglob("*")) == before
