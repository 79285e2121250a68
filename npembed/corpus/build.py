"""Many pictures -> a corpus: listed, shared out, computed, and gone on with where a run was stopped."""

import hashlib
import json
import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

import npembed
from npembed.corpus import index
from npembed.corpus.card import CARD, write_card
from npembed.corpus.engine import check_extras, cluster, run_groups
from npembed.corpus.place import Place
from npembed.corpus.settings import (
    WHO,
    Settings,
    check_stage,
    describe,
    numbers_digest,
    one_vector,
    refuse_other,
    weights_digest,
)
from npembed.corpus.shards import group_of
from npembed.corpus.sources import Item, Listing, list_pictures
from npembed.corpus.work import as_utf8, digests, versions
from npembed.records.config import FamilyConfig
from npembed.records.model import Model
from npembed.support.messages import brief, shown
from npembed.support.output_files import is_own_output, write_safetensors
from npembed.support.reading import MOST_JSON, json_object
from npembed.support.typing import Array

MANIFEST, LIST = "manifest.json", "list.jsonl"
FORMAT = 2
READABLE = (1, FORMAT)
"""The format before, whose TIFFs were read otherwise, is opened and not gone on with."""
MOST_PICTURES, FEW_PICTURES = 256, 8
"""In a group of vectors, which take little memory: so many of a long list, so few of a short one."""
MANY_GROUPS = 64
"""Of a list in between: so that many workers share it evenly."""
MOST_LISTED = 2**20
"""Bytes of a line in list.jsonl: an archive's longest name, spelt out, takes fewer."""
MOST_COMPARED = 16
"""Files that are read to find out whether pictures merely have other paths."""
MOST_OF_ROWS = 16
"""Pictures in a group of rows, whatever the list's length: a worker's memory must not grow with it."""
_TYPICAL = (960, 1280)
"""Rows and columns of pixels of the picture by which it is guessed how many fill a shard."""


@dataclass(frozen=True)
class Summary:
    """What became of a run.

    Attributes
    ----------
    pictures, failed : int
        Rows of the index, and those with an error.
    no_pictures, repeated : int
        Files that were not tried, and paths that came again.
    kept : int
        Files that an earlier run had computed.
    turns : dict of str to int
        How many pictures have each word in the column `turn`: what became of their EXIF orientation.
    first_failures : list of (path, frame, error)
        The first few.
    unfinished : dict of int to str
        Groups that could not be finished, and why.
    notes : list of str
        What a person should know.
    """

    pictures: int
    failed: int
    no_pictures: int
    repeated: int
    kept: int
    turns: dict[str, int] = field(default_factory=dict)
    first_failures: list[tuple[str, int, str]] = field(default_factory=list)
    unfinished: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Watcher:
    """Whom a run tells how it goes: `begin` with the number of files to compute and the dashboard's address, if
    there is one, and `done` with the files and the failures of each group."""

    begin: Callable[[int, str], None] = lambda files, dashboard: None
    done: Callable[[int, int], None] = lambda files, failed: None


def build(
    sources: Sequence[str],
    out: str,
    model: Model,
    origin: str = "",
    settings: Settings | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    workers: int | None = None,
    scheduler: str | None = None,
    dashboard: bool = False,
    update: bool = False,
    watch: Watcher | None = None,
) -> Summary:
    """Make a corpus of pictures, or go on with one.

    Parameters
    ----------
    sources : sequence of str
        As `list_pictures` takes them.
    out : str
        A folder that is new, empty or a corpus; or a URL of fsspec.
    model : Model
        With the arrays that `settings.until` needs.
    origin : str
        Where its weights come from, in words.
    settings : Settings, optional
    include, exclude : sequence of str
        Globs.
    workers : int, optional
        Processes on this machine; as many as it has cores by default.
    scheduler : str, optional
        The address of a Dask scheduler, instead; its workers must reach `out`.
    dashboard : bool
        Whether the run's own scheduler has Dask's pages on loopback, for every user of this machine.
    update : bool
        Whether pictures that are new, changed or gone since `out` was made are taken in.
    watch : Watcher, optional

    Returns
    -------
    Summary

    Raises
    ------
    ValueError, TypeError
        No picture; `out` that is no corpus and not empty, was made with something else, or that another run writes to; a
        scheduler that does not answer; `dashboard` with `scheduler`; storage that refuses. What is finished stays.
    ImportError
        Without the extra `corpus`, or `dashboard`.

    Notes
    -----
    Its own workers are new processes. A script that calls this must do so under `if __name__ == "__main__":`, or each of them
    would run the script from its beginning.
    """
    settings = settings or Settings()
    stage = check_stage(settings, model.config.family)
    model.require(stage.name, WHO)
    index.arrow()
    check_extras(scheduler, dashboard)
    if scheduler is not None and dashboard:
        raise ValueError(f"{WHO}: the scheduler {scheduler} has a dashboard of its own, if any; leave out --dashboard")
    on = partial(cluster, workers, scheduler, dashboard)
    place = Place(out)
    made = describe(settings, model, origin, weights_digest(model))
    if _refuse_foreign(place, made):
        with place.locked():  # known before the sources are read, which may take long
            pass
    listing = list_pictures(sources, include, exclude, place.out)
    if not listing.items:
        raise ValueError(f"{WHO}: no picture found in {', '.join(sources)} ({listing.no_pictures} other files)")
    place.make()
    with place.locked():
        _refuse_foreign(place, made)  # once more: another run may have made it meanwhile
        done = index.all_done(place)  # what names a file that is none of its own is known before anything is altered
        place.sweep()
        groups = _planned(place, listing, made, model.config, settings, update)
        return _computed(place, groups, done, listing, made, model, on, watch or Watcher())


def _refuse_foreign(place: Place, made: Mapping[str, Any]) -> bool:
    """An error for a folder of something else, or a corpus made with something else; whether there is one to go on with."""
    names = place.names()
    for name in names:
        if name in (MANIFEST, LIST, index.INDEX, index.VECTORS, CARD, "rows", "scratch") or group_of(name) >= 0:
            place.check(name)
    if MANIFEST in names:
        before = _read_manifest(place)  # of a corpus, or nothing here is touched
        if _is_begun(place):  # else nothing was computed with other settings
            if before["corpus"] != FORMAT:
                words = f"{place.shown} was made by an earlier version of npembed, and is not gone on with"
                raise ValueError(f"{WHO}: {words}; it can be searched; give another OUT")
            refuse_other(before, made, place.shown)
        return True
    if any(not name.startswith(".npembed-") for name in names):
        raise ValueError(f"{WHO}: {place.shown} is not empty and no corpus; give a new or an empty folder")
    return False


def _is_begun(place: Place) -> bool:
    """Whether anything was computed. A run whose cluster did not answer leaves a manifest and a list alone."""
    return place.size(index.INDEX) >= 0 or bool(place.names("rows"))


def _read_manifest(place: Place) -> dict[str, Any]:
    try:
        content = place.read(MANIFEST, MOST_JSON)
    except FileNotFoundError:
        raise ValueError(f"{WHO}: {place.shown}/{MANIFEST} is gone") from None
    try:
        made = json_object(content, "it")
        if made["corpus"] not in READABLE:
            raise ValueError(f"its format is {brief(made['corpus'])}; this version of npembed reads {READABLE}")
        made["settings"] = asdict(Settings(**made["settings"]))
        for name in ("family", "rule", "dtype", "config", "preprocessor"):
            made[name]
        for name in ("sha256", "source"):
            made["weights"][name]
    except KeyError as error:
        raise ValueError(f"{WHO}: {place.shown}/{MANIFEST} is no corpus's: it has no {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{WHO}: {place.shown}/{MANIFEST} is no corpus's: {error}") from None
    return made


def _planned(
    place: Place, listing: Listing, made: Mapping[str, Any], config: FamilyConfig, settings: Settings, update: bool
) -> dict[int, list[Item]]:
    """The groups by number: those of an earlier run, or new ones, written down before anything is computed."""
    before = _read_list(place) if _is_begun(place) else None
    most = _pictures_in_group(len(listing.items), config, settings)
    if before is None:
        groups = dict(enumerate(_cut(listing.items, most)))
        _take_index(place, made)
        _write_list(place, groups)
        return groups
    changes = _changes(before, listing.items)
    moved = _moved(place, before, listing.items)
    if changes and not update:
        advice = "give the sources as they were given then, from the same folder; or --update" if moved else "--update"
        raise ValueError(f"{WHO}: since {place.shown} was made {changes}{moved}; {advice} takes that in")
    groups = _regrouped(before, listing.items, most)
    if changes:
        listing.notes.append(f"since {place.shown} was made {changes}{moved}; that is taken in")
        _take_index(place, made)
        _write_list(place, groups)
    return groups


def _take_index(place: Place, made: Mapping[str, Any]) -> None:
    """No index, and a manifest that says so, before a shard or the list is written: what is open knows that it changes."""
    before = _read_manifest(place) if place.size(MANIFEST) >= 0 else {}
    place.remove(index.INDEX)
    place.remove(index.VECTORS)
    now = versions()
    earlier = [each for each in (*before.get("earlier_versions", []), before.get("versions", now)) if each != now]
    _write_manifest(place, made, {"versions": now, "earlier_versions": earlier, "complete": False})


def _cut(items: Sequence[Item], most: int) -> Iterable[list[Item]]:
    return (list(items[start : start + most]) for start in range(0, len(items), most))


def _pictures_in_group(pictures: int, config: FamilyConfig, settings: Settings) -> int:
    """By the list's length and the settings alone, so that it is the same on every machine."""
    stage = config.family.stage(settings.until, WHO)
    if one_vector(settings, stage):
        return min(MOST_PICTURES, max(FEW_PICTURES, math.ceil(pictures / MANY_GROUPS)))
    tgt_sizes = config.family.cut(np.zeros((*_TYPICAL, 3), dtype=np.uint8), config).tgt_sizes
    width = config.embed_dim if stage.name == "tokens" else config.vision.hidden_size
    typical = int(stage.sizes_of(tgt_sizes, config).prod(axis=1).sum()) * width * (2 if settings.dtype == "float16" else 4)
    return max(1, min(MOST_OF_ROWS, settings.shard_mb * 10**6 // typical))


Listed = dict[str, tuple[int, int, str]]
"""Path -> group, size, stamp."""


def _write_list(place: Place, groups: Mapping[int, Sequence[Item]]) -> None:
    lines = [
        json.dumps([item.path, number, item.size, item.stamp]) + "\n" for number in sorted(groups) for item in groups[number]
    ]
    place.write(LIST, lambda path: path.write_text("".join(lines), encoding="ascii"))


def _read_list(place: Place) -> Listed | None:
    """None where a run was stopped before it had written one."""
    listed: Listed = {}
    try:
        with place.open(LIST) as file:
            while line := file.readline(MOST_LISTED + 1):
                if len(line) > MOST_LISTED:
                    raise ValueError(f"it has a line of more than {MOST_LISTED:,} bytes")
                path, group, size, stamp = json.loads(line)
                if not 0 <= operator.index(group) < 10**15:
                    raise ValueError(f"no group has the number {brief(group)}")
                listed[str(path)] = operator.index(group), operator.index(size), str(stamp)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{WHO}: {place.shown}/{LIST} is damaged: {shown(error)}") from None
    return listed


def _changes(before: Listed, items: Sequence[Item]) -> str:
    """In words; empty if the list is the same."""
    new = sum(item.path not in before for item in items)
    changed = sum(item.path in before and before[item.path][1:] != (item.size, item.stamp) for item in items)
    gone = len(before.keys() - {item.path for item in items})
    parts = [f"{count} {what}" for count, what in ((new, "came"), (changed, "changed"), (gone, "went")) if count]
    return f"pictures were altered: {', '.join(parts)}" if parts else ""


def _moved(place: Place, before: Listed, items: Sequence[Item]) -> str:
    """In words, whether pictures that came have the digests of pictures that went; empty if none has, or none did."""
    gone = before.keys() - {item.path for item in items}
    sizes = {before[path][1] for path in gone}
    came = [item for item in items if item.path not in before and item.size in sizes][:MOST_COMPARED]
    known = _digests(place, {before[path][0] for path in gone}, set(map(as_utf8, gone))) if came else {}
    found = [(item.path, known[digest]) for item in came if (digest := _digest(item)) in known]
    if not found:
        return ""
    now, then = found[0]
    return f"; the same digests are there under other paths ({now} was {then}; {len(found)} of {len(came)} that were compared)"


def _digests(place: Place, groups: Iterable[int], paths: Collection[str]) -> dict[str, str]:
    """sha256 -> path, of the files of those groups with one of the paths."""
    tables = [rows for group in sorted(groups) if (rows := index.read_rows(place, group)) is not None]
    rows = [row for table in tables for row in table.select(["sha256", "path"]).to_pylist()]
    return {row["sha256"]: row["path"] for row in rows if row["path"] in paths and row["sha256"]}


def _digest(item: Item) -> str:
    try:
        return hashlib.sha256(item.read()).hexdigest()
    except Exception:  # it is a failed row later, which says why
        return ""


def _regrouped(before: Listed, items: Sequence[Item], most: int) -> dict[int, list[Item]]:
    """Each picture that was there stays in its group; new ones get groups of their own."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        if item.path in before:
            groups.setdefault(before[item.path][0], []).append(item)
    first = 1 + max((group for group, _, _ in before.values()), default=-1)
    new = [item for item in items if item.path not in before]
    groups |= {first + number: group for number, group in enumerate(_cut(new, most))}
    return dict(sorted(groups.items()))


def _computed(
    place: Place,
    groups: Mapping[int, list[Item]],
    done: Mapping[int, index.Done],
    listing: Listing,
    made: Mapping[str, Any],
    model: Model,
    on: Callable[[], AbstractContextManager[tuple[Any, str]]],
    watch: Watcher,
) -> Summary:
    """What is not yet done, then the index of all."""
    digest = numbers_digest(made)
    todo = {n: items for n, items in groups.items() if not index.is_whole(place, done.get(n), digests(digest, items))}
    name = f"scratch/model-{made['weights']['sha256'][:16]}.safetensors"
    place.remove(name)  # of a run that was killed
    job = {"out": place.out, "made": made, "model": name, "digest": digest, "versions": versions()}
    unfinished = _run(place, job, todo, model, on, watch) if todo else {}
    now = {number: index.done(place, number) for number in groups}
    gone = {number for number, found in now.items() if found is None} - unfinished.keys()
    unfinished |= dict.fromkeys(sorted(gone), "its rows are gone; did another run write here?")
    _remove_strays(place, now)
    settings = Settings(**made["settings"])
    if one_vector(settings, model.config.family.stage(settings.until, WHO)):
        index.write_vectors(place, sorted(groups), settings.name)
    write_card(place)
    counts = index.write_index(place, sorted(groups))
    before = _read_manifest(place)
    computed_with = {name: before[name] for name in ("versions", "earlier_versions") if name in before}
    state = {
        "complete": not unfinished,
        "pictures": counts.pictures,
        "failed": counts.failed,
        "turns": counts.turns,
        "no_pictures": listing.no_pictures,
    }
    _write_manifest(place, made, computed_with | state)
    kept = sum(len(items) for number, items in groups.items() if number not in todo)
    return Summary(
        **vars(counts),
        no_pictures=listing.no_pictures,
        repeated=listing.repeated,
        kept=kept,
        unfinished=unfinished,
        notes=listing.notes,
    )


def _run(
    place: Place,
    job: Mapping[str, Any],
    todo: Mapping[int, list[Item]],
    model: Model,
    on: Callable[[], AbstractContextManager[tuple[Any, str]]],
    watch: Watcher,
) -> dict[int, str]:
    """Compute those groups; the ones that were not finished, each with the reason."""
    _take_index(place, job["made"])
    try:
        place.write(job["model"], partial(write_safetensors, arrays=_contiguous(model), metadata={}))
        with on() as (client, dashboard):
            watch.begin(sum(map(len, todo.values())), dashboard)
            return run_groups(client, job, todo, lambda done: watch.done(done["files"], done["failed"]))
    finally:
        with suppress(ValueError):  # storage that refuses has been named, or will be
            place.remove(job["model"])


def _remove_strays(place: Place, done: Mapping[int, index.Done | None]) -> None:
    """Delete shards and rows that no group has: of an earlier list, or of a run that was killed as it wrote others."""
    named = {name for found in done.values() if found for name in found.sizes}
    for name in place.names():
        if group_of(name) >= 0 and name not in named and (not place.is_local or is_own_output(place.path(name))):
            place.remove(name)
    for group in index.groups_there(place) - done.keys():
        place.remove(index.rows_name(group))


def _contiguous(model: Model) -> dict[str, Array]:
    return {name: np.ascontiguousarray(array) for name, array in model.weights.items()}


def _write_manifest(place: Place, made: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    manifest = {"corpus": FORMAT, "npembed": npembed.__version__, **made, **state}
    place.write(MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="ascii"))
