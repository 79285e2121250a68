"""A corpus's own files that are damaged, huge or at odds with each other: one line, in bounded memory, no wrong number."""

import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import npembed.corpus
from npembed import Model
from npembed.corpus import Settings, build
from npembed.corpus.index import INDEX, VECTORS, rows_name, schema
from npembed.corpus.reading import _mapped
from npembed.corpus.shards import map_tensors
from npembed.pages.corpus import corpus_page
from npembed.support.output_files import write_safetensors
from npembed.support.typing import Array
from tests.command_line import assert_refused
from tests.command_line import npembed as command
from tests.corpus_driver import small_model

KINDS = {"vectors": Settings(until="hidden", vector="mean"), "rows": Settings(until="hidden")}
SHARD, ROWS = "part-00000.safetensors", rows_name(0)


@pytest.fixture(scope="module")
def small() -> Model:
    return small_model()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a scheduler with one worker in this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", silence_logs=60
    ) as cluster:
        yield str(cluster.scheduler_address)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, small: Model, address: str) -> Path:
    """Two corpora of four pictures in `p`, of which one failed: of vectors, and of rows."""
    folder = tmp_path_factory.mktemp("honest")
    (folder / "p").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p/{number}.png")
    (folder / "p/1.png").write_bytes((folder / "p/1.png").read_bytes()[:60])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, settings in KINDS.items():
            build(["p"], kind, small, settings=settings, scheduler=address)
    return folder


@pytest.fixture
def here(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(honest, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def again(kind: str, small: Model, address: str) -> npembed.corpus.Summary:
    return build(["p"], kind, small, settings=KINDS[kind], scheduler=address)


# JSON


DEEP = "[" * 100_000


REFUSED_MANIFEST = r"^corpus: vectors/manifest\.json (is no corpus's|has more than 16,777,216)[^\n]+$"


@pytest.mark.parametrize("content", [DEEP, '{"corpus": ' + DEEP, '{"a": 1}' + " " * 2**24], ids=["list", "value", "huge"])
def test_a_manifest_that_is_nested_too_deeply_or_huge_is_one_line(here: Path, small: Model, address: str, content: str) -> None:
    (here / "vectors/manifest.json").write_text(content)
    for use in (lambda: npembed.corpus.open("vectors"), lambda: again("vectors", small, address)):
        with pytest.raises(ValueError, match=REFUSED_MANIFEST):
            use()
    assert_refused(command("corpus", "search", "vectors", "p/0.png"), r"vectors/manifest\.json ")


HOSTILE_LINES = {
    "nested": DEEP,
    "a nested value": f'["p/0.png", 0, 5, {DEEP}',
    "huge": "x" * (2**20 + 1),
    "short": '["p/0.png", 0, 5]',
    "beyond numbers": '["p", 0, 1e999, ""]',
    "a huge number": f'["p", {"9" * 5000}, 1, ""]',
}


@pytest.mark.parametrize("line", HOSTILE_LINES.values(), ids=list(HOSTILE_LINES))
def test_a_list_with_a_hostile_line_is_one_line(here: Path, small: Model, address: str, line: str) -> None:
    with (here / "vectors/list.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"^corpus: vectors/list\.jsonl is damaged: [^\n]{1,600}$"):
        again("vectors", small, address)


def test_a_list_of_zeros_takes_no_memory(here: Path, small: Model, address: str) -> None:
    with (here / "vectors/list.jsonl").open("wb") as file:
        file.truncate(2**36)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"list\.jsonl is damaged: it has a line of more than 1,048,576 bytes$"):
        again("vectors", small, address)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25


# Tables that claim more than they hold


def claiming(path: Path, rows: int, text: str, **columns: Any) -> None:
    """A table like the index with one row so many times, in a few bytes."""
    once = {"status": "ok", "shard": SHARD, "path": text} | columns

    def column(field: Any) -> Any:
        value = once.get(field.name)
        if value is None:
            return pa.nulls(rows, field.type)
        if pa.types.is_string(field.type):
            return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([value]))
        return pa.array(np.full(rows, value), field.type)

    table = pa.table([column(field) for field in schema()], names=schema().names)
    metadata = pq.read_schema(path).metadata or {}
    words = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**30}
    with pq.ParquetWriter(path, table.schema, **words) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key: value for key, value in metadata.items() if key.startswith(b"npembed")})


CLAIMS = [
    (10**6, "a.png", r"it claims 1,000,000 rows in [\d,]+ bytes"),
    (2000, "x" * 10**6, r"it claims 2,000,[\d,]+ bytes of text"),
]


@pytest.mark.parametrize(("rows", "text", "words"), CLAIMS)
def test_an_index_that_claims_to_be_huge_is_one_line(here: Path, rows: int, text: str, words: str) -> None:
    claiming(here / "vectors" / INDEX, rows, text)
    assert (here / "vectors" / INDEX).stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=rf"^corpus: \S*index\.parquet is no index: {words}"):
        npembed.corpus.open("vectors")
    assert pa.default_memory_pool().max_memory() - before < 2**28
    assert_refused(command("corpus", "page", "vectors", "-o", "a.html"), words)


def test_an_index_whose_footer_counts_fewer_rows_than_its_parts_is_none(here: Path) -> None:
    path = here / "vectors" / INDEX
    claiming(path, 3_000_000, "a.png")
    content = path.read_bytes()
    said, one = bytes([0x80, 0x9B, 0xEE, 0x02]), bytes([0x82, 0x80, 0x80, 0x00])  # 3,000,000 and 1, as the footer has them
    place = content.index(said, len(content) - int.from_bytes(content[-8:-4], "little"))
    path.write_bytes(content[:place] + one + content[place + 4 :])
    assert pq.read_metadata(path).num_rows == 1
    with pytest.raises(ValueError, match=r"is no index: it claims 3,000,000 rows in [\d,]+ bytes"):
        npembed.corpus.open("vectors")


@pytest.mark.parametrize(("rows", "text", "words"), CLAIMS)
def test_rows_that_claim_to_be_huge_are_computed_again_or_refused(
    here: Path, small: Model, address: str, rows: int, text: str, words: str
) -> None:
    """As rows that are cut short are; where their shards' names say nothing of it, before the rows are joined."""
    claiming(here / "vectors" / ROWS, rows, text)
    (here / "vectors" / INDEX).unlink()
    if "text" in words:
        with pytest.raises(ValueError, match=rf"^corpus: vectors/rows/part-00000\.part is damaged: {words}[^\n]*; delete it$"):
            again("vectors", small, address)
        (here / "vectors" / ROWS).unlink()
    assert again("vectors", small, address).pictures == 4


# An index that does not fit its shards


def altered(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """The table with other rows."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def put(**values: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Those values in the last row, which is a good picture's."""
    return lambda rows: rows[-1].update(values)


WRONG_ROWS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "a row beyond the shard": put(first_row=10**9),
    "a row below nothing": put(first_row=-1),
    "the row of another": put(first_row=0),
    "no row": put(first_row=None),
    "no shard": put(shard=None),
    "more rows": put(rows=10**9),
    "no rows": put(rows=0),
    "rows below nothing": put(rows=-1),
    "a shard that is not there": put(shard="part-00007.safetensors"),
    "a failed picture that is well": lambda rows: rows[1].update(status="ok"),
}
OF_SLICES = {
    "a slice beyond the shard": put(first_slice=10**9),
    "a slice below nothing": put(first_slice=-1),
    "the slices of another": put(first_slice=0),
    "more slices": put(slices=10**6),
    "no slices": put(slices=0),
    "an unknown number of slices": put(slices=None),
}
OF_VECTORS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "a picture less": lambda rows: rows.pop(),
    "a picture that is not there": lambda rows: rows.append(dict(rows[-1], path="more.png")),
    "pictures in another order": lambda rows: rows.reverse(),
    "a picture that is called failed": put(status="failed"),
}
REFUSED = r"^corpus: (vectors|rows)/index\.parquet and \S.* do not agree, so one is damaged; delete both, and the command"
REFUSED += r"|part-00007\.safetensors cannot be read"


@pytest.mark.parametrize("case", [*WRONG_ROWS, *OF_SLICES])
def test_a_picture_that_does_not_lie_where_the_index_says_is_refused(here: Path, case: str) -> None:
    altered(here / "rows" / INDEX, (WRONG_ROWS | OF_SLICES)[case])
    corpus = npembed.corpus.open("rows")
    with pytest.raises(ValueError, match=REFUSED):
        corpus[1 if case.startswith("a failed") else 3]


@pytest.mark.parametrize("case", [case for case in (*WRONG_ROWS, *OF_VECTORS) if "rows" not in case])
def test_vectors_that_do_not_fit_the_index_are_refused(here: Path, case: str) -> None:
    altered(here / "vectors" / INDEX, (WRONG_ROWS | OF_VECTORS)[case])
    corpus = npembed.corpus.open("vectors")
    with pytest.raises(ValueError, match=REFUSED):
        list(corpus.vectors())
    with pytest.raises(ValueError, match=REFUSED):
        corpus_page(corpus)
    assert_refused(command("corpus", "search", "vectors", "p/0.png"), REFUSED.replace("^corpus", "corpus"))


Change = Callable[[dict[str, Array]], Mapping[str, Array]]
WRONG_SHARDS: dict[str, tuple[str, Change]] = {
    "fewer vectors": ("vectors", lambda held: {"pooled": held["pooled"][:2]}),
    "more vectors": ("vectors", lambda held: {"pooled": np.concatenate([held["pooled"]] * 2)}),
    "vectors of another name": ("vectors", lambda held: {"hidden": held["pooled"]}),
    "vectors of no shape": ("vectors", lambda held: {"pooled": held["pooled"].ravel()[:3]}),
    "nothing": ("vectors", lambda held: {}),
    "fewer rows": ("rows", lambda held: held | {"hidden": held["hidden"][:5]}),
    "rows of another name": ("rows", lambda held: {("tokens" if name == "hidden" else name): held[name] for name in held}),
    "no sizes": ("rows", lambda held: {name: held[name] for name in held if name != "tgt_sizes"}),
    "fewer sizes": ("rows", lambda held: held | {"tgt_sizes": held["tgt_sizes"][:1]}),
    "no offsets": ("rows", lambda held: {name: held[name] for name in held if name != "offsets"}),
    "offsets of nothing": ("rows", lambda held: held | {"offsets": held["offsets"][:0]}),
    "offsets that fall": ("rows", lambda held: held | {"offsets": held["offsets"][::-1].copy()}),
    "offsets beyond the rows": ("rows", lambda held: held | {"offsets": held["offsets"] + 1000}),
}


@pytest.mark.parametrize("case", WRONG_SHARDS)
def test_a_shard_that_does_not_fit_the_index_is_refused_and_made_again(
    here: Path, case: str, small: Model, address: str
) -> None:
    kind, change = WRONG_SHARDS[case]
    honest = map_tensors(here / kind / SHARD)
    kept = {name: array.copy() for name, array in npembed.corpus.open(kind)[3].items()}
    (here / kind / SHARD).unlink()  # what is mapped stays as it was
    write_safetensors(here / kind / SHARD, change(dict(honest)), {})
    _mapped.cache_clear()
    corpus = npembed.corpus.open(kind)
    with pytest.raises(ValueError, match=REFUSED):
        list(corpus.vectors()) if kind == "vectors" else corpus[3]
    for name in (INDEX, SHARD):  # as the line says
        (here / kind / name).unlink()
    assert again(kind, small, address).pictures == 4
    mended = npembed.corpus.open(kind)[3]
    assert all(np.array_equal(mended[name], kept[name]) for name in kept)


@pytest.mark.parametrize("case", ["a row beyond the shard", "a row below nothing", "no row", "no shard"])
def test_rows_that_do_not_fit_their_shard_make_no_vectors(here: Path, case: str, small: Model, address: str) -> None:
    altered_rows = here / "vectors" / ROWS
    metadata = pq.read_schema(altered_rows).metadata
    altered(altered_rows, WRONG_ROWS[case])
    pq.write_table(pq.read_table(altered_rows).replace_schema_metadata(metadata), altered_rows)
    for name in (INDEX, VECTORS):
        (here / "vectors" / name).unlink()
    with pytest.raises(ValueError, match=r"^corpus: vectors/rows/part-00000\.part is damaged: [^\n]+; delete it$"):
        again("vectors", small, address)
    assert not (here / "vectors" / VECTORS).exists()
    altered_rows.unlink()
    assert again("vectors", small, address).pictures == 4


def test_a_manifest_of_another_stage_is_refused(here: Path) -> None:
    """The shards then have another array than it says."""
    path = here / "rows/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["until"] = "tokens"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=REFUSED):
        npembed.corpus.open("rows")[3]
