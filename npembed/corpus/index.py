"""One row per picture: the table that says where each lies, and what became of it."""

import io
import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npembed.corpus.place import Place
from npembed.corpus.shards import group_of, map_tensors
from npembed.reading import json_value
from npembed.words import brief, shown

INDEX = "index.parquet"
OK, FAILED = "ok", "failed"
MOST_ERROR = 500
"""Characters of an error's text."""
_DIGEST, _PARTS = b"npembed.digest", b"npembed.parts"


def arrow() -> Any:
    """pyarrow, with pyarrow.parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError("a corpus needs pyarrow: pip install 'npembed[corpus]'") from None
    return pyarrow


def schema(width: int = 0, dtype: str = "float32") -> Any:
    """The columns in order; the vector last, if there is one."""
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
    columns = [pa.field(name, kind) for name, kind in kinds.items()]
    if width:
        columns.append(
            pa.field("vector", pa.list_({"float16": pa.float16(), "float64": pa.float64()}.get(dtype, pa.float32()), width))
        )
    return pa.schema(columns)


def rows_name(group: int) -> str:
    """The file with a group's rows. It is written last: where it is, the group is done."""
    return f"rows/part-{group:05d}.parquet"


def write_rows(
    place: Place, group: int, rows: Sequence[Mapping[str, Any]], digest: str, parts: Sequence[tuple[str, int]]
) -> None:
    """A group's rows, with what they were made from and the shards that go with them."""
    pa = arrow()
    table = pa.Table.from_pylist(list(rows), schema=schema())
    table = table.replace_schema_metadata({_DIGEST: digest, _PARTS: json.dumps(parts)})
    place.write(rows_name(group), lambda path: _write_table(path, table))


def _write_table(path: Path, table: Any) -> None:
    with path.open("wb") as file:  # pyarrow itself opens no file whose name is no UTF-8
        arrow().parquet.write_table(table, file)


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
        content = place.read(name)
    except OSError:
        return None
    try:
        file = arrow().parquet.ParquetFile(io.BytesIO(content), pre_buffer=False)
        metadata = file.schema_arrow.metadata
        sizes = {part: int(size) for part, size in json_value(metadata[_PARTS], name)}
        found = Done(metadata[_DIGEST].decode(), sizes)
        shards = _shards(file.read(["shard"], use_threads=False))
    except (OSError, ValueError, LookupError, TypeError, arrow().ArrowException):
        return None
    if wrong := [part for part in (*sizes, *shards) if group_of(part) != group or part not in sizes]:
        raise ValueError(f"corpus: {place.shown}/{name} is damaged: {brief(wrong[0])} is no shard of its; give another OUT")
    return found


def all_done(place: Place) -> dict[int, Done]:
    """Every group that is done."""
    return {group: found for group in sorted(groups_there(place)) if (found := done(place, group))}


def groups_there(place: Place) -> set[int]:
    """The groups that have a file of rows."""
    numbers = {int(each) for name in place.names("rows") for each in re.findall(r"^part-([0-9]{5,15})\.parquet$", name)}
    return {number for number in numbers if place.size(rows_name(number)) >= 0}


def is_whole(place: Place, found: Done | None, digest: str) -> bool:
    """Whether a group was made from what `digest` says, and its shards are there."""
    return found is not None and found.digest == digest and all(place.size(name) == n for name, n in found.sizes.items())


def _shards(table: Any) -> list[Any]:
    """The names in its column, each once."""
    return [name for name in table["shard"].unique().to_pylist() if name is not None]


def read_rows(place: Place, group: int) -> Any:
    """A group's rows, as a pyarrow table."""
    table = _read_table(io.BytesIO(place.read(rows_name(group))))
    if not table.schema.equals(schema()):
        raise ValueError(f"corpus: {place.shown}/{rows_name(group)} is damaged: it has other columns; delete it")
    return table


def open_index(path: Path) -> Any:
    """index.parquet on this machine as a pyarrow table, without the vectors, which the shards have.

    Raises
    ------
    ValueError
        A file that is damaged, or is another table.
    """
    try:
        with path.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = _read_table(arrow().BufferReader(whole), schema().names)
        if not table.schema.equals(schema()):
            raise ValueError(f"it has the columns {', '.join(f'{field.name} {field.type}' for field in table.schema)}")
        if wrong := [name for name in _shards(table) if group_of(name) < 0]:
            raise ValueError(f"a picture lies in {brief(wrong[0])}, which is no shard")
    except (OSError, ValueError) as error:
        said = shown(error)
        raise ValueError(f"corpus: {path} is no index: {said}; the command that made the corpus makes it again") from None
    return table


def _read_table(source: Any, columns: list[str] | None = None) -> Any:
    """Without threads of pyarrow's: a process that ends as they do is sometimes aborted."""
    return arrow().parquet.ParquetFile(source, pre_buffer=False).read(columns, use_threads=False)


def write_index(place: Place, groups: Sequence[int], vectors: str, dtype: str) -> dict[str, int]:
    """index.parquet of all those groups, one after the other; how many pictures are in it, and how many failed.

    Parameters
    ----------
    place : Place
    groups : sequence of int
        A group whose rows are missing is left out.
    vectors : str
        The shards' array whose rows go into the column `vector`; "" for none.
    dtype : str
        Of those rows.
    """
    counts = {"pictures": 0, "failed": 0}
    place.write(INDEX, lambda path: _write_index(path, place, groups, vectors, dtype, counts))
    return counts


def _write_index(path: Path, place: Place, groups: Sequence[int], vectors: str, dtype: str, counts: dict[str, int]) -> None:
    pq = arrow().parquet
    writer = None
    counts |= {"pictures": 0, "failed": 0}
    with path.open("wb") as file:
        for table in _tables(place, groups, vectors, dtype):
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
            counts["pictures"] += len(table)
            counts["failed"] += table["status"].to_pylist().count(FAILED)
        if writer is None:
            pq.write_table(schema().empty_table(), file)
        else:
            writer.close()


def _tables(place: Place, groups: Sequence[int], vectors: str, dtype: str) -> Iterator[Any]:
    """Each group's table, with the vectors where they are asked for."""
    width = _width(place, groups, vectors) if vectors else 0
    for group in groups:
        if place.size(rows_name(group)) < 0:
            continue
        table = read_rows(place, group)
        if width:
            table = _with_vectors(table, place, vectors, schema(width, dtype))
        yield table.replace_schema_metadata(None)


def _width(place: Place, groups: Sequence[int], vectors: str) -> int:
    """Of a vector; 0 if there is none."""
    for group in groups:
        found = done(place, group)
        for name in found.sizes if found else []:
            return int(_arrays(place, name)[vectors].shape[1])
    return 0


def _with_vectors(table: Any, place: Place, vectors: str, wanted: Any) -> Any:
    pa = arrow()
    arrays: dict[str, Any] = {}
    column: list[Any] = []
    for shard, row in zip(table["shard"].to_pylist(), table["first_row"].to_pylist(), strict=True):
        if shard is None:
            column.append(None)
            continue
        if shard not in arrays:
            arrays[shard] = _arrays(place, shard)[vectors]
        column.append(arrays[shard][row])
    return table.append_column(wanted.field("vector"), pa.array(column, type=wanted.field("vector").type)).cast(wanted)


def _arrays(place: Place, name: str) -> Any:
    """A shard's arrays: memory-mapped where that can be."""
    if place.is_local:
        return map_tensors(place.path(name))
    from safetensors.numpy import load

    return load(place.read(name))
