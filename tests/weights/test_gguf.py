"""GGUF: the container's bounds, the numbers, and mmproj files as sources."""

import json
import random
import struct
import tempfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

gguf = pytest.importorskip("gguf")

from npembed import embed, encode, load_model, resample  # noqa: E402
from npembed.weights.gguf import GgufFile  # noqa: E402
from npembed.weights.mmproj import GgufSource  # noqa: E402
from npembed.weights.ranges import LocalFile  # noqa: E402
from tests.gguf_files import (  # noqa: E402
    ARRAY,
    BOOL,
    CLIP,
    F32,
    I32,
    TEXT,
    U32,
    U64,
    Written,
    container,
    pair,
    record,
    text,
)

SIX = "minicpm-v-2_6"
"""The fixtures that were made from tiny-minicpmv, by the rest of their names, with each type's relative rounding."""
ROUNDING = {"f32": 2**-11, "f16": 2**-11, "unswapped.f16": 2**-11, "2024.f16": 2**-11, "q8_0": 1 / 254 + 2**-11, "q4_k": 6.2e-2}
EVERY = [f"{SIX}.{kind}" for kind in ROUNDING] + ["minicpm-llama3-v-2_5.f16", "minicpm-v-4_5.f32", "minicpm-v-4_5.q8_0"]
EVERY += ["minicpm-v-4_6.q8_0", "idefics3.q8_0", "smolvlm-512-16.q8_0"]


class Memory:
    """Bytes as a file that is read by parts; it notes which."""

    where = "f.gguf"

    def __init__(self, content):
        self.content, self.size, self.parts = content, len(content), []

    def read(self, begin, length):
        assert 0 <= begin <= begin + length <= self.size
        self.parts.append((begin, length))
        return self.content[begin : begin + length]


@contextmanager
def peak():
    """A list that holds the most bytes that were allocated at once, when the block is over."""
    found = []
    tracemalloc.start()
    try:
        yield found
    finally:
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


@pytest.fixture
def files(data):
    return data / "gguf"


@pytest.fixture
def written(files):
    return Written(files / f"{SIX}.f16.gguf")


@pytest.mark.parametrize("name", EVERY)
def test_reads_as_the_package_does(files, name):
    ours, theirs = GgufFile(files / f"{name}.gguf"), gguf.GGUFReader(files / f"{name}.gguf")
    assert ours.metadata == {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.entries) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        entry, got = ours.entries[tensor.name], ours.read(tensor.name)
        assert (entry.dtype, entry.nbytes) == (tensor.tensor_type.name, tensor.n_bytes)
        assert got.shape == entry.shape == tuple(tensor.shape[::-1])
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(got.shape))


def q4_0(block):
    """Source: WEIGHTS.md A.6, one number at a time."""
    scale, low = np.float32(struct.unpack("<e", block[:2])[0]), [byte & 15 for byte in block[2:]]
    return [scale * np.float32(q - 8) for q in low + [byte >> 4 for byte in block[2:]]]


def q5_0(block):
    scale, high = np.float32(struct.unpack("<e", block[:2])[0]), int.from_bytes(block[2:6], "little")
    nibbles = [byte & 15 for byte in block[6:]] + [byte >> 4 for byte in block[6:]]
    return [scale * np.float32(q + 16 * (high >> k & 1) - 16) for k, q in enumerate(nibbles)]


def q8_0(block):
    scale = np.float32(struct.unpack("<e", block[:2])[0])
    return [scale * np.float32(q) for q in np.frombuffer(block[2:], np.int8).tolist()]


def q4_k(block):
    scale, least = (np.float32(value) for value in struct.unpack("<ee", block[:4]))
    s, values = block[4:16], []
    for g in range(8):
        if g < 4:
            wide, low = s[g] & 63, s[4 + g] & 63
        else:
            wide, low = (s[4 + g] & 15) | (s[g - 4] >> 6) << 4, (s[4 + g] >> 4) | (s[g] >> 6) << 4
        run_ = block[16 + g // 2 * 32 : 16 + g // 2 * 32 + 32]
        values += [
            scale * np.float32(wide) * np.float32(byte >> 4 if g % 2 else byte & 15) - least * np.float32(low) for byte in run_
        ]
    return values


@pytest.mark.parametrize(("kind", "size", "plain"), [(2, 18, q4_0), (6, 22, q5_0), (8, 34, q8_0), (12, 144, q4_k)])
def test_dequantises_as_written_down(kind, size, plain):
    noise = bytearray(np.random.default_rng(kind).integers(0, 256, 6 * size, np.uint8).tobytes())
    for at in range(0, len(noise), size):  # scales that are finite
        noise[at : at + 2], noise[at + 2 : at + 4] = (
            struct.pack("<e", 0.37),
            struct.pack("<e", 0.11) if kind == 12 else noise[at + 2 : at + 4],
        )
    width = len(plain(bytes(noise[:size])))
    file = GgufFile(Memory(container([CLIP], [record("a", (3, 2 * width), kind)], bytes(noise))))
    want = [number for at in range(0, len(noise), size) for number in plain(bytes(noise[at : at + size]))]
    np.testing.assert_array_equal(file.read("a"), np.array(want, np.float32).reshape(3, 2 * width))


def test_reads_only_what_is_asked_for(files):
    memory = Memory((files / f"{SIX}.f16.gguf").read_bytes())
    source = GgufSource(memory)
    header = sum(length for _, length in memory.parts)
    assert header <= 2**16
    memory.parts.clear()
    source.read("vpm.embeddings.patch_embedding.weight")
    assert [length for _, length in memory.parts] == [48 * 3 * 14 * 14 * 2]


def test_a_float64_stays_one():
    file = GgufFile(Memory(container([CLIP], [record("a", (3,), 28)], np.array([1, 2, 1e-300]).tobytes())))
    assert file.read("a").tolist() == [1, 2, 1e-300]


GOOD = record("a", (2, 4))
DATA = bytes(32)
HUGE = 2**60
LIES = {
    "empty": (b"", "is no GGUF file"),
    "other magic": (b"GGML" + bytes(40), "is no GGUF file"),
    "version 1": (container([CLIP], [GOOD], DATA, version=1), "is a GGUF file of version 1; versions 2 and 3 are read"),
    "version 4": (container([CLIP], [GOOD], DATA, version=4), "is a GGUF file of version 4; versions 2 and 3 are read"),
    "big-endian": (container([CLIP], [GOOD], DATA, version=3 << 24), "is a big-endian GGUF file; only little-endian ones"),
    "arrays": (container([CLIP], [], arrays=HUGE), "claims 1,152,921,504,606,846,976 arrays; at most 65,536 are read"),
    "pairs": (container([CLIP], [], count=HUGE), "claims 1,152,921,504,606,846,976 pairs of key and value; at most 65,536"),
    "key": (container([struct.pack("<Q", HUGE)], []), "claims 1,152,921,504,606,846,976 bytes of a key; at most 65,535"),
    "no UTF-8 in a key": (container([pair(b"\xff\xfe", U32, 1)], []), r"has a key that is not UTF-8: b'\\xff\\xfe'"),
    "no UTF-8 in a text": (container([pair("k", TEXT, b"\xff")], []), "has the text of 'k' that is not UTF-8"),
    "no UTF-8 in a name": (container([CLIP], [record(b"\xff", (2,))], DATA), "has an array's name that is not UTF-8"),
    "text past the end": (
        container([text("k") + struct.pack("<IQ", TEXT, 2**20)], []),
        "is cut short or damaged: the text of 'k'",
    ),
    "text of 2^60": (container([text("k") + struct.pack("<IQ", TEXT, HUGE)], []), "claims 1,152,.* bytes of the text of 'k'"),
    "u8 array of 2^40": (
        container([text("k") + struct.pack("<IIQ", ARRAY, 0, 2**40)], []),
        "is cut short or damaged: 'k' takes 1,099,511,627,776 bytes, the file has",
    ),
    "array of texts": (
        container([text("k") + struct.pack("<IIQ", ARRAY, TEXT, HUGE)], []),
        "is cut short or damaged: 'k' claims 1,152,.* texts",
    ),
    "array of arrays": (
        container([text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)], []),
        "gives 'k' the kind 9, which is unknown",
    ),
    "unknown kind": (container([text("k") + struct.pack("<II", 13, 1)], []), "gives 'k' the kind 13, which is unknown"),
    "bool of 2": (container([text("k") + struct.pack("<IB", BOOL, 2)], []), "gives 'k' a truth value that is neither 0 nor 1"),
    "key twice": (container([CLIP, CLIP], []), "has the key 'general.architecture' twice"),
    "no architecture": (
        container([pair("k", U32, 1)], []),
        "states no general.architecture; an mmproj file, 'clip', is needed",
    ),
    "architecture is a number": (container([pair("general.architecture", U32, 3)], []), "is of the architecture '3'"),
    "name of 65 bytes": (container([CLIP], [record("a" * 65, (2,))], DATA), "claims 65 bytes of an array's name; at most 64"),
    "name twice": (container([CLIP], [record("a", (2,)), record("a", (2,), 0, 32)], bytes(64)), "has the array 'a' twice"),
    "five dimensions": (container([CLIP], [record("a", (1,) * 5)], DATA), "gives 'a' 5 dimensions; from 1 to 4 are read"),
    "no dimension": (container([CLIP], [record("a", ())], DATA), "gives 'a' 0 dimensions; from 1 to 4 are read"),
    "empty axis": (container([CLIP], [record("a", (2, 0))], DATA), r"gives 'a' the shape \(2, 0\), which has an empty axis"),
    "shape of 2^240": (container([CLIP], [record("a", (HUGE,) * 4)], DATA), "is cut short or damaged: 'a' ends at byte"),
    "unknown type": (
        container([CLIP], [record("a", (2,), 99)], DATA),
        "gives 'a' the type 99, which the package gguf does not",
    ),
    "removed type": (container([CLIP], [record("a", (2,), 4)], DATA), "gives 'a' the type 4, which the package gguf does not"),
    "row of half a block": (
        container([CLIP], [record("a", (2, 48), 8)], DATA),
        "gives 'a' rows of 48 numbers; Q8_0 takes a multiple",
    ),
    "unaligned": (container([CLIP], [record("a", (2,), 0, 16)], bytes(64)), "puts 'a' at 16, which is no multiple of 32"),
    "offset outside": (container([CLIP], [record("a", (8,), 0, 32)], DATA), "is cut short or damaged: 'a' ends at byte"),
    "offset of 2^64 - 32": (
        container([CLIP], [record("a", (8,), 0, 2**64 - 32)], DATA),
        "is cut short or damaged: 'a' ends at",
    ),
    "overlap": (
        container([CLIP], [record("a", (16,)), record("b", (8,), 0, 32)], bytes(96)),
        "puts 'b' at 32, where another array is",
    ),
    "alignment 0": (
        container([CLIP, pair("general.alignment", U32, 0)], []),
        "has the general.alignment '0'; it must be a power of",
    ),
    "alignment 24": (container([CLIP, pair("general.alignment", U32, 24)], []), "has the general.alignment '24'; it must be"),
    "alignment is a text": (container([CLIP, pair("general.alignment", TEXT, "x")], []), "has the general.alignment 'x'"),
    "records missing": (
        container([CLIP], [GOOD], b"", arrays=3, alignment=1),
        "is cut short or damaged: an array's name|bytes of",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_refuses_a_file_that_lies(case):
    content, words = LIES[case]
    with peak() as memory, pytest.raises(ValueError, match=f"^load_model: f.gguf {words}") as caught:
        GgufFile(Memory(content))
    assert memory[0] < 2**20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [3, 12, 30, 500, 3000, 100_000])
def test_refuses_a_file_that_is_cut(files, length):
    content = (files / f"{SIX}.f16.gguf").read_bytes()[:length]
    with pytest.raises(ValueError, match=r"load_model: f\.gguf is (no GGUF file|cut short or damaged)"):
        GgufFile(Memory(content))


def test_refuses_a_language_model_before_its_vocabulary():
    words = [f"word {n}" for n in range(100_000)]
    pairs = [pair("general.architecture", TEXT, "qwen2"), pair("tokenizer.ggml.tokens", ARRAY, (TEXT, words))]
    memory = Memory(container(pairs, []))
    with pytest.raises(ValueError, match="is of the architecture 'qwen2'; an mmproj file, 'clip', is needed, not the language"):
        GgufFile(memory)
    assert sum(length for _, length in memory.parts) <= 2**16


def test_a_header_is_of_some_bytes_at_most():
    pairs = [pair(f"k{n}", TEXT, "x" * 2**20) for n in range(6)]
    with pytest.raises(ValueError, match=r"the text of 'k3' takes 1,048,576 bytes, the header may have 1,048,\d+ left"):
        GgufFile(Memory(container([CLIP, *pairs], [])))


@pytest.mark.parametrize("kind", ["I8", "I32"])
def test_refuses_to_read_whole_numbers(kind):
    number = gguf.GGMLQuantizationType[kind]
    file = GgufFile(Memory(container([CLIP], [record("a", (8,), number)], bytes(32))))
    with pytest.raises(ValueError, match=f"'a' in f.gguf is of type {kind}, which cannot be dequantised"):
        file.read("a")


def test_refuses_a_type_that_the_package_cannot_dequantise():
    file = GgufFile(Memory(container([CLIP], [record("a", (256,), 15)], bytes(320))))
    with pytest.raises(ValueError, match=r"'a' in f\.gguf is of type Q8_K, which cannot be dequantised"):
        file.read("a")


def test_notices_that_the_file_has_changed(files, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes((files / f"{SIX}.f16.gguf").read_bytes())
    source = GgufSource(path)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ValueError, match=r"m\.gguf has changed since it was first read"):
        source.read("resampler.query")
    path.unlink()
    with pytest.raises(ValueError, match=r"m\.gguf is missing"):
        source.read("resampler.query")
    with pytest.raises(ValueError, match=r"m\.gguf is missing"):
        LocalFile(path)


def test_says_which_extra_it_needs(monkeypatch, files):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'npembed\[gguf\]'"):
        GgufFile(files / f"{SIX}.f16.gguf")


@pytest.mark.parametrize("seed", range(500))
def test_a_mutated_file_is_read_or_refused(files, seed):
    rng = random.Random(seed)
    content = bytearray(_small(files))
    header = min(begin for begin, _ in _SMALL["places"])
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(header) if rng.random() < 0.9 else rng.randrange(24)
        width = rng.choice((1, 1, 4, 8))
        content[at : at + width] = rng.choice(
            (rng.randbytes(width), b"\xff" * width, bytes(width), (2 ** rng.randrange(8 * width)).to_bytes(width, "little"))
        )
    if rng.random() < 0.2:
        del content[rng.randrange(len(content)) :]
    words = ""
    with peak() as memory:
        try:
            file = GgufFile(Memory(bytes(content)))
            source = GgufSource(Memory(bytes(content)))
            arrays = [file.read(name) for name in file.entries] + [source.read(name) for name in source.names()]
        except ValueError as error:
            words = str(error)
        else:
            assert all(array.dtype in (np.float32, np.float64) for array in arrays)
    assert not words or words.startswith("load_model: ")
    assert "\n" not in words
    assert memory[0] < 40 * len(content) + 2**20


_SMALL = {}


def _small(files):
    """A whole mmproj file of a few kilobytes, its header included."""
    if not _SMALL:
        rng = np.random.default_rng(0)
        shapes = {"v.patch_embd.weight": (8, 3, 2, 2), "v.patch_embd.bias": (8,), "v.position_embd.weight": (9, 8)}
        block = {"ln1.weight": (8,), "ffn_down.weight": (16, 8), "ffn_down.bias": (16,), "ffn_up.weight": (8, 16)}
        shapes |= {f"v.blk.{n}.{name}": shape for n in (0, 1) for name, shape in block.items()}
        shapes |= {"resampler.query": (4, 32), "resampler.proj.weight": (32, 32), "resampler.kv.weight": (32, 8)}
        made = Written(files / f"{SIX}.f16.gguf")
        made.pairs["clip.vision.patch_size"] = (U32, 2)
        made.pairs["clip.vision.embedding_length"] = (U32, 8)
        made.pairs["clip.vision.feed_forward_length"] = (U32, 16)
        made.pairs["clip.vision.block_count"] = (U32, 2)
        made.pairs["clip.minicpmv_query_num"] = (U32, 4)
        made.arrays = {name: (shape, 0, rng.normal(size=shape).astype(np.float32).tobytes()) for name, shape in shapes.items()}
        made.arrays["resampler.proj.weight"] = (
            (32, 32),
            8,
            gguf.quants.quantize(rng.normal(size=(32, 32)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0).tobytes(),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = made.write(Path(folder) / "small.gguf")
            memory = Memory(path.read_bytes())
            source = GgufSource(memory)
            memory.parts.clear()
            assert all(source.read(name) is not None for name in source.names())
            _SMALL["content"], _SMALL["places"] = memory.content, memory.parts
    return _SMALL["content"]


# mmproj files as sources


def checkpoint_of(data):
    return load_file(data / "tiny-minicpmv" / "model.safetensors")


@pytest.mark.parametrize("kind", ROUNDING)
def test_arrays_are_the_checkpoint_s_within_the_type_s_rounding(data, files, kind):
    source, want = GgufSource(files / f"{SIX}.{kind}.gguf"), checkpoint_of(data)
    assert set(source.names()) == {name for name in want if not name.startswith("llm.")}
    for name, entry in source.names().items():
        got, scale = source.read(name), np.abs(want[name]).max()
        assert got.shape == entry.shape == want[name].shape
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want[name], rtol=0, atol=ROUNDING[kind] * scale, err_msg=name)
        if entry.dtype == "F32":
            np.testing.assert_array_equal(got, want[name], err_msg=name)
        if entry.dtype == "F16":
            np.testing.assert_array_equal(got, want[name].astype(np.float16).astype(np.float32), err_msg=name)


def test_every_array_of_four_and_a_half_is_mapped_alike(files):
    exact, rounded = (GgufSource(files / f"minicpm-v-4_5.{kind}.gguf") for kind in ("f32", "q8_0"))
    assert exact.names().keys() == rounded.names().keys()
    for name in exact.names():
        want = exact.read(name)
        np.testing.assert_allclose(rounded.read(name), want, rtol=0, atol=(1 / 254 + 2**-11) * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("name", EVERY)
def test_an_entry_tells_the_shape_that_is_read(files, name):
    source = GgufSource(files / f"{name}.gguf")
    for array, entry in source.names().items():
        assert source.read(array).shape == entry.shape
    ignored = source.file.entries.get("resampler.pos_embed_k")
    assert sum(entry.nbytes for entry in source.names().values()) + (ignored.nbytes if ignored else 0) == sum(
        entry.nbytes for entry in source.file.entries.values()
    )


def folder_of(source, folder):
    """The source as a checkpoint's folder."""
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps(source.json(name)))
    save_file({name: source.read(name) for name in source.names()}, folder / "model.safetensors")
    return folder


TOKENS = {"f32": 7e-4, "f16": 1.7e-3, "unswapped.f16": 1.7e-3, "2024.f16": 1.7e-3, "q8_0": 2.6e-2, "q4_k": 3e-1}


@pytest.mark.parametrize("kind", TOKENS)
def test_the_config_and_the_arrays_make_the_checkpoint_s_tokens(data, files, tmp_path, kind):
    theirs = load_model(data / "tiny-minicpmv", until="tokens")
    ours = load_model(folder_of(GgufSource(files / f"{SIX}.{kind}.gguf"), tmp_path / "m"), until="tokens")
    assert ours.config == theirs.config
    rng = np.random.default_rng(0)
    strips, sizes = [rng.uniform(-1, 1, (3, 14, h * w * 14)).astype(np.float32) for h, w in ((5, 7), (6, 4))], [[5, 7], [6, 4]]
    got, want = (resample(encode(embed(strips, sizes, m), sizes, m), sizes, m) for m in (ours, theirs))
    np.testing.assert_allclose(got, want, rtol=0, atol=TOKENS[kind] * np.abs(want).max())


def test_a_swap_told_by_name_would_be_caught(files, written, tmp_path):
    """The unswapped file read as if it were swapped differs far beyond the rounding."""
    swapped, straight = GgufSource(files / f"{SIX}.f16.gguf"), GgufSource(files / f"{SIX}.unswapped.f16.gguf")
    down = swapped.file.read("v.blk.0.ffn_down.weight")
    np.testing.assert_array_equal(swapped.read("vpm.encoder.layers.0.mlp.fc1.weight"), down)
    np.testing.assert_array_equal(straight.read("vpm.encoder.layers.0.mlp.fc1.weight"), down)
    assert straight.file.entries["v.blk.0.ffn_down.weight"].shape == down.shape[::-1]


def test_one_block_may_be_swapped_and_another_not(written, tmp_path, data):
    for tail in ("weight", "bias"):
        up, down = f"v.blk.1.ffn_up.{tail}", f"v.blk.1.ffn_down.{tail}"
        written.arrays[up], written.arrays[down] = written.arrays[down], written.arrays[up]
    source, want = GgufSource(written.write(tmp_path / "m.gguf")), checkpoint_of(data)
    for n in range(3):
        for name in (f"vpm.encoder.layers.{n}.mlp.{fc}.{tail}" for fc in ("fc1", "fc2") for tail in ("weight", "bias")):
            np.testing.assert_allclose(source.read(name), want[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("fixture", "legacy"), [(f"{SIX}.f16", True), ("minicpm-v-4_6.q8_0", False)])
def test_a_square_mlp_is_swapped_in_a_legacy_file_only(files, tmp_path, fixture, legacy):
    made = Written(files / f"{fixture}.gguf")
    width = made.arrays["v.patch_embd.weight"][0][0]
    made.pairs["clip.vision.feed_forward_length"] = (U32, width)
    for n in range(3):
        for name, fill in (("ffn_up", 1), ("ffn_down", 2)):
            made.arrays[f"v.blk.{n}.{name}.weight"] = ((width, width), 0, np.full((width, width), fill, np.float32).tobytes())
            made.arrays[f"v.blk.{n}.{name}.bias"] = ((width,), 0, np.full(width, fill, np.float32).tobytes())
    if not legacy:
        for name in ("ds_ffn_up", "ds_ffn_down"):
            del made.arrays[f"v.vit_merger.{name}.weight"]
    source = GgufSource(made.write(tmp_path / "m.gguf"))
    tower = "vpm." if legacy else "model.vision_tower."
    for fc, fill in (("fc1", 2 if legacy else 1), ("fc2", 1 if legacy else 2)):
        for tail in ("weight", "bias"):
            assert np.all(source.read(f"{tower}encoder.layers.2.mlp.{fc}.{tail}") == fill)


def test_the_projection_is_turned(files, data):
    source, want = GgufSource(files / f"{SIX}.f32.gguf"), checkpoint_of(data)["resampler.proj"]
    np.testing.assert_array_equal(source.read("resampler.proj"), want)
    assert not np.array_equal(source.file.read("resampler.proj.weight"), want)


def test_a_block_that_is_not_stated_is_read_and_told(files):
    source = GgufSource(files / f"{SIX}.2024.f16.gguf")
    assert source.json("config.json")["vision_config"]["num_hidden_layers"] == 3
    (note,) = source.notes
    assert note.endswith(
        "2024.f16.gguf states 2 blocks and holds 3; all 3 are run, as the checkpoint does (llama.cpp leaves the last one out)"
    )


@pytest.mark.parametrize("name", [name for name in EVERY if "2024" not in name])
def test_the_other_fixtures_leave_no_note(files, name):
    assert GgufSource(files / f"{name}.gguf").notes == ()


def test_the_config_is_the_checkpoint_s(files, data):
    source = GgufSource(files / f"{SIX}.f16.gguf")
    config, theirs = source.json("config.json"), json.loads((data / "tiny-minicpmv" / "config.json").read_text())
    for key in config.keys() & theirs.keys() - {"vision_config"}:
        assert config[key] == theirs[key]
    for key in theirs["vision_config"].keys() - {"model_type"}:
        assert config["vision_config"][key] == theirs["vision_config"][key]
    assert config["vision_config"]["layer_norm_eps"] == 1e-6
    preprocessor = source.json("preprocessor_config.json")
    theirs = json.loads((data / "tiny-minicpmv" / "preprocessor_config.json").read_text())
    assert {key: preprocessor[key] for key in preprocessor} == {key: theirs[key] for key in preprocessor}
    assert source.json("tokenizer.json") is None


CONFIGS = {
    "minicpm-llama3-v-2_5.f16": {"model_type": "minicpmv", "version": 2.5, "query_num": 96, "hidden_size": 128},
    "minicpm-v-4_5.f32": {"model_type": "minicpmv", "version": 4.5, "batch_3d_resampler": True, "hidden_size": 128},
    "minicpm-v-4_6.q8_0": {
        "model_type": "minicpmv4_6",
        "insert_layer_id": 1,
        "downsample_mode": "16x",
        "text_config": {"hidden_size": 128},
    },
    "idefics3.q8_0": {"model_type": "idefics3", "scale_factor": 2, "text_config": {"hidden_size": 128}},
    "smolvlm-512-16.q8_0": {"model_type": "smolvlm", "scale_factor": 4, "text_config": {"hidden_size": 128}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_tells_the_family(files, name):
    config = GgufSource(files / f"{name}.gguf").json("config.json")
    assert {key: config[key] for key in CONFIGS[name]} == CONFIGS[name]


def test_the_oldest_preprocessor_says_less(files):
    assert "slice_mode" not in GgufSource(files / "minicpm-llama3-v-2_5.f16.gguf").json("preprocessor_config.json")


def test_the_tiles_of_idefics3_are_its_table_s_side(files):
    config, preprocessor = (GgufSource(files / "idefics3.q8_0.gguf").json(f"{n}config.json") for n in ("", "preprocessor_"))
    assert config["vision_config"]["image_size"] == preprocessor["max_image_size"]["longest_edge"] == 364
    assert preprocessor["size"] == {"longest_edge": 1456}


def test_a_returned_config_is_the_caller_s(files):
    source = GgufSource(files / f"{SIX}.f16.gguf")
    source.json("config.json")["vision_config"].clear()
    assert source.json("config.json")["vision_config"]


def drop(key):
    return lambda made: made.pairs.pop(key)


def state(key, kind, content):
    return lambda made: made.pairs.update({key: (kind, content)})


def leave_out(name):
    return lambda made: made.arrays.pop(name)


def reshape(name, shape):
    def change(made):
        _, kind, raw = made.arrays[name]
        made.arrays[name] = (shape, kind, raw)

    return change


CONTRADICTIONS = {
    "projector": (
        state("clip.projector_type", TEXT, "ldp"),
        "has the projector 'ldp'; known are resampler, minicpmv4_6, idefics3",
    ),
    "no projector": (drop("clip.projector_type"), "states no clip.projector_type; known are"),
    "unknown array": (
        lambda made: made.arrays.update({"v.class_embd": ((2,), 0, bytes(8))}),
        r"holds unknown arrays: 'v\.class_embd'",
    ),
    "a gap in the blocks": (
        lambda made: [made.arrays.pop(name) for name in list(made.arrays) if name.startswith("v.blk.1.")],
        r"holds the block v\.blk\.2, but no v\.blk\.1",
    ),
    "block count": (state("clip.vision.block_count", U32, 4), "states clip.vision.block_count 4, but holds 3 blocks"),
    "patch size": (
        state("clip.vision.patch_size", U32, 16),
        r"states clip.vision.patch_size 16, but v\.patch_embd.weight says 14",
    ),
    "width": (state("clip.vision.embedding_length", U32, 49), "states clip.vision.embedding_length 49, but .* says 48"),
    "inner width": (
        state("clip.vision.feed_forward_length", U32, 97),
        "states clip.vision.feed_forward_length 97, but .* says 96",
    ),
    "queries": (state("clip.minicpmv_query_num", U32, 96), r"states clip\.minicpmv_query_num 96, but resampler\.query says 64"),
    "version": (state("clip.minicpmv_version", I32, 46), "states clip.minicpmv_version 46; known are 2, 3, 4, 5, 6, 100045"),
    "version 1": (state("clip.minicpmv_version", I32, 1), "states clip.minicpmv_version 1; known are"),
    "gelu": (state("clip.use_gelu", BOOL, False), "states clip.use_gelu false; only gelu, in the tanh form, is known"),
    "no gelu": (drop("clip.use_gelu"), r"states no clip\.use_gelu, which is needed"),
    "no heads": (drop("clip.vision.attention.head_count"), r"states no clip\.vision\.attention\.head_count, which is needed"),
    "heads are a text": (state("clip.vision.attention.head_count", TEXT, "4"), "head_count '4'; it must be int"),
    "no eps": (drop("clip.vision.attention.layer_norm_epsilon"), "states no clip.vision.attention.layer_norm_epsilon"),
    "no image size": (drop("clip.vision.image_size"), "states no clip.vision.image_size, which is needed"),
    "no mean": (drop("clip.vision.image_mean"), "states no clip.vision.image_mean, which is needed"),
    "two means": (
        state("clip.vision.image_mean", ARRAY, (F32, [0.5, 0.5])),
        r"states clip.vision.image_mean '\[0\.5, 0\.5\]'; it must be a list of 3 float",
    ),
    "no query": (leave_out("resampler.query"), "must hold resampler.query with two axes; got none"),
    "no table": (leave_out("v.position_embd.weight"), r"must hold v\.position_embd\.weight of shape \(G², 48\); got None"),
    "no square table": (reshape("v.position_embd.weight", (4899, 48)), r"of shape \(G², 48\); got \(4899, 48\)"),
    "no patches": (leave_out("v.patch_embd.weight"), r"holds no v\.patch_embd\.weight; it is no mmproj file with a vision"),
    "flat patches": (reshape("v.patch_embd.weight", (48, 588)), r"must have shape \(D, C, P, P\); got \(48, 588\)"),
    "mlp": (
        reshape("v.blk.1.ffn_up.weight", (72, 64)),
        r"v\.blk\.1\.ffn_up\.weight and ffn_down\.weight in .* must be \(I, 48\)",
    ),
    "in_proj": (reshape("resampler.attn.q.weight", (128, 512)), r"resampler.attn.q.weight and .* must have rows of one length"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_refuses_what_the_arrays_contradict(written, tmp_path, case):
    change, words = CONTRADICTIONS[case]
    change(written)
    if case == "no square table":
        shape, kind, raw = written.arrays["v.position_embd.weight"]
        written.arrays["v.position_embd.weight"] = (shape, kind, raw[: 4899 * 48 * 2])
    with pytest.raises(ValueError, match=words) as caught:
        GgufSource(written.write(tmp_path / "m.gguf"))
    assert str(caught.value).startswith("load_model: ")


RELATIVES = {
    "factor": ("minicpm-v-4_6.q8_0", "clip.vision.projector.scale_factor", (U32, 3), "scale_factor 3; it must be 4 or 2"),
    "mode": (
        "minicpm-v-4_6.q8_0",
        "clip.vision.projector.scale_factor",
        (U32, 2),
        r"scale_factor 2, but holds a v\.vit_merger",
    ),
    "layer": (
        "minicpm-v-4_6.q8_0",
        "clip.vision.wa_layer_indexes",
        None,
        "states no clip.vision.wa_layer_indexes, which is needed",
    ),
    "shuffle": (
        "idefics3.q8_0",
        "clip.vision.projector.scale_factor",
        (U32, 3),
        r"scale_factor 3, but mm\.model\.fc\.weight has rows",
    ),
    "side": ("idefics3.q8_0", "clip.vision.image_size", (U32, 378), r"states clip.vision.image_size 378, but v\.position_embd"),
    "width": (
        "smolvlm-512-16.q8_0",
        "clip.vision.projection_dim",
        (U32, 64),
        "states clip.vision.projection_dim 64, but mm.model.fc",
    ),
    "blocks": ("idefics3.q8_0", "clip.vision.block_count", (U32, 2), "states clip.vision.block_count 2, but holds 3 blocks"),
}


@pytest.mark.parametrize("case", RELATIVES)
def test_refuses_what_the_relatives_arrays_contradict(files, tmp_path, case):
    name, key, content, words = RELATIVES[case]
    made = Written(files / f"{name}.gguf")
    made.pairs = {k: v for k, v in (made.pairs | {key: content}).items() if v is not None}
    with pytest.raises(ValueError, match=words):
        GgufSource(made.write(tmp_path / "m.gguf"))


def test_a_file_without_the_window_merger_is_4x(files, tmp_path):
    made = Written(files / "minicpm-v-4_6.q8_0.gguf")
    made.arrays = {name: array for name, array in made.arrays.items() if "vit_merger" not in name}
    made.pairs["clip.vision.projector.scale_factor"] = (U32, 2)
    del made.pairs["clip.vision.wa_layer_indexes"]
    config = GgufSource(made.write(tmp_path / "m.gguf")).json("config.json")
    assert config["downsample_mode"] == "4x"


@pytest.mark.parametrize(
    ("fixture", "version", "taken", "note"),
    [
        (f"{SIX}.f16", None, 2.6, "does not state clip.minicpmv_version; by its 64 queries it is taken for version 2.6"),
        (f"{SIX}.f16", 2, 2.6, "states clip.minicpmv_version 2; by its 64 queries it is taken for version 2.6"),
        ("minicpm-llama3-v-2_5.f16", 3, 2.5, None),
        ("minicpm-llama3-v-2_5.f16", None, 2.5, None),
        ("minicpm-llama3-v-2_5.f16", 6, 2.5, "states clip.minicpmv_version 6; by its 96 queries it is taken for version 2.5"),
        (f"{SIX}.f16", 5, 4.0, "may hold resampler.proj divided by the language model's scale_emb"),
        (f"{SIX}.f16", 100045, 4.5, None),
    ],
)
def test_the_number_of_queries_is_believed_before_the_version(files, tmp_path, fixture, version, taken, note):
    made = Written(files / f"{fixture}.gguf")
    del made.pairs["clip.minicpmv_version"]
    if version is not None:
        made.pairs["clip.minicpmv_version"] = (I32, version)
    source = GgufSource(made.write(tmp_path / "m.gguf"))
    assert source.json("config.json")["version"] == taken
    assert len(source.notes) == (note is not None)
    assert note is None or note in source.notes[0]


def test_another_normalisation_is_taken_and_told(written, tmp_path):
    written.pairs["clip.vision.image_std"] = (ARRAY, (F32, [0.25, 0.3, 0.5]))
    source = GgufSource(written.write(tmp_path / "m.gguf"))
    assert source.json("preprocessor_config.json")["norm_std"] == [0.25, 0.3, 0.5]
    assert "norm_std [0.25, 0.3, 0.5]; the released checkpoints have 0.5 everywhere" in source.notes[0]


def test_a_file_without_blocks_has_the_embeddings_only(written, tmp_path):
    written.arrays = {name: array for name, array in written.arrays.items() if not name.startswith("v.blk.")}
    source = GgufSource(written.write(tmp_path / "m.gguf"))
    assert source.json("config.json")["vision_config"]["num_hidden_layers"] == 3
    folder = folder_of(source, tmp_path / "m")
    assert load_model(folder, until="embeddings").config.vision.intermediate_size == 96
    with pytest.raises(ValueError, match=r"layers\.0"):
        load_model(folder, until="hidden")


@given(st.integers(0, 2**64 - 1))
def test_any_alignment_is_a_power_of_two_or_refused(alignment):
    content = container([CLIP, pair("general.alignment", U64, alignment)], [])
    if alignment and not alignment & (alignment - 1):
        assert GgufFile(Memory(content)).metadata["general.alignment"] == alignment
    else:
        with pytest.raises(ValueError, match="it must be a power of two"):
            GgufFile(Memory(content))
