"""The inputs that are mutated, made once in a folder."""

import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, features
from safetensors.numpy import load_file, save_file

from npembed import load_model
from npembed.conformance.golden import write_pack
from npembed.conformance.golden.contents import MANIFEST, manifest_digest
from npembed.corpus import Settings, build
from npembed.corpus.sources import Item
from npembed.corpus.work import Job, compute_group
from npembed.support.pictures import silent_libraries
from tests.synthetic import synthetic_picture

DATA = Path(__file__).parents[1] / "data"

FORMATS: dict[str, list[dict[str, Any]]] = {
    "PNG": [{}, {"compress_level": 0}],
    "JPEG": [{}, {"progressive": True}],
    "GIF": [{}],
    "BMP": [{}],
    "DIB": [{}],
    "TIFF": [
        {},
        {"compression": "tiff_lzw"},
        {"compression": "jpeg"},
        {"compression": "tiff_deflate"},
        {"compression": "group4"},
    ],
    "WEBP": [{}, {"lossless": True}],
    "AVIF": [{}],
    "JPEG2000": [{}],
    "PPM": [{}],
    "TGA": [{}, {"compression": "tga_rle"}],
    "ICO": [{}],
    "ICNS": [{}],
    "PCX": [{}],
    "SGI": [{}],
    "DDS": [{}],
    "MPO": [{}],
    "IM": [{}],
    "XBM": [{}],
    "MSP": [{}],
    "QOI": [{}],
    "SPIDER": [{}],
    "BLP": [{}],
}
MODES = ("RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "I;16", "F")


CORPORA = {"vectors": Settings(until="hidden", vector="mean"), "rows": Settings(until="embeddings")}


@dataclass(frozen=True)
class Originals:
    """A folder, and what is in it."""

    folder: Path
    pictures: dict[str, bytes]
    """By a name that says its format."""
    checkpoints: dict[str, Path]
    gguf: list[Path]
    pack: Path
    outputs: Path
    corpora: tuple[Path, ...]
    """Folders as `_corpus` makes them."""


def make(folder: Path) -> Originals:
    """All of them, in a new folder."""
    tiny = folder / "tiny"
    shutil.copytree(DATA / "tiny-minicpmv", tiny)
    checkpoints = {"tiny": tiny, "shards": _sharded(tiny, folder / "shards")}
    for path in sorted((DATA / "relatives").iterdir()):
        if (path / "model.safetensors").is_file():
            checkpoints[path.name] = path
    pack = _small_pack(folder / "pack")
    outputs = folder / "outputs"
    shutil.copytree(pack, outputs, ignore=shutil.ignore_patterns("*.json", "*.input.safetensors", "models", "*.md"))
    gguf = sorted((DATA / "gguf").glob("*.gguf"), key=lambda path: path.stat().st_size)[:4]
    corpora = tuple(_corpus(folder / "corpora" / name, tiny, each) for name, each in CORPORA.items())
    return Originals(folder, _pictures(), checkpoints, gguf, pack, outputs, corpora)


def _pictures() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    picture = Image.fromarray(synthetic_picture(40, 30))
    frames = [picture, picture.transpose(Image.Transpose.ROTATE_180), picture]
    for kind, variants in FORMATS.items():
        for number, options in enumerate(variants):
            for mode in MODES:
                data = _encoded(picture, mode, kind, options)
                if data is not None:
                    found[f"{kind}-{number}-{mode}"] = data
    for kind in ("GIF", "TIFF", "WEBP", "PNG", "AVIF", "MPO"):
        buffer = io.BytesIO()
        try:
            frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        except (KeyError, OSError):
            continue
        found[f"{kind}-frames"] = buffer.getvalue()
    assert features.check("zlib")
    return found


def _encoded(picture: Image.Image, mode: str, kind: str, options: dict[str, Any]) -> bytes | None:
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"), silent_libraries():
            (Image.new("I;16", (40, 30), 300) if mode == "I;16" else picture.convert(mode)).save(buffer, kind, **options)
    except (OSError, ValueError, KeyError):  # a format that has no such mode, or that this Pillow does not write
        return None
    return buffer.getvalue()


def _sharded(tiny: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(tiny / name, folder)
    arrays = load_file(tiny / "model.safetensors")
    names = sorted(arrays)
    index = {}
    for number, own in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: arrays[name] for name in own}, folder / file)
        index |= dict.fromkeys(own, file)
    total = sum(array.nbytes for array in arrays.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    return folder


def _small_pack(folder: Path) -> Path:
    """A pack of two cases, with right digests."""
    write_pack(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    cases = manifest["cases"] = manifest["cases"][:2]
    kept = {case[key] for case in cases for key in ("input", "expected")} | {
        name for name in manifest["files"] if any(name.startswith(f"{case['model']}/") for case in cases)
    }
    kept |= {name for name in manifest["files"] if not name.endswith((".safetensors", "config.json"))}
    for name in set(manifest["files"]) - kept:
        (folder / name).unlink()
        del manifest["files"][name]
    signed(folder, manifest)
    return folder


def signed(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the digest that it ought to have."""
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def npz_of(path: Path) -> bytes:
    """The arrays of a safetensors file as an .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in load_file(path).items() if array.dtype.name != "bfloat16"})  # type: ignore[arg-type]
    return buffer.getvalue()


def _corpus(folder: Path, tiny: Path, settings: Settings) -> Path:
    """A folder with a corpus `out` of the pictures in `p` by the weights in `w`; `new.png`, which is none of them, and
    `secret.png` and `secret.safetensors`, of which nothing but a stranger speaks."""
    (folder / "p").mkdir(parents=True)
    (folder / "w").symlink_to(tiny)
    for number in range(3):
        Image.fromarray(synthetic_picture(40 + number, 30)).save(folder / f"p/{number}.png")
    (folder / "p/broken.png").write_bytes(b"no picture")
    Image.new("RGB", (30, 20), (0, 90, 0)).save(folder / "new.png")
    Image.new("RGB", (30, 30), (200, 0, 0)).save(folder / "secret.png")
    before = Path.cwd()
    os.chdir(folder)
    try:
        with in_this_process():
            build(["p"], "out", load_model("w", settings.until), "w", settings)
    finally:
        os.chdir(before)
    shutil.copy(folder / "out/part-00000.safetensors", folder / "secret.safetensors")
    (folder / "out/mine").mkdir()
    (folder / "out/mine/notes.txt").write_text("mine")
    return folder


@contextmanager
def in_this_process() -> Iterator[None]:
    """Groups of a corpus are computed here, without Dask: what they read, and the memory that they take, is this process's."""

    def run_groups(
        client: Any, job: Job, groups: Mapping[int, Sequence[Item]], done: Callable[[Mapping[str, int]], None]
    ) -> dict[int, str]:
        with silent_libraries():  # as in a worker
            for number, items in groups.items():
                done(compute_group(job, number, items))
        return {}

    stand_ins = {"cluster": lambda *_: nullcontext((None, "")), "run_groups": run_groups, "check_extras": lambda *_: None}
    with patch.multiple(sys.modules["npembed.corpus.build"], **stand_ins):
        yield
