"""`npembed embed` with several pictures: which they are, and whether one padded file of them fits into memory."""

import glob
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from npembed.corpus.sources import list_pictures
from npembed.records.config import FamilyConfig
from npembed.records.model import Model
from npembed.support.pictures import size_of
from npembed.support.typing import Ids, Size

_ENOUGH_PIXELS = 2_000_000
"""A larger picture is cut as one of this many pixels and its shape is, or nearly so."""


def expanded(images: Sequence[Path]) -> list[Path]:
    """The pictures in the order given; a folder or a glob stands for those in it, sorted.

    Raises
    ------
    ValueError
        A folder or a glob without a picture.
    """
    return [path for image in images for path in _expanded(image)]


def _expanded(image: Path) -> Iterator[Path]:
    is_glob = not os.path.lexists(image) and glob.has_magic(str(image)) and any(glob.iglob(str(image), recursive=True))
    if not (is_glob or image.is_dir()):
        yield image
        return
    found = list_pictures([str(image)]).items
    if not found:
        raise ValueError(f"embed: no picture found in {image}")
    yield from (Path(item.path) for item in found)


def refuse_too_many(paths: Sequence[Path], model: Model, until: str) -> None:
    """An error, before the work, if the padded results of all pictures would not fit into the memory that is left.

    Raises
    ------
    ValueError
    """
    left = memory_left()
    if len(paths) < 2 or left is None:
        return
    needed = padded_bytes([size for path in paths if (size := size_of(path))], model, until)
    if needed > left:
        raise ValueError(
            f"embed: the padded results of {len(paths)} pictures take about {needed / 1e9:.1f} GB, but {left / 1e9:.1f} GB of "
            "memory are left; npembed corpus keeps each picture by itself, without padding"
        )


def padded_bytes(sizes: Sequence[Size], model: Model, until: str) -> int:
    """About how many bytes the results take for pictures of those widths and heights in pixels."""
    stage = model.config.family.stage(until, "embed")
    known: dict[Size, Ids] = {}
    for shape in {_smaller(size) for size in sizes}:
        known[shape] = _tgt_sizes(shape, model.config)
    if not sizes:
        return 0
    tgt_sizes = np.concatenate([known[_smaller(size)] for size in sizes])
    width = model.config.embed_dim if until == "tokens" else model.config.vision.hidden_size
    places = tgt_sizes if stage.sizes is None else stage.sizes_of(tgt_sizes, model.config)
    longest = 1 if stage.sizes is None else int(places.prod(axis=1).max())
    return len(places) * longest * width * model.dtype.itemsize


def _smaller(size: Size) -> Size:
    """(width, height): of the same shape with fewer pixels, so that cutting it takes no time."""
    scale = min(1.0, math.sqrt(_ENOUGH_PIXELS / (size[0] * size[1])))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _tgt_sizes(size: Size, config: FamilyConfig) -> Ids:
    """(B, 2) of a blank picture; what the family refuses takes no memory."""
    try:
        return config.family.cut(np.zeros((size[1], size[0], 3), dtype=np.uint8), config).tgt_sizes
    except ValueError:
        return np.empty((0, 2), dtype=np.int64)


def memory_left() -> int | None:
    """Bytes that this process may still take: of the machine, of its control group and of its own limit; None if not known."""
    found = [left for left in (_of_machine(), _of_group(), _of_process()) if left is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    kilobytes = _numbers("/proc/meminfo").get("MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _of_group() -> int | None:
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")
        return int(most) - int(used)
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _numbers("/proc/self/status").get("VmSize:")
    return None if most == resource.RLIM_INFINITY or used is None else most - used * 1024


def _numbers(path: str) -> dict[str, int]:
    """Of a file of the system with a name and a number on each line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {parts[0]: int(parts[1]) for parts in words if len(parts) > 1 and parts[1].isdigit()}
