"""Files: arrays come back bit for bit, a file is replaced whole or left alone, and what cannot be read or written is said."""

import errno
import json
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from npembed.support.output_files import SUFFIXES, check_output, is_own_output, load_tensors, replacing, save_tensors

posix = pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")

BOTH_READ = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
DTYPES = {".safetensors": [*BOTH_READ, ml_dtypes.bfloat16], ".npz": BOTH_READ}
NAMES = st.sampled_from(["embeddings", "strips.0", "vpm.embeddings.patch_embedding.weight", "ä ×", "tgt_sizes"])
VIEWS = [
    lambda array: array,
    lambda array: array.T,
    lambda array: array[::-1] if array.ndim else array,
    lambda array: array[..., ::2] if array.ndim else array,
    lambda array: np.broadcast_to(array, (2, *array.shape)),
    np.asfortranarray,
]


@st.composite
def named_arrays(draw: st.DrawFn, suffix: str) -> dict[str, NDArray[Any]]:
    """Arrays of any bits (NaN among them), of rank 0 up, empty ones, and views that are not contiguous."""
    arrays = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        dtype = np.dtype(draw(st.sampled_from(DTYPES[suffix])))
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        size = int(np.prod(shape)) * dtype.itemsize
        top = 1 if dtype.kind == "b" else 255
        content = draw(st.lists(st.integers(0, top), min_size=size, max_size=size))
        array = np.array(content, dtype=np.uint8).view(dtype).reshape(shape)
        arrays[name] = draw(st.sampled_from(VIEWS))(array)
    return arrays


def same_bits(came: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> bool:
    def fields(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}

    return fields(came) == fields(expected)


# Arrays in a file


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
def test_arrays_come_back_bit_for_bit(suffix: str, data: st.DataObject) -> None:
    arrays = data.draw(named_arrays(suffix))
    before = {name: array.copy() for name, array in arrays.items()}
    with TemporaryDirectory() as folder:
        path = Path(folder, "a b é" + suffix)
        save_tensors(path, arrays, {"stage": "hidden"})
        assert same_bits(load_tensors(path), before)
        assert same_bits(load_tensors(str(path)), before)
        assert os.listdir(folder) == [path.name]
    assert same_bits(arrays, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_in_the_other_order_are_the_same_numbers(suffix: str, tmp_path: Path) -> None:
    save_tensors(tmp_path / f"a{suffix}", {"a": np.arange(3, dtype=">f4"), "b": np.arange(3, dtype=">i8")}, {})
    found = load_tensors(tmp_path / f"a{suffix}")
    assert (found["a"].tolist(), found["b"].tolist()) == ([0, 1, 2], [0, 1, 2])


@given(data=st.data())
def test_safetensors_own_reader_reads_what_is_written(data: st.DataObject) -> None:
    arrays = data.draw(named_arrays(".safetensors"))
    with TemporaryDirectory() as folder:
        save_tensors(Path(folder, "a.safetensors"), arrays, METADATA)
        assert same_bits(load_file(Path(folder, "a.safetensors")), arrays)
        content = Path(folder, "a.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == METADATA
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert begin % arrays[name].itemsize == 0, "so that a reader can map it"
        assert content[8 + length :][begin:end] == arrays[name].tobytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
def test_equal_arrays_and_metadata_give_equal_bytes(suffix: str, data: st.DataObject) -> None:
    """In whichever order the metadata is given, and in safetensors the arrays."""
    arrays = data.draw(named_arrays(suffix))
    metadata = data.draw(st.permutations(list(METADATA.items())))
    order = data.draw(st.permutations(list(arrays.items()))) if suffix == ".safetensors" else list(arrays.items())
    with TemporaryDirectory() as folder:
        save_tensors(Path(folder, "a" + suffix), arrays, METADATA)
        save_tensors(Path(folder, "b" + suffix), dict(order), dict(metadata))
        assert Path(folder, "a" + suffix).read_bytes() == Path(folder, "b" + suffix).read_bytes()


def test_an_output_of_npembeds_own_is_known_by_its_metadata(tmp_path: Path) -> None:
    save_tensors(tmp_path / "own.safetensors", {"a": np.zeros(2)}, {"npembed": "1", "stage": "hidden"})
    save_tensors(tmp_path / "other.safetensors", {"a": np.zeros(2)}, {"format": "pt"})
    for name, content in {"text": b"text", "empty": b"", "list": b"\x02" + bytes(7) + b"[]", "long": b"\xff" * 8}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    (tmp_path / "own.json").write_bytes((tmp_path / "own.safetensors").read_bytes())
    assert [path.name for path in tmp_path.iterdir() if is_own_output(path)] == ["own.safetensors"]


METADATA = {"rule": "arange", "images": '["a \\" b", "é"]', "empty": ""}


def test_safetensors_metadata_is_its_own(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": np.zeros(2)}, METADATA)
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.metadata() == METADATA


def test_npz_metadata_is_json_text_beside_the_arrays(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.npz", {"a": np.zeros(2)}, METADATA)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["a", "metadata"]
        assert json.loads(arrays["metadata"].item()) == METADATA
    assert list(load_tensors(tmp_path / "a.npz")) == ["a"]


def test_a_dtype_that_the_format_lacks_is_refused_and_the_old_file_kept(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be written: Unknown dtype"):
        save_tensors(tmp_path / "a.safetensors", {"a": np.array(["text"])}, {})
    assert contents(tmp_path) == {"a.safetensors": b"old"}


def test_a_file_of_another_kind_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the output .*a\.npy must end in \.safetensors or \.npz$"):
        save_tensors(tmp_path / "a.npy", {"a": np.zeros(1)}, {})
    assert contents(tmp_path) == {}


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}, None]))
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: its member 'a\.npy' is an array of objects"):
        load_tensors(tmp_path / "a.npz")


# A file that cannot be read


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
def test_a_file_cut_anywhere_is_refused(suffix: str, share: float) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "a" + suffix)
        save_tensors(path, {"a": np.arange(40.0), "b": np.arange(7)}, METADATA)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} cannot be read: "):
            load_tensors(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(
    content=st.binary(max_size=200)
    | st.binary(max_size=60).map(b"PK\x03\x04".__add__)
    | st.binary(max_size=60).map(b"\x93NUMPY".__add__)
)
def test_garbage_is_refused(suffix: str, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "a" + suffix)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read: |is a git-lfs pointer"):  # Hypothesis knows how one begins
            load_tensors(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_wrong_bytes_give_arrays_or_the_one_error(suffix: str, places: list[tuple[float, int]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "a" + suffix)
        save_tensors(path, {"a": np.arange(6.0), "b": np.arange(3)}, METADATA)
        content = bytearray(path.read_bytes())
        for share, byte in places:
            content[int(share * len(content))] = byte
        path.write_bytes(content)
        refused, found = None, {}
        try:
            found = load_tensors(path)
        except ValueError as error:
            refused = str(error)
        assert refused is None or refused.startswith(f"{path} cannot be read: ")
        assert all(isinstance(array, np.ndarray) for array in found.values())


def test_what_is_not_there_or_not_of_the_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match=r"none\.npz is missing$"):
        load_tensors(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"folder\.npz is a folder, not a file$"):
        load_tensors(tmp_path / "folder.npz")
    with pytest.raises(ValueError, match=r"a\.npy must end in \.safetensors or \.npz$"):
        load_tensors(tmp_path / "a.npy")


@pytest.mark.parametrize("missing", ["safetensors", "ml_dtypes"])
def test_without_the_extra_only_npz_works(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"old")
    monkeypatch.setitem(sys.modules, missing, None)
    message = r"^safetensors files need safetensors and ml_dtypes: pip install 'npembed\[weights\]'$"
    with pytest.raises(ImportError, match=message):
        load_tensors(tmp_path / "a.safetensors")
    with pytest.raises(ImportError, match=message):
        save_tensors(tmp_path / "a.safetensors", {"a": np.zeros(1)}, {})
    assert contents(tmp_path) == {"a.safetensors": b"old"}
    save_tensors(tmp_path / "a.npz", {"a": np.zeros(1)}, {})
    assert load_tensors(tmp_path / "a.npz")["a"].tolist() == [0.0]


# A file that is replaced whole or left alone


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_half(target: Path, error: BaseException) -> None:
    with replacing(target) as beside:
        beside.write_bytes(b"half")
        raise error


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a.npz"
    target.write_bytes(b"old")
    with replacing(target) as beside:
        assert beside.parent == tmp_path
        assert beside.suffix == ".npz", "some writers add a suffix of their own"
        beside.write_bytes(b"half")
        assert target.read_bytes() == b"old"
        beside.write_bytes(b"whole")
    assert contents(tmp_path) == {"a.npz": b"whole"}


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert contents(tmp_path) == {"a": b"first"}


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), KeyboardInterrupt(), SystemExit(3)], ids=type)
@pytest.mark.parametrize("old", [b"old", None])
def test_a_block_that_fails_leaves_all_as_it_was(error: BaseException, old: bytes | None, tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(type(error)):
        write_half(target, error)
    assert contents(tmp_path) == ({} if old is None else {"a.json": old})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("in words alone"), "in words alone"),
    ],
)
def test_the_file_systems_refusal_is_put_in_words(error: OSError, words: str, tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match=f"^{re.escape(str(target))} cannot be written: {words}$"):
        write_half(target, error)
    assert contents(tmp_path) == {"a.json": b"old"}


@posix
def test_where_there_is_no_folder_or_one_in_the_way_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_bytes(b"kept")
    for path, words in (("none/a", "No such file"), ("file/a", "Not a directory"), ("folder", "Is a directory")):
        with (
            pytest.raises(ValueError, match=f"{path} cannot be written: {words}") as refused,
            replacing(tmp_path / path) as beside,
        ):
            beside.write_bytes(b"new")
        assert ".npembed" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inner"]


@posix
@pytest.mark.parametrize("link_to", ["real.json", "link.json", "gone.json", "sub/real.json"])
def test_a_link_stays_one_and_its_target_is_replaced(link_to: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for path in ("real.json", "sub/real.json"):
        (tmp_path / path).write_bytes(b"old")
    (tmp_path / "link.json").symlink_to("real.json")
    link = tmp_path / "outer.json"
    link.symlink_to(link_to)
    with replacing(link) as beside:
        assert beside.parent == (tmp_path / link_to).resolve().parent
        beside.write_bytes(b"new")
    assert link.is_symlink()
    assert os.readlink(link) == link_to
    assert link.read_bytes() == (tmp_path / link_to).read_bytes() == b"new"
    assert (tmp_path / "link.json").is_symlink()


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_new_file_gets_the_mode_that_any_new_file_gets(suffix: str, umask: int, tmp_path: Path) -> None:
    save_tensors(tmp_path / f"a{suffix}", {"a": np.zeros(1)}, {})
    assert oct(mode(tmp_path / f"a{suffix}")) == oct(0o666 & ~umask)


@posix
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0o600, 0o644, 0o664, 0o755], ids=oct)
def test_an_old_file_keeps_its_mode(suffix: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    path.chmod(kept)
    save_tensors(path, {"a": np.zeros(1)}, {})
    assert oct(mode(path)) == oct(kept)
    assert load_tensors(path)["a"].tolist() == [0.0]


def test_a_write_that_stops_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(array: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.safetensors").write_bytes(b"old")
    monkeypatch.setattr("npembed.support.output_files._little_endian", full)
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be written: .*No space left on device$"):
        save_tensors(tmp_path / "a.safetensors", {"a": np.zeros(1)}, {})
    assert contents(tmp_path) == {"a.safetensors": b"old"}


# Found out before the work


def test_an_output_that_can_be_written_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "old.npz").write_bytes(b"old")
    for name in ("new.npz", "old.npz", "new.safetensors", "ä b.npz"):
        assert check_output(str(tmp_path / name), SUFFIXES) == tmp_path / name
    assert check_output(tmp_path / "any.html") == tmp_path / "any.html"
    assert contents(tmp_path) == {"old.npz": b"old"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", r"the output .*a\.txt must end in \.safetensors or \.npz$"),
        ("a", r"the output .*a must end in \.safetensors or \.npz$"),
        (".npz", r"the output .*\.npz must end in \.safetensors or \.npz$"),
        ("a.NPZ", r"the output .*a\.NPZ must end in \.safetensors or \.npz$"),
        ("folder.npz", r"the output .*folder\.npz is a folder$"),
        ("none/a.npz", r"the output's folder .*none does not exist$"),
        ("file/a.npz", r"the output's folder .*file does not exist$"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path / name, SUFFIXES)


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(ValueError, match=f"^the output's folder {re.escape(str(tmp_path.resolve()))} cannot be written to$"):
        check_output(tmp_path / "a.npz", SUFFIXES)
    assert asked == [(tmp_path.resolve(), os.W_OK)]


@posix
def test_through_a_link_it_is_the_targets_folder_that_counts(tmp_path: Path) -> None:
    (tmp_path / "a.npz").symlink_to("none/b.npz")
    with pytest.raises(ValueError, match=r"the output's folder .*none does not exist$"):
        check_output(tmp_path / "a.npz", SUFFIXES)


@posix
@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555, 0o000], ids=oct)
def test_a_read_only_file_is_not_replaced(mode: int, tmp_path: Path) -> None:
    """By its mode, because the superuser may write to all."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    path.chmod(mode)
    with pytest.raises(ValueError, match=r"^the output .*a\.json is read-only$"):
        check_output(path)
    with pytest.raises(ValueError, match=r"^the output .*a\.json is read-only$"), replacing(path) as beside:
        beside.write_bytes(b"new")
    path.chmod(0o644)
    assert contents(tmp_path) == {"a.json": b"old"}


@posix
@pytest.mark.parametrize("kind", ["fifo", "link to fifo", "socket", "device"])
def test_what_is_no_regular_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(path))
    else:
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to("fifo") if "link" in kind else (tmp_path / "fifo").rename(path)
    before = path.stat()
    with pytest.raises(ValueError, match=r"^the output .*a\.json is no regular file$"):
        check_output(path)
    if kind != "device":  # whose folder is the system's
        with pytest.raises(ValueError, match=r"^the output .*a\.json is no regular file$"), replacing(path) as beside:
            beside.write_bytes(b"new")
    assert path.stat() == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".npembed")]


@posix
def test_what_turns_up_while_the_file_is_written_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="is no regular file"), replacing(path) as beside:  # noqa: PT012
        beside.write_bytes(b"new")
        os.mkfifo(path)
    assert os.listdir(tmp_path) == ["a.json"]


SPELLINGS = {
    "the same": lambda folder: folder / "in.json",
    "a detour": lambda folder: folder / "sub" / ".." / "in.json",
    "a link": lambda folder: linked(folder / "link.json", folder / "in.json"),
    "a link to a link": lambda folder: linked(folder / "outer", linked(folder / "link.json", folder / "in.json")),
    "a hard link": lambda folder: linked(folder / "hard.json", folder / "in.json", hard=True),
    "a linked folder": lambda folder: linked(folder / "here", folder) / "in.json",
}


def linked(path: Path, target: Path, hard: bool = False) -> Path:
    path.hardlink_to(target) if hard else path.symlink_to(target)
    return path


@posix
@pytest.mark.parametrize("output", SPELLINGS)
@pytest.mark.parametrize("given_as", ["the same", "a link"])
def test_an_input_is_no_output_by_any_spelling_or_link(output: str, given_as: str, tmp_path: Path) -> None:
    for folder in ("", "other"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    (tmp_path / "in.json").write_bytes(b"old")
    source = (
        SPELLINGS[given_as](tmp_path) if given_as == "the same" else linked(tmp_path / "other" / "in", tmp_path / "in.json")
    )
    path = SPELLINGS[output](tmp_path)
    with pytest.raises(ValueError, match=r"^the output .* is (an input|the input .*)$"):
        check_output(path, inputs=[tmp_path / "none", source])
    assert check_output(tmp_path / "else.json", inputs=[source]) == tmp_path / "else.json"


@posix
def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    linked(tmp_path / "a.json", tmp_path / "b.json")
    linked(tmp_path / "b.json", tmp_path / "a.json")
    for write in (check_output, lambda path: replacing(path).__enter__()):
        with pytest.raises(ValueError, match=r"a\.json cannot be written: "):
            write(tmp_path / "a.json")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]
