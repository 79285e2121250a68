"""Files and JSON from outside: regular, of a bounded size, of a bounded depth; what is not is refused without waiting."""

import io
import json
import os
import re
import socket
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npembed import load_model
from npembed.support import output_files as files
from npembed.support import reading
from npembed.support.output_files import load_tensors
from npembed.support.reading import MissingFileError, check_regular, json_object, json_value, open_regular, read_regular
from tests.command_line import assert_refused, npembed

posix = pytest.mark.skipif(os.name != "posix", reason="FIFOs, sockets and links as POSIX has them")


# Files


@posix
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        for name in ("fifo", "socket", "/dev/null", "/dev/zero"):
            for read in (open_regular, check_regular, lambda path: read_regular(path, 10)):
                with pytest.raises(ValueError, match=f"^{name} is no regular file$"):
                    read(name)
    with pytest.raises(ValueError, match=r"^who: \. is a folder, not a file$"):
        open_regular(".", who="who")


@posix
@pytest.mark.parametrize(
    "words",
    [
        "embed fifo",
        "embed /dev/zero",
        "embed sample.png --weights w",
        "golden check p o",
        "golden check pack o --json r.json",
        "check fifo.py",
        "check loop.py",
    ],
)
def test_a_fifo_where_a_file_should_be_is_refused_by_each_command(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("w", "p", "o"):
        Path(folder).mkdir()
    for name in ("fifo", "w/config.json", "p/manifest.json", "fifo.py", "sample.png"):
        os.mkfifo(name)
    Path("loop.py").symlink_to("loop.py")
    assert_refused(npembed(*words.split()), ".")


@posix
@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json"]
)
def test_a_fifo_in_a_checkpoint_is_refused(name: str, data: Path, tmp_path: Path) -> None:
    for path in (data / "tiny-minicpmv").iterdir():
        if path.name != name and not (name.endswith("index.json") and path.suffix == ".safetensors"):
            (tmp_path / path.name).symlink_to(path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=r"is no regular file|has neither"):
        load_model(tmp_path)


def test_a_file_that_is_missing_too_large_or_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with pytest.raises(MissingFileError, match=f"^who: {re.escape(str(path))} is missing$"):
        read_regular(path, 10, "who")
    path.write_bytes(bytes(11))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} has 11 bytes; at most 10 are read$"):
        read_regular(path, 10)
    assert read_regular(path, 11) == bytes(11)
    monkeypatch.setattr(reading, "open_regular", lambda *_: io.BytesIO(bytes(99)))
    with pytest.raises(ValueError, match=r"has more than 10 bytes$"):
        read_regular(path, 10)


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read all files")
def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(b"")
    path.chmod(0)
    assert_refused(npembed("embed", path), r"p\.png cannot be read: Permission denied")


def test_the_systems_refusal_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match=r"a\.json cannot be read: Permission denied$"):
        open_regular(tmp_path / "a.json")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="null"):
        open_regular("a\0b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "is a git-lfs pointer, not the file itself"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not the file itself"),
    ],
)
def test_what_lies_in_another_files_place_is_recognised(content: bytes, words: str, data: Path, tmp_path: Path) -> None:
    for path in (data / "tiny-minicpmv").iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {words}"):
            load_model(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(data / "tiny-minicpmv" / name)
    (tmp_path / "p.png").write_bytes(content)
    assert_refused(npembed("embed", tmp_path / "p.png"), words)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_tensors(tmp_path / "a.npz")


# JSON


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_json_is_read_as_pythons_own_reader_does(value: Any) -> None:
    text = json.dumps(value)
    assert json_value(text, "it") == json.loads(text)
    assert json_value(text.encode(), "it") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 1_000_000, "nested too deeply"),
        ("[" + "[]," * reading.MOST_NESTED + "[]]", "more than 1,000,000 objects and lists"),
        ('{"a": 1, "b": 2, "a": 3}', "has 'a' twice"),
        ('{"a": NaN}', "holds NaN, which is no JSON"),
        ("[-Infinity]", "holds -Infinity, which is no JSON"),
        ("1e999", "holds the number 1e999, which is beyond float64"),
        ("-" + "9" * 400, "which is beyond float64"),
        ("9" * 5000, "which is beyond float64"),
        ('"' + "\\" * 99_999, "cannot be read as JSON"),
        ("]" * 100_000, "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_json_that_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=f"^it .*{words}") as caught:
        json_value(text, "it")
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_json_as_deep_and_as_large_as_is_allowed() -> None:
    text = "[" * 64 + "]" * 64
    assert json_value(text, "it") == json.loads(text)
    assert json_value('"' + '[{"' * 0 + "[" * 999 + '"', "it") == "[" * 999
    assert json_value('["\\"[[", 1]', "it") == ['"[[', 1]
    assert json_value(f"[{2**1023}]", "it") == [2**1023]
    with pytest.raises(ValueError, match=r"^it must hold a JSON object; got list$"):
        json_object("[]", "it")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("content", ["[" * 10**5, '{"a": 1, "a": 2}', '{"x": NaN}', '{"x": ' + "9" * 5000 + "}"])
def test_a_config_that_is_no_good_json_is_refused(name: str, content: str, data: Path, tmp_path: Path) -> None:
    for path in (data / "tiny-minicpmv").iterdir():
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as JSON: it "):
        load_model(tmp_path)


def test_a_config_of_more_than_16_mb_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_bytes(b" " * (2**24 + 1))
    with pytest.raises(ValueError, match=r"config\.json has 16,777,217 bytes; at most 16,777,216 are read$"):
        load_model(tmp_path)


# .npz


def archive(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return path


def npy(shape: str, content: bytes, kind: str = "<f8") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", b"no array at all", r"its member 'a\.npy' is no array"),
        ("a", b"", "its member 'a' is no array"),
        ("a.npy", npy("(1000000000000,)", bytes(8)), "is an array of objects, or cut short"),
        ("a.npy", npy("(-1,)", bytes(8)), "cannot be read"),
        ("a.npy", npy("(1,)", bytes(8), "|O"), "is an array of objects, or cut short"),
        ("a\x1b[2J.npy", b"x", r"its member 'a\\\\x1b\[2J\.npy' is no array"),
    ],
)
def test_an_archive_with_what_is_no_array_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load_tensors(archive(tmp_path / "a.npz", name, content))
    assert str(caught.value).isprintable()


def test_what_an_archive_unpacks_to_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_TENSORS", 10_000)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(1200), b=np.zeros(100))
    assert path.stat().st_size < 1000
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: its arrays take 10,656 bytes; at most 10,000 are read$"):
        load_tensors(path)
    np.savez_compressed(path, a=np.zeros(1200))
    assert load_tensors(path)["a"].shape == (1200,)
