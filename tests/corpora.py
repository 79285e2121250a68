"""Folders of small pictures of all kinds for the tests of corpora, broken ones among them."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from npembed import Model
from npembed.steps.stages import run
from npembed.support.pictures import read_image
from npembed.support.typing import Array

KINDS: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 90},
    "png": {},
    "gif": {},
    "bmp": {},
    "tiff": {},
    "webp": {"lossless": True},
    "ppm": {},
}
BROKEN = 14


def picture_of(rng: np.random.Generator, low: int = 3, high: int = 90) -> Image.Image:
    """Noise in one of Pillow's modes."""
    width, height = (int(side) for side in rng.integers(low, high, 2))
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return noise.convert(str(rng.choice(["RGB", "L", "P"])))


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """So many good pictures in folders within folders, two other files, and `BROKEN` that are no pictures but claim to be."""
    rng = np.random.default_rng(seed)
    kinds = list(KINDS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        path = folder / ("abc"[number % 3] * (number % 3)) / f"picture {number:03d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture_of(rng).convert("RGB" if kind in ("jpg", "ppm") else None).save(path, **KINDS[kind])
    (folder / "notes").write_text("no picture")
    (folder / "notes.txt").write_bytes(b"")
    (folder / "broken").mkdir(parents=True)
    (folder / "broken/notes.jpg").write_text("no picture, whatever its name says")
    (folder / "broken/empty.png").write_bytes(b"")
    for number, content in enumerate(broken_files(rng)):
        (folder / "broken" / f"{number:02d}").write_bytes(content)
    return folder


def broken_files(rng: np.random.Generator) -> Iterator[bytes]:
    """Files that begin as pictures do and are none."""
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = BytesIO()
        picture_of(rng, 60).convert("RGB").save(whole, kind)
        yield whole.getvalue()[: len(whole.getvalue()) // 2]
    for kind in ("JPEG", "PNG", "GIF"):
        whole = BytesIO()
        picture_of(rng, 60).convert("RGB").save(whole, kind)
        yield whole.getvalue()[:12]
    yield png_header(65_000, 65_000)
    grey = BytesIO()
    Image.fromarray(rng.integers(0, 65_535, (9, 9), dtype=np.uint16)).save(grey, "PNG")
    yield grey.getvalue()  # 16 bits, which are refused
    yield b"\xff\xd8\xff" + rng.bytes(500)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\0IEND\xae\x42\x60\x82"
    )


def alone(path: str | Path, model: Model, until: str) -> tuple[list[Array], Array]:
    """What `embed` makes of one picture: each slice's rows without padding, and the slices' sizes."""
    with threadpool_limits(1):  # as in a worker: the last bits of a product depend on the number of threads
        return _alone(path, model, until)


def _alone(path: str | Path, model: Model, until: str) -> tuple[list[Array], Array]:
    slices = model.config.family.cut(read_image(path)[0], model.config)
    result = run(slices.strips, slices.tgt_sizes, model, until)
    lengths = {
        "embeddings": slices.tgt_sizes.prod(axis=1),
        "hidden": result.get("hidden_sizes", slices.tgt_sizes).prod(axis=1),
        "tokens": result.get("token_counts", np.ones(len(slices.tgt_sizes), int)),
    }[until]
    return [own[:length] for own, length in zip(result[until], lengths, strict=True)], slices.tgt_sizes


def content_of(folder: Path) -> set[str]:
    """The names of the files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
