"""What a worker does: one group of pictures -> its shards and its rows. It may be done again, with the same bytes as result."""

import hashlib
import json
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import npembed
from npembed.corpus.index import FAILED, MOST_ERROR, OK, done, write_rows
from npembed.corpus.place import Place
from npembed.corpus.settings import Settings, digest_of, weights_digest
from npembed.corpus.shards import SPARE, Packer, map_tensors
from npembed.corpus.sources import Item, without_credential
from npembed.corpus.vectors import Packed, compute, frames_of, patches_at_once, stored_type
from npembed.families import get_family
from npembed.records.config import FamilyConfig
from npembed.records.family import Slices
from npembed.records.model import Model
from npembed.support.pictures import MissingReaderError, heif_reader
from npembed.support.typing import Size

Job = Mapping[str, Any]
"""What all groups have in common: `out`, `made` (as in manifest.json), `model` (a file in the corpus), `digest`, `versions`."""


UNREAD = "unread"
"""In place of the digest of a group of which a file could not be read: the next run computes it again."""


WITHOUT_HEIF = " without heif"
"""Behind the digest of a group with HEIC pictures that were not read: the next run with the extra `heif` computes it again."""


def versions() -> dict[str, str]:
    """Of what the numbers may depend on."""
    import PIL

    return {
        "npembed": npembed.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": version("scipy"),
        "Pillow": PIL.__version__,
        "pillow-heif": version("pillow-heif") if heif_reader() else "none",
    }


MUST_AGREE = ("npembed", "numpy", "scipy", "Pillow", "pillow-heif")
"""Of `versions`: a worker that has others than the run is refused."""


def group_digest(job_digest: str, items: Sequence[Item]) -> str:
    """Of all that a group's shards depend on, with the files' sizes and stamps in place of their bytes."""
    return digest_of([job_digest, [[item.path, item.size, item.stamp, item.error] for item in items]])


def digests(job_digest: str, items: Sequence[Item]) -> tuple[str, ...]:
    """Those that a group may have that need not be computed."""
    digest = group_digest(job_digest, items)
    return (digest,) if heif_reader() else (digest, digest + WITHOUT_HEIF)


def compute_group(job: Job, group: int, items: Sequence[Item]) -> dict[str, int]:
    """Write the shards of a group of pictures, then its rows; of how many files, and how many of the rows failed.

    Raises
    ------
    ValueError
        Another version here than where the run was started; storage that refuses. What is wrong with a picture is a row that
        says so.
    """
    model, settings = _prepared(job)
    place = Place(job["out"])
    packer = Packer(place, group, settings.name, stored_type(model, settings), settings.shard_mb * 10**6, _metadata(job))
    rows = []
    for row, packed in _computed(items, model, settings):
        if packed is not None:
            row |= {"slices": len(packed.tgt_sizes), **packer.add(packed)}  # storage that refuses is not the picture's fault
        del packed
        rows.append(row)
    packer.end()
    before = done(place, group)
    marks = {row.get("unread", "") for row in rows}
    digest = UNREAD if UNREAD in marks else group_digest(job["digest"], items) + max(marks)
    write_rows(place, group, rows, digest, packer.written)
    for name in set(before.sizes if before else ()) - {name for name, _ in packer.written}:  # of an earlier list of pictures
        place.remove(name)
    return {"files": len(items), "failed": sum(row["status"] == FAILED for row in rows)}


def try_picture(job: Job, item: Item) -> bool:
    """Compute what is in one file and keep none of it; True. A process that does not outlive it says nothing."""
    for _ in _computed([item], *_prepared(job)):
        pass
    return True


def _prepared(job: Job) -> tuple[Model, Settings]:
    refuse_versions(job["versions"])
    return _model(job["out"], job["model"], json.dumps(job["made"])), Settings(**job["made"]["settings"])


def refuse_versions(wanted: Mapping[str, str]) -> None:
    """An error if this process has other versions."""
    mine = versions()
    for name in MUST_AGREE:
        if mine[name] != wanted[name]:
            raise ValueError(f"corpus: a worker has {name} {mine[name]}, but the run was started with {wanted[name]}")


def _metadata(job: Job) -> dict[str, str]:
    made = job["made"]
    texts = {"npembed": job["versions"]["npembed"], "family": made["family"], "stage": made["settings"]["until"]}
    texts |= {"vector": made["settings"]["vector"]} if made["settings"]["vector"] else {}
    texts |= {"rule": made["rule"]} if made["rule"] else {}
    return texts | {"weights": made["weights"]["sha256"]}


@dataclass
class _Cut:
    """A picture that was read and cut, or what went wrong.

    In words: an error that is kept keeps all that the functions held that it came through, the picture among it.
    """

    row: dict[str, Any]
    """As far as it is known."""
    slices: Slices | str
    seconds: float

    @property
    def size(self) -> Size | None:
        """Of its only slice: others of that size may be computed with it. None where it goes alone.

        With slices of one size, what a family computes of one does not depend on the others, padding included (SPEC 13.2).
        """
        if isinstance(self.slices, str) or len(self.slices.tgt_sizes) > 1:
            return None
        h, w = self.slices.tgt_sizes[0].tolist()
        return h, w


def _computed(items: Sequence[Item], model: Model, settings: Settings) -> Iterator[tuple[dict[str, Any], Packed | None]]:
    """The row of each picture in those files, in order, with what was computed; None if it failed, and the row says why."""
    patches = patches_at_once(model.config)
    for cuts in _batches((cut for item in items for cut in _cut(item, model.config, settings)), patches):
        yield from _rows(cuts, model, settings)
        del cuts  # or they would be there while the next picture is read


def _rows(cuts: Sequence[_Cut], model: Model, settings: Settings) -> Iterator[tuple[dict[str, Any], Packed | None]]:
    start = time.perf_counter()
    results = _results(cuts, model, settings)
    each = (time.perf_counter() - start) / len(cuts)
    for cut, result in zip(cuts, results, strict=True):
        row = cut.row | {"status": OK, "seconds": cut.seconds + each}
        if isinstance(result, str):
            yield row | {"status": FAILED, "error": result}, None
        else:
            yield row, result


def _cut(item: Item, config: FamilyConfig, settings: Settings) -> Iterator[_Cut]:
    """Each picture in a file; the last says what reading or cutting ended with, if that failed."""
    row: dict[str, Any] = {"path": as_utf8(item.path), "bytes": item.size if item.size >= 0 else None, "frame": 0}
    start = time.perf_counter()
    try:
        try:
            content = item.read()
        except OSError:
            row |= {"unread": UNREAD}  # it was there when it was listed, and may be there again
            raise
        row |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for picture, turn in frames_of(content, "it", settings):
            row |= {"width": picture.width, "height": picture.height, "turn": turn.value or None}
            slices = config.family.cut(picture, config, settings.pixels)
            yield _Cut(row, slices, time.perf_counter() - start)
            del slices
            row, start = row | {"frame": row["frame"] + 1, "width": None, "height": None, "turn": None}, time.perf_counter()
        return
    except Exception as error:  # whatever is wrong with one picture, the others go on
        row |= {"unread": WITHOUT_HEIF} if isinstance(error, MissingReaderError) else {}
        said = _one_line(error)
    yield _Cut(row, said, time.perf_counter() - start)


def _batches(cuts: Iterable[_Cut], patches: int) -> Iterator[list[_Cut]]:
    """Pictures of one size that follow each other, up to so many patches at a time; one without a size goes alone."""
    batch: list[_Cut] = []
    for cut in cuts:
        size = cut.size
        if batch and size != batch[0].size:
            yield batch
            batch = []
        batch.append(cut)
        del cut
        if size is None or (len(batch) + 1) * size[0] * size[1] > patches:
            yield batch
            batch = []
    if batch:
        yield batch


def _results(cuts: Sequence[_Cut], model: Model, settings: Settings) -> list[Packed | str]:
    """What each gives, or why not. Those that fail together are computed one by one, so that none fails for another."""
    slices = [cut.slices for cut in cuts if not isinstance(cut.slices, str)]
    if not slices:
        return [cut.slices for cut in cuts if isinstance(cut.slices, str)]
    try:
        return [*compute(slices, model, settings)]
    except Exception as error:
        said = _one_line(error)
    return [said] if len(cuts) == 1 else [result for cut in cuts for result in _results([cut], model, settings)]


def _one_line(error: Exception) -> str:
    text = "".join(character if character.isprintable() else " " for character in as_utf8(str(error)))
    return without_credential(" ".join(text.split()))[:MOST_ERROR] or type(error).__name__


def as_utf8(text: str) -> str:
    """The text, with the bytes of a file's name that are no UTF-8 spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=1)
def _model(out: str, name: str, described: str) -> Model:
    """The run's model, its arrays memory-mapped, so that a machine has them once however many workers it has."""
    place, made = Place(out), json.loads(described)
    family = get_family(made["family"], "corpus")
    config = family.read_config(made["config"], made["preprocessor"])
    arrays = map_tensors(place.path(name) if place.is_local else _fetched(place, name))
    model = Model(family.layout(config, list(arrays)), arrays)
    if not place.is_local and weights_digest(model) != made["weights"]["sha256"]:
        _copy_of(name).unlink(missing_ok=True)
        raise ValueError(f"corpus: the copy of the model at {_copy_of(name)} was another; it is deleted: try again")
    return model


def let_go() -> None:
    """Give back what this process keeps from one group to the next: a cluster's workers outlive a run."""
    _model.cache_clear()
    SPARE.clear()
    for path in _FETCHED:
        path.unlink(missing_ok=True)
    _FETCHED.clear()


_FETCHED: set[Path] = set()
"""Copies on this machine of models in storage far away."""


def own_folder() -> Path:
    """Where this user's processes share temporary files, as copies of models: what lies there is trusted.

    Raises
    ------
    ValueError
        A folder of that name that somebody else has made, who could put other files there.
    """
    path = Path(tempfile.gettempdir(), f"npembed-{os.getuid() if hasattr(os, 'getuid') else 0}")
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if hasattr(os, "getuid") and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise ValueError(f"corpus: the folder {path} is not this user's alone; delete it, or set TMPDIR to another folder")
    return path


def _fetched(place: Place, name: str) -> Path:
    """A copy on this machine of the model in storage far away."""
    path = _copy_of(name)
    if not path.exists() or path.stat().st_size != place.size(name):
        Place(str(path.parent)).write(path.name, lambda beside: beside.write_bytes(place.read(name)))
    _FETCHED.add(path)
    return path


def _copy_of(name: str) -> Path:
    """Its name follows from the arrays."""
    return own_folder() / Path(name).name
