"""The Hub: the client's real functions against a server on this machine, which misbehaves on demand."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("huggingface_hub")

from npembed import load_model
from npembed.weights import cache, hub, ranges
from npembed.weights.cache import Kept, cache_folder, kept, remove
from npembed.weights.hub import Hub, HubSource, Repository, fetch
from npembed.weights.plan import plan
from npembed.weights.ranges import Answer, HttpFile
from npembed.weights.safetensors_header import read_header
from tests.fake_hub import COMMIT, FakeHub

EMBEDDINGS = "vpm.embeddings."


NEEDED = [f"{EMBEDDINGS}{name}" for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")]
FIRST, EVERY = partial(plan, until="embeddings"), partial(plan, until="tokens")


class Waits(list):
    def __call__(self, seconds):
        self.append(seconds)


class Place:
    """A server, a cache and the client's own cache, each of one test."""

    def __init__(self, server, folder):
        self.server, self.cache, self.waits, self.said, self.progress = server, folder / "cache", Waits(), [], []

    def hub(self, token=None):
        return Hub(self.server.endpoint, token, self.waits)

    def fetch(self, plan=FIRST, repository="tiny/model", token=None, **more):
        more = {"progress": lambda done, total: self.progress.append((done, total))} | more
        return fetch(repository, plan, cache=self.cache, hub=self.hub(token), say=self.said.append, **more).folder

    def files(self):
        locks = self.cache / ".locks"
        return sorted(
            str(path.relative_to(self.cache)) for path in self.cache.rglob("*") if path.is_file() and locks not in path.parents
        )


@pytest.fixture
def client(tmp_path, monkeypatch):
    """huggingface_hub as if it had just been started: with a cache and a home of its own, on line, without a token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "client"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return constants


@pytest.fixture(params=["one file", "shards"], scope="module")
def folder(request, tmp_path_factory):
    """The checkpoint, in one file or in two with an index."""
    source = Path(__file__).parents[1] / "data" / "tiny-minicpmv"
    if request.param == "one file":
        return source
    made = tmp_path_factory.mktemp("sharded")
    arrays = load_file(source / "model.safetensors")
    shards = {"model-00001-of-00002.safetensors": "vpm.", "model-00002-of-00002.safetensors": ("llm.", "resampler.")}
    for name in ("config.json", "preprocessor_config.json"):
        (made / name).write_bytes((source / name).read_bytes())
    files = {name: file for file, prefix in shards.items() for name in arrays if name.startswith(prefix)}
    for file in shards:
        save_file({name: arrays[name] for name in arrays if files[name] == file}, made / file)
    total = sum(array.nbytes for array in arrays.values())
    (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}))
    return made


@pytest.fixture
def place(client, folder, tmp_path):
    with FakeHub({"tiny/model": folder}, redirect=True) as server:
        yield Place(server, tmp_path)


def header_bytes(folder):
    """Bytes of the headers of the files that hold the embeddings."""
    found = 0
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        if EMBEDDINGS.encode() in raw[:100_000]:
            found += 8 + int.from_bytes(raw[:8], "little")
    return found


def test_the_kept_folder_is_the_checkpoint_in_small(place, folder, data):
    found, whole = load_file(place.fetch() / "model.safetensors"), load_file(data / "tiny-minicpmv" / "model.safetensors")
    assert set(found) == {name for name in whole if name.startswith(EMBEDDINGS)}
    for name, array in found.items():
        np.testing.assert_array_equal(array, whole[name])
        assert array.dtype == whole[name].dtype
    assert place.files() == [
        f"127.0.0.1_{place.server.endpoint.rpartition(':')[2]}/tiny--model/{COMMIT}/embeddings/{name}"
        for name in ("config.json", "model.safetensors", "npembed.json", "preprocessor_config.json")
    ] + [f"127.0.0.1_{place.server.endpoint.rpartition(':')[2]}/tiny--model/refs/main"]


def test_the_model_is_the_folder_s(place, data):
    theirs, ours = load_model(data / "tiny-minicpmv", until="tokens"), load_model(place.fetch(EVERY), until="tokens")
    assert ours.config == theirs.config
    for name, array in theirs.weights.items():
        np.testing.assert_array_equal(ours.weights[name], array)


def test_no_byte_is_read_in_vain(place, folder):
    path = place.fetch()
    arrays = sum(array.nbytes for array in load_file(path / "model.safetensors").values())
    assert place.server.sent(".safetensors") == arrays + header_bytes(folder)
    configs = sum((folder / name).stat().st_size for name in os.listdir(folder) if name.endswith(".json"))
    assert place.server.sent(".json") == configs
    assert place.server.sent() <= arrays + header_bytes(folder) + configs + 500  # the commit and the names of the files


def test_the_client_is_asked_for_its_caches_only_once(place):
    place.fetch()
    place.server.log.clear()
    assert place.fetch(EVERY)
    assert place.server.sent(".json") == 0


def test_the_second_run_needs_no_network_and_says_so(place, client, monkeypatch):
    first = place.fetch()
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", True)
    place.server.log.clear()
    assert place.fetch() == first
    assert place.server.log == []
    (before, after) = place.said
    assert before.startswith("tiny/model: embeddings needs 1.1 MB of 3.0 MB (commit 0123456789ab), to ")
    assert after == f"tiny/model: embeddings is kept in {first} (commit 0123456789ab); nothing is downloaded"
    assert place.fetch(repository=f"tiny/model@{COMMIT}") == first


def test_a_later_stage_s_folder_does_for_an_earlier_one(place):
    later = place.fetch(EVERY)
    place.server.log.clear()
    assert place.fetch() == later
    assert place.server.log == []


def test_a_folder_with_too_few_arrays_is_made_anew(place):
    first = place.fetch()
    assert place.fetch(lambda source: replace(EVERY(source), stage="embeddings")) == first
    assert len(load_file(first / "model.safetensors")) > 3


def test_progress_is_told_in_bytes(place):
    path = place.fetch()
    total = sum(array.nbytes for array in load_file(path / "model.safetensors").values())
    done = [done for done, _ in place.progress]
    assert {of for _, of in place.progress} == {total}
    assert done[0] == 0
    assert done[-1] == total
    assert done == sorted(done)


# A server that misbehaves

REFUSED = {
    "ignore-range": r"the server of tiny/model/model\S* ignores Range: it would send the whole file, so nothing is read",
    "other-part": r"the server of tiny/model/model\S* was asked for bytes 0-7 and answers with 'bytes 1-8/\d+'",
    "no-content-range": r"the server of tiny/model/model\S* was asked for bytes 0-7 and answers with ''",
    "compressed": r"the server of tiny/model/model\S* answers a range compressed; its bytes cannot be told",
    "huge-header": r"tiny/model/model\S* is not a whole safetensors file: it claims a header of 4,611,686,018,427,387,904 by",
    "other-commit": r"tiny/model/model\S* was asked for at 0123456789abcdef\w*, and came from 'f{40}'",
    "loop": r"the server of tiny/model/model\S* redirects without end",
    "401": r"tiny/model is gated: ask for access at http://127\.0\.0\.1:\d+/tiny/model, then log in by `hf auth login` or",
    "403": r"the server of tiny/model/model\S* answers with status 403",
    "404": r"(the checkpoint's file tiny/model/model\S* is missing|tiny/model@\w* has neither model\.safetensors nor \S*)$",
    "429": r"tiny/model/model\S* could not be read, after 6 attempts: status 429",
    "500": r"tiny/model/model\S* could not be read, after 6 attempts: status 500",
    "503": r"tiny/model/model\S* could not be read, after 6 attempts: status 503",
    "cut": r"tiny/model/model\S* could not be read, after 6 attempts: the connection (ended|broke)",
    "reset": r"tiny/model/model\S* could not be read, after 6 attempts: the connection broke",
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refuses_in_one_line_and_keeps_nothing(place, fault):
    place.server.fault(fault)
    with pytest.raises(ValueError, match=f"^load_model: {REFUSED[fault]}") as caught:
        place.fetch(token="hf_secret")
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)
    assert place.files() == []
    if fault == "ignore-range":
        assert len([entry for entry in place.server.log if entry["status"] == 200 and entry["cdn"]]) == 1


@pytest.mark.parametrize("fault", ["cut", "reset", "short", "429", "503", "500"])
@pytest.mark.parametrize("at", [{0}, {1}, {2}, {0, 1, 2, 4}])
def test_a_passing_fault_is_overcome(place, data, fault, at):
    place.server.fault(fault, at)
    found, whole = load_file(place.fetch() / "model.safetensors"), load_file(data / "tiny-minicpmv" / "model.safetensors")
    for name, array in found.items():
        np.testing.assert_array_equal(array, whole[name])
    if fault in ("429", "503"):
        assert set(place.waits) == {7.0}
    elif fault != "short":
        assert place.waits
        assert set(place.waits) <= {1.0, 2.0, 4.0}


def test_a_range_that_was_cut_is_taken_up_at_the_last_byte(place, folder):
    place.server.fault("cut", {2})
    path = place.fetch()
    arrays = sum(array.nbytes for array in load_file(path / "model.safetensors").values())
    assert place.server.sent(".safetensors") == arrays + header_bytes(folder)


def test_a_file_that_changes_between_two_ranges_is_refused(place):
    place.server.fault("changed", {2})
    with pytest.raises(ValueError, match=r"tiny/model/model\S* has changed on the server between two requests"):
        place.fetch()
    assert place.files() == []


def test_bytes_that_were_changed_on_the_way_are_not_noticed(place, data):
    """No digest of a part exists; the documentation says so."""
    place.server.fault("corrupt", {2})
    found, whole = load_file(place.fetch() / "model.safetensors"), load_file(data / "tiny-minicpmv" / "model.safetensors")
    assert any(not np.array_equal(array, whole[name]) for name, array in found.items())


def test_a_run_that_was_stopped_is_completed_by_the_next(place, folder, data):
    class StopError(Exception):
        pass

    def stop(done, total):
        if done > total // 2:
            raise StopError

    with pytest.raises(StopError):
        place.fetch(progress=stop)
    (partial,) = kept(place.cache)
    assert not partial.whole
    assert partial.folder.name == "embeddings.partial"
    place.server.log.clear()
    path = place.fetch()
    total = sum(array.nbytes for array in load_file(path / "model.safetensors").values())
    assert place.progress[0][0] > total // 2
    assert place.server.sent(".safetensors") - header_bytes(folder) == total - place.progress[0][0]
    for name, array in load_file(path / "model.safetensors").items():
        np.testing.assert_array_equal(array, load_file(data / "tiny-minicpmv" / "model.safetensors")[name])
    assert [each.whole for each in kept(place.cache)] == [True]


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 100, 500, 1000, 2000, 112_896, 300_000, 1_054_000])
def test_whatever_came_is_completed(place, data, stop):
    """Also a file cut in its own header, and one that begins otherwise."""
    path = place.fetch() / "model.safetensors"
    want = path.read_bytes()
    partial = path.parent.with_name("embeddings.partial")
    path.parent.rename(partial)
    (partial / "model.safetensors").write_bytes(want[:stop])
    assert place.fetch() == path.parent
    assert path.read_bytes() == want


def test_what_came_of_something_else_is_not_used(place):
    path = place.fetch() / "model.safetensors"
    want = path.read_bytes()
    path.parent.rename(path.parent.with_name("embeddings.partial"))
    partial = path.parent.with_name("embeddings.partial") / "model.safetensors"
    for other in (b"x" * 5000, want + b"x", want[:20] + b"x" + want[21:]):
        partial.write_bytes(other)
        assert (place.fetch() / "model.safetensors").read_bytes() == want
        path.parent.rename(partial.parent)


SCRIPT = """
import functools, os, signal, sys
from npembed.weights.hub import fetch
from npembed.weights.plan import plan

def kill(done, total):
    if 'kill' in sys.argv and done > total // 3:
        os.kill(os.getpid(), signal.SIGKILL)

print(fetch('tiny/model', functools.partial(plan, until='embeddings'), progress=kill).folder)
"""


def process(place, *words, **environment):
    """Another process that reads the same, by the environment's word alone."""
    env = os.environ | {"HF_ENDPOINT": place.server.endpoint, "NPEMBED_CACHE": str(place.cache)} | environment
    env |= {"HF_HOME": str(place.cache.parent / "home"), "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *words], env=env, **pipes)


def test_a_killed_process_leaves_what_the_next_completes(place, data):
    """The process kills itself in the middle, without any of Python's ways to clean up."""
    killed = process(place, "kill")
    assert killed.communicate() == ("", "")
    assert killed.returncode == -9
    path = place.fetch()
    total = sum(array.nbytes for array in load_file(path / "model.safetensors").values())
    assert place.progress[0][0] > total // 3
    for name, array in load_file(path / "model.safetensors").items():
        np.testing.assert_array_equal(array, load_file(data / "tiny-minicpmv" / "model.safetensors")[name])


def test_two_processes_at_once_read_it_once(place, data):
    both = [process(place), process(place)]
    outputs = [each.communicate() for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    found = load_file(Path(outputs[0][0].strip()) / "model.safetensors")
    for name, array in found.items():
        np.testing.assert_array_equal(array, load_file(data / "tiny-minicpmv" / "model.safetensors")[name])
    assert [each.whole for each in kept(place.cache)] == [True]


def test_the_environment_s_word_for_offline_is_obeyed(place):
    offline = process(place, HF_HUB_OFFLINE="1")
    errors = offline.communicate()[1]
    assert "ValueError: load_model: tiny/model is in no cache, and HF_HUB_OFFLINE is set" in errors
    assert place.server.log == []


# What is not there


def test_no_such_repository(place):
    words = r"no/such is no repository at http://127\.0\.0\.1:\d+, or a private one, which needs `hf auth login` or HF_TOKEN"
    with pytest.raises(ValueError, match=f"^load_model: {words}$"):
        place.fetch(repository="no/such")
    assert place.files() == []


def test_no_such_revision(place):
    with pytest.raises(ValueError, match=r"^load_model: tiny/model has no revision 'v9'$"):
        place.fetch(repository="tiny/model@v9")


CONFIG = '{"model_type": "minicpmv", "version": 2.6, "drop_vision_last_layer": false}'


def test_no_config_and_no_weights(client, tmp_path):
    (tmp_path / "empty").mkdir()
    with FakeHub({"tiny/empty": tmp_path / "empty"}) as server:
        place = Place(server, tmp_path)
        with pytest.raises(ValueError, match=r"^load_model: tiny/empty@\w+ has no config\.json$"):
            place.fetch(repository="tiny/empty")
        (tmp_path / "empty" / "config.json").write_text(CONFIG)
        with pytest.raises(ValueError, match=r"^load_model: tiny/empty@\w+ has neither model\.safetensors nor model\S+json$"):
            place.fetch(repository="tiny/empty")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_map": dict.fromkeys(NEEDED, "../x.safetensors")}, rf"puts {NEEDED[0]} into '\.\./x\.safetensors'; it must"),
        ({"weight_map": dict.fromkeys(NEEDED, "y.safetensors")}, r"the checkpoint's file tiny/model/y\.safetensors is missing"),
        (
            {"weight_map": dict.fromkeys(NEEDED, "x.safetensors")},
            rf"tiny/model/x\.safetensors does not hold {NEEDED[0]}, though model",
        ),
        (
            {"weight_map": {NEEDED[0]: "x.safetensors"}},
            rf"tiny/model@\w+ lacks {NEEDED[1]}, \S+, which the stage 'embeddings' needs",
        ),
        ({"weight_map": 3}, "is no index of shards"),
    ],
)
def test_an_index_that_lies(client, tmp_path, change, words):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG)
    (folder / "model.safetensors.index.json").write_text(json.dumps(change))
    save_file({"b": np.zeros(2, np.float32)}, folder / "x.safetensors")
    with FakeHub({"tiny/model": folder}) as server, pytest.raises(ValueError, match=words):
        Place(server, tmp_path).fetch()


def test_a_config_that_is_no_json(client, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{nope")
    with (
        FakeHub({"tiny/model": tmp_path / "m"}) as server,
        pytest.raises(ValueError, match=r"tiny/model/config\.json cannot be read"),
    ):
        Place(server, tmp_path).fetch()


def test_a_gated_repository(client, folder, tmp_path):
    with FakeHub({"tiny/gated": folder}, gated=["tiny/gated"], redirect=True) as server:
        place = Place(server, tmp_path)
        for token in (None, "hf_wrong"):
            with pytest.raises(
                ValueError, match=r"tiny/gated is gated: ask for access at http\S+/tiny/gated, then log in by `hf"
            ):
                place.fetch(repository="tiny/gated", token=token)
            assert place.files() == []
        path = place.fetch(repository="tiny/gated", token="hf_fake")
        assert {entry["authorization"] for entry in server.log if entry["cdn"]} == {None}
    for file in path.iterdir():
        assert b"hf_fake" not in file.read_bytes()


def test_the_token_of_the_environment_is_taken(client, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    with FakeHub({"tiny/gated": folder}, gated=["tiny/gated"]) as server:
        assert Place(server, tmp_path).fetch(repository="tiny/gated").is_dir()


def test_offline_and_not_kept(place, client, monkeypatch):
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"^load_model: tiny/model is in no cache, and HF_HUB_OFFLINE is set; the first time needs"
    ):
        place.fetch()
    assert place.server.log == []


def test_offline_but_in_the_client_s_cache(place, client, folder, monkeypatch):
    from huggingface_hub import hf_hub_download

    for name in os.listdir(folder):
        hf_hub_download("tiny/model", name, endpoint=place.server.endpoint)
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", True)
    place.server.log.clear()
    assert set(load_file(place.fetch() / "model.safetensors"))
    assert place.server.log == []


def test_a_file_that_the_client_has_is_not_asked_for(place, folder):
    from huggingface_hub import hf_hub_download

    for path in folder.glob("*.safetensors"):
        hf_hub_download("tiny/model", path.name, endpoint=place.server.endpoint)
    place.server.log.clear()
    place.fetch()
    assert place.server.sent(".safetensors") == 0


def test_a_server_that_is_not_there(client, tmp_path):
    with FakeHub({}) as server:
        endpoint = server.endpoint
    with pytest.raises(ValueError, match=r"tiny/model cannot be read from http://127\.0\.0\.1:\d+: ConnectError") as caught:
        fetch("tiny/model", EVERY, cache=tmp_path / "c", hub=Hub(endpoint.replace("//", "//ann:secret@")))
    assert "secret" not in str(caught.value)


def test_a_cache_that_cannot_be_written(place):
    place.cache.write_text("a file, not a folder")
    with pytest.raises(ValueError, match=r"the cache at .* cannot be written: (File exists|Not a directory)"):
        place.fetch()


def test_a_kept_folder_that_is_damaged(place):
    path = place.fetch() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"must have .* bytes by its header; it has .*; `npembed weights rm tiny/model` deletes"
    ):
        place.fetch()


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "a/", "../b", "a/b@", "a/b@../c", "a/b@c d", "a b/c", "a--b/c", "a/" + "b" * 95, ""]
)
def test_what_is_no_repository(name):
    with pytest.raises(ValueError, match="is no repository of the Hub; it must be owner/name or owner/name@revision"):
        Repository.parse(name)


@pytest.mark.parametrize("text", ["a/b", "a/b@v1.0", "hf://a/b@refs/pr/3", f"a/b@{COMMIT}"])
def test_what_is_one(text):
    assert str(Repository.parse(text)) == text.removeprefix("hf://")


# The cache


def test_what_is_kept_is_listed_and_removed(place):
    place.fetch()
    place.fetch(EVERY)
    listed = kept(place.cache)
    assert [(each.repository, each.commit, each.stage, each.whole) for each in listed] == [
        ("tiny/model", COMMIT, "embeddings", True),
        ("tiny/model", COMMIT, "tokens", True),
    ]
    assert listed[0].nbytes == sum(path.stat().st_size for path in listed[0].folder.iterdir())
    remove(listed[0])
    assert [each.stage for each in kept(place.cache)] == ["tokens"]
    remove(listed[1])
    assert place.files() == []
    assert place.fetch().is_dir()


def test_a_folder_that_another_run_puts_in_its_place_meanwhile_is_passed_over(place, monkeypatch):
    folder = place.fetch()
    partial = folder.rename(folder.with_name("embeddings.partial"))
    look = cache._kept_at

    def late(path):
        partial.rename(folder)  # between the listing and the look
        return look(path)

    monkeypatch.setattr(cache, "_kept_at", late)
    assert kept(place.cache) == []
    monkeypatch.undo()
    assert [each.whole for each in kept(place.cache)] == [True]


def test_what_arrives_is_not_looked_into_before_it_is_whole(place):
    """Another run may put it in its place at any time."""
    place.fetch()
    place.fetch(EVERY)
    arriving = next(each.folder for each in kept(place.cache) if each.stage == "tokens")
    arriving = arriving.rename(arriving.with_name("tokens.partial"))
    (arriving / "npembed.json").write_text("{")
    assert place.fetch().name == "embeddings"


def test_a_failure_takes_no_folder_from_under_another_run(place, monkeypatch):
    """Which may have made the commit's folder, and not yet its own in it."""

    def fail(path, *rest):
        path.write_bytes(bytes(8))
        raise ValueError("broken")

    monkeypatch.setattr(cache, "_fill", fail)
    with pytest.raises(ValueError, match="broken"):
        place.fetch()
    (commit,) = place.cache.glob(f"*/tiny--model/{COMMIT}")
    assert list(commit.iterdir()) == []


def test_threads_leave_the_client_as_talkative_as_it_was(place):
    utils = place.hub()._client.utils

    def state():
        return utils.logging.get_verbosity(), utils.are_progress_bars_disabled()

    before, quiet = state(), (utils.logging.ERROR, True)
    assert before != quiet
    first, second = hub._QUIET.while_asked(utils), hub._QUIET.while_asked(utils)
    with second:
        with first:
            assert state() == quiet
        assert state() == quiet
        first = hub._QUIET.while_asked(utils)
        first.__enter__()
    assert state() == quiet
    first.__exit__(None, None, None)
    assert state() == before


def test_nothing_is_removed_that_npembed_did_not_make(place, tmp_path):
    listed = kept(place.cache.parent)
    assert listed == []
    folder = place.fetch()
    (folder / "notes.txt").write_text("mine")
    (each,) = kept(place.cache)
    remove(each)
    assert os.listdir(folder) == ["notes.txt"]
    with pytest.raises(ValueError, match=r"remove: .*embeddings was not made by npembed; it has no npembed\.json"):
        remove(each)
    assert isinstance(each, Kept)


def test_the_cache_s_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NPEMBED_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "npembed"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "npembed"
    monkeypatch.setenv("NPEMBED_CACHE", str(tmp_path / "n"))
    assert cache_folder() == tmp_path / "n"


# The source itself


def test_the_source_reads_what_the_folder_holds(place, data):
    source, want = HubSource("tiny/model", place.hub()), load_file(data / "tiny-minicpmv" / "model.safetensors")
    assert source.where == f"tiny/model@{COMMIT}"
    assert set(source.names()) == set(want)
    for name, array in want.items():
        assert source.entry(name).shape == array.shape
        np.testing.assert_array_equal(source.read(name), array.astype(np.float32))
    assert source.json("config.json") == json.loads((data / "tiny-minicpmv" / "config.json").read_text())
    assert source.json("nothing.json") is None


def test_arrays_that_lie_together_are_asked_for_together(place, folder):
    source, names = HubSource("tiny/model", place.hub()), NEEDED
    source.entry(names[0])
    place.server.log.clear()
    source.prefetch(names)
    assert len([entry for entry in place.server.log if entry["cdn"]]) == 1
    place.server.log.clear()
    for name in names:
        assert source.read(name).size
    assert place.server.log == []


def test_only_the_headers_of_the_files_that_are_needed_are_read(place, folder):
    place.fetch()
    read = {entry["path"].rpartition("/")[2] for entry in place.server.log if entry["status"] == 206}
    assert read == (
        {"model-00001-of-00002.safetensors"} if (folder / "model.safetensors.index.json").exists() else {"model.safetensors"}
    )


# A file in pieces, without a server


def memory(content, pieces, *, etag="1", chop=7):
    """An Ask over bytes; `pieces` collects what is asked."""
    from contextlib import contextmanager

    @contextmanager
    def ask(begin, stop):
        pieces.append((begin, stop))
        stop = min(stop, len(content))
        headers = {"content-range": f"bytes {begin}-{stop - 1}/{len(content)}", "etag": etag}
        yield Answer(206, headers, iter([content[at : min(at + chop, stop)] for at in range(begin, stop, chop)]))

    return ask


def test_a_long_range_is_asked_for_in_pieces(monkeypatch):
    monkeypatch.setattr(ranges, "PIECE", 100)
    content, asked = bytes(range(250)), []
    file = HttpFile("x", memory(content, asked))
    assert file.read(3, 247) == content[3:]
    assert asked == [(0, 8), (3, 103), (103, 203), (203, 250)]


@pytest.mark.parametrize("length", [1, 5, 8, 9])
def test_a_short_file_is_read_whole(length):
    content = bytes(range(length))
    file = HttpFile("x", memory(content, []))
    assert (file.size, file.read(0, length)) == (length, content)
    with pytest.raises(ValueError, match="x ends before byte 100"):
        file.read(99, 1)


def test_a_busy_server_may_ask_for_a_while_but_not_for_an_hour():
    from contextlib import contextmanager

    def busy(wait):
        @contextmanager
        def ask(begin, stop):
            yield Answer(503, {"retry-after": wait}, iter(()))

        return ask

    waits = Waits()
    with pytest.raises(ValueError, match="the server of x is busy; it asks to come again in 3,600 s"):
        HttpFile("x", busy("3600"), waits)
    with pytest.raises(ValueError, match="x could not be read, after 6 attempts: status 503"):
        HttpFile("x", busy("Wed, 21 Oct 2015 07:28:00 GMT"), waits)
    assert waits == [0.0] * 5
    with pytest.raises(ValueError, match="x could not be read, after 6 attempts: status 503"):
        HttpFile("x", busy("soon"), waits)
    assert waits[5:] == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_a_server_that_sends_more_than_it_says_is_refused():
    from contextlib import contextmanager

    @contextmanager
    def ask(begin, stop):
        yield Answer(206, {"content-range": "bytes 0-7/100"}, iter([bytes(9)]))

    with pytest.raises(ValueError, match="the server of x sends more bytes than it says"):
        HttpFile("x", ask)


def test_says_which_extra_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'npembed\[hub\]'"):
        Hub()


def test_header_of_what_is_kept_names_its_source(place):
    from npembed.weights.ranges import LocalFile

    path = place.fetch() / "model.safetensors"
    assert read_header(LocalFile(path)).entries
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"] == {"source": f"tiny/model@{COMMIT}"}
