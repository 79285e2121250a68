"""A corpus that a stranger made: nothing that it says names a file outside it, or a host."""

import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import npembed.corpus
from npembed import Model, load_model
from npembed.corpus import Settings, build
from npembed.corpus.nearest import Neighbour, read_again
from npembed.corpus.place import Place
from npembed.corpus.settings import weights_digest
from npembed.pages.corpus import corpus_page, search_page
from tests.command_line import assert_refused, done_well, state
from tests.command_line import npembed as command
from tests.corpora import png_header
from tests.page_reading import Page

posix = pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
WANTED = Settings(until="hidden", vector="mean")
ROWS = "rows/part-00000.part"
NOT_SHARDS = [
    "../secret.safetensors",
    "SECRET",
    "rows/../../secret.safetensors",
    "part-00001.safetensors",
    "part-00000-0.safetensors",
    "part-0.safetensors",
    "part-00000.safetensors\n",
    "part-٠٠٠٠٠.safetensors",
    "manifest.json",
    ".lock",
    "",
    "ftp://127.0.0.1/part-00000.safetensors",
]
"""What a shard of the first group is not called; SECRET is the absolute path of a file outside."""


@pytest.fixture(scope="module")
def small(data: Path) -> Model:
    return load_model(data / "tiny-minicpmv", "hidden")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, small: Model, data: Path) -> Path:
    """A folder with a corpus `out` of two pictures in `p` by the weights in `w`, and two files `secret` outside it."""
    folder = tmp_path_factory.mktemp("honest")
    shutil.copytree(data / "tiny-minicpmv", folder / "w")
    (folder / "p").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p/{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build(["p"], "out", small, "w", settings=WANTED, workers=1)
    shutil.copy(folder / "out/part-00000.safetensors", folder / "secret.safetensors")
    Image.new("RGB", (30, 30), (200, 0, 0)).save(folder / "secret.png")
    return folder


@pytest.fixture
def here(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(honest, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def searched(here: Path) -> Path:
    """The folder, with a new picture `new.png`."""
    Image.new("RGB", (30, 20), (0, 90, 0)).save(here / "new.png")
    return here


@pytest.fixture(autouse=True)
def no_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Nothing in these tests asks for a host or opens a connection."""
    asked: list[Any] = []

    def refuse(*words: Any, **_: Any) -> Any:
        asked.append(words)
        raise OSError("a host was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield asked
    assert not asked


def altered(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """The table in a file, after a change; what the file says of itself stays."""
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        column = pa.array([values] * len(table), type=table.schema.field(name).type)
        return table.set_column(place, table.schema.field(name), column)

    return change


def naming(parts: list[tuple[str, int]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata(table.schema.metadata | {b"npembed.parts": json.dumps(parts).encode()})

    return change


def go_on(small: Model, **options: Any) -> None:
    build(["p"], "out", small, settings=WANTED, workers=1, **options)


def test_a_folder_with_another_programs_manifest_keeps_what_it_holds(here: Path, small: Model) -> None:
    shutil.rmtree("out")
    os.mkdir("out")
    Path("out/manifest.json").write_text('{"name": "a web page"}')
    Path("out/vectors.parquet").write_text("mine")
    before = state(here)
    with pytest.raises(ValueError, match=r"^corpus: out/manifest\.json is no corpus's: it has no 'corpus'$"):
        go_on(small)
    assert state(here) == before


# Nothing that is named is deleted or read


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("name", NOT_SHARDS)
def test_rows_that_name_another_file_are_damaged_and_nothing_is_done(here: Path, small: Model, name: str, update: bool) -> None:
    """As a group that must be computed again, and with a list that has changed."""
    name = name.replace("SECRET", str(here / "secret.safetensors"))
    altered(here / "out" / ROWS, naming([("part-00000.safetensors", 1), (name, 1)]))
    Image.new("RGB", (9, 9)).save(here / "p/0.png")
    before = state(here)
    with pytest.raises(ValueError, match=r"^corpus: out/rows/part-00000\.part is damaged: [^\n]* is no shard of its"):
        go_on(small, update=update)
    assert state(here) == before


@pytest.mark.parametrize("name", NOT_SHARDS)
def test_a_row_that_lies_in_another_file_is_damaged_and_nothing_is_done(here: Path, small: Model, name: str) -> None:
    altered(here / "out" / ROWS, with_column("shard", name.replace("SECRET", str(here / "secret.safetensors"))))
    before = state(here)
    with pytest.raises(ValueError, match=r"^corpus: out/rows/part-00000\.part is damaged: [^\n]* is no shard of its"):
        go_on(small)
    assert state(here) == before


@pytest.mark.parametrize("name", [name for name in NOT_SHARDS if name != "part-00001.safetensors"])
def test_an_index_that_names_another_file_is_none(here: Path, name: str) -> None:
    altered(here / "out/index.parquet", with_column("shard", name.replace("SECRET", str(here / "secret.safetensors"))))
    with pytest.raises(
        ValueError, match=r"^corpus: [^\n]*index\.parquet is no index: a picture lies in [^\n]*, which is no shard;"
    ):
        npembed.corpus.open("out")
    for words in (("search", "out", "p/0.png"), ("page", "out")):
        assert_refused(command("corpus", *words), "which is no shard")


@pytest.mark.parametrize("name", ["path", "frame", "status"])
def test_an_index_whose_rows_lack_what_each_has_is_none(here: Path, name: str) -> None:
    altered(here / "out/index.parquet", with_column(name, None))
    with pytest.raises(ValueError, match=rf"^corpus: \S*index\.parquet is no index: a row has no {name};"):
        npembed.corpus.open("out")


def test_a_manifest_that_leaves_settings_out_has_their_defaults(here: Path) -> None:
    path = here / "out/manifest.json"
    made = json.loads(path.read_text())
    for name in ("vector", "upright"):
        del made["settings"][name]
    path.write_text(json.dumps(made))
    assert npembed.corpus.open("out").manifest["settings"]["upright"] is False


def test_an_index_of_other_types_is_none(here: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index("shard"), "shard", pa.array([{"a": "../x"}] * len(table)))

    altered(here / "out/index.parquet", change)
    with pytest.raises(ValueError, match=r"is no index: it has the columns .*shard struct"):
        npembed.corpus.open("out")


def test_an_index_whose_columns_lie_in_another_file_is_none(here: Path) -> None:
    """As Parquet allows it."""
    shutil.copy(here / "out/index.parquet", here / "secret.parquet")
    for name in ("../secret.parquet", str(here / "secret.parquet")):
        footer = pq.read_metadata(here / "secret.parquet")
        footer.set_file_path(name)
        footer.write_metadata_file(here / "out/index.parquet")
        with pytest.raises(ValueError, match=r"is no index: "):
            npembed.corpus.open("out")


@pytest.mark.parametrize("group", [-1, 10**15, 10**400])
def test_a_list_with_a_group_that_none_has_is_damaged(here: Path, small: Model, group: int) -> None:
    (here / "out/list.jsonl").write_text(json.dumps(["p/0.png", group, 1, ""]) + "\n")
    before = state(here)
    with pytest.raises(ValueError, match=r"^corpus: out/list\.jsonl is damaged: "):
        go_on(small, update=True)
    assert state(here) == before


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "rows/../x", "rows/", "c:x", "a\\b", "\n", "a\n", "rows/.x"])
def test_a_place_has_no_file_of_a_name_that_leads_out_of_it(tmp_path: Path, name: str) -> None:
    for place in (Place(str(tmp_path)), Place(f"file://{tmp_path}")):
        for use in (place.read, place.size, place.remove, lambda name: place.write(name, Path.touch)):  # noqa: B023
            with pytest.raises(ValueError, match="no file of a corpus is called "):
                use(name)


# Links


LINKED = [
    "manifest.json",
    "list.jsonl",
    "index.parquet",
    "vectors.parquet",
    "README.md",
    "part-00000.safetensors",
    "rows",
    ROWS,
    ".lock",
]


@posix
@pytest.mark.parametrize("url", ["", "file://"])
@pytest.mark.parametrize("name", LINKED)
def test_a_corpus_with_a_link_in_it_is_refused_and_nothing_is_done(here: Path, small: Model, name: str, url: str) -> None:
    if url and name == ".lock":
        pytest.skip("storage at a URL has no lock")
    moved = here / "moved"
    (here / "out" / name).rename(moved)
    (here / "out" / name).symlink_to(moved)
    Image.new("RGB", (9, 9)).save(here / "p/0.png")
    before = state(here)
    with pytest.raises(
        ValueError, match=r"^corpus: [^\n]*out/\S+ is a link; the files of a corpus must lie in its own folder$"
    ):
        build(["p"], f"{url}{here}/out", small, settings=WANTED, workers=1, update=True)
    assert state(here) == before


@posix
@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", "part-00000.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_opened_is_a_file_of_its_own(here: Path, name: str, kind: str) -> None:
    (here / "out" / name).rename(here / "moved")
    if kind == "link":
        (here / "out" / name).symlink_to(here / "moved")
    else:
        os.mkfifo(here / "out" / name)
    with pytest.raises(ValueError, match=rf"out/{name} is (a link|no regular file); the files of a corpus must lie in its own"):
        list(npembed.corpus.open("out").vectors())


@posix
def test_a_link_to_a_folder_in_place_of_the_run_s_own_is_refused(here: Path, small: Model) -> None:
    """In which the model of a run lies, and is deleted at its end."""
    name = f"model-{weights_digest(small)[:16]}.safetensors"
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / name).write_bytes(b"mine")
    (here / "out/scratch").symlink_to(here / "elsewhere")
    with pytest.raises(ValueError, match="out/scratch is a link"):
        go_on(small)
    (here / "out/scratch").unlink()
    (here / "out/scratch").mkdir()
    (here / "out/scratch" / name).symlink_to(here / "elsewhere" / name)
    with pytest.raises(ValueError, match=r"out/scratch/model-\w+\.safetensors is a link"):
        go_on(small)
    assert (here / "elsewhere" / name).read_bytes() == b"mine"


@posix
def test_a_link_that_leads_nowhere_makes_no_file_outside(here: Path, small: Model) -> None:
    (here / "out/.lock").unlink()
    (here / "out/.lock").symlink_to(here / "made")
    with pytest.raises(ValueError, match=r"\.lock is a link"):
        go_on(small)
    assert not (here / "made").exists()


@posix
def test_a_corpus_may_be_reached_by_a_link_and_have_others_beside_its_files(here: Path, small: Model) -> None:
    (here / "by").symlink_to(here / "out")
    (here / "out/photos").symlink_to(here / "p")
    assert build(["p"], "by", small, settings=WANTED, workers=1).kept == 2
    assert len(npembed.corpus.open("by")) == 2


# Pictures


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_a_picture_of_the_digest_that_the_index_has_is_shown(here: Path) -> None:
    altered(here / "out/index.parquet", with_column("path", str(here / "secret.png")))
    assert Page(corpus_page(npembed.corpus.open("out"))).data["thumbnails"] == ["", ""]
    altered(here / "out/index.parquet", with_column("sha256", None))
    assert Page(corpus_page(npembed.corpus.open("out"))).data["thumbnails"] == ["", ""]
    altered(here / "out/index.parquet", with_column("sha256", digest(here / "secret.png")))
    assert "" not in Page(corpus_page(npembed.corpus.open("out"))).data["thumbnails"]


URLS = [
    "ftp://127.0.0.1/a.png",
    "http://127.0.0.1:1/a.png",
    "https://localhost/a.zip::a.png",
    "simplecache::http://127.0.0.1:1/a.png",
    "zip://a.png::http://127.0.0.1:1/a.zip",
    "hf://owner/name/a.png",
    "FILE:///etc/hostname",
]


@pytest.mark.parametrize("path", URLS)
def test_no_url_of_an_index_is_asked(here: Path, path: str) -> None:
    """Neither by a page of all, nor by one of a search."""
    altered(here / "out/index.parquet", with_column("path", path))
    assert command("corpus", "page", "out", "-o", "page.html").code == 0
    assert Page((here / "page.html").read_text()).data["thumbnails"] == ["", ""]
    search_page([Neighbour(path, 0, 0, 1.0, digest(here / "secret.png"))], "gone.png", "Alike")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("{here}/p/0.png", "file://{here}/p/0.png"),
        ("{here}/p/0.png", "file://{here}/p"),
        ("{here}/p/0.png", "file://{here}/p/"),
        ("{here}/p.zip::0.png", "file://{here}/p.zip"),
        ("{here}/p.zip::0.png", "file://{here}"),
    ],
)
def test_a_picture_below_a_url_that_is_named_in_the_call_is_shown(here: Path, path: str, source: str) -> None:
    shutil.make_archive("p", "zip", "p")
    path, source = (f"file://{path}".format(here=here), source.format(here=here))
    known = digest(here / "p/0.png")
    assert read_again(path, known, ["s3://another", source]) == (here / "p/0.png").read_bytes()
    with pytest.raises(ValueError, match="is another picture than when the corpus was made"):
        read_again(path, digest(here / "p/1.png"), [source])
    with pytest.raises(ValueError, match="below no source that was named"):
        read_again(path, known, [source.replace("/p", "/pp"), f"{source}x"] if source.endswith(("p", "p/")) else [])


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:1@localhost/a.png",
        "http://127.0.0.1:1.example.org/a.png",
        "http://127.0.0.1:1/p.png",
        "http://127.0.0.1:1/p/a::ftp://localhost/b.png",
        "ftp://127.0.0.1:1/p/a.png",
        "http://127.0.0.1:1/p/../a.png",
        "http://127.0.0.1:1/p/%2e%2E/a.png",
        "http://127.0.0.1:1/p/b/..\\..\\..\\a.png",
    ],
)
def test_what_only_looks_as_if_it_lay_below_a_source_is_not_asked(path: str) -> None:
    with pytest.raises(ValueError, match="below no source that was named"):
        read_again(path, "0" * 64, ["http://127.0.0.1:1/p"])


def test_the_command_shows_what_lies_below_a_source(here: Path) -> None:
    altered(
        here / "out/index.parquet",
        lambda table: table.set_column(
            0, table.schema.field(0), pa.array([f"file://{here}/p/{number}.png" for number in range(2)])
        ),
    )
    for option, shown in (((), False), (("--source", f"file://{here}/p"), True)):
        assert command("corpus", "page", "out", "-o", "page.html", *option).code == 0
        assert ("" not in Page((here / "page.html").read_text()).data["thumbnails"]) is shown
        assert command("corpus", "search", "out", f"file://{here}/p/0.png", "--html", "found.html", *option).code == 0
        assert ("no longer there" not in Page((here / "found.html").read_text()).words) is shown


@posix
@pytest.mark.parametrize(
    "name", ["pipe", "folder", "gone", "/proc/kmsg", "/dev/zero", "/dev/stdin", "p/*.png", "list.txt", "a.tar::a"]
)
def test_only_regular_files_are_read_again(here: Path, name: str) -> None:
    os.mkfifo(here / "pipe")
    os.mkfifo(here / "a.tar")
    (here / "folder").mkdir()
    (here / "list.txt").write_text("http://127.0.0.1:1/a.png\n")
    with pytest.raises(ValueError, match=r"is no file of this machine|is another picture"):
        read_again(name, digest(here / "p/0.png"))


def test_a_file_of_more_bytes_than_embed_reads_is_not_read_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npembed.corpus.nearest.MOST_FILE", 100)
    with pytest.raises(ValueError, match=r"0\.png has [\d,]+ bytes; at most 100 are read"):
        read_again("p/0.png", digest(here / "p/0.png"))


def test_a_share_of_another_machine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows writes it."""
    import ntpath

    monkeypatch.setattr(sys.modules["npembed.support.reading"].os.path, "splitdrive", ntpath.splitdrive)
    for path in (r"\\host\share\a.png", "//host/share/a.png", r"\\?\UNC\host\share\a.png", r"\\host\share\a.zip::a.png"):
        with pytest.raises(ValueError, match="is no file of this machine"):
            read_again(path, "0" * 64)


def test_how_large_a_picture_may_be_is_not_for_a_corpus_to_say(searched: Path) -> None:
    manifest = searched / "out/manifest.json"
    made = json.loads(manifest.read_text())
    made["settings"]["max_pixels"] = 10**12
    manifest.write_text(json.dumps(made))
    (searched / "new.png").write_bytes(png_header(15_000, 10_000))
    words = ("corpus", "search", "out", "new.png")
    assert_refused(command(*words), "new.png is too large: 15000 × 10000 pixels, 89478485 at most")
    assert_refused(command(*words, "--max-pixels", 10**9), "new.png cannot be read as an image")


# Weights


def said(manifest: Path, source: object) -> None:
    """The manifest, saying that its weights are from there."""
    made = json.loads(manifest.read_text())
    made["weights"]["source"] = source
    manifest.write_text(json.dumps(made))


FAR = [
    "http://127.0.0.1:1/model.safetensors",
    "https://localhost/owner/name",
    "ftp://127.0.0.1/model",
    "hf://owner/name",
    "owner/name",
    "owner/name@main",
    "simplecache::http://127.0.0.1:1/m",
    "memory://m",
    "gone",
    "",
    "~",
    "$(touch made); x",
]


@pytest.mark.parametrize("source", [*FAR, 5, None, ["http://127.0.0.1:1/"], {"a": 1}])
def test_weights_are_fetched_from_nowhere_that_a_corpus_names(searched: Path, source: Any) -> None:
    said(searched / "out/manifest.json", source)
    done = command("corpus", "search", "out", "new.png")
    assert_refused(
        done, "the weights that out was made with are not on this machine, and nothing is fetched that a corpus names"
    )
    words = done.err.partition(" add ")[2]
    assert shlex.split(words) == ["--weights", str(source)], "it can be typed as it stands"


def test_weights_of_this_machine_are_taken_by_the_name_that_a_corpus_gives(searched: Path) -> None:
    assert "0.png" in done_well(command("corpus", "search", "out", "new.png"))
    shutil.copytree(searched / "w", searched / "owner/name")
    for source in ("owner/name", "w/model.safetensors", str(searched / "w")):
        said(searched / "out/manifest.json", source)
        assert "0.png" in done_well(command("corpus", "search", "out", "new.png"))


@pytest.mark.parametrize("source", ["http://127.0.0.1:1/m", "gone"])
def test_weights_that_are_given_in_the_call_count(searched: Path, source: str) -> None:
    said(searched / "out/manifest.json", source)
    assert "0.png" in done_well(command("corpus", "search", "out", "new.png", "--weights", "w"))


def test_a_picture_of_the_corpus_needs_no_weights(searched: Path) -> None:
    said(searched / "out/manifest.json", "http://127.0.0.1:1/m")
    assert "1.0000" in done_well(command("corpus", "search", "out", "p/0.png"))


@posix
def test_weights_that_are_no_file_are_not_opened(searched: Path) -> None:
    os.mkfifo(searched / "pipe")
    said(searched / "out/manifest.json", "pipe")
    assert_refused(command("corpus", "search", "out", "new.png"), "pipe is not a folder, nor a regular file")
