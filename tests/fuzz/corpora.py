"""Corpora that a stranger made: each file in one altered, cut, swapped or linked; then searched, shown, read or resumed."""

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import npembed.corpus
import npembed.pages.corpus  # here, so that no case waits for it
from npembed.cli import run
from npembed.corpus import search
from npembed.support.messages import shown
from tests.corpus.test_bounds import sparse
from tests.corpus.test_hostile import FAR, LINKED, NOT_SHARDS, ROWS, URLS, altered, naming, said, with_column
from tests.fuzz.cases import Case, safetensors
from tests.fuzz.mutations import hostile, mutated_bytes, mutated_json
from tests.fuzz.originals import Originals, in_this_process

TABLES = ("index.parquet", "index.parquet", "vectors.parquet", ROWS)
JSON = ("manifest.json", "list.jsonl")
SHARD = "part-00000.safetensors"
SETTINGS = {"vectors": ["--until", "hidden", "--vector", "mean"], "rows": ["--until", "embeddings"]}
"""The words by which each of the originals is made."""
SECRETS = ("secret.safetensors",)
"""What a corpus may not have opened; a picture of this machine may be looked at, to compare its digest."""


def stranger(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """A corpus after one to three changes."""
    original = rng.choice(originals.corpora)
    shutil.copytree(original, folder, symlinks=True, dirs_exist_ok=True)
    chosen = rng.choices(CHANGES, k=rng.choice((1, 1, 2, 3)))
    for change in sorted(chosen, key=lambda change: change is _stand_in):  # a pipe would be waited for by a later one
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError, pa.ArrowException):
            change(rng, folder)  # what an earlier change has broken cannot always be changed again
    return used(rng, SETTINGS[original.name])


def used(rng: random.Random, settings: list[str]) -> Case:
    """A command that reads or resumes the corpus in the current folder, which was made with those settings."""
    what = rng.choice(("search", "new", "page", "found", "make", "make", "update", "read", "read"))
    if what == "read":
        return Case(["read", "out"], read, secrets=SECRETS)
    if what in ("make", "update"):
        return made(["p", "out", "--weights", "w", *settings, *(["--update"] if what == "update" else [])])
    words = {
        "search": ["search", "out", "p/0.png"],
        "new": ["search", "out", "new.png"],
        "page": ["page", "out", "-o", "r.html"],
        "found": ["search", "out", rng.choice(("p/1.png", "new.png", "secret.png")), "--html", "r.html"],
    }[what]
    return Case(["corpus", *words], secrets=SECRETS)


def made(words: list[str]) -> Case:
    """`corpus make` with those words, and its groups in this process."""

    def act() -> int:
        with in_this_process():
            return run(["corpus", *words])

    return Case(["corpus", *words], act, codes=(0, 1, 2), changes=r"out/(?!mine/)", secrets=SECRETS)


def read() -> int:
    """All of a corpus, as a program that uses the package would."""
    try:
        corpus = npembed.corpus.open("out")
        for number in range(min(len(corpus), 20)):
            if corpus.row(number)["status"] == "ok":
                assert all(hasattr(array, "dtype") for array in corpus[number].values())
        if corpus.has_vectors:
            for _, vectors in corpus.vectors():
                search(corpus, vectors[0], 3)
    except (ValueError, TypeError) as error:
        print(f"npembed: {shown(error)}", file=sys.stderr)
        return 2
    return 0


# Changes


def _content(path: Path) -> bytes:
    if path.stat().st_size > 2**26:
        raise ValueError("an earlier change has made it huge")
    return path.read_bytes()


def _table(rng: random.Random, folder: Path) -> Path:
    return folder / "out" / rng.choice(TABLES)


def _values(rng: random.Random, folder: Path, field: pa.Field) -> Any:
    """What a column may hold that it should not."""
    secret = str(folder / "secret")
    texts: dict[str, list[Any]] = {
        "path": [f"{secret}.png", "../secret.png", "/dev/zero", "/proc/kmsg", "p/0.png", "p", "p.zip::a.png", *URLS],
        "shard": [name.replace("SECRET", f"{secret}.safetensors") for name in NOT_SHARDS] + [SHARD],
        "sha256": ["0" * 64, hashlib.sha256((folder / "secret.png").read_bytes()).hexdigest(), "é" * 64],
        "status": ["ok", "failed", "else"],
        "turn": ["ignored", "else"],
    }
    if pa.types.is_string(field.type):
        return rng.choice([*texts.get(field.name, []), None, "", "\x1b[2J\u202e", "a\nb\x00", "x" * 10_000])
    if pa.types.is_integer(field.type):
        edge = 2 ** (field.type.bit_width - 1)
        return rng.choice([None, -1, 0, 1, 2, 1000, edge - 1, -edge])
    return rng.choice([None, float("nan"), float("inf"), -1.0])


def _column(rng: random.Random, folder: Path) -> None:
    """All of a column, or one cell of it."""
    path = _table(rng, folder)
    field = rng.choice(list(pq.read_schema(path)))
    if rng.random() < 0.5:
        altered(path, with_column(field.name, _values(rng, folder, field)))
        return

    def change(table: pa.Table) -> pa.Table:
        values = table[field.name].to_pylist()
        values[rng.randrange(len(values))] = _values(rng, folder, field)
        return table.set_column(table.schema.get_field_index(field.name), field, pa.array(values, type=field.type))

    altered(path, change)


def _columns(rng: random.Random, folder: Path) -> None:
    """Of other types, gone, twice, or under other names."""

    def change(table: pa.Table) -> pa.Table:
        place, count = rng.randrange(table.num_columns), len(table)
        name = table.schema.names[place]
        nested: Any = 1
        for _ in range(rng.choice((1, 5, 50))):
            nested = [nested]
        other = rng.choice(({"a": "../x"}, nested, b"\xff\xfe", 1.5, True, 2**40, "text", None, [1.0, 2.0], {"a": [{"b": 1}]}))
        what = rng.randrange(6)
        if what == 0:
            return table.drop_columns([name])
        if what == 1:
            return table.append_column(name, table[name])
        if what == 2:
            other_name = rng.choice(("", "x\x1b[2J", name.upper()))
            return table.rename_columns([other_name if each == name else each for each in table.schema.names])
        if what == 3:
            return table.set_column(place, name, table[name].dictionary_encode())
        return table.set_column(place, name, pa.array([other] * count))

    altered(_table(rng, folder), change)


def _rows(rng: random.Random, folder: Path) -> None:
    """Fewer, none, twice, very many, or in another order."""

    def change(table: pa.Table) -> pa.Table:
        return rng.choice(
            (
                lambda: table.slice(0, 0),
                lambda: table.slice(1),
                lambda: pa.concat_tables([table, table]),
                lambda: pa.concat_tables([table] * 20_000).combine_chunks(),
                lambda: table.take(list(reversed(range(len(table))))),
            )
        )()

    altered(_table(rng, folder), change)


def _said_of_rows(rng: random.Random, folder: Path) -> None:
    """What the file of a group's rows says of itself."""
    secret = str(folder / "secret.safetensors")
    names = [SHARD, *(name.replace("SECRET", secret) for name in NOT_SHARDS)]
    parts: Any = [(rng.choice(names), rng.choice((0, 1, -1, 2**63, 10**30))) for _ in range(rng.randrange(4))]
    if rng.random() < 0.6:
        altered(folder / "out" / ROWS, naming(parts))
        return
    text = mutated_json(rng, [[SHARD, 1]]).encode("utf-8", "surrogatepass")
    altered(
        folder / "out" / ROWS,
        lambda table: table.replace_schema_metadata(table.schema.metadata | {b"npembed.parts": text}),
    )


def _footer(rng: random.Random, folder: Path) -> None:
    """Columns that lie in another file, as Parquet allows it."""
    path = _table(rng, folder)
    footer = pq.read_metadata(path)
    footer.set_file_path(rng.choice(("../secret.parquet", str(folder / "secret.parquet"), "")))
    footer.write_metadata_file(path)


def _bytes(rng: random.Random, folder: Path) -> None:
    """The bytes of any file of a corpus; a Parquet file's end says where all else lies."""
    path = folder / "out" / rng.choice((*TABLES, *JSON, SHARD, "README.md"))
    content = _content(path)
    tail = rng.choice((0, 0, 200, 2000)) if path.suffix in (".parquet", ".part") else 0
    path.write_bytes(content[:-tail] + mutated_bytes(rng, content[-tail:]) if tail else mutated_bytes(rng, content))


def _json(rng: random.Random, folder: Path) -> None:
    """The manifest, or a line of the list."""
    path = folder / "out" / rng.choice(JSON)
    text = _content(path).decode()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    place = rng.randrange(len(lines))
    lines[place] = mutated_json(rng, json.loads(lines[place]))
    path.write_text("\n".join(lines) + "\n", errors="surrogatepass")


def _weights(rng: random.Random, folder: Path) -> None:
    """Where the weights are from, as the manifest has it."""
    said(folder / "out/manifest.json", rng.choice((*FAR, "w", "secret.safetensors.gone", hostile(rng))))


def _shard(rng: random.Random, folder: Path) -> None:
    path = folder / "out" / SHARD
    content = _content(path)
    path.write_bytes(rng.choice((lambda: safetensors(rng, content), lambda: content[: rng.randrange(len(content))]))())


def _stand_in(rng: random.Random, folder: Path) -> None:
    """A link, a pipe, a folder, another file, nothing or something huge in a file's place."""
    path, other = folder / "out" / rng.choice(LINKED), folder / "out" / rng.choice(LINKED)
    moved = folder / "moved"
    path.rename(moved)
    what = rng.choice(("link", "secret", "itself", "nowhere", "pipe", "folder", "empty", "gone", "huge", "other"))
    targets = {"link": moved, "secret": folder / "secret.safetensors", "itself": path, "nowhere": folder / "made"}
    if what in targets:
        path.symlink_to(targets[what])
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "other":
        shutil.copy(other, path)
    elif what == "huge":
        sparse(path, 2**31 - 1)
    elif what == "empty":
        path.touch()


CHANGES: tuple[Callable[[random.Random, Path], None], ...] = (
    *(_column, _column, _column, _columns, _columns, _rows, _said_of_rows, _footer),
    *(_bytes, _bytes, _json, _json, _json, _weights, _shard, _shard, _stand_in, _stand_in, _stand_in),
)
