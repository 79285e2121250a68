"""What a worker does: one group of pictures -> its shards and its rows. It may be done again, with the same bytes as result."""

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import npembed
from npembed.corpus.index import FAILED, MOST_ERROR, OK, parts_of, write_rows
from npembed.corpus.place import Place
from npembed.corpus.settings import Settings, digest_of
from npembed.corpus.shards import Packer, map_tensors
from npembed.corpus.sources import Item
from npembed.corpus.vectors import Packed, compute, frames_of
from npembed.families import get_family
from npembed.model import Model

Job = Mapping[str, Any]
"""What all groups have in common: `out`, `made` (as in manifest.json), `model` (a file in the corpus), `digest`, `versions`."""


def versions() -> dict[str, str]:
    """Of what the numbers may depend on."""
    import PIL

    return {
        "npembed": npembed.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
    }


def group_digest(job_digest: str, items: Sequence[Item]) -> str:
    """Of all that a group's shards depend on, with the files' sizes and stamps in place of their bytes."""
    return digest_of([job_digest, [[item.path, item.size, item.stamp, item.error] for item in items]])


def compute_group(job: Job, group: int, items: Sequence[Item]) -> dict[str, int]:
    """Write the shards of a group of pictures, then its rows; how many rows, and how many of them failed.

    Raises
    ------
    ValueError
        Another version here than where the run was started; storage that refuses. What is wrong with a picture is a row that
        says so.
    """
    model, settings = _prepared(job)
    place = Place(job["out"])
    packer = Packer(place, group, settings.name, settings.shard_mb * 10**6, _metadata(job))
    rows = [row for item in items for row in _rows(item, model, settings, packer)]
    packer.flush()
    before = parts_of(place, group) or []
    write_rows(place, group, rows, group_digest(job["digest"], items), packer.written)
    for name in set(before) - {name for name, _ in packer.written}:  # of an earlier list of pictures
        place.remove(name)
    return {"pictures": len(rows), "failed": sum(row["status"] == FAILED for row in rows)}


def try_picture(job: Job, item: Item) -> bool:
    """Compute what is in one file and keep none of it; True. A process that does not outlive it says nothing."""
    model, settings = _prepared(job)
    for _ in _pictures(item, {"frame": 0}, model, settings):
        pass
    return True


def _prepared(job: Job) -> tuple[Model, Settings]:
    refuse_versions(job["versions"])
    return _model(job["out"], job["model"], json.dumps(job["made"])), Settings(**job["made"]["settings"])


def refuse_versions(wanted: Mapping[str, str]) -> None:
    """An error if this process has other versions."""
    mine = versions()
    for name in ("npembed", "numpy", "Pillow"):
        if mine[name] != wanted[name]:
            raise ValueError(f"corpus: a worker has {name} {mine[name]}, but the run was started with {wanted[name]}")


def _metadata(job: Job) -> dict[str, str]:
    made = job["made"]
    texts = {"npembed": job["versions"]["npembed"], "family": made["family"], "stage": made["settings"]["until"]}
    texts |= {"vector": made["settings"]["vector"]} if made["settings"]["vector"] else {}
    texts |= {"rule": made["rule"]} if made["rule"] else {}
    return texts | {"weights": made["weights"]["sha256"]}


def _rows(item: Item, model: Model, settings: Settings, packer: Packer) -> Iterator[dict[str, Any]]:
    """A row for each picture in a file; its results go to the packer."""
    row: dict[str, Any] = {"path": _as_utf8(item.path), "bytes": item.size if item.size >= 0 else None, "frame": 0}
    for found in _pictures(item, row, model, settings):
        packed = found.pop("packed")
        if packed is not None:
            found |= {"slices": len(packed.tgt_sizes), **packer.add(packed)}  # storage that refuses is not the picture's fault
        yield found


def _pictures(item: Item, row: dict[str, Any], model: Model, settings: Settings) -> Iterator[dict[str, Any]]:
    """The row of each picture in a file, with what was computed under `packed`; the last has the error, if there was one."""
    start = time.perf_counter()
    try:
        content = item.read()
        row |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for picture, _ in frames_of(content, "it", settings):
            row |= {"width": picture.width, "height": picture.height}
            packed: Packed = compute(picture, model, settings)
            yield row | {"status": OK, "seconds": time.perf_counter() - start, "packed": packed}
            row, start = row | {"frame": row["frame"] + 1}, time.perf_counter()
    except Exception as error:  # whatever is wrong with one picture, the others go on
        yield row | {"status": FAILED, "error": _one_line(error), "seconds": time.perf_counter() - start, "packed": None}


def _one_line(error: Exception) -> str:
    text = "".join(character if character.isprintable() else " " for character in _as_utf8(str(error)))
    return " ".join(text.split())[:MOST_ERROR] or type(error).__name__


def _as_utf8(text: str) -> str:
    """The text, with the bytes of a file's name that are no UTF-8 spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=1)
def _model(out: str, name: str, described: str) -> Model:
    """The run's model, its arrays memory-mapped, so that a machine has them once however many workers it has."""
    place, made = Place(out), json.loads(described)
    family = get_family(made["family"], "corpus")
    config = family.read_config(made["config"], made["preprocessor"], family)
    arrays = map_tensors(place.path(name) if place.is_local else _fetched(place, name))
    return Model(family.layout(config, list(arrays)), arrays)


def _fetched(place: Place, name: str) -> Path:
    """A copy on this machine of the model in storage far away; its name follows from its bytes."""
    path = Path(tempfile.gettempdir(), f"npembed-{os.getuid() if hasattr(os, 'getuid') else 0}", Path(name).name)
    if not path.exists() or path.stat().st_size != place.size(name):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        Place(str(path.parent)).write(path.name, lambda beside: beside.write_bytes(place.read(name)))
    return path
