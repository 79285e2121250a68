"""Folders and files at URLs: a web server that misbehaves on demand, and fsspec's file systems."""

import http.client
import io
import json
import urllib.error

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npembed.weights.mmproj import GgufSource
from npembed.weights.url import open_url
from npembed.weights.web import _broken
from tests.fake_hub import FakeHub

fsspec = pytest.importorskip("fsspec")

TABLE = "vpm.embeddings.position_embedding.weight"


class Waits(list):
    def __call__(self, seconds):
        self.append(seconds)


@pytest.fixture
def folder(data):
    return data / "tiny-minicpmv"


@pytest.fixture
def want(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def server(folder, data, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FakeHub({"tiny/model": folder, "tiny/gguf": data / "gguf"}, redirect=True) as server:
        yield server


def sharded(arrays, folder, config):
    """The same arrays in three files."""
    folder.mkdir()
    names, files = sorted(arrays), {}
    for n in range(3):
        part = {name: arrays[name] for name in names[n::3]}
        save_file(part, folder / f"model-{n}.safetensors")
        files |= dict.fromkeys(part, f"model-{n}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_bytes((config / "config.json").read_bytes())
    return folder


def check_whole(source, want, folder):
    assert set(source.names()) == set(want)
    for name, array in want.items():
        assert source.entry(name).shape == array.shape
        np.testing.assert_array_equal(source.read(name), array.astype(np.float32))
    assert source.json("config.json") == json.loads((folder / "config.json").read_text())
    assert source.json("nothing.json") is None


def test_a_web_server_s_folder(server, folder, want):
    source = open_url(server.folder("tiny/model"))
    assert source.where == server.folder("tiny/model")
    check_whole(source, want, folder)


def test_a_web_server_s_file(server, folder, want):
    check_whole(open_url(f"{server.folder('tiny/model')}/model.safetensors"), want, folder)


def test_a_web_server_s_gguf(server, data):
    source, local = (
        open_url(f"{server.folder('tiny/gguf')}/minicpm-v-2_6.q8_0.gguf"),
        GgufSource(data / "gguf" / "minicpm-v-2_6.q8_0.gguf"),
    )
    assert source.json("config.json") == local.json("config.json")
    for name in local.names():
        np.testing.assert_array_equal(source.read(name), local.read(name))
    size = (data / "gguf" / "minicpm-v-2_6.q8_0.gguf").stat().st_size
    assert server.sent(".gguf") < size


def test_shards_on_a_web_server(tmp_path, folder, want, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FakeHub({"tiny/shards": sharded(want, tmp_path / "m", folder)}) as server:
        source = open_url(server.folder("tiny/shards"))
        names = [TABLE]
        source.prefetch(names)
        np.testing.assert_array_equal(source.read(TABLE), want[TABLE])
        assert len({entry["path"] for entry in server.log if entry["status"] == 206}) == 1
        check_whole(source, want, folder)


def test_no_byte_is_read_in_vain(server, want, folder):
    source = open_url(server.folder("tiny/model"))
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    told = []
    names = [name for name in source.names() if name.startswith("vpm.embeddings.")]
    source.prefetch(names, lambda done, total: told.append((done, total)))
    total = sum(want[name].nbytes for name in names)
    assert server.sent(".safetensors") == header + total
    assert told[-1] == (total, total)
    server.log.clear()
    for name in names:
        np.testing.assert_array_equal(source.read(name), want[name])
    assert server.log == []
    source.read(names[0])  # what was read is not kept twice
    assert server.log


REFUSED = {
    "ignore-range": "ignores Range: it would send the whole file, so nothing is read",
    "other-part": r"was asked for bytes 0-7 and answers with 'bytes 1-8/\d+'",
    "no-content-range": "was asked for bytes 0-7 and answers with ''",
    "compressed": "answers a range compressed; its bytes cannot be told",
    "huge-header": "is not a whole safetensors file: it claims a header of 4,611,686,018,427,387,904 bytes",
    "loop": "redirects without end, or nowhere",
    "401": r"refuses it \(status 401\): it may need https://user:password@host",
    "403": r"refuses it \(status 403\): it may need https://user:password@host",
    "404": "has neither model.safetensors nor model.safetensors.index.json",
    "429": "could not be read, after 6 attempts: status 429",
    "500": "could not be read, after 6 attempts: status 500",
    "503": "could not be read, after 6 attempts: status 503",
    "cut": "could not be read, after 6 attempts: the connection ended 1 bytes early",
    "reset": "could not be read, after 6 attempts: the connection (broke|ended)",
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refuses_a_server_that_misbehaves(server, fault):
    server.fault(fault)
    source = open_url(server.folder("tiny/model"), Waits())
    with pytest.raises(ValueError, match=f"^load_model: .*{REFUSED[fault]}") as caught:
        source.entry("x")
    assert "\n" not in str(caught.value)


def test_403_says_of_a_file_beside_the_model_that_it_is_not_there(server):
    """As storage answers that does not list its files to strangers; a file that is needed is still refused."""
    source = open_url(server.folder("tiny/model"))._source
    assert source.has("model.safetensors")
    server.fault("403")
    assert not source.has("model.safetensors")
    server.fault("401")
    with pytest.raises(ValueError, match=r"refuses it \(status 401\)"):
        source.has("model.safetensors")


@pytest.mark.parametrize("fault", ["cut", "reset", "short", "429", "503", "500"])
@pytest.mark.parametrize("at", [{0}, {1}, {2}, {0, 2, 3}])
def test_a_passing_fault_is_overcome(server, want, fault, at):
    server.fault(fault, at)
    waits = Waits()
    np.testing.assert_array_equal(open_url(server.folder("tiny/model"), waits).read(TABLE), want[TABLE])
    assert fault not in ("429", "503") or set(waits) == {7.0}


def test_a_file_that_changes_between_two_ranges_is_refused(server):
    server.fault("changed", {2})
    with pytest.raises(ValueError, match=r"model\.safetensors has changed on the server between two requests"):
        open_url(server.folder("tiny/model")).read(TABLE)


def test_a_password_goes_to_its_own_server_and_into_no_message(server):
    url = server.folder("tiny/model").replace("//", "//ann:s%40cret@") + "?signature=hidden"
    source = open_url(url)
    assert source.where == server.folder("tiny/model")
    source.read(TABLE)
    sent = {(entry["cdn"], entry["authorization"]) for entry in server.log}
    assert sent == {(False, "Basic YW5uOnNAY3JldA=="), (True, None)}
    assert {entry["query"] for entry in server.log} == {"signature=hidden"}
    server.fault("ignore-range")
    with pytest.raises(ValueError, match="ignores Range") as caught:
        open_url(url).read(TABLE)
    for secret in ("ann", "cret", "hidden"):
        assert secret not in str(caught.value)


def test_what_is_not_there(server):
    with pytest.raises(ValueError, match=r"the file http://\S+/x\.gguf is missing"):
        open_url(f"{server.folder('tiny/gguf')}/x.gguf")
    with pytest.raises(ValueError, match=r"the file http://\S+/main/x\.safetensors is missing"):
        open_url(f"{server.folder('tiny/model')}/x.safetensors").read(TABLE)


def test_a_server_that_is_not_there():
    with FakeHub({}) as server:
        url = server.folder("tiny/model")
    with pytest.raises(ValueError, match=r"http://\S+ cannot be read: ConnectionRefusedError"):
        open_url(url, Waits()).json("config.json")


@pytest.mark.parametrize(
    ("target", "words"),
    [("file:///etc/passwd?", "redirects without end, or nowhere"), ("ftp://host", "to another protocol, 'ftp'")],
)
def test_a_redirect_leaves_the_web_for_nothing_else(server, monkeypatch, target, words):
    monkeypatch.setattr(server, "cdn", target)
    with pytest.raises(ValueError, match=words):
        open_url(server.folder("tiny/model"), Waits()).read(TABLE)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (urllib.error.URLError(TimeoutError()), "BrokenError"),
        (ConnectionResetError(), "BrokenError"),
        (http.client.IncompleteRead(b""), "BrokenError"),
        (http.client.BadStatusLine(""), "BrokenError"),
        (urllib.error.URLError(ConnectionRefusedError()), "ValueError"),
        (urllib.error.URLError("unknown url type: x"), "ValueError"),
        (http.client.InvalidURL(), "ValueError"),
    ],
)
def test_which_failures_are_worth_another_try(error, kind):
    assert type(_broken(error, "x")).__name__ == kind


# fsspec's


@pytest.fixture
def memory(folder):
    """The checkpoint in memory://, and what else was put there is removed."""
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe_file(f"/weights/{path.name}", path.read_bytes())
    yield system
    system.rm("/weights", recursive=True)


def test_a_folder_of_fsspec(memory, folder, want):
    source = open_url("memory://weights")
    assert source.where == "memory://weights"
    check_whole(source, want, folder)


def test_a_file_of_fsspec(memory, folder, want):
    check_whole(open_url("memory://weights/model.safetensors"), want, folder)


def test_a_gguf_of_fsspec(memory, data):
    memory.pipe_file("/weights/m.gguf", (data / "gguf" / "minicpm-v-2_6.f16.gguf").read_bytes())
    assert open_url("memory://weights/m.gguf").json("config.json")["query_num"] == 64


def test_a_folder_of_this_machine(folder, want):
    check_whole(open_url(folder.as_uri()), want, folder)


def test_shards_of_fsspec(tmp_path, folder, want):
    check_whole(open_url(sharded(want, tmp_path / "m", folder).as_uri()), want, folder)


def test_a_file_system_that_gives_other_lengths(memory, monkeypatch):
    source = open_url("memory://weights")
    assert source.entry(TABLE)
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, start=None, end=None: bytes(3))
    with pytest.raises(
        ValueError, match=r"memory://weights/model\.safetensors was asked for 940,800 bytes from \d[\d,]* on and gave 3"
    ):
        source.read(TABLE)


def test_a_file_system_s_own_error_is_told_without_its_words(memory, monkeypatch):
    def refuse(self, path, **more):
        raise PermissionError("key=secret")

    monkeypatch.setattr(type(memory), "info", refuse)
    monkeypatch.setattr(type(memory), "cat_file", refuse)
    source = open_url("memory://weights")
    for call in (lambda: source.read(TABLE), lambda: source.json("config.json")):
        with pytest.raises(ValueError, match=r"memory://weights/\S+ cannot be read: PermissionError$"):
            call()


def test_a_size_that_is_not_stated(memory, monkeypatch):
    monkeypatch.setattr(type(memory), "info", lambda self, path, **more: {"size": None})
    with pytest.raises(ValueError, match=r"the server of memory://weights/model\.safetensors does not state its size"):
        open_url("memory://weights").read(TABLE)


def test_a_protocol_that_is_unknown_or_whose_package_is_missing(monkeypatch):
    with pytest.raises(ValueError, match=r"nope://host/m cannot be read: Protocol not known: nope"):
        open_url("nope://ann:secret@host/m")
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ImportError, match="s3://bucket/m cannot be read: Install s3fs to access S3"):
        open_url("s3://bucket/m")


def test_the_web_by_way_of_another_protocol_is_refused():
    with pytest.raises(ValueError, match="reaches a web server by way of another protocol; only its own URL can be read"):
        open_url("simplecache::https://host/m")


def test_says_which_extra_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"pip install 'npembed\[url\]'"):
        open_url("memory://weights")


def test_fsspec_s_own_web_is_not_to_be_trusted(server, folder):
    """Why the web is read here: wrong bytes without an error, from a server that answers another part."""
    pytest.importorskip("aiohttp")
    server.fault("other-part")
    url, want = f"{server.folder('tiny/model')}/model.safetensors", (folder / "model.safetensors").read_bytes()[1000:1100]
    got = fsspec.filesystem("http", skip_instance_cache=True).cat_file(url, start=1000, end=1100)
    assert got != want
    assert io.BytesIO(got).getbuffer().nbytes == 100
