"""A kind of input each: what is made of the originals in a case's folder, and the command that reads it."""

import io
import json
import os
import random
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npembed.cli import run
from npembed.support.messages import shown
from tests.fuzz.calls import hostile_call
from tests.fuzz.mutations import hostile, mutated_bytes, mutated_json
from tests.fuzz.originals import Originals, npz_of, signed

Act = Callable[[], int]


@dataclass(frozen=True)
class Case:
    """A command, or another act, in its folder.

    Attributes
    ----------
    words : list of str
        Of the command line; for another act, what it is.
    act : callable or None
        In place of the command line; it gives an exit code.
    codes : tuple of int
        How it may end.
    changes : str
        A regular expression of the files that it may change.
    secrets : tuple of str or None
        Files that it may not open; None where nothing is watched.
    hosts : tuple of str or None
        Servers that it may ask, if it is watched; None where a server may send it on to others, which it then cannot reach.
    """

    words: list[str]
    act: Act | None = None
    codes: tuple[int, ...] = (0, 2)
    changes: str = r"(?!)"
    secrets: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = ()

    def run(self) -> int:
        return run(self.words) if self.act is None else self.act()


Make = Callable[[random.Random, Path, Originals], Case]


def _linked(checkpoint: Path, folder: Path, *but: str) -> Path:
    """A checkpoint whose files are links, but for some that are left out."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.name not in but:
            (folder / path.name).symlink_to(path)
    return folder


def _picture(folder: Path, originals: Originals) -> str:
    (folder / "p.png").write_bytes(originals.pictures["PNG-0-RGB"])
    return "p.png"


def _until(rng: random.Random) -> list[str]:
    return rng.choice(([], [], ["--until", "tokens"], ["--until", "hidden"]))


def picture(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """A picture's bytes."""
    name = rng.choice(sorted(originals.pictures))
    other = originals.pictures[rng.choice(sorted(originals.pictures))]
    content = mutated_bytes(rng, originals.pictures[name], other)
    if name.startswith("PNG") and rng.random() < 0.5:
        content = _right_checksums(content)
    file = folder / f"p.{rng.choice((name.split('-')[0].lower(), 'png', 'jpg'))}"
    file.write_bytes(content)
    words = ["embed", file.name, "--weights", str(originals.checkpoints["tiny"]), "-o", rng.choice(("o.npz", "o.safetensors"))]
    return Case(words + rng.choice(([], [], ["--upright"])))


def _right_checksums(content: bytes) -> bytes:
    """A PNG whose chunks' checksums are right again, so that what is wrong in them is read."""
    fixed, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + length > len(content):
            break
        body = content[at + 4 : at + 8 + length]
        fixed += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(fixed) + content[at:]


def sized_picture(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """A PNG of one colour and odd sides, small in its file: thin, or large."""
    sides = [rng.choice((1, 2, 3, 14, 100, 3000, 13_000, 100_000, 5_000_000, 10_000_000)) for _ in range(2)]
    while sides[0] * sides[1] > 200_000_000:
        sides[rng.randrange(2)] //= 7
    width, height = (max(1, side) for side in sides)
    depth, colour = rng.choice(((1, 0), (8, 0), (8, 2), (8, 6), (16, 0)))
    bits = depth * {0: 1, 2: 3, 6: 4}[colour]
    packer, row = zlib.compressobj(1), bytes(1 + (width * bits + 7) // 8)
    body = bytearray()
    promises_too_much = len(row) * height > 60_000_000
    height_there = max(1, 1_000_000 // len(row)) if promises_too_much else height
    block = row * max(1, min(height_there, 1_000_000 // len(row)))
    for _ in range(0, height_there, len(block) // len(row)):
        body += packer.compress(block)
    body += packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    (folder / "p.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(body)) + chunk(b"IEND", b"")
    )
    more = rng.choice(([], [], ["--max-pixels", str(rng.choice((1, 1000, 10**6, 3 * 10**8)))]))
    checkpoint = originals.checkpoints[rng.choice(("tiny", "minicpm-v-2_6-noslice"))]
    return Case(["embed", "p.png", "--weights", str(checkpoint), "-o", "o.npz", *more])


def config(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """config.json, preprocessor_config.json, processor_config.json."""
    name = rng.choice(("config.json", "preprocessor_config.json", "preprocessor_config.json", "processor_config.json"))
    checkpoint = originals.checkpoints[rng.choice(sorted(originals.checkpoints))]
    source = checkpoint / ("preprocessor_config.json" if name == "processor_config.json" else name)
    content = json.loads(source.read_text())
    if name == "processor_config.json":
        content = {"image_processor": content}
    text = mutated_json(rng, content).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        text = mutated_bytes(rng, text)
    weights = _linked(checkpoint, folder / "w", name)
    (weights / name).write_bytes(text)
    return Case(["embed", _picture(folder, originals), "--weights", "w", "-o", "o.safetensors", *_until(rng)])


def tensors(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """model.safetensors: its header, or any of its bytes."""
    checkpoint = originals.checkpoints["tiny"]
    weights = _linked(checkpoint, folder / "w", "model.safetensors")
    (weights / "model.safetensors").write_bytes(safetensors(rng, (checkpoint / "model.safetensors").read_bytes()))
    return Case(["embed", _picture(folder, originals), "--weights", "w", "-o", "o.npz", *_until(rng)])


def safetensors(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutated_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(rng, json.loads(content[8 : 8 + length])).encode("utf-8", "surrogatepass")
    stated = len(header) if rng.random() < 0.9 else rng.choice((0, 2**62, len(header) + 8))
    return stated.to_bytes(8, "little") + header + content[8 + length :]


def index(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """The index of a checkpoint in shards, or a shard."""
    checkpoint, name = originals.checkpoints["shards"], "model.safetensors.index.json"
    if rng.random() < 0.3:
        name = "model-00001-of-00002.safetensors"
        content = safetensors(rng, (checkpoint / name).read_bytes())
    else:
        content = mutated_json(rng, json.loads((checkpoint / name).read_text())).encode("utf-8", "surrogatepass")
        content = mutated_bytes(rng, content) if rng.random() < 0.2 else content
    weights = _linked(checkpoint, folder / "w", name)
    (weights / name).write_bytes(content)
    return Case(["embed", _picture(folder, originals), "--weights", "w", "-o", "o.npz", *_until(rng)])


def gguf(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """An mmproj file."""
    original = rng.choice(originals.gguf).read_bytes()
    content = mutated_bytes(rng, original[:60_000]) + original[60_000:] if rng.random() < 0.8 else mutated_bytes(rng, original)
    (folder / "m.gguf").write_bytes(content)
    return Case(["embed", _picture(folder, originals), "--weights", "m.gguf", "-o", "o.npz"])


def pack(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """A pack's manifest, with its digest or without, or another of its files."""
    target = folder / "pack"
    shutil.copytree(originals.pack, target, copy_function=os.link)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").unlink()
    if rng.random() < 0.8:
        try:
            signed(target, json.loads(mutated_json(rng, manifest)))
        except (ValueError, TypeError, AttributeError, RecursionError):  # what is no JSON, or no object, is written as it is
            text = mutated_json(rng, manifest).encode("utf-8", "surrogatepass")
            (target / "manifest.json").write_bytes(mutated_bytes(rng, text) if rng.random() < 0.5 else text)
    else:
        (target / "manifest.json").write_text(json.dumps(manifest))
        file = target / rng.choice(sorted(manifest["files"]))
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(mutated_bytes(rng, content))
    return Case(["golden", "check", "pack", str(originals.outputs), *_reports(rng)], codes=(0, 1, 2))


def _reports(rng: random.Random) -> list[str]:
    return rng.choice(([], ["--json", "r.json"], ["--html", "r.html"]))


def outputs(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """A port's files: .safetensors, or an .npz under their name."""
    target = folder / "out"
    shutil.copytree(originals.outputs, target, copy_function=os.link)
    file = rng.choice(sorted(target.glob("*.safetensors")))
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(safetensors(rng, content))
    return Case(["golden", "check", str(originals.pack), "out", *_reports(rng)], codes=(0, 1, 2))


def archive(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """An .npz, read as a port's file is."""
    content = npz_of(rng.choice(sorted(originals.outputs.glob("*.safetensors"))))
    content = mutated_bytes(rng, content) if rng.random() < 0.6 else _odd_archive(rng, content)
    (folder / "a.npz").write_bytes(content)

    def act() -> int:
        from npembed.support.output_files import load_tensors

        try:
            arrays = load_tensors("a.npz")
        except ValueError as error:
            print(f"npembed: {shown(error)}", file=sys.stderr)
            return 2
        assert all(hasattr(array, "dtype") and not array.dtype.hasobject for array in arrays.values())
        return 0

    return Case(["load_tensors", "a.npz"], act)


def _odd_archive(rng: random.Random, content: bytes) -> bytes:
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        what = rng.randrange(4)
        if what == 0:
            file.writestr("words.npy", "no array")
        elif what == 1:
            file.writestr("words", b"\x93NUMPY\x01\x00" + rng.randbytes(30))
        elif what == 2:
            header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rng.choice((10**12, -1, 5, 2**63))},), }}"
            file.writestr("long.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        else:
            file.writestr("zeros.npy", bytes(rng.choice((10**6, 6 * 10**8))))
    return buffer.getvalue()


WORDS: dict[str, list[Any]] = {
    "embed": ["--weights", "--until", "--rule", "-o", "--upright", "--max-pixels", "--normalize", "p.png", "none.png"],
    "rules": ["--side", "--up-to", "--json", "--markdown", "--compare", "--n"],
    "golden": ["write", "check", "--weights", "--json", "--html", "--precision"],
    "check": [
        "--require",
        "--examples",
        "--seed",
        "--precision",
        "--timeout",
        "--json",
        "--html",
        "npembed.nothing",
        "port.py",
    ],
}
VALUES = (
    *(
        "",
        "-",
        "--",
        ".",
        "..",
        "/dev/null",
        "/dev/zero",
        "fifo",
        "loop",
        "p.png",
        "w",
        "w/config.json",
        "o.npz",
        "o.safetensors",
    ),
    *("-1", "0", "1", "3", "70", "1e9", "nan", "99999999999999999999", "2147483648", "arange", "exact", "embeddings", "tokens"),
    *(
        "\x1b[2J",
        "a\nb",
        "é×\u202e",
        "\udcff",
        "x" * 300,
        "https://example.org/p.png",
        "float32",
        "embed",
        "boundaries",
        "p.png/x",
    ),
)


def arguments(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """The words of a command, drawn from options and values that fit and that do not."""
    _picture(folder, originals)
    _linked(originals.checkpoints["tiny"], folder / "w")
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "port.py").write_text("def boundaries(*_):\n    return []\n")
    command = rng.choice(sorted(WORDS))
    words = [command]
    for _ in range(rng.randrange(5)):
        words.append(rng.choice(WORDS[command]) if rng.random() < 0.6 else rng.choice(VALUES))
    if command == "embed" and "--weights" not in words:
        words += ["--weights", "w"]
    if command == "check":
        words += ["--examples", "1"]
    return Case(words, codes=(0, 1, 2))


def port(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """A Python port, as a file."""
    source = "import npembed\ndef boundaries(side, rule='arange'):\n    return npembed.boundaries(side, rule)\n"
    (folder / "port.py").write_bytes(mutated_bytes(rng, source.encode()))
    return Case(["check", "port.py", "--examples", "1", "--timeout", "20", *_reports(rng)], codes=(0, 1, 2))


def call(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """A public function with hostile arguments."""
    words, act = hostile_call(rng)
    return Case(words, act)


def metadata(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """Names with control characters, for pictures and folders."""
    name = rng.choice(
        ("a\x1b[2J.png", "two\nlines.png", "\u202egnp.png", os.fsdecode(b"\xff.png"), " .png", "[red].png", "-x.png")
    )
    (folder / name).write_bytes(mutated_bytes(rng, originals.pictures["PNG-0-RGB"]))
    weights = _linked(originals.checkpoints["tiny"], folder / "w\x1b]0;x\x07", "config.json")
    (weights / "config.json").write_text(
        mutated_json(
            rng, {**json.loads((originals.checkpoints["tiny"] / "config.json").read_text()), "x": str(hostile(rng))[:99]}
        ),
        errors="surrogatepass",
    )
    return Case(["embed", f"./{name}", "--weights", str(weights.name), "-o", "o.npz"])


KINDS: dict[Make, int] = {
    picture: 40,
    sized_picture: 3,
    config: 18,
    tensors: 6,
    index: 5,
    gguf: 4,
    pack: 5,
    outputs: 4,
    archive: 3,
    arguments: 6,
    port: 1,
    call: 15,
    metadata: 2,
}
"""Each kind, and how often it comes, in parts of the sum."""
