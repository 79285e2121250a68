"""One row per picture: the table that says where each lies, and what became of it."""

import json
import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npembed.corpus.place import Place
from npembed.corpus.shards import group_of, map_tensors
from npembed.support.messages import brief, shown
from npembed.support.pictures import MOST_FILE
from npembed.support.reading import json_value

INDEX, VECTORS = "index.parquet", "vectors.parquet"
OK, FAILED = "ok", "failed"
MOST_ERROR = 500
"""Characters of an error's text."""
MOST_SHOWN = 3
"""Failures that a run names at its end."""
MOST_TEXT, TEXT_OF_A_BYTE = 2**26, 1000
"""Bytes of text that a table may hold whatever its size, and more for each byte of it: many pictures may have one error."""
_DIGEST, _PARTS = b"npembed.digest", b"npembed.parts"


def arrow() -> Any:
    """pyarrow, with pyarrow.compute and pyarrow.parquet."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise ImportError("a corpus needs pyarrow: pip install 'npembed[corpus]'") from None
    return pyarrow


def schema() -> Any:
    """The columns of the index, in order."""
    pa = arrow()
    kinds = {
        "path": pa.string(),
        "bytes": pa.int64(),
        "sha256": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "frame": pa.int32(),
        "turn": pa.string(),
        "slices": pa.int32(),
        "shard": pa.string(),
        "image": pa.int32(),
        "first_slice": pa.int64(),
        "first_row": pa.int64(),
        "rows": pa.int64(),
        "status": pa.string(),
        "error": pa.string(),
        "seconds": pa.float32(),
    }
    return pa.schema([pa.field(name, kind) for name, kind in kinds.items()])


def rows_name(group: int) -> str:
    """The file with a group's rows. It is written last: where it is, the group is done.

    It is a Parquet file, but no program that searches a folder for tables takes it for one.
    """
    return f"rows/part-{group:05d}.part"


def write_rows(
    place: Place, group: int, rows: Sequence[Mapping[str, Any]], digest: str, parts: Sequence[tuple[str, int]]
) -> None:
    """A group's rows, with what they were made from and the shards that go with them."""
    pa = arrow()
    table = pa.Table.from_pylist(list(rows), schema=schema())
    table = table.replace_schema_metadata({_DIGEST: digest, _PARTS: json.dumps(parts)})
    place.write(rows_name(group), lambda path: _write_tables(path, table.schema, [table]))


class Done(NamedTuple):
    """What the file of a group's rows says of it.

    Attributes
    ----------
    digest : str
        Of what it was made from.
    sizes : dict of str to int
        Its shards, and their bytes.
    """

    digest: str
    sizes: dict[str, int]


def done(place: Place, group: int) -> Done | None:
    """A group that is done; None if its rows are missing or cut short, so that it must be computed.

    Raises
    ------
    ValueError
        Rows that name another file than a shard of their group.
    """
    name = rows_name(group)
    try:
        table = _read_table(place.read(name, MOST_FILE), ["shard"])
        metadata = table.schema.metadata
        sizes = {part: int(size) for part, size in json_value(metadata[_PARTS], name)}
        found, shards = Done(metadata[_DIGEST].decode(), sizes), _shards(table)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if wrong := [part for part in (*sizes, *shards) if group_of(part) != group or part not in sizes]:
        raise ValueError(f"corpus: {place.shown}/{name} is damaged: {brief(wrong[0])} is no shard of its; give another OUT")
    return found


def all_done(place: Place) -> dict[int, Done]:
    """Every group that is done."""
    return {group: found for group in sorted(groups_there(place)) if (found := done(place, group))}


def groups_there(place: Place) -> set[int]:
    """The groups that have a file of rows."""
    numbers = {int(each) for name in place.names("rows") for each in re.findall(r"^part-([0-9]{5,15})\.part$", name)}
    return {number for number in numbers if place.size(rows_name(number)) >= 0}


def is_whole(place: Place, found: Done | None, digests: Sequence[str]) -> bool:
    """Whether a group was made from what one of the digests says, and its shards are there."""
    return found is not None and found.digest in digests and all(place.size(name) == n for name, n in found.sizes.items())


def _shards(table: Any) -> list[Any]:
    """The names in its column, each once."""
    return [name for name in table["shard"].unique().to_pylist() if name is not None]


def read_rows(place: Place, group: int) -> Any:
    """A group's rows, as a pyarrow table; None if there are none."""
    if place.size(rows_name(group)) < 0:
        return None
    content = place.read(rows_name(group), MOST_FILE)
    try:
        return _read_table(content, schema().names)
    except ValueError as error:
        raise ValueError(f"corpus: {place.shown}/{rows_name(group)} is damaged: {error}; delete it") from None


def open_index(path: Path) -> Any:
    """index.parquet on this machine as a pyarrow table.

    Raises
    ------
    ValueError
        A file that is damaged, or is another table.
    """
    try:
        with path.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = _read_table(whole, schema().names, optional="turn")
        if "turn" not in table.schema.names:  # the format before did not have it
            place = schema().get_field_index("turn")
            table = table.add_column(place, "turn", arrow().nulls(len(table), "string"))
        if wrong := [name for name in _shards(table) if group_of(name) < 0]:
            raise ValueError(f"a picture lies in {brief(wrong[0])}, which is no shard")
        if lacking := [name for name in ("path", "frame", "status") if table[name].null_count]:
            raise ValueError(f"a row has no {lacking[0]}")
    except (OSError, ValueError) as error:
        said = shown(error)
        raise ValueError(f"corpus: {path} is no index: {said}; the command that made the corpus makes it again") from None
    return table


def _read_table(content: Any, columns: Sequence[str], optional: str = "") -> Any:
    """Those columns of the index, or of rows, from a Parquet file's bytes, unless they claim more than it can hold.

    500 bytes may hold one text of a megabyte 20,000 times, so texts are read as numbers of texts first. Without threads of
    pyarrow's: a process that ends as they do is sometimes aborted.
    """
    pa = arrow()
    try:
        claims = pa.parquet.read_metadata(pa.BufferReader(content))
        found = claims.schema.to_arrow_schema()
        wanted = pa.schema([schema().field(name) for name in columns if name != optional or name in found.names])
        if any(field not in found for field in wanted):
            raise ValueError(f"it has the columns {', '.join(f'{field.name} {field.type}' for field in found)}")
        rows = sum(claims.row_group(number).num_rows for number in range(claims.num_row_groups))  # what is read goes by these
        if rows != claims.num_rows or rows > len(content):
            raise ValueError(f"it claims {max(rows, claims.num_rows):,} rows in {len(content):,} bytes")
        texts = [field.name for field in wanted if pa.types.is_string(field.type)]
        file = pa.parquet.ParquetFile(pa.BufferReader(content), metadata=claims, pre_buffer=False, read_dictionary=texts)
        table = file.read(wanted.names, use_threads=False).select(wanted.names)
        if (held := sum(map(_text_bytes, table.columns))) > MOST_TEXT + TEXT_OF_A_BYTE * len(content):
            raise ValueError(f"it claims {held:,} bytes of text in {len(content):,} bytes")
        return table.cast(wanted).replace_schema_metadata(found.metadata)
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise ValueError(shown(error)) from None


def _text_bytes(column: Any) -> int:
    """Of texts that are read as numbers of texts."""
    if not arrow().types.is_dictionary(column.type):
        return 0
    compute = arrow().compute
    lengths = (compute.take(compute.binary_length(chunk.dictionary), chunk.indices) for chunk in column.chunks)
    return sum(compute.sum(each).as_py() or 0 for each in lengths)


@dataclass
class Counts:
    """What the index holds.

    Attributes
    ----------
    pictures, failed : int
        Its rows, and those with an error.
    turns : dict of str to int
        Of the pictures that did not fail, how many have each word in the column `turn`.
    first_failures : list of (path, frame, error)
        At most `MOST_SHOWN`.
    """

    pictures: int = 0
    failed: int = 0
    turns: dict[str, int] = field(default_factory=dict)
    first_failures: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, table: Any) -> None:
        """The rows of one group."""
        rows = table.select(["path", "frame", "error", "status", "turn"]).to_pylist()
        failures = [(row["path"], row["frame"] or 0, row["error"] or "") for row in rows if row["status"] == FAILED]
        turns = Counter(row["turn"] for row in rows if row["turn"] and row["status"] == OK)
        self.pictures += len(rows)
        self.failed += len(failures)
        self.turns = dict(Counter(self.turns) + turns)
        self.first_failures = (self.first_failures + failures)[:MOST_SHOWN]


def write_index(place: Place, groups: Sequence[int]) -> Counts:
    """index.parquet of all those groups, one after the other; what is in it.

    Parameters
    ----------
    place : Place
    groups : sequence of int
        A group whose rows are missing is left out.
    """
    counts = Counts()

    def tables() -> Iterator[Any]:
        for group in groups:
            if (table := read_rows(place, group)) is not None:
                counts.add(table)
                yield table.replace_schema_metadata(None)

    place.write(INDEX, lambda path: _write_tables(path, schema(), tables()))
    return counts


def write_vectors(place: Place, groups: Sequence[int], name: str) -> None:
    """vectors.parquet of all those groups: each good picture's vector. No file, where there is no such picture.

    Parameters
    ----------
    place : Place
    groups : sequence of int
    name : str
        The shards' array of vectors.
    """
    tables = (_vectors_of(place, group, name) for group in groups)
    some = (table for table in tables if table is not None)
    if (first := next(some, None)) is None:
        place.remove(VECTORS)
    else:
        place.write(VECTORS, lambda path: _write_tables(path, first.schema, chain([first], some)))


def _vectors_of(place: Place, group: int, name: str) -> Any:
    """The vectors of a group's good pictures, as a pyarrow table; None if there is none."""
    pa = arrow()
    rows = read_rows(place, group)
    good = [] if rows is None else [row for row in rows.to_pylist() if row["status"] == OK]
    if not good:
        return None
    try:
        if wrong := [row for row in good if row["first_row"] is None or row["first_row"] < 0]:
            raise ValueError(f"{brief(wrong[0]['path'])} is in no row of its shard")
        arrays = {shard: _arrays(place, shard)[name] for shard in dict.fromkeys(row["shard"] for row in good)}
        vectors = np.stack([arrays[row["shard"]][row["first_row"]] for row in good]).astype(np.float32)
        number = pa.field("element", pa.float32(), nullable=False)
        kinds = {"path": pa.string(), "frame": pa.int32(), "sha256": pa.string(), "vector": pa.list_(number, vectors.shape[1])}
        columns = [pa.array([row[column] for row in good], type=kinds[column]) for column in ("path", "frame", "sha256")]
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kinds["vector"]))
        return pa.table(columns, schema=pa.schema([pa.field(*kind, nullable=False) for kind in kinds.items()]))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"corpus: {place.shown}/{rows_name(group)} is damaged: {shown(error)}; delete it") from None


def _write_tables(path: Path, columns: Any, tables: Iterable[Any]) -> None:
    # pyarrow itself opens no file whose name is no UTF-8
    with path.open("wb") as file, arrow().parquet.ParquetWriter(file, columns) as writer:
        for table in tables:
            writer.write_table(table)


def _arrays(place: Place, name: str) -> Any:
    """A shard's arrays: memory-mapped where that can be."""
    if place.is_local:
        return map_tensors(place.path(name))
    from safetensors.numpy import load

    return load(place.read(name))
