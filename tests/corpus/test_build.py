"""Corpora: every array equal to `embed` picture by picture, rows that say what failed, and what is refused."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

import npembed.corpus
from npembed import FAMILIES, Model, random_model
from npembed.corpus import Settings, Summary, build
from npembed.corpus import work as work_module
from npembed.corpus.build import _regrouped
from npembed.corpus.index import done, is_whole
from npembed.corpus.place import Place
from npembed.corpus.settings import weights_digest
from npembed.corpus.shards import Packer
from npembed.corpus.sources import Item
from npembed.corpus.vectors import Packed
from tests.corpora import BROKEN, alone, content_of, write_pictures

GOOD = 200


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster of two worker processes, over tcp on loopback."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, protocol="tcp://", dashboard_address=":0", memory_limit=None
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def small() -> Model:
    """Of sizes so small that a picture takes no time."""
    family = FAMILIES["minicpm-v-2.6"]
    return random_model(family.small(), until="tokens")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), GOOD)


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory, small: Model, scheduler: str) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("made") / "out"
    return out, build([str(pictures)], str(out), small, "small", Settings(until="tokens", shard_mb=1), scheduler=scheduler)


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "index.parquet").to_pylist()
    return found


# What is in a corpus


def test_every_picture_has_a_row(made: tuple[Path, Summary], pictures: Path) -> None:
    out, summary = made
    assert (summary.pictures, summary.failed, summary.no_pictures) == (GOOD + BROKEN, BROKEN, 2)
    found = rows(out)
    every = [str(path) for path in pictures.rglob("*") if path.is_file() and path.name not in ("notes", "notes.txt")]
    assert [row["path"] for row in found] == sorted(every, key=os.fsencode)
    failed = [row for row in found if row["status"] == "failed"]
    assert {Path(row["path"]).parent.name for row in failed} == {"broken"}
    assert all(row["error"] and row["shard"] is None and row["rows"] is None for row in failed)
    assert {row["status"] for row in found} == {"ok", "failed"}
    assert any("too large to decode safely" in row["error"] for row in failed)
    named = {Path(row["path"]).name: row["error"] for row in failed}
    assert (named["empty.png"], named["notes.jpg"]) == ("it is empty", "it is not an image that Pillow can read")
    assert all(row["sha256"] and row["bytes"] == Path(row["path"]).stat().st_size for row in found)


def test_every_array_is_what_embed_gives(made: tuple[Path, Summary], small: Model) -> None:
    corpus = npembed.corpus.open(made[0])
    assert len(corpus) == GOOD + BROKEN
    for row in rows(made[0]):
        if row["status"] == "failed":
            with pytest.raises(ValueError, match=r"failed: "):
                corpus[row["path"]]
            continue
        expected, tgt_sizes = alone(row["path"], small, "tokens")
        found = corpus[row["path"]]
        assert np.array_equal(found["tgt_sizes"], tgt_sizes)
        assert found["offsets"].tolist() == np.cumsum([0, *map(len, expected)]).tolist()
        assert np.array_equal(found["tokens"], np.concatenate(expected))
        assert found["token_counts"].tolist() == [len(own) for own in expected]
        assert found["slice_boxes"][0].tolist() == [0, 0, row["width"], row["height"]]
        assert row["slices"] == len(tgt_sizes)


def test_shards_are_packed_and_bounded(made: tuple[Path, Summary]) -> None:
    for name in shards(made[0]):
        tensors = load_file(made[0] / name)
        assert tensors["tokens"].nbytes <= 10**6
        assert tensors["offsets"][-1] == len(tensors["tokens"])
        assert len(tensors["offsets"]) - 1 == len(tensors["tgt_sizes"]) == len(tensors["image_index"])


def test_a_corpus_says_what_it_was_made_with(made: tuple[Path, Summary]) -> None:
    manifest = json.loads((made[0] / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert (manifest["family"], manifest["rule"], manifest["weights"]["source"]) == ("minicpm-v-2.6", "arange", "small")
    assert manifest["settings"]["until"] == "tokens"
    assert (manifest["pictures"], manifest["failed"]) == (GOOD + BROKEN, BROKEN)


def test_nothing_else_is_left_in_a_corpus(made: tuple[Path, Summary]) -> None:
    names = {path.name for path in made[0].iterdir()} - set(shards(made[0]))
    assert names == {"index.parquet", "list.jsonl", "manifest.json", "README.md", "rows", ".lock"}


def test_the_shards_do_not_depend_on_the_workers(
    made: tuple[Path, Summary], pictures: Path, tmp_path: Path, small: Model
) -> None:
    build([str(pictures)], str(tmp_path / "out"), small, "small", Settings(until="tokens", shard_mb=1), workers=1)
    assert shards(tmp_path / "out") == shards(made[0])


def test_the_index_opens_in_pandas_and_duckdb(made: tuple[Path, Summary]) -> None:
    pandas, duckdb = pytest.importorskip("pandas"), pytest.importorskip("duckdb")
    path = made[0] / "index.parquet"
    assert (pandas.read_parquet(path)["status"] == "failed").sum() == BROKEN
    assert duckdb.sql(f"select count(*) from '{path}' where status = 'failed'").fetchall() == [(BROKEN,)]


# One picture: a vector, pages, types


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three good pictures and a broken one."""
    folder = write_pictures(tmp_path / "few", 3)
    for path in sorted((folder / "broken").iterdir())[1:]:
        path.unlink()
    return folder


@pytest.mark.parametrize("until", ["hidden", "tokens"])
def test_the_mean_is_the_overviews(few: Path, tmp_path: Path, small: Model, scheduler: str, until: str) -> None:
    wanted = Settings(until=until, vector="mean")
    build([str(few)], str(tmp_path / "out"), small, settings=wanted, scheduler=scheduler)
    corpus = npembed.corpus.open(tmp_path / "out")
    vectors = {row["path"]: row["vector"] for row in pq.read_table(tmp_path / "out/vectors.parquet").to_pylist()}
    for row in rows(tmp_path / "out"):
        if row["status"] == "ok":
            expected = alone(row["path"], small, until)[0][0].mean(axis=0, dtype=np.float64).astype(np.float32)
            assert np.array_equal(corpus[row["path"]]["pooled"], expected[None])
            assert np.array_equal(vectors.pop(row["path"]), expected)
    assert not vectors, "pictures that failed have none"


def test_unit_length_is_had_by_asking(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    wanted = Settings(until="tokens", vector="mean", normalize=True)
    build([str(few)], str(tmp_path / "out"), small, settings=wanted, scheduler=scheduler)
    (_, vectors), *_ = npembed.corpus.open(tmp_path / "out").vectors()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_a_pooled_stage_is_stored_as_vectors(few: Path, tmp_path: Path, scheduler: str) -> None:
    family = FAMILIES["siglip"]
    model = random_model(family.small(), until="pooled")
    build([str(few)], str(tmp_path / "out"), model, settings=Settings(until="pooled"), scheduler=scheduler)
    found = pq.read_table(tmp_path / "out/vectors.parquet")
    tensors = {name: array for path in (tmp_path / "out").glob("*.safetensors") for name, array in load_file(path).items()}
    assert {name: array.shape for name, array in tensors.items()} == {"pooled": (3, 16)}
    assert np.array_equal(np.stack(found["vector"].to_numpy()), tensors["pooled"])


@pytest.mark.parametrize("pages", ["first", "all"])
def test_pages_are_rows(tmp_path: Path, small: Model, scheduler: str, pages: str) -> None:
    frames = [Image.fromarray(np.full((9, 9 + n, 3), 40 * n, dtype=np.uint8)) for n in range(3)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    build([str(tmp_path / "a.tiff")], str(tmp_path / "out"), small, settings=Settings(pages=pages), scheduler=scheduler)
    found = [(row["frame"], row["width"], row["image"]) for row in rows(tmp_path / "out")]
    assert found == [(0, 9, 0), (1, 10, 1), (2, 11, 2)][: 1 if pages == "first" else 3]


def test_half_the_bytes_are_had_by_float16(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    build([str(few)], str(tmp_path / "out"), small, settings=Settings(dtype="float16"), scheduler=scheduler)
    corpus = npembed.corpus.open(tmp_path / "out")
    for row in rows(tmp_path / "out"):
        if row["status"] == "ok":
            expected = np.concatenate(alone(row["path"], small, "embeddings")[0]).astype(np.float16)
            assert np.array_equal(corpus[row["path"]]["embeddings"], expected)


def test_a_value_that_float16_cannot_hold_is_a_failed_row(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    large = Model(small.config, {name: array * np.float32(1e6) for name, array in small.weights.items()})
    summary = build([str(few)], str(tmp_path / "out"), large, settings=Settings(dtype="float16"), scheduler=scheduler)
    assert summary.failed == summary.pictures == 4
    assert sum("does not fit float16" in row["error"] for row in rows(tmp_path / "out")) == 3


def test_a_picture_over_the_pixel_limit_is_a_failed_row(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    Image.new("RGB", (101, 100)).save(few / "large.png")
    build([str(few)], str(tmp_path / "out"), small, settings=Settings(max_pixels=10_000), scheduler=scheduler)
    (error,) = (row["error"] for row in rows(tmp_path / "out") if row["path"].endswith("large.png"))
    assert error == "it is too large: 101 × 100 pixels, 10000 at most"


@pytest.mark.skipif(os.name != "posix", reason="names as POSIX has them")
def test_a_name_that_is_no_utf_8_is_spelt_out(tmp_path: Path, small: Model, scheduler: str) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        os.rename(tmp_path / "a.png", name)
    except OSError:
        pytest.skip("this file system has no such names")
    out = str(tmp_path / "out")
    for _ in range(2):  # the list is read again, too
        assert build([os.fsdecode(name)], out, small, scheduler=scheduler).failed == 0
    assert [row["path"] for row in rows(tmp_path / "out")] == [f"{tmp_path}/\\udcff.png"]


# Going on


def test_a_finished_corpus_is_not_computed_again(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    build([str(few)], str(tmp_path / "out"), small, scheduler=scheduler)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    again = build([str(few)], str(tmp_path / "out"), small, scheduler="tcp://nobody is asked")
    assert (again.pictures, again.failed, again.kept) == (4, 1, 4)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("damage", ["shard", "rows", "shard cut short", "index", "list", "model left"])
def test_what_is_missing_is_made_again(few: Path, tmp_path: Path, small: Model, scheduler: str, damage: str) -> None:
    out = tmp_path / "out"
    build([str(few)], str(out), small, scheduler=scheduler)
    before, table = shards(out), [row | {"seconds": 0} for row in rows(out)]
    (shard,) = out.glob("*.safetensors")
    if damage == "shard cut short":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "model left":
        (out / "scratch").mkdir()
        (out / "scratch" / f"model-{weights_digest(small)[:16]}.safetensors").write_bytes(b"half")
    else:
        {
            "shard": shard,
            "rows": out / "rows/part-00000.part",
            "index": out / "index.parquet",
            "list": out / "list.jsonl",
        }[damage].unlink()
    build([str(few)], str(out), small, scheduler=scheduler)
    assert shards(out) == before
    assert [row | {"seconds": 0} for row in rows(out)] == table
    assert not (out / "scratch").exists()


def test_pictures_that_came_changed_or_went_are_taken_in_when_asked(
    few: Path, tmp_path: Path, small: Model, scheduler: str
) -> None:
    out = tmp_path / "out"
    build([str(few)], str(out), small, scheduler=scheduler)
    changed, went = sorted(path for path in few.rglob("picture*"))[:2]
    Image.new("RGB", (30, 20)).save(changed)
    went.unlink()
    shutil.copy(changed, few / "came.jpg")
    with pytest.raises(ValueError, match=r"pictures were altered: 1 came, 1 changed, 1 went; --update takes that in"):
        build([str(few)], str(out), small, scheduler=scheduler)
    updated = build([str(few)], str(out), small, scheduler=scheduler, update=True)
    assert any(note.endswith("pictures were altered: 1 came, 1 changed, 1 went; that is taken in") for note in updated.notes)
    build([str(few)], str(tmp_path / "fresh"), small, scheduler=scheduler)
    now, fresh = npembed.corpus.open(out), npembed.corpus.open(tmp_path / "fresh")
    assert sorted(now.index["path"].to_pylist()) == fresh.index["path"].to_pylist()
    for path, status in zip(fresh.index["path"].to_pylist(), fresh.index["status"].to_pylist(), strict=True):
        if status == "ok":
            assert np.array_equal(now[path]["embeddings"], fresh[path]["embeddings"])


@pytest.mark.parametrize("copied", [False, True])
def test_the_same_pictures_by_other_paths_are_recognised(
    copied: bool, few: Path, tmp_path: Path, small: Model, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(few, tmp_path / "w2/Photos")
    monkeypatch.chdir(tmp_path)
    build(["w2/Photos"], str(tmp_path / "out"), small, scheduler=scheduler)
    if copied:
        shutil.copytree("w2/Photos", "Photos", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path if copied else "w2")
    there = sum(path.is_file() for path in Path("Photos").rglob("*")) - 2
    words = rf"pictures were altered: {there} came, {there} went; the same digests are there under other paths "
    words += r"\((Photos/.+) was w2/\1; (\d+) of \2 that were compared\)"
    with pytest.raises(
        ValueError, match=rf"{words}; give the sources as they were given then, from the same folder; or --update"
    ):
        build(["Photos"], str(tmp_path / "out"), small, scheduler=scheduler)
    updated = build(["Photos"], str(tmp_path / "out"), small, scheduler=scheduler, update=True)
    assert re.search(rf"{words}; that is taken in$", updated.notes[0])


def test_other_pictures_of_the_same_size_are_not_taken_for_those_that_went(
    tmp_path: Path, small: Model, scheduler: str
) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.bmp")
    build([str(tmp_path / "*.bmp")], str(tmp_path / "out"), small, scheduler=scheduler)
    (tmp_path / "a.bmp").unlink()
    Image.new("RGB", (9, 9), "lime").save(tmp_path / "b.bmp")
    with pytest.raises(ValueError, match=r"pictures were altered: 1 came, 1 went; --update takes that in$"):
        build([str(tmp_path / "*.bmp")], str(tmp_path / "out"), small, scheduler=scheduler)


def test_a_group_whose_pictures_all_went_goes_with_them(tmp_path: Path, small: Model, scheduler: str) -> None:
    for number in range(40):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number:02d}.png")
    out, sources = tmp_path / "out", [str(tmp_path / "*.png")]
    build(sources, str(out), small, scheduler=scheduler)
    assert len(shards(out)) == 3
    for number in range(16):
        (tmp_path / f"{number:02d}.png").unlink()
    assert build(sources, str(out), small, scheduler=scheduler, update=True).pictures == 24
    assert list(shards(out)) == ["part-00001.safetensors", "part-00002.safetensors"]


def test_what_is_open_knows_that_it_was_changed(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    """And what is opened anew has the new arrays, in one process too."""
    out = tmp_path / "out"
    build([str(few)], str(out), small, scheduler=scheduler)
    before = npembed.corpus.open(out)
    first, second = [row["path"] for row in rows(out) if row["status"] == "ok"][:2]
    old = np.array(before[first]["embeddings"])
    Image.new("RGB", (300, 200)).save(first)
    build([str(few)], str(out), small, scheduler=scheduler, update=True)
    for path in (first, second):
        with pytest.raises(ValueError, match="was changed since it was opened; open it again"):
            before[path]
    after = npembed.corpus.open(out)
    assert not np.array_equal(after[first]["embeddings"], old)
    for path in (first, second):
        assert np.array_equal(after[path]["embeddings"], np.concatenate(alone(path, small, "embeddings")[0]))


def test_a_corpus_that_another_run_makes_meanwhile_is_not_written_over(
    few: Path, tmp_path: Path, small: Model, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, module = tmp_path / "out", sys.modules[build.__module__]
    listed = module.list_pictures  # type: ignore[attr-defined]

    def slow(*words: Any) -> Any:
        monkeypatch.setattr(module, "list_pictures", listed)
        build([str(few)], str(out), small, scheduler=scheduler)
        return listed(*words)

    monkeypatch.setattr(module, "list_pictures", slow)
    with pytest.raises(ValueError, match="was made with until 'embeddings', not 'hidden'"):
        build([str(few)], str(out), small, settings=Settings(until="hidden"), scheduler=scheduler)
    assert json.loads((out / "manifest.json").read_text())["settings"]["until"] == "embeddings"
    npembed.corpus.open(out)


def test_an_update_that_is_stopped_leaves_a_manifest_that_says_so_and_the_next_run_leaves_no_stray(
    tmp_path: Path, small: Model, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number:02d}.png")
    out, sources, module = tmp_path / "out", [str(tmp_path / "*.png")], sys.modules[build.__module__]
    build(sources, str(out), small, scheduler=scheduler)
    for number in range(17):
        (tmp_path / f"{number:02d}.png").unlink()
    kept = out / "part-00000-7.safetensors"
    kept.write_bytes(b"no shard of npembed's")

    def stopped(*words: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_computed", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(sources, str(out), small, scheduler=scheduler, update=True)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] is False
    assert "pictures" not in manifest
    assert build(sources, str(out), small, scheduler=scheduler, update=True).pictures == 23
    assert list(shards(out)) == [kept.name, "part-00001.safetensors", "part-00002.safetensors"]
    assert sorted(path.name for path in (out / "rows").iterdir()) == ["part-00001.part", "part-00002.part"]


def test_a_manifest_has_the_versions_of_all_that_computed(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    out = tmp_path / "out"

    def versions_of(path: Path) -> tuple[Any, Any]:
        manifest = json.loads((path / "manifest.json").read_text())
        return manifest["versions"], manifest["earlier_versions"]

    now = work_module.versions()
    assert set(now) >= {"npembed", "numpy", "scipy", "Pillow"}
    build([str(few)], str(out), small, scheduler=scheduler)
    assert versions_of(out) == (now, [])
    manifest = json.loads((out / "manifest.json").read_text())
    old = now | {"numpy": "0.1"}
    (out / "manifest.json").write_text(json.dumps(manifest | {"versions": old}))
    build([str(few)], str(out), small, scheduler=scheduler)
    assert versions_of(out) == (old, []), "nothing was computed"
    next(iter(out.glob("part-*"))).unlink()
    build([str(few)], str(out), small, scheduler=scheduler)
    assert versions_of(out) == (now, [old])


def test_a_corpus_of_failures_alone_has_vectors_if_it_was_made_for_them(tmp_path: Path, scheduler: str) -> None:
    family = FAMILIES["siglip"]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    model = random_model(family.small(), until="pooled")
    build([str(tmp_path / "a.png")], str(tmp_path / "out"), model, settings=Settings(until="pooled"), scheduler=scheduler)
    corpus = npembed.corpus.open(tmp_path / "out")
    assert (corpus.has_vectors, list(corpus.vectors())) == (True, [])
    assert not (tmp_path / "out/vectors.parquet").exists()


def test_a_file_that_was_away_for_a_moment_is_tried_again(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    out, module = tmp_path / "out", sys.modules[build.__module__]
    listed, picture = module.list_pictures, next(few.rglob("picture*"))  # type: ignore[attr-defined]

    def then_away(*words: Any) -> Any:
        found = listed(*words)
        picture.rename(tmp_path / "away")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "list_pictures", then_away)
        first = build([str(few)], str(out), small, scheduler=scheduler)
    (tmp_path / "away").rename(picture)
    second = build([str(few)], str(out), small, scheduler=scheduler)
    assert (second.failed, second.kept) == (first.failed - 1, 0)
    third = build([str(few)], str(out), small, scheduler=scheduler)
    assert (third.failed, third.kept) == (second.failed, third.pictures)


@pytest.mark.parametrize("damage", [b"", b"PAR1", "another table"])
def test_a_damaged_index_is_named_and_made_again(
    few: Path, tmp_path: Path, small: Model, scheduler: str, damage: bytes | str
) -> None:
    out = tmp_path / "out"
    build([str(few)], str(out), small, scheduler=scheduler)
    if isinstance(damage, bytes):
        (out / "index.parquet").write_bytes(damage)
    else:
        pq.write_table(pyarrow.table({"path": ["a"]}), out / "index.parquet")
    with pytest.raises(ValueError, match=r"index\.parquet is no index: .*; the command that made the corpus makes it again"):
        npembed.corpus.open(out)
    summary = build([str(few)], str(out), small, scheduler=scheduler)
    assert len(npembed.corpus.open(out)) == summary.kept == summary.pictures


def test_a_start_that_failed_does_not_bind_the_folder(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="the scheduler nowhere does not answer"):
        build([str(few)], out, small, settings=Settings(until="hidden"), scheduler="nowhere")
    build([str(few)], out, small, scheduler=scheduler)
    assert npembed.corpus.open(out).name == "embeddings"


@pytest.mark.parametrize(
    "manifest", ['{"corpus": 1}', '{"corpus": 1, "settings": 5}', '{"corpus": 1, "settings": {"a": 1}}', "[]"]
)
def test_a_manifest_of_something_else_is_one_line(few: Path, tmp_path: Path, small: Model, manifest: str) -> None:
    (tmp_path / "out/rows").mkdir(parents=True)
    (tmp_path / "out/rows/part-00000.part").write_bytes(b"")
    (tmp_path / "out/manifest.json").write_text(manifest)
    for use in (lambda: build([str(few)], str(tmp_path / "out"), small), lambda: npembed.corpus.open(tmp_path / "out")):
        with pytest.raises(ValueError, match=r"manifest\.json is no corpus's: [^\n]+$"):
            use()


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"until": "hidden"}, "was made with until 'embeddings', not 'hidden'"),
    ({"shard_mb": 5}, "was made with shard_mb 256, not 5"),
    ({"dtype": "float16"}, "was made with dtype '', not 'float16'"),
    ({"rule": "exact"}, "was made with rule None, not 'exact'"),
]


@pytest.mark.parametrize(("other", "message"), OTHER)
def test_other_settings_are_refused(few: Path, tmp_path: Path, small: Model, scheduler: str, other: Any, message: str) -> None:
    build([str(few)], str(tmp_path / "out"), small, scheduler=scheduler)
    with pytest.raises(ValueError, match=message):
        build([str(few)], str(tmp_path / "out"), small, settings=Settings(**other), scheduler=scheduler)


def test_other_weights_are_refused(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    build([str(few)], str(tmp_path / "out"), small, "here", scheduler=scheduler)
    other = Model(small.config, small.weights | {"vpm.post_layernorm.bias": small.weights["vpm.post_layernorm.bias"] + 1})
    with pytest.raises(ValueError, match="was made with other weights, from here"):
        build([str(few)], str(tmp_path / "out"), other, scheduler=scheduler)


# What bad input gets


def test_a_folder_that_is_no_corpus_is_left_alone(few: Path, tmp_path: Path, small: Model) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and no corpus"):
        build([str(few)], str(tmp_path / "out"), small)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_folder_with_another_manifest_is_left_alone(few: Path, tmp_path: Path, small: Model) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(ValueError, match=r"manifest\.json is no corpus's"):
        build([str(few)], str(tmp_path / "out"), small)


def test_without_a_picture_nothing_is_made(tmp_path: Path, small: Model) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match=r"no picture found in .*text \(1 other files\)"):
        build([str(tmp_path / "text")], str(tmp_path / "out"), small)
    assert not (tmp_path / "out").exists()


def test_a_second_run_into_one_folder_is_refused(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    build([str(few)], str(tmp_path / "out"), small, scheduler=scheduler)
    with Place(str(tmp_path / "out")).locked(), pytest.raises(ValueError, match="another run is writing to"):
        build([str(few)], str(tmp_path / "out"), small, scheduler=scheduler)


def test_storage_that_is_full_is_one_line_and_what_was_there_stays(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    place.write("before", lambda path: path.write_text("whole"))

    def fill(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        place.write("before", fill)
    assert (tmp_path / "before").read_text() == "whole"


def test_a_worker_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a worker has numpy \S+, but the run was started with 0\.1"):
        work_module.refuse_versions(work_module.versions() | {"numpy": "0.1"})


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"until": "pooled"}, "MiniCPM-V 2.6 has no stage 'pooled'; it has embeddings, hidden, tokens"),
        ({"vector": "mean"}, "--vector mean goes with --until hidden or tokens; got embeddings"),
        ({"normalize": True}, "--normalize needs one vector per picture"),
        ({"dtype": "int8"}, "--dtype must be 'float32' or 'float16'; got 'int8'"),
        ({"pages": "last"}, "--pages must be 'first' or 'all'; got 'last'"),
        ({"shard_mb": 0}, "shard_mb must be a whole number of at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(few: Path, tmp_path: Path, small: Model, wanted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build([str(few)], str(tmp_path / "out"), small, settings=Settings(**wanted))


# Packing


@given(sizes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=12), most=st.integers(1, 20))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sizes_of_pictures_and_shards_give_the_same_rows(tmp_path: Path, sizes: list[list[int]], most: int) -> None:
    folder = tmp_path / "packed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    packer = Packer(Place(str(folder)), 0, "rows", "float32", most * 8, {})
    expected = [np.full((sum(lengths), 2), number, dtype=np.float32) for number, lengths in enumerate(sizes)]
    lies = [packer.add(packed(rows, lengths)) for rows, lengths in zip(expected, sizes, strict=True)]
    packer.end()
    for rows, lengths, where in zip(expected, sizes, lies, strict=True):
        tensors = load_file(folder / where["shard"])
        first = where["first_row"]
        assert np.array_equal(tensors["rows"][first : first + where["rows"]], rows)
        ends = tensors["offsets"][where["first_slice"] : where["first_slice"] + len(lengths) + 1]
        assert np.diff(ends).tolist() == lengths
        assert tensors["image_index"][where["first_slice"]] == where["image"]
        assert len(tensors["rows"]) <= max(most, len(rows))


def packed(rows: Any, lengths: list[int]) -> Packed:
    parts = np.split(rows, np.cumsum(lengths)[:-1])
    return Packed(parts, np.array(lengths), np.array([[1, n] for n in lengths]), np.zeros((len(lengths), 4)), {})


@given(
    before=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3)), now=st.sets(st.sampled_from("efghijkl"), min_size=1)
)
def test_a_picture_that_stays_keeps_its_group(before: dict[str, int], now: set[str]) -> None:
    groups = _regrouped({p: (g, 0, "") for p, g in before.items()}, [Item(p, p) for p in sorted(now)], 2)
    where = {item.path: group for group, items in groups.items() for item in items}
    assert where.keys() == now
    assert all(where[path] == group for path, group in before.items() if path in now)
    assert {where[path] for path in now - before.keys()}.isdisjoint(before.values())
    assert all(len(items) <= 2 for group, items in groups.items() if group not in before.values())


def test_a_group_is_done_only_with_the_same_inputs(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    build([str(few)], str(tmp_path / "out"), small, scheduler=scheduler)
    place = Place(str(tmp_path / "out"))
    found = done(place, 0)
    assert found is not None
    assert list(found.sizes) == ["part-00000.safetensors"]
    assert is_whole(place, found, ["another digest", found.digest])
    assert not is_whole(place, found, ["another digest"])
    assert done(place, 1) is None


def test_storage_by_a_url_holds_the_same(few: Path, tmp_path: Path, small: Model, scheduler: str) -> None:
    build([str(few)], str(tmp_path / "out"), small, scheduler=scheduler)
    build([str(few)], f"file://{tmp_path}/far", small, scheduler=scheduler)
    assert shards(tmp_path / "far") == shards(tmp_path / "out")
    assert content_of(tmp_path / "far") == content_of(tmp_path / "out") - {".lock"}
