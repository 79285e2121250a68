"""The header of a safetensors file, and the interface's shared words."""

import json
import tracemalloc
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save

from npembed.weights.safetensors_header import MOST_HEADER, as_array, header_length, parse_header
from npembed.weights.source import Entry, json_object, public, weight_map

DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64}


def parse(data, where="x.safetensors"):
    length = header_length(data[:8], len(data), where)
    return parse_header(data[8 : 8 + length], len(data), where)


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more}


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__"),
        st.sampled_from(sorted(DTYPES)).flatmap(
            lambda name: hnp.arrays(np.uint8, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)).map(
                lambda bits: bits.astype(np.float64).astype(DTYPES[name]) / DTYPES[name](7)
            )
        ),
        max_size=5,
    )
)
def test_reads_what_safetensors_writes(arrays):
    data = save({name: np.asarray(array) for name, array in arrays.items()}, metadata={"format": "pt"})
    header = parse(data)
    assert set(header.entries) == set(arrays)
    for name, array in arrays.items():
        entry, begin = header.entries[name], header.begins[name]
        got = as_array(data[begin : begin + entry.nbytes], entry, name, "x")
        want = np.asarray(array).astype(np.float64 if entry.dtype == "F64" else np.float32)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        np.testing.assert_array_equal(got, want)


def test_agrees_with_the_checkpoint_s_own_reader(data):
    path = data / "tiny-minicpmv" / "model.safetensors"
    header, raw = parse(path.read_bytes()), path.read_bytes()
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(header.entries)
        for name, entry in header.entries.items():
            begin = header.begins[name]
            np.testing.assert_array_equal(as_array(raw[begin : begin + entry.nbytes], entry, name, "x"), file.get_tensor(name))


@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x3F80, 0x0001, 0x7F80, 0xFF80, 0x7FC0])
def test_widens_bfloat16_to_the_bit(bits):
    got = as_array(bits.to_bytes(2, "little"), Entry((), "BF16", 2), "a", "x")
    want = np.array(bits, np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    assert got.view(np.uint32) == want.view(np.uint32)


BAD = {
    "no file": (b"abc", r"it has only 3 bytes"),
    "2^62": (file_of(b"{}", length=2**62), r"it claims a header of 4,611,686,018,427,387,904 bytes; 25,000,000 are allowed"),
    "beyond the file": (file_of(b"{}", length=3), r"it claims a header of 3 bytes, but has 10"),
    "not JSON": (file_of(b"{nope"), r"its header cannot be read as JSON: Expecting property name"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), r"its header cannot be read as JSON: 'utf-8' codec can't decode"),
    "too deep": (file_of(b"[" * 100_000), r"its header cannot be read as JSON: it is nested too deeply"),
    "a list": (file_of(b"[]"), r"its header must hold a JSON object; got list"),
    "a name twice": (file_of(b'{"a": 1, "a": 2}'), r"its header cannot be read as JSON: it has 'a' twice"),
    "no object": (file_of({"a": 3}), r"'a' must have exactly dtype, shape and data_offsets; got '3'"),
    "one key too many": (file_of(one(offset=3), bytes(8)), r"'a' must have exactly dtype, shape and data_offsets"),
    "unknown dtype": (file_of(one("Q8"), bytes(8)), r"'a' is of the unknown dtype 'Q8'"),
    "dtype is no word": (file_of(one([]), bytes(8)), r"'a' is of the unknown dtype '\[\]'"),
    "negative shape": (file_of(one(shape=(-2,)), bytes(8)), r"'a' has the shape '\[-2\]'; it must be a list of whole"),
    "bool in the shape": (file_of(one(shape=(True, 2)), bytes(8)), r"'a' has the shape '\[True, 2\]'"),
    "fraction": (file_of(one(shape=(2.0,)), bytes(8)), r"'a' has the shape '\[2\.0\]'"),
    "huge shape": (file_of(one(shape=(2**62,) * 32), bytes(8)), r"'a' has 8 bytes, but shape .* of F32 takes"),
    "offsets turned": (file_of(one(offsets=(8, 0)), bytes(8)), r"'a' has the data_offsets '\[8, 0\]'"),
    "three offsets": (file_of(one(offsets=(0, 8, 8)), bytes(8)), r"'a' has the data_offsets '\[0, 8, 8\]'"),
    "offset of 2^64": (file_of(one(offsets=(0, 2**64)), bytes(8)), r"'a' has the data_offsets"),
    "too few bytes": (file_of(one(shape=(3,)), bytes(8)), r"'a' has 8 bytes, but shape \(3,\) of F32 takes 12"),
    "cut": (file_of(one(), bytes(7)), r"it must have \d+ bytes by its header; it has \d+"),
    "too long": (file_of(one(), bytes(9)), r"it must have \d+ bytes by its header; it has \d+"),
    "gap": (file_of(one(offsets=(4, 12)), bytes(12)), r"'a' leaves a gap of 4 bytes before it"),
    "overlap": (file_of(one() | {"b": one(offsets=(4, 12))["a"]}, bytes(12)), r"'b' overlaps the array before it"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(case):
    data, words = BAD[case]
    with pytest.raises(ValueError, match=f"^load_model: x is not a whole safetensors file: {words}") as caught:
        parse(data, "x")
    assert "\n" not in str(caught.value)


def test_a_long_header_with_a_name_many_times_is_refused_soon():
    text = b'{"a":0,' + b",".join(b'"b%d":0' % n for n in range(100_000)) + b',"a":0}'
    with pytest.raises(ValueError, match="it has 'a' twice"):
        parse(file_of(text))


def test_a_claim_costs_no_memory():
    tracemalloc.start()
    with pytest.raises(ValueError, match="claims a header"):
        header_length((2**62).to_bytes(8, "little"), 2**63, "x")
    assert tracemalloc.get_traced_memory()[1] < MOST_HEADER // 10
    tracemalloc.stop()


def test_refuses_types_that_are_no_floats_and_another_length():
    with pytest.raises(ValueError, match="'a' in x is of dtype I64; it must be one of F16, BF16, F32, F64"):
        as_array(bytes(8), Entry((1,), "I64", 8), "a", "x")
    with pytest.raises(ValueError, match="'a' in x must have 8 bytes; 4 came"):
        as_array(bytes(4), Entry((2,), "F32", 8), "a", "x")


@given(st.binary(max_size=60), st.integers(0, 200))
def test_a_mutated_header_is_read_or_refused(noise, at):
    good = file_of(one() | {"b": one(offsets=(8, 16))["a"]}, bytes(16))
    data = good[:at] + noise + good[at + len(noise) :]
    with suppress(ValueError):
        header = parse(data)
        assert sum(entry.nbytes for entry in header.entries.values()) < len(data)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://key:secret@bucket/m", "s3://bucket/m"),
        ("https://host/m?X-Amz-Signature=secret#secret", "https://host/m"),
        ("a\x1b[31m", "a?[31m"),
        ("/home/me/a@b?", "/home/me/a@b?"),
        ("ann:secret@host:m", "host:m"),
        ("ann:se:cr:et@host/m", "host/m"),
        (":secret@host/bob:secret@m", "host/m"),
        ("host:80/m", "host:80/m"),
        pytest.param("a:" * 50_000, "a:" * 50_000, id="a long text"),
    ],
)
def test_an_address_is_shown_without_credentials(address, shown):
    assert public(address) == shown


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "a\\b.safetensors", "..", "", ".safetensors", 3, "x.bin"]
)
def test_an_index_stays_inside_its_folder(file):
    with pytest.raises(ValueError, match=r"i\.json puts a into .*; it must be the name of a file inside the folder"):
        weight_map({"weight_map": {"a": file}}, "i.json")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_has_a_weight_map(index):
    with pytest.raises(ValueError, match="i is no index of shards"):
        weight_map(index, "i")


def test_json_is_utf_8_without_exceptions():
    assert json_object(b'{"a": 1}', "x") == {"a": 1}
    with pytest.raises(ValueError, match="x cannot be read as JSON"):
        json_object('{"a": 1}'.encode("utf-16"), "x")
