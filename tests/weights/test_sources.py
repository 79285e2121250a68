"""Every kind of source through `load_model` and `npembed embed`: the same arrays, and one line for what is wrong."""

import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

pytest.importorskip("gguf")
pytest.importorskip("huggingface_hub")
pytest.importorskip("fsspec")

from npembed import load_model, read_config, run
from npembed.cli import weights as cli_weights
from npembed.support import atomic as beside
from npembed.support.output_files import load_tensors
from npembed.weights import hub, load, ranges
from npembed.weights.cache import kept
from npembed.weights.mmproj import GgufSource
from tests.fake_hub import COMMIT, FakeHub
from tests.gguf_files import ARRAY, CLIP, F32, TEXT, Written, container, pair, record, text
from tests.synthetic import synthetic_picture
from tests.weights.test_gguf import EVERY

BIAS = "vpm.embeddings.patch_embedding.bias"
SIX = "minicpm-v-2_6"
ROOT = Path(__file__).parents[2]


def words(*given, capsys):
    """One run of the command line in this process: code, what it printed, what it complained of."""
    from npembed.cli import run as run_command

    capsys.readouterr()
    code = run_command([str(word) for word in given])
    return (code, *capsys.readouterr())


def refused(result, message):
    code, out, err = result
    assert code == 2
    assert re.fullmatch(r"npembed: [^\n]+\n", err), err
    assert re.search(message, err), err
    assert "Traceback" not in out


def files_under(folder):
    """Every file but locks, which stay."""
    found = [path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts]
    return sorted(str(path.relative_to(folder)) for path in found)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one; the cache is another."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NPEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@pytest.fixture
def cache(here):
    return here.parent / "cache"


@pytest.fixture
def folder(data):
    return data / "tiny-minicpmv"


@pytest.fixture
def server(folder, data, here, monkeypatch):
    """A Hub and a web server, to which the client's real functions go; it has a home of its own, and no token."""
    from huggingface_hub import constants

    home = here.parent
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "client"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    repositories = {"tiny/model": folder, "tiny/gguf": data / "gguf", "tiny/gated": folder}
    with FakeHub(repositories, gated=["tiny/gated"], redirect=True) as server:
        monkeypatch.setattr(hub, "Hub", partial(hub.Hub, server.endpoint))
        monkeypatch.setattr(ranges.Patience, "after", at_once(ranges.Patience.after))
        yield server


def at_once(after):
    """No test waits on a clock."""

    def quickly(self, error):
        self._sleep = lambda seconds: None
        after(self, error)

    return quickly


@pytest.fixture
def picture(here):
    Image.fromarray(synthetic_picture(300, 200)).save(here / "picture.png")
    return here / "picture.png"


def metadata(path):
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]


# The same arrays, wherever they come from


def sources(server, folder):
    """One word of each kind for the same checkpoint."""
    return {
        "path": str(folder),
        "file": str(folder / "model.safetensors"),
        "hub": "tiny/model",
        "revision": f"tiny/model@{COMMIT}",
        "hf": "hf://tiny/model@main",
        "http": server.folder("tiny/model"),
        "http file": f"{server.folder('tiny/model')}/model.safetensors",
        "fsspec": folder.as_uri(),
        "memory": "memory://tiny",
    }


@pytest.fixture
def memory(folder):
    import fsspec

    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe_file(f"/tiny/{path.name}", path.read_bytes())
    yield system
    system.rm("/tiny", recursive=True)


KINDS = ("path", "file", "hub", "revision", "hf", "http", "http file", "fsspec", "memory")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("until", ["embeddings", None])
def test_each_kind_of_source_gives_the_folder_s_arrays(kind, until, server, folder, memory):
    want, got = load_model(folder, until), load_model(sources(server, folder)[kind], until)
    assert got.config == want.config == read_config(sources(server, folder)[kind])
    assert set(got.weights) == set(want.weights)
    for name, array in want.weights.items():
        np.testing.assert_array_equal(got.weights[name], array)
        assert got.weights[name].dtype == array.dtype


@pytest.mark.parametrize("until", ["embeddings", "tokens"])
def test_embed_takes_each_kind_of_source(until, server, folder, memory, picture, capsys):
    kinds = sources(server, folder)
    if until == "tokens":  # which takes longer
        kinds = {kind: kinds[kind] for kind in ("path", "hub", "http")}
    found = {}
    for kind, word in kinds.items():
        code, out, err = words("embed", picture, "--weights", word, "--until", until, "-o", "o.safetensors", capsys=capsys)
        assert (code, err) == (0, "")
        found[kind] = load_tensors("o.safetensors")
        origin = f"tiny/model@{COMMIT}" if kind in ("hub", "revision", "hf") else word
        assert metadata(Path("o.safetensors"))["weights"] == origin
        assert f"weights: {origin}\n" in out
    for got in found.values():
        assert set(got) == set(found["path"])
        for name, array in found["path"].items():
            np.testing.assert_array_equal(got[name], array)


def test_golden_packs_take_a_source(server, here, capsys):
    refused(words("golden", "write", "pack", "--weights", "no/such", capsys=capsys), "no/such is no repository at http")
    assert not (here / "pack").exists()


def test_a_link_that_leads_nowhere_and_a_fifo_are_no_repositories(server, here):
    (here / "tiny").mkdir()
    (here / "tiny" / "model").symlink_to("nowhere")
    os.mkfifo(here / "tiny" / "gguf")
    for word, words_ in (("tiny/model", "is a link that leads nowhere"), ("tiny/gguf", "is not a folder, nor a regular file")):
        with pytest.raises(ValueError, match=rf"^load_model: {word} {words_}$"):
            load_model(word)
    assert server.log == []


def test_a_config_that_is_no_regular_file_is_not_passed_over(here, folder):
    shutil.copytree(folder, here / "m")
    (here / "m" / "preprocessor_config.json").unlink()
    os.mkfifo(here / "m" / "preprocessor_config.json")
    with pytest.raises(ValueError, match=r"^load_model: m/preprocessor_config\.json .*is no regular file$"):
        load_model("m")


def test_what_exists_wins_over_a_repository_of_its_name(server, folder, here):
    shutil.copytree(folder, here / "tiny" / "model")
    load_model("tiny/model")
    assert server.log == []
    load_model("hf://tiny/model", say=lambda line: None)
    assert server.log != []


def test_a_path_is_a_path(server):
    with pytest.raises(ValueError, match=r"^load_model: tiny/model is not a folder, nor a regular file$"):
        load_model(Path("tiny/model"))
    assert server.log == []


@pytest.mark.parametrize("word", ["model", "./a/b", "a/b/c", "~/m", "", "/no/such", "a\x00b"])
def test_what_means_nothing_is_refused(word, server):
    with pytest.raises(ValueError, match="is not a folder, nor a file that exists, a URL or owner/name of the Hub"):
        load_model(word)
    assert server.log == []


def test_a_file_of_another_kind(here):
    (here / "m.bin").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(ValueError, match=r"m\.bin is a pickle \(\.bin\), which is not read"):
        load_model("m.bin")


def test_a_file_without_its_config(here, folder):
    shutil.copy(folder / "model.safetensors", here)
    with pytest.raises(ValueError, match=r"load_model: model\.safetensors has no config\.json"):
        load_model("model.safetensors")


def test_a_shard_alone_is_what_it_holds(here, folder):
    arrays = load_file(folder / "model.safetensors")
    shutil.copy(folder / "config.json", here)
    save_file({name: array for name, array in arrays.items() if name.startswith("vpm.")}, here / "model-1-of-2.safetensors")
    save_file({name: array for name, array in arrays.items() if not name.startswith("vpm.")}, here / "model-2-of-2.safetensors")
    assert [stage.name for stage in _stages(load_model("model-1-of-2.safetensors"))] == ["embeddings", "hidden"]


def _stages(model):
    return [stage for stage in model.config.family.vision_stages if not model.missing(stage)]


# GGUF files


def test_a_gguf_file_needs_no_name(here, data):
    """As in ollama's blobs."""
    shutil.copy(data / "gguf" / f"{SIX}.f32.gguf", here / "sha256-0123")
    assert load_model("sha256-0123").config.query_num == 64


def written_out(word, folder):
    """A GGUF file's config and arrays as a checkpoint's folder."""
    folder.mkdir()
    source = GgufSource(word)
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps(source.json(name)))
    save_file({name: source.read(name) for name in source.names()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", EVERY)
def test_every_fixture_gives_what_its_arrays_give_as_a_folder(name, data, here, picture, capsys):
    file, tile = data / "gguf" / f"{name}.gguf", [[4, 4]]
    found, tokens = [], []
    for word in (file, written_out(file, here / "folder")):
        code, _, err = words("embed", picture, "--weights", word, "-o", "out.npz", capsys=capsys)
        assert (code, err) == (0, "")
        found.append(load_tensors("out.npz"))
        model = load_model(word, "tokens")
        size = model.config.vision.patch_size
        strips = [np.random.default_rng(0).uniform(-1, 1, (3, size, 16 * size)).astype(np.float32)]
        tokens.append(run(strips, tile, model)["tokens"])
    assert set(found[0]) == set(found[1])
    for key, array in found[1].items():
        np.testing.assert_array_equal(found[0][key], array)
    np.testing.assert_array_equal(*tokens)
    assert np.isfinite(tokens[0]).all()
    assert tokens[0].any()


TABLE = {
    f"{SIX}.f32": ("tiny-minicpmv", 2.2e-4, 3.6e-4),
    f"{SIX}.f16": ("tiny-minicpmv", 2.5e-4, 8.4e-4),
    f"{SIX}.q8_0": ("tiny-minicpmv", 2.5e-4, 1.3e-2),
    f"{SIX}.q4_k": ("tiny-minicpmv", 2.5e-4, 1.5e-1),
    f"{SIX}.unswapped.f16": ("tiny-minicpmv", 2.5e-4, 8.4e-4),
    f"{SIX}.2024.f16": ("tiny-minicpmv", 2.5e-4, 8.4e-4),
    "minicpm-v-4_5.f32": ("relatives/minicpm-v-4_5", 2.5e-4, 9.2e-5),
    "minicpm-v-4_5.q8_0": ("relatives/minicpm-v-4_5", 2.5e-4, 1.3e-2),
    "minicpm-llama3-v-2_5.f16": ("relatives/minicpm-llama3-v-2_5", 2.5e-4, 8.4e-4),
}
"""File -> the checkpoint that it was made from, and how far embeddings and tokens were measured to be from upstream's."""


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("size", [(300, 200), (640, 480)])
def test_every_fixture_gives_upstream_s_numbers_within_its_types(name, size, data, here, capsys):
    checkpoint, *bounds = TABLE[name]
    picture, synth = here / "p.png", "synth_{}x{}".format(*size)
    Image.fromarray(synthetic_picture(*size)).save(picture)
    expected = load_file(data / checkpoint / "expected.safetensors")
    for until, upstream, bound in zip(("embeddings", "tokens"), ("embeddings", "vision_tokens"), bounds, strict=True):
        code, _, err = words("embed", picture, "--weights", data / "gguf" / f"{name}.gguf", "--until", until, capsys=capsys)
        assert (code, err) == (0, "")
        got, want = load_tensors(f"{until}.safetensors")[until], expected[f"{synth}.{upstream}"]
        assert np.abs(got - want).max() <= 1.1 * bound * np.abs(want).max(), np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", [f"{SIX}.f32", "minicpm-v-4_5.f32"])
def test_float32_files_give_the_checkpoint_s_tokens(name, data):
    """All but the patches' kernels is float32: with the checkpoint's kernels, the tokens are the checkpoint's."""
    checkpoint = load_model(data / TABLE[name][0])
    model = load_model(data / "gguf" / f"{name}.gguf")
    kernels = "vpm.embeddings.patch_embedding.weight"
    exact = type(model)(model.config, model.weights | {kernels: checkpoint.weights[kernels]})
    strips = [np.random.default_rng(0).uniform(-1, 1, (3, 14, 35 * 14)).astype(np.float32)]
    got, want = (run(strips, [[5, 7]], each)["tokens"] for each in (exact, checkpoint))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_block_count_that_lies_is_told_on_the_screen(data, picture, capsys):
    file = data / "gguf" / f"{SIX}.2024.f16.gguf"
    code, out, err = words("embed", picture, "--weights", file, capsys=capsys)
    assert (code, err) == (0, "")
    assert out.startswith(
        f"{file} states 2 blocks and holds 3; all 3 are run, as the checkpoint does (llama.cpp leaves the last"
    )


def test_a_library_s_note_goes_to_the_error_stream(data, here, capsys):
    load_model(data / "gguf" / f"{SIX}.2024.f16.gguf", "embeddings")
    assert re.fullmatch(r"npembed: \S+ states 2 blocks and holds 3; [^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("array", "name"),
    [
        ("resampler.proj.weight", "resampler.proj"),
        ("resampler.attn.k.weight", "resampler.attn.in_proj_weight"),
        ("v.blk.1.ffn_down.weight", "vpm.encoder.layers.1.mlp.fc1.weight"),
    ],
)
def test_a_block_that_is_not_finite_is_refused_by_the_array_s_name(array, name, data, here):
    made = Written(data / "gguf" / f"{SIX}.q8_0.gguf")
    shape, kind, raw = made.arrays[array]
    made.arrays[array] = shape, kind, raw[:-34] + struct.pack("<e", np.inf) + raw[-32:]
    made.write(here / "m.gguf")
    with pytest.raises(
        ValueError, match=rf"^load_model: {name} in m\.gguf holds -?(inf|nan) at \[\d+, \d+\]; weights must be finite"
    ):
        load_model("m.gguf")
    assert load_model("m.gguf", "embeddings")


def test_a_shape_that_the_config_does_not_give(data, here):
    made = Written(data / "gguf" / f"{SIX}.f32.gguf")
    shape, kind, raw = made.arrays["resampler.ln_q.weight"]
    made.arrays["resampler.ln_q.weight"] = (shape[0] // 2,), kind, raw[: len(raw) // 2]
    made.write(here / "m.gguf")
    with pytest.raises(
        ValueError, match=r"^load_model: resampler\.ln_q\.weight in m\.gguf must have shape \(256,\) by the con"
    ):
        load_model("m.gguf")


def test_a_type_that_cannot_be_read_is_refused_before_any_array_is(data, here):
    made = Written(data / "gguf" / f"{SIX}.f32.gguf")
    made.arrays["resampler.proj.weight"] = ((256, 256), 15, bytes(292 * 256))
    made.write(here / "m.gguf")
    with pytest.raises(
        ValueError, match=r"^load_model: resampler\.proj in m\.gguf is of dtype Q8_K; it must be one of F16, BF16"
    ):
        load_model("m.gguf")
    assert load_model("m.gguf", "hidden")


def test_a_gguf_file_of_the_hub_or_the_web(server, data, capsys, picture):
    want = load_model(data / "gguf" / f"{SIX}.q8_0.gguf", "embeddings")
    for word in (f"hf://tiny/gguf/{SIX}.q8_0.gguf", f"hf://tiny/gguf@main/{SIX}.q8_0.gguf"):
        got, where = load(word, "embeddings", lambda line: None, None)
        assert got.config == want.config
        for name, array in want.weights.items():
            np.testing.assert_array_equal(got.weights[name], array)
        assert where == f"tiny/gguf@{COMMIT}/{SIX}.q8_0.gguf"
    size = (data / "gguf" / f"{SIX}.q8_0.gguf").stat().st_size
    server.log.clear()
    url = f"{server.folder('tiny/gguf')}/{SIX}.q8_0.gguf"
    code, out, err = words("embed", picture, "--weights", url, capsys=capsys)
    assert (code, err) == (0, "")
    assert f"{url}: embeddings needs 0.5 MB of 1.2 MB; they are not kept\n" in out
    assert server.sent(".gguf") < size - 300_000
    assert len([entry for entry in server.log if entry["cdn"]]) <= 4, "what lies together is asked for together"


# The Hub


def test_the_first_run_downloads_and_the_second_needs_no_network(server, picture, cache, capsys, monkeypatch):
    first = words("embed", picture, "--weights", "tiny/model", capsys=capsys)
    where = re.escape(str(cache))
    line = rf"tiny/model: embeddings needs 1\.1 MB of \d\.\d MB \(commit 0123456789ab\), to {where}/\S+/embeddings\n"
    assert first[0] == 0
    assert re.match(line, first[1])
    assert first[2] == ""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.log.clear()
    second = words("embed", picture, "--weights", "tiny/model", capsys=capsys)
    assert second[0] == 0
    assert re.match(
        rf"tiny/model: embeddings is kept in {where}/\S+ \(commit 0123456789ab\); nothing is downloaded\n", second[1]
    )
    assert server.log == []
    assert read_config("tiny/model").query_num == 64


def test_no_more_is_downloaded_than_the_stage_needs(server, folder, cache, capsys, picture):
    words("embed", picture, "--weights", "tiny/model", capsys=capsys)
    arrays = load_file(folder / "model.safetensors")
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    need = sum(array.nbytes for name, array in arrays.items() if name.startswith("vpm.embeddings."))
    assert server.sent(".safetensors") == need + header
    configs = sum(path.stat().st_size for path in folder.glob("*.json"))
    assert server.sent() <= need + header + configs + 300


def test_every_stage_that_is_held_is_kept_without_until(server, cache, folder):
    load_model("tiny/model", say=lambda line: None)
    (each,) = kept(cache)
    assert each.stage == "tokens"
    server.log.clear()
    for until in (None, "embeddings", "hidden", "tokens"):
        load_model("tiny/model", until, say=lambda line: None)
    assert server.log == []


def test_a_terminal_gets_a_bar_in_bytes(server, picture, capsys, monkeypatch):
    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr(cli_weights, "Console", lambda: Console(file=screen, force_terminal=True, width=100))
    assert words("embed", picture, "--weights", "tiny/model", capsys=capsys)[0] == 0
    assert "/1.1 MB" in screen.getvalue()
    screen.truncate(0)
    assert words("embed", picture, "--weights", "tiny/model", capsys=capsys)[0] == 0
    assert "MB" not in screen.getvalue(), "nothing is downloaded"


def test_a_token_and_a_gated_repository(server, picture, cache, capsys, monkeypatch):
    refused(
        words("embed", picture, "--weights", "tiny/gated", capsys=capsys),
        r"load_model: tiny/gated is gated: ask for access at \S+/tiny/gated, then log in by `hf auth login` or HF_TOKEN",
    )
    assert not cache.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    code, out, err = words("embed", picture, "--weights", "tiny/gated", "-o", "out.safetensors", capsys=capsys)
    assert (code, err) == (0, "")
    assert "hf_fake" not in out
    for root in (cache, picture.parent):
        for path in root.rglob("*"):
            assert path.is_dir() or b"hf_fake" not in path.read_bytes()


def python(*given, server, here, **environment):
    """The command line in a process of its own."""
    env = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    env |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(here.parent / "home"), "HOME": str(here.parent)}
    env |= {"NPEMBED_CACHE": str(here.parent / "cache"), "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, *given], capture_output=True, text=True, cwd=here, env=env | environment, check=False
    )


def test_the_environment_says_which_hub_and_whether(server, here, picture, folder):
    ran = python("-m", "npembed", "embed", "picture.png", "--weights", "tiny/model", server=server, here=here)
    assert (ran.returncode, ran.stderr) == (0, "")
    same_as_the_folder(server, here, folder)
    offline = partial(python, server=server, here=here, HF_HUB_OFFLINE="1")
    assert offline("-m", "npembed", "embed", "picture.png", "--weights", "tiny/model").returncode == 0
    ran = offline("-m", "npembed", "embed", "picture.png", "--weights", "tiny/gguf")
    assert ran.returncode == 2
    assert ran.stderr == (
        "npembed: load_model: tiny/gguf is in no cache, and HF_HUB_OFFLINE is set; the first time needs the network; "
        "and no folder or file here is called tiny/gguf\n"
    )


def same_as_the_folder(server, here, folder):
    """What the run before left is what a process like it makes of the checkpoint's folder."""
    got = load_tensors(here / "embeddings.safetensors")
    ran = python("-m", "npembed", "embed", "picture.png", "--weights", str(folder), server=server, here=here)
    assert (ran.returncode, ran.stderr) == (0, "")
    want = load_tensors(here / "embeddings.safetensors")
    assert set(got) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


KILL = """
import os, signal, sys
from npembed.weights import cache
fill = cache._fill

def killed(path, source, places, origin, progress):
    fill(path, source, places, origin, lambda done, total: done > total // 3 and os.kill(os.getpid(), signal.SIGKILL))

cache._fill = killed
from npembed.cli import run
sys.exit(run(["embed", "picture.png", "--weights", "tiny/model"]))
"""


def test_a_kill_in_the_middle_leaves_what_the_next_run_completes(server, here, picture, cache, folder, capsys):
    ran = python("-c", KILL, server=server, here=here)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    (partial_,) = kept(cache)
    assert not partial_.whole
    stray, lock = beside._create(partial_.folder, ".json")  # as a kill a little earlier would leave it
    os.close(lock)
    code, out, err = words("weights", "list", capsys=capsys)
    assert (code, err) == (0, "")
    assert "tiny/model@0123456789ab embeddings: " in out
    assert "not whole yet: the next run goes on from there" in out
    before = (partial_.folder / "model.safetensors").stat().st_size
    server.log.clear()
    ran = python("-m", "npembed", "embed", "picture.png", "--weights", "tiny/model", server=server, here=here)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert server.sent(".safetensors") < 1_100_000 - before // 2, "what had come is not asked for again"
    same_as_the_folder(server, here, folder)
    (whole,) = kept(cache)
    assert whole.whole
    assert not stray.exists()
    assert sorted(os.listdir(whole.folder)) == ["config.json", "model.safetensors", "npembed.json", "preprocessor_config.json"]


# Threads

THREADS = 8


def in_threads(call, count=THREADS):
    """What each of so many threads gets of a call at once; the first error is raised."""
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(call, number) for number in range(count)]]


def test_threads_with_one_empty_cache_all_get_the_model(server, folder, cache, monkeypatch):
    """None is answered before all have asked, and none puts its file in place before all have written theirs."""
    server.meeting, written = threading.Barrier(THREADS, timeout=60), threading.Barrier(THREADS, timeout=60)

    def replace(source, target, replace=os.replace):
        if Path(target).parent.name == "refs":
            written.wait()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    want = load_model(folder, "embeddings")
    for model in in_threads(lambda number: load_model("tiny/model", "embeddings", say=lambda line: None)):
        assert model.config == want.config
        for name, array in want.weights.items():
            np.testing.assert_array_equal(model.weights[name], array)
    assert [each.whole for each in kept(cache)] == [True]
    assert sorted(name.rpartition("/")[2] for name in files_under(cache)) == [
        "config.json",
        "main",
        "model.safetensors",
        "npembed.json",
        "preprocessor_config.json",
    ]


def test_threads_that_need_different_stages_do_not_disturb_one_another(server, folder, cache):
    server.meeting = threading.Barrier(THREADS, timeout=60)
    stages = ("embeddings", "hidden", "tokens", "tokens")
    found = in_threads(lambda number: load_model("tiny/model", stages[number % 4], say=lambda line: None))
    for number, model in enumerate(found):
        assert set(model.weights) == set(load_model(folder, stages[number % 4]).weights)
    assert {each.stage: each.whole for each in kept(cache)} == dict.fromkeys(stages, True)


# What lies beside the weights and would change the numbers


@pytest.fixture(name="beside")
def copy_of_the_checkpoint(server, folder, tmp_path):
    """A copy of the checkpoint, also on the Hub and at a URL."""
    copy = shutil.copytree(folder, tmp_path / "beside")
    server.repositories["tiny/beside"] = copy
    return copy


def words_of(server, copy):
    """One word for each way to the copy."""
    kinds = {**sources(server, copy), "hub": "tiny/beside", "http": server.folder("tiny/beside")}
    kinds |= {"http file": f"{kinds['http']}/model.safetensors", "fsspec file": f"{copy.as_uri()}/model.safetensors"}
    return {kind: kinds[kind] for kind in ("path", "file", "hub", "http", "http file", "fsspec", "fsspec file")}


ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "vpm_resampler_embedtokens.pt")


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_not_applied_is_refused(name, server, beside, cache, picture, capsys):
    (beside / name).write_text("{}")
    for word in words_of(server, beside).values():
        message = rf"load_model: \S+ has an adapter that is not applied; merge it first \(PEFT: merge_and_unload\), or .*{name}"
        refused(words("embed", picture, "--weights", word, capsys=capsys), message)
        refused(words("weights", "show", word, capsys=capsys), message)
    assert files_under(cache) == []


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hub_that_lists_no_files_is_asked_for_each(name, server, beside):
    server.lists = False
    assert load_model("tiny/beside", "embeddings")
    (beside / name).write_text("{}")
    with pytest.raises(ValueError, match="has an adapter that is not applied"):
        load_model("tiny/beside", "hidden")


def test_an_adapter_in_the_client_s_cache_is_refused_offline(server, beside, monkeypatch):
    from huggingface_hub import constants, hf_hub_download

    (beside / "adapter_config.json").write_text("{}")
    for path in beside.iterdir():
        hf_hub_download("tiny/beside", path.name, endpoint=server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="has an adapter that is not applied"):
        load_model("tiny/beside")


@pytest.mark.parametrize("stated", ["other.safetensors", "../model.safetensors", "model.safetensors.index.json", 3])
def test_a_config_that_names_other_weights_is_refused(stated, server, beside):
    """transformers reads the file that `transformers_weights` names."""
    config = json.loads((beside / "config.json").read_text()) | {"transformers_weights": stated}
    (beside / "config.json").write_text(json.dumps(config))
    for word in words_of(server, beside).values():
        with pytest.raises(ValueError, match=rf"config\.json names {re.escape(repr(stated))} as its weights .* model\.safeten"):
            load_model(word)


def test_a_config_that_names_the_weights_that_are_read_is_taken(beside, folder):
    config = json.loads((beside / "config.json").read_text()) | {"transformers_weights": "model.safetensors"}
    (beside / "config.json").write_text(json.dumps(config))
    assert load_model(beside, "embeddings").config == load_model(folder, "embeddings").config


def modules(*kinds):
    """modules.json as sentence-transformers writes it."""
    return json.dumps([{"idx": n, "name": str(n), "path": "", "type": kind} for n, kind in enumerate(kinds)])


OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."


@pytest.mark.parametrize(
    ("kinds", "after"),
    [
        ((f"{OLD}Transformer", f"{OLD}Pooling", f"{OLD}Dense"), "Pooling, Dense"),
        ((f"{OLD}Transformer", f"{OLD}Pooling", f"{OLD}Normalize"), "Pooling, Normalize"),
        (("sentence_transformers.base.modules.transformer.Transformer", f"{NEW}dense.Dense"), "Dense"),
        ((f"{OLD}Transformer",), ""),
    ],
)
def test_what_sentence_transformers_computes_after_the_model_is_said(kinds, after, server, beside, cache, picture, capsys):
    (beside / "modules.json").write_text(modules(*kinds))
    note = f"after the model, modules.json has {after}; this is not applied, so the vectors are those before it\n"
    for kind, word in words_of(server, beside).items():
        for _ in range(2 if kind == "hub" else 1):  # the second time it is kept
            code, out, err = words("embed", picture, "--weights", word, capsys=capsys)
            assert (code, err) == (0, "")
            assert out.count(note) == bool(after), kind
    assert any(name.endswith("modules.json") for name in files_under(cache))
    assert words("weights", "rm", "tiny/beside", capsys=capsys)[0] == 0
    assert files_under(cache) == []


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"type": 3}]', "[{}]", "{nope"])
def test_a_list_of_modules_that_is_none_is_refused(content, beside):
    (beside / "modules.json").write_text(content)
    with pytest.raises(ValueError, match=r"^load_model: \S+/modules\.json (is no list of modules|cannot be read as JSON)"):
        load_model(beside)


def test_an_adapter_in_gguf_is_no_model(here, picture, capsys):
    """As llama.cpp's converter of LoRA writes it."""
    kind = pair("general.type", TEXT, "adapter")
    (here / "lora.gguf").write_bytes(container([CLIP, kind], [record("v.blk.0.attn_q.weight.lora_a", (8,))], bytes(32)))
    refused(words("embed", picture, "--weights", "lora.gguf", capsys=capsys), r"lora\.gguf is an adapter; merge it")


# What is wrong gets one line, and nothing is half-cached

FAULTS = {
    "ignore-range": "ignores Range: it would send the whole file, so nothing is read",
    "other-part": "was asked for bytes 0-7 and answers with 'bytes 1-8/",
    "no-content-range": "was asked for bytes 0-7 and answers with ''",
    "compressed": "answers a range compressed; its bytes cannot be told",
    "huge-header": "is not a whole safetensors file: it claims a header of 4,611,686,018,427,387,904 bytes",
    "loop": "redirects without end",
    "403": "(answers with status 403|refuses it)",
    "404": "(has neither model.safetensors nor|is missing)",
    "cut": "could not be read, after 6 attempts: the connection",
    "reset": "could not be read, after 6 attempts: the connection",
    "429": "could not be read, after 6 attempts: status 429",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["hub", "http"])
def test_a_server_that_misbehaves(fault, kind, server, folder, picture, cache, capsys):
    server.fault(fault)
    before = files_under(picture.parent)
    word = sources(server, folder)[kind]
    refused(words("embed", picture, "--weights", word, "-o", "out.npz", capsys=capsys), f"load_model: .*{FAULTS[fault]}")
    assert files_under(picture.parent) == before
    assert files_under(cache) == []


def test_a_file_that_changes_between_two_ranges(server, picture, cache, capsys):
    server.fault("changed", {2})
    refused(words("embed", picture, "--weights", "tiny/model", capsys=capsys), "has changed on the server between two requests")
    assert files_under(cache) == []


NOT_THERE = {
    "no/such": r"no/such is no repository at http\S+, or a private one, which needs `hf auth login` or HF_TOKEN; and no folder",
    "tiny/model@v9": r"tiny/model has no revision 'v9'",
    "hf://tiny/model@v9": r"tiny/model has no revision 'v9'$",
    "hf://tiny/gguf/x.gguf": r"tiny/gguf has no file x\.gguf",
    "hf://tiny/gguf/../x.gguf": r"load_model: tiny/gguf has no file \.\./x\.gguf",
    "tiny/gguf": r"tiny/gguf@\w+ has no config\.json",
    "hf://model": "'hf://model' is no repository of the Hub; it must be owner/name or owner/name@revision",
    "a b/c": "'a b/c' is no repository of the Hub",
    "none": "none is not a folder, nor a file that exists, a URL or owner/name of the Hub",
    "nope://host/m": "nope://host/m cannot be read: Protocol not known: nope",
    "none.gguf": r"none\.gguf is not a folder, nor a file that exists",
}


@pytest.mark.parametrize("word", NOT_THERE)
def test_what_is_not_there(word, server, picture, cache, capsys):
    refused(words("embed", picture, "--weights", word, capsys=capsys), NOT_THERE[word])
    assert files_under(cache) == []


def test_a_protocol_whose_package_is_missing(server, picture, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused(words("embed", picture, "--weights", "s3://bucket/m", capsys=capsys), "s3://bucket/m cannot be read: Install s3fs")


@pytest.mark.parametrize(
    ("module", "extra", "word"),
    [("gguf", "gguf", "GGUF"), ("huggingface_hub", "hub", "tiny/model"), ("fsspec.core", "url", "memory://tiny")],
)
def test_a_package_that_is_missing(module, extra, word, picture, data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    word = data / "gguf" / f"{SIX}.f16.gguf" if word == "GGUF" else word
    refused(words("embed", picture, "--weights", word, capsys=capsys), rf"pip install 'npembed\[{extra}\]'")


HUGE = 2**60
BROKEN = {
    "language model": (
        container([pair("general.architecture", TEXT, "qwen2")], []),
        "is of the architecture 'qwen2'; an mmproj",
    ),
    "version": (container([CLIP], [], version=9), "is a GGUF file of version 9; versions 2 and 3 are read"),
    "offset": (container([CLIP], [record("a", (8,), 0, 2**40)], bytes(32)), "is cut short or damaged: 'a' ends at byte"),
    "count": (container([CLIP], [], arrays=HUGE), "claims 1,152,921,504,606,846,976 arrays"),
    "length": (container([text("k") + struct.pack("<IIQ", ARRAY, F32, HUGE)], []), "is cut short or damaged: 'k'"),
    "name": (container([CLIP], [record(b"\xff", (2,))], bytes(32)), "has an array's name that is not UTF-8"),
    "type": (container([CLIP], [record("a", (2,), 99)], bytes(32)), "gives 'a' the type 99"),
    "no projector": (container([CLIP], [record("a", (2,))], bytes(32)), r"states no clip\.projector_type"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", ["m.gguf", "blob"])
def test_a_gguf_file_that_is_wrong(case, name, here, picture, capsys):
    content, message = BROKEN[case]
    (here / name).write_bytes(content)
    before = files_under(here)
    refused(words("embed", picture, "--weights", name, capsys=capsys), f"load_model: {name} {message}")
    assert files_under(here) == before


def test_a_gguf_file_that_is_cut(here, picture, data, capsys):
    (here / "m.gguf").write_bytes((data / "gguf" / f"{SIX}.f16.gguf").read_bytes()[:-40_000])
    refused(words("embed", picture, "--weights", "m.gguf", capsys=capsys), r"load_model: m\.gguf is cut short or damaged: '")


def test_the_output_may_not_be_the_weights(here, picture, data, folder, capsys):
    shutil.copy(folder / "config.json", here)
    shutil.copy(folder / "model.safetensors", here / "m.safetensors")
    for output in ("m.safetensors",):
        result = words("embed", picture, "--weights", "m.safetensors", "-o", output, capsys=capsys)
        refused(result, "the output m.safetensors is an input")


# Credentials


def test_a_password_reaches_no_message_no_metadata_and_no_screen(server, picture, capsys):
    url = server.folder("tiny/model").replace("//", "//ann:s%40cret@") + "?signature=hidden"
    code, out, err = words("embed", picture, "--weights", url, "-o", "out.safetensors", capsys=capsys)
    assert (code, err) == (0, "")
    written = Path("out.safetensors").read_bytes()
    server.fault("ignore-range")
    code, again, err = words("embed", picture, "--weights", url, "-o", "out.safetensors", capsys=capsys)
    assert code == 2
    for secret in ("ann", "cret", "hidden"):
        assert secret not in out + again + err
        assert secret.encode() not in written
    assert metadata(Path("out.safetensors"))["weights"] == server.folder("tiny/model")


@pytest.mark.parametrize(
    "word", ["ann:secret@host/m", "nope://ann:secret@host/m", "https:/ann:secret@host/m", "hf://ann:secret@h/m"]
)
def test_a_password_in_a_word_that_is_refused_is_not_shown(word, server, picture, capsys):
    code, out, err = words("embed", picture, "--weights", word, capsys=capsys)
    assert code == 2
    assert "secret" not in out + err


# npembed weights


def test_show_tells_what_each_stage_needs(server, folder, capsys, cache):
    for word in (folder, "tiny/model", server.folder("tiny/model")):
        server.log.clear()
        code, out, err = words("weights", "show", word, capsys=capsys)
        assert (code, err) == (0, "")
        assert server.sent(".safetensors") < 20_000, "headers alone"
        where, *lines = out.splitlines()
        assert where.endswith(": MiniCPM-V 2.6 (minicpm-v-2.6)")
        assert [line.split() for line in lines[:4]] == [
            ["until", "arrays", "MB", "types"],
            ["embeddings", "3", "1.1", "F32;", "works"],
            ["hidden", "53", "1.3", "F32;", "works"],
            ["tokens", "66", "2.7", "F32;", "works"],
        ]
        assert lines[4:] == ["1 outside the tower and the connector, such as llm.model.embed_tokens.weight"]
    assert files_under(cache) == []


def test_show_names_what_is_missing_and_what_is_unknown(here, folder, capsys):
    arrays = load_file(folder / "model.safetensors")
    del arrays["resampler.query"]
    arrays["vpm.class_embedding"] = np.zeros(3, np.float32)
    arrays["vpm.post_layernorm.bias"] = np.zeros(3, np.int8)
    shutil.copy(folder / "config.json", here)
    save_file(arrays, here / "model.safetensors")
    code, out, err = words("weights", "show", ".", capsys=capsys)
    assert (code, err) == (0, "")
    assert "F32; works\n" in out
    assert "does not work: vpm.post_layernorm.bias in model.safetensors is of dtype I8; it must be one of F16, BF16, F32" in out
    assert "\nunknown arrays of the tower or the connector, so nothing is read: vpm.class_embedding\n" in out


def test_show_tells_types_of_a_gguf_file(data, capsys):
    code, out, err = words("weights", "show", data / "gguf" / f"{SIX}.q4_k.gguf", capsys=capsys)
    assert (code, err) == (0, "")
    assert re.search(r"\ntokens +66 +0\.9  F32, F16, Q4_K, Q5_0[^;]*; works\n", out), out


def test_show_tells_what_is_kept_when_there_is_no_network(server, capsys, monkeypatch, picture):
    words("embed", picture, "--weights", "tiny/model", capsys=capsys)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = words("weights", "show", "tiny/model", capsys=capsys)
    assert (code, err) == (0, "")
    assert re.search(r"\nembeddings +3 +1\.1  F32; works\n", out)
    assert re.search(r"\ntokens .*does not work: \S+ is not kept in ", out)


def test_list_path_and_rm(server, folder, capsys, cache, picture):
    assert words("weights", "list", capsys=capsys)[1] == f"0.0 MB in {cache}\n"
    load_model("tiny/model", "embeddings", say=lambda line: None)
    load_model("tiny/model", "tokens", say=lambda line: None)
    code, out, err = words("weights", "list", capsys=capsys)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "tiny/model@0123456789ab embeddings: 1.1 MB",
        "tiny/model@0123456789ab tokens: 2.7 MB",
        f"3.8 MB in {cache}",
    ]
    code, out, err = words("weights", "path", "tiny/model@main", capsys=capsys)
    first, second = map(Path, out.splitlines())
    assert set(load_model(second).weights) == set(load_model(folder).weights), "a checkpoint's folder of its own"
    code, out, err = words("weights", "rm", "tiny/model", "--stage", "tokens", capsys=capsys)
    assert (code, err) == (0, "")
    assert out == f"{second} is deleted, 2.7 MB\n"
    assert not second.exists()
    assert first.exists()
    assert words("weights", "rm", f"tiny/model@{COMMIT}", capsys=capsys)[0] == 0
    assert files_under(cache) == []
    for command in ("path", "rm"):
        refused(
            words("weights", command, "tiny/model", capsys=capsys), "nothing of tiny/model is kept in .*; npembed weights list"
        )


@pytest.mark.parametrize("given", [["show"], ["show", "none"], ["path", "model"], ["rm", "../x/y"], ["rm"]])
def test_wrong_use_of_weights(given, server, capsys):
    refused(words("weights", *given, capsys=capsys), "npembed")


def test_help_tells_what_a_source_may_be(capsys):
    code, out, _ = words("weights", "--help", capsys=capsys)
    assert code == 0
    for word in ("hf://owner/name", "owner/name@revision", "http(s)://", "fsspec", "GGUF", "HF_TOKEN", "HF_HUB_OFFLINE"):
        assert word in out


# A plain install


def test_the_extras_bring_what_is_imported():
    from configparser import ConfigParser

    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["install_requires"].split() == ["numpy>=2.0", "scipy>=1.13"]
    assert {"gguf", "hub", "url"} <= set(setup["options.extras_require"])


def test_the_sizes_in_the_readme_are_the_families():
    from math import prod

    from npembed import FAMILIES
    from npembed.records.model import shapes_of

    text = (ROOT / "npembed" / "weights" / "README.md").read_text("utf-8")
    rows = re.search(r"<!-- sizes -->\n(.*)\n<!-- /sizes -->", text, re.DOTALL)[1].splitlines()[2:]
    found = {}
    for row in rows:
        keys, *sizes = [cell.strip() for cell in row.strip("|").split("|")]
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", keys), sizes)
    assert len(found) == 9
    for key, sizes in found.items():
        family = FAMILIES[key]
        config, nbytes, want = next(iter(family.presets().values())), 0, []
        for stage in family.vision_stages:
            nbytes += 2 * sum(map(prod, shapes_of(stage, config).values()))
            want.append(f"{nbytes / 1e6:,.1f} MB")
        assert sizes == want
