"""One group of pictures in this process: its memory, and that doing it again gives the same bytes."""

import gc
import os
import tempfile
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npembed import FAMILIES, Config, Model, SlicingConfig, VisionConfig, random_model, run, slice_image
from npembed.corpus import vectors, work
from npembed.corpus.place import Place
from npembed.corpus.settings import Settings, describe, numbers_digest, refuse_other, weights_digest
from npembed.corpus.shards import Packer, map_tensors
from npembed.corpus.sources import Item, list_pictures
from npembed.corpus.vectors import Packed, compute, refuse_unfit
from npembed.corpus.work import _computed, _model, compute_group, let_go, try_picture, versions
from npembed.support.output_files import write_safetensors
from npembed.support.pictures import Turn

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
    assert compute_group(prepared, 3, items[:10]) == {"files": 10, "failed": 0}
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
    with pytest.raises(ValueError, match=r"corpus: .*a\.safetensors"):
        map_tensors(path)


def test_every_change_that_changes_numbers_changes_the_digest_and_is_refused(model: Model) -> None:
    made = describe(SETTINGS, model, "here", "digest")
    again = describe(SETTINGS, model, "elsewhere", "digest")
    refuse_other(made, again, "OUT")
    assert numbers_digest(again) == numbers_digest(made), "where weights come from does not count"
    others = [
        describe(Settings(shard_mb=1, upright=True), model, "here", "digest"),
        describe(SETTINGS, Model(model.config.with_max_slices(3, "test"), model.weights), "here", "digest"),
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
        ("float32", -np.inf, False),
        ("float32", np.nan, False),
        ("float16", np.nan, False),
    ],
)
def test_what_the_stored_type_cannot_hold_is_refused(dtype: str, value: float, fits: bool) -> None:
    parts = [np.ones((2, 3), np.float32), np.array([[0, value, -1]], np.float32)]
    if fits:
        refuse_unfit(parts, np.dtype(dtype))
        assert np.isfinite(np.concatenate(parts).astype(dtype)).all()
    else:
        with pytest.raises(ValueError, match=rf"a value of size \S+ does not fit {dtype}"):
            refuse_unfit(parts, np.dtype(dtype))


def test_a_picture_that_is_tried_leaves_nothing(tmp_path: Path, model: Model, items: list[Item]) -> None:
    prepared = job(tmp_path, model)
    before = sorted(tmp_path.rglob("*"))
    assert try_picture(prepared, items[0])
    assert try_picture(prepared, Item("gone", str(tmp_path / "gone"))), "what is wrong with it does not matter"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_that_cannot_be_read_has_no_size(model: Model, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(content: bytes, name: str, settings: Settings) -> Iterator[tuple[Image.Image, Turn]]:
        yield Image.new("RGB", (40, 9)), Turn.IGNORED
        yield Image.new("RGB", (41, 9)), Turn.NONE
        raise ValueError("no")

    monkeypatch.setattr(work, "frames_of", broken)
    found = [row for row, _ in _computed(items[:1], model, Settings(pages="all"))]
    seen = [(row["frame"], row["width"], row["height"], row["turn"], row["status"]) for row in found]
    assert seen == [(0, 40, 9, "not applied", "ok"), (1, 41, 9, None, "ok"), (2, None, None, None, "failed")]


def test_an_error_shows_no_password(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads from URLs quotes them."""

    def refuse(item: Item) -> bytes:
        raise FileNotFoundError("gone: https://ann:secret@host/a.png")

    monkeypatch.setattr(Item, "read", refuse)
    [(row, _)] = _computed([Item("https://host/a.png", "https://ann:secret@host/a.png")], model, SETTINGS)
    assert row["error"] == "gone: https://host/a.png"


# The copy of a model in storage far away


@pytest.fixture
def far(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A job whose corpus is reached by a URL."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "out").mkdir()
    yield job(tmp_path / "out", model) | {"out": f"file://{tmp_path}/out"}
    let_go()


def test_a_copy_goes_when_the_run_is_over(far: dict[str, Any], tmp_path: Path, items: list[Item]) -> None:
    assert compute_group(far, 0, items[:2]) == {"files": 2, "failed": 0}
    (copy,) = tmp_path.glob("npembed-*/*")
    assert copy.stat().st_mode & 0o077 == 0 or copy.parent.stat().st_mode & 0o077 == 0
    let_go()
    assert not copy.exists()


def test_a_copy_of_another_model_is_not_used(far: dict[str, Any], tmp_path: Path, model: Model, items: list[Item]) -> None:
    assert compute_group(far, 0, items[:2]) == {"files": 2, "failed": 0}
    (copy,) = tmp_path.glob("npembed-*/*")
    _model.cache_clear()
    wrong = {name: array + 1 for name, array in model.weights.items()}
    write_safetensors(copy, wrong, {})
    with pytest.raises(ValueError, match=r"the copy of the model at .* was another; it is deleted: try again"):
        compute_group(far, 1, items[:2])
    assert compute_group(far, 1, items[:2]) == {"files": 2, "failed": 0}


def test_a_folder_that_others_may_write_to_holds_no_copy(far: dict[str, Any], tmp_path: Path, items: list[Item]) -> None:
    folder = tmp_path / f"npembed-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="is not this user's alone"):
        compute_group(far, 0, items[:2])


# Several small pictures in one call

HIDDEN = Settings(until="hidden")


@pytest.fixture(scope="module")
def wide() -> Model:
    """A picture is one slice of about 256 patches, of which three or four go together."""
    vision = VisionConfig(hidden_size=256, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return random_model(Config(vision=vision, slicing=SlicingConfig(scale_resolution=224, max_slice_nums=1)), until="hidden")


def written(folder: Path, sizes: list[tuple[int, int]]) -> list[Item]:
    """Pictures of those widths and heights; (0, 0) is a broken one."""
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        picture = Image.fromarray(rng.integers(0, 256, (height or 9, width or 9, 3), dtype=np.uint8))
        picture.save(folder / f"{number:02d}.png")
        if not width:
            (folder / f"{number:02d}.png").write_bytes((folder / f"{number:02d}.png").read_bytes()[:60])
    return list_pictures([str(folder)]).items


def alone(item: Item, model: Model, settings: Settings) -> Packed:
    with Image.open(item.path) as picture:
        return compute([model.config.family.cut(picture.convert("RGB"), model.config)], model, settings)[0]


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many slices each call computes from now on."""
    seen: list[int] = []
    run = vectors.run
    monkeypatch.setattr(
        vectors, "run", lambda strips, *args, **words: (seen.append(len(strips)), run(strips, *args, **words))[1]
    )
    return seen


def test_small_pictures_of_one_size_go_together_and_keep_their_rows(
    tmp_path: Path, wide: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(100, 100)] * 5 + [(0, 0)] + [(100, 100)] * 2 + [(200, 100)] + [(100, 100)] + [(0, 0)]
    items, calls = written(tmp_path, sizes), calls_of(monkeypatch)
    found = list(_computed(items, wide, HIDDEN))
    assert calls == [4, 1, 2, 1, 1]
    assert [row["path"] for row, _ in found] == [item.path for item in items]
    assert [row["status"] for row, _ in found] == ["ok" if width else "failed" for width, _ in sizes]
    for item, (row, packed) in zip(items, found, strict=True):
        assert (packed is None) == (row["status"] == "failed")
        if packed is not None:
            expected = alone(item, wide, HIDDEN)
            assert np.array_equal(packed.tgt_sizes, expected.tgt_sizes)
            assert np.abs(packed.parts[0] - expected.parts[0]).max() < 1e-5 * np.abs(expected.parts[0]).max()


def test_embeddings_are_the_same_to_the_last_bit(tmp_path: Path, wide: Model) -> None:
    items = written(tmp_path, [(100, 100)] * 3 + [(200, 100)])
    for item, (_, packed) in zip(items, _computed(items, wide, Settings()), strict=True):
        assert packed is not None
        assert np.array_equal(packed.parts[0], alone(item, wide, Settings()).parts[0])


def test_a_picture_that_fails_fails_alone(tmp_path: Path, wide: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the call fails for one of several, and where its result is not finite."""
    items = written(tmp_path, [(100, 100)] * 4)
    cut, run = wide.config.family.cut, vectors.run
    bad = cut(Image.open(items[2].path), wide.config).strips[0]

    def refusing(strips: Any, *args: Any, **words: Any) -> Any:
        if any(np.array_equal(strip, bad) for strip in strips):
            raise ValueError("it is the third")
        return run(strips, *args, **words)

    def spoiling(strips: Any, *args: Any, **words: Any) -> Any:
        result = run(strips, *args, **words)
        for number, strip in enumerate(strips):
            if np.array_equal(strip, bad):
                result["hidden"][number, 0, 0] = np.nan
        return result

    for faulty, said in ((refusing, "it is the third"), (spoiling, "corpus: a value of size nan does not fit float32")):
        monkeypatch.setattr(vectors, "run", faulty)
        found = [row for row, _ in _computed(items, wide, HIDDEN)]
        assert [row["status"] for row in found] == ["ok", "ok", "failed", "ok"]
        assert found[2]["error"] == said


@pytest.mark.parametrize("key", list(FAMILIES))
def test_in_every_family_a_picture_s_numbers_are_its_own(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that may are computed in one call: in MiniCPM-V 2.5 and Idefics2 padding takes part in the tower."""
    family = FAMILIES[key]
    for name, most in (("WIDE", 1), ("PATCHES_AT_ONCE", 10**5)):
        monkeypatch.setattr(vectors, name, most)
    items, calls = written(tmp_path, [(60, 60)] * 3 + [(90, 50)] * 2), calls_of(monkeypatch)
    for stage in family.vision_stages:
        config, wanted = family.small(), Settings(until=stage.name)
        with suppress(ValueError):  # a family that knows no such number
            config = config.with_max_slices(1, "test")
        model = random_model(config, until=stage.name)
        calls.clear()
        found = list(_computed(items, model, wanted))
        for item, (row, packed) in zip(items, found, strict=True):
            assert packed is not None, row["error"]
            expected = alone(item, model, wanted)
            assert [len(part) for part in packed.parts] == [len(part) for part in expected.parts]
            ours, own = np.concatenate(packed.parts), np.concatenate(expected.parts)
            assert np.abs(ours - own).max() < 2e-5 * np.abs(own).max()
        computed = calls[: -len(items)]  # without the calls for the pictures alone
        if key in ("idefics3", "smolvlm", "phi-4-multimodal"):
            assert min(computed) > 1, "each makes several slices, and goes alone"
        else:
            assert computed == ([5] if key == "siglip" else [3, 2])


def test_a_narrow_tower_takes_each_slice_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So there the numbers are the same to the last bit."""
    vision = VisionConfig(hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    small = random_model(Config(vision=vision, slicing=SlicingConfig(scale_resolution=112)), until="hidden")
    items, calls = written(tmp_path, [(100, 100)] * 3 + [(300, 300)]), calls_of(monkeypatch)
    found = list(_computed(items, small, HIDDEN))
    assert calls[:3] == [1, 1, 1]
    assert calls[3] > 1
    for item, (_, packed) in zip(items, found, strict=True):
        strips, sizes = slice_image(Image.open(item.path), small.config)
        expected = run(strips, sizes, small, "hidden")["hidden"]
        assert packed is not None
        for number, part in enumerate(packed.parts):
            assert np.array_equal(part, expected[number, : len(part)])


# The memory of a shard


def shard_of(tmp_path: Path, group: int, most: int = 1000) -> Packer:
    return Packer(Place(str(tmp_path)), group, "rows", "float32", most, {})


def rows_of(value: float, count: int) -> Packed:
    return Packed([np.full((count, 5), value, np.float32)], np.array([count]), np.array([[1, count]]), np.zeros((1, 4)), {})


def test_two_groups_at_a_time_do_not_share_memory(tmp_path: Path) -> None:
    for group in range(2):  # what the first leaves is there for one of the next two
        shard_of(tmp_path, 7).add(rows_of(7, 3))
        first, second = shard_of(tmp_path, 2 * group), shard_of(tmp_path, 2 * group + 1)
        first.add(rows_of(1, 3))
        second.add(rows_of(2, 4))
        first.end()
        second.end()
        for number, (value, count) in ((2 * group, (1, 3)), (2 * group + 1, (2, 4))):
            rows = map_tensors(tmp_path / f"part-{number:05d}.safetensors")["rows"]
            assert rows.tolist() == [[value] * 5] * count


def test_memory_is_used_again_unless_one_picture_is_larger_than_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare: list[Any] = []
    monkeypatch.setattr("npembed.corpus.shards.SPARE", spare)
    packer = shard_of(tmp_path, 0)
    packer.add(rows_of(1, 3))
    packer.end()
    [kept] = spare
    again = shard_of(tmp_path, 1)
    assert not spare
    again.add(rows_of(2, 50))
    again.end()
    assert spare == [kept]
    large = shard_of(tmp_path, 2)
    large.add(rows_of(3, 51))
    large.end()
    assert not spare
    for group, (value, count) in enumerate([(1, 3), (2, 50), (3, 51)]):
        assert map_tensors(tmp_path / f"part-{group:05d}.safetensors")["rows"].tolist() == [[value] * 5] * count


@pytest.mark.parametrize("advised", [True, False])
def test_a_file_that_is_not_kept_in_memory_is_whole_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advised: bool
) -> None:
    """Where the system can be told so, and where it cannot."""
    told: list[Any] = []
    if advised:
        monkeypatch.setattr("os.posix_fadvise", lambda *args: told.append(args), raising=False)
        monkeypatch.setattr("os.POSIX_FADV_DONTNEED", 4, raising=False)
    else:
        monkeypatch.delattr("os.posix_fadvise", raising=False)
    Place(str(tmp_path)).write("a", lambda path: path.write_bytes(b"x" * 100_000), kept=False)
    assert (tmp_path / "a").read_bytes() == b"x" * 100_000
    Place(str(tmp_path)).write("b", lambda path: path.write_bytes(b"x"))
    assert len(told) == advised
    packer = shard_of(tmp_path, 0)
    packer.add(rows_of(1, 3))
    packer.end()
    assert len(told) == 2 * advised, "a shard is not kept"


class Held:
    """Something that a reader holds while it fails."""


def test_a_picture_that_fails_is_let_go(tmp_path: Path, wide: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector: a worker runs it rarely, and a broken photo takes 50 MB."""
    items, held = written(tmp_path, [(100, 100)] * 6), []

    def failing(*args: Any, **words: Any) -> Any:
        own = Held()
        held.append(weakref.ref(own))
        raise ValueError("broken")

    for module, name in ((work, "frames_of"), (vectors, "run")):
        gc.collect()
        gc.disable()
        try:
            with monkeypatch.context() as patched:
                patched.setattr(module, name, failing)
                for _ in _computed(items, wide, HIDDEN):
                    assert sum(one() is not None for one in held) == 0, name
        finally:
            gc.enable()
    assert len(held) >= 12


def test_a_page_that_fails_as_it_is_computed_does_not_end_its_file(
    tmp_path: Path, wide: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.fromarray(np.full((100, 100, 3), 40 * n, dtype=np.uint8)) for n in range(3)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    bad, run = wide.config.family.cut(frames[1], wide.config).strips[0], vectors.run

    def refusing(strips: Any, *args: Any, **words: Any) -> Any:
        if any(np.array_equal(strip, bad) for strip in strips):
            raise ValueError("no")
        return run(strips, *args, **words)

    monkeypatch.setattr(vectors, "run", refusing)
    wanted = Settings(until="hidden", pages="all")
    found = [row for row, _ in _computed(list_pictures([str(tmp_path)]).items, wide, wanted)]
    assert [(row["frame"], row["status"]) for row in found] == [(0, "ok"), (1, "failed"), (2, "ok")]
