"""Upstream's recorded answers, read without a package; and types that NumPy lacks."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

DTYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "BOOL": "?"}


def dtype_of(name: DTypeLike) -> np.dtype[Any]:
    """The type of that name; a test with bfloat16 needs ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def load_file(path: str | Path) -> dict[str, NDArray[np.generic]]:
    """Every array in the file: a length, a header in JSON, then the arrays' bytes."""
    content = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(
            content, DTYPES[entry["dtype"]], math.prod(entry["shape"]), 8 + length + entry["data_offsets"][0]
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }
