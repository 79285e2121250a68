"""What other programs read of a corpus: each good picture's vector once, never null, as the shards have it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import npembed.corpus
from npembed import FAMILIES, Model, random_model
from npembed.corpus import Settings, build
from npembed.support.typing import Array
from tests.command_line import assert_refused, done_well, state
from tests.command_line import npembed as command

pytestmark = pytest.mark.filterwarnings("ignore")  # what other programs complain of is their own affair
GOOD = 11


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(FAMILIES["siglip"].small(), until="pooled")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """A corpus of two groups, with a picture in the middle that failed."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "p").mkdir()
    for number in range(GOOD):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p/{number:02d}.png")
    (folder / "p/05 broken.png").write_bytes((folder / "p/05.png").read_bytes()[:300])
    summary = build([str(folder / "p")], str(folder / "out"), model, settings=Settings(until="pooled"), workers=1)
    assert (summary.pictures, summary.failed) == (GOOD + 1, 1)
    assert len(list((folder / "out/rows").iterdir())) == 2
    return folder / "out"


@pytest.fixture(scope="module")
def expected(out: Path) -> Array:
    """As the shards have them."""
    found: Array = np.concatenate([block for _, block in npembed.corpus.open(out).vectors()])
    assert (len(found), found.dtype) == (GOOD, np.float32)
    return found


def paths(out: Path) -> list[str]:
    return [str(path) for path in sorted((out.parent / "p").glob("??.png"))]


def test_vectors_are_a_table_without_nulls(out: Path, expected: Array) -> None:
    table = pq.read_table(out / "vectors.parquet")
    assert table.schema.names == ["path", "frame", "sha256", "vector"]
    assert not any(field.nullable for field in table.schema)
    assert table["vector"].type == pa.list_(pa.field("element", pa.float32(), nullable=False), expected.shape[1])
    assert table["path"].to_pylist() == paths(out)
    assert np.array_equal(np.stack(table["vector"].to_numpy()), expected)


def test_the_index_has_every_picture_and_no_vector(out: Path) -> None:
    table = pq.read_table(out / "index.parquet")
    assert "vector" not in table.schema.names
    assert sorted(table["status"].to_pylist()) == ["failed"] + ["ok"] * GOOD


def test_no_other_file_is_taken_for_a_table(out: Path) -> None:
    assert {path.name for path in out.rglob("*.parquet")} == {"index.parquet", "vectors.parquet"}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_vectors_of_other_types_are_float32(tmp_path: Path, model: Model, dtype: str) -> None:
    wide = Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})
    Image.new("RGB", (20, 30), (9, 99, 199)).save(tmp_path / "a.png")
    settings = Settings(until="pooled", dtype="float16" if dtype == "float16" else "")
    build([str(tmp_path / "a.png")], str(tmp_path / "out"), wide, settings=settings, workers=1)
    (stored,) = (block for _, block in npembed.corpus.open(tmp_path / "out").vectors())
    assert stored.dtype == dtype
    found = np.stack(pq.read_table(tmp_path / "out/vectors.parquet")["vector"].to_numpy())
    assert found.dtype == np.float32
    assert np.array_equal(found, stored.astype(np.float32))


# The programs


def by_pandas(out: Path) -> Any:
    pandas = pytest.importorskip("pandas")
    return np.stack(pandas.read_parquet(out / "vectors.parquet")["vector"])


def by_polars(out: Path) -> Any:
    polars = pytest.importorskip("polars")
    return polars.read_parquet(out / "vectors.parquet")["vector"].to_numpy()


def by_duckdb(out: Path) -> Any:
    duckdb = pytest.importorskip("duckdb")
    return np.stack(duckdb.sql(f"select vector from '{out}/vectors.parquet'").fetchnumpy()["vector"])


def by_datasets(out: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(out), "vectors", split="train", cache_dir=str(out.parent / "cache"))
    return found.with_format("numpy")["vector"][:]


def by_lancedb(out: Path) -> Any:
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(str(out.parent / "lance")).create_table(
        "v", pq.read_table(out / "vectors.parquet"), mode="overwrite"
    )
    return np.stack(table.to_arrow()["vector"].to_numpy())


def by_faiss(out: Path) -> Any:
    faiss = pytest.importorskip("faiss")
    vectors = np.stack(pq.read_table(out / "vectors.parquet")["vector"].to_numpy())
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index.reconstruct_n(0, index.ntotal)


@pytest.mark.parametrize("read", [by_pandas, by_polars, by_duckdb, by_datasets, by_lancedb, by_faiss])
def test_a_program_has_the_vectors_of_the_shards(out: Path, expected: Array, read: Callable[[Path], Any]) -> None:
    found = read(out)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert np.array_equal(found, expected)


def nearest_by_duckdb(out: Path, vector: Array) -> list[str]:
    duckdb = pytest.importorskip("duckdb")
    query = f"select path from '{out}/vectors.parquet' order by list_cosine_similarity(vector, ?) desc limit 5"
    return [path for (path,) in duckdb.execute(query, [vector]).fetchall()]


def nearest_by_lancedb(out: Path, vector: Array) -> list[str]:
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(str(out.parent / "lance")).create_table(
        "n", pq.read_table(out / "vectors.parquet"), mode="overwrite"
    )
    return [row["path"] for row in table.search(vector).metric("cosine").limit(5).to_list()]


def nearest_by_faiss(out: Path, vector: Array) -> list[str]:
    faiss = pytest.importorskip("faiss")
    table = pq.read_table(out / "vectors.parquet")
    vectors = np.stack(table["vector"].to_numpy())
    index = faiss.IndexFlatIP(vectors.shape[1])
    faiss.normalize_L2(vectors)
    index.add(vectors)
    return [table["path"][int(row)].as_py() for row in index.search(vector[None], 5)[1][0]]


@pytest.mark.parametrize("nearest", [nearest_by_duckdb, nearest_by_lancedb, nearest_by_faiss])
def test_a_program_finds_what_the_search_finds(out: Path, expected: Array, nearest: Callable[[Path, Array], list[str]]) -> None:
    corpus = npembed.corpus.open(out)
    assert nearest(out, expected[3]) == [one.path for one in npembed.corpus.search(corpus, expected[3], 5)]


@pytest.mark.parametrize("until", ["pooled", "hidden"])
def test_datasets_loads_each_picture_once(out: Path, model: Model, tmp_path: Path, until: str) -> None:
    """Of a corpus with vectors, and of one without."""
    datasets = pytest.importorskip("datasets")
    if until == "hidden":
        build([str(out.parent / "p")], str(tmp_path / "out"), model, settings=Settings(until="hidden"), workers=1)
        out = tmp_path / "out"
        assert not (out / "vectors.parquet").exists()
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert found["path"][:] == pq.read_table(out / "index.parquet")["path"].to_pylist()
    assert len(found) == GOOD + 1
    names = datasets.get_dataset_config_names(str(out))
    assert names == (["index", "vectors"] if until == "pooled" else ["index"])


def test_a_card_that_a_person_wrote_stays(tmp_path: Path, model: Model) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    words: Any = ([str(tmp_path / "a.png")], str(tmp_path / "out"), model, "", Settings(until="pooled"))
    card = tmp_path / "out/README.md"
    build(*words, workers=1)
    own = card.read_bytes()
    assert b"data_files: vectors.parquet" in own
    for text in (b"mine", own[:-1] + b"!", b""):
        card.write_bytes(text)
        build(*words, scheduler="tcp://nobody is asked")
        assert card.read_bytes() == text
    card.unlink()
    build(*words, scheduler="tcp://nobody is asked")
    assert card.read_bytes() == own


# The format before


@pytest.fixture
def old(out: Path, tmp_path: Path) -> Path:
    """A corpus as an earlier version wrote it: vectors, with nulls, in the index; no column `turn`; rows as .parquet."""
    shutil.copytree(out, tmp_path / "old")
    for path in (tmp_path / "old/rows").iterdir():
        path.rename(path.with_suffix(".parquet"))
    table = pq.read_table(tmp_path / "old/index.parquet").drop_columns(["turn"])
    vectors = dict(
        zip(*pq.read_table(tmp_path / "old/vectors.parquet").select(["path", "vector"]).to_pydict().values(), strict=True)
    )
    column = pa.array([vectors.get(path) for path in table["path"].to_pylist()], pa.list_(pa.float32(), 16))
    pq.write_table(table.append_column("vector", column), tmp_path / "old/index.parquet")
    for name in ("vectors.parquet", "README.md"):
        (tmp_path / "old" / name).unlink()
    manifest = json.loads((tmp_path / "old/manifest.json").read_text())
    (tmp_path / "old/manifest.json").write_text(json.dumps(manifest | {"corpus": 1}))
    return tmp_path / "old"


def test_a_corpus_of_the_format_before_is_opened(old: Path, out: Path, expected: Array) -> None:
    corpus = npembed.corpus.open(old)
    assert corpus.index.equals(npembed.corpus.open(out).index.set_column(6, "turn", pa.nulls(GOOD + 1, pa.string())))
    assert np.array_equal(np.concatenate([block for _, block in corpus.vectors()]), expected)
    assert "1.0000" in done_well(command("corpus", "search", old, paths(out)[0]))
    assert command("corpus", "page", old, "-o", old / "page.html").code == 0


def test_a_corpus_of_the_format_before_is_not_gone_on_with(old: Path, out: Path, model: Model) -> None:
    before = state(old)
    with pytest.raises(
        ValueError, match=r"^corpus: \S+old was made by an earlier version of npembed, [^\n]*; give another OUT$"
    ):
        build([str(out.parent / "p")], str(old), model, settings=Settings(until="pooled"), workers=1, update=True)
    before.pop(".lock", None)
    after = state(old)
    after.pop(".lock", None)
    assert after == before


def test_a_corpus_of_a_format_to_come_is_refused(old: Path) -> None:
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"corpus": 3}))
    assert_refused(command("corpus", "page", old), r"its format is 3; this version of npembed reads \(1, 2\)")
