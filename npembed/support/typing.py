"""The array types that annotations name."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""An array of any type."""

Floats: TypeAlias = NDArray[Any]
"""An array of float32 or float64."""

Ids: TypeAlias = NDArray[np.int64]
"""An array of int64: ids, sizes, counts, bounds."""

Mask: TypeAlias = NDArray[np.bool_]
"""An array of bool."""

Pixels: TypeAlias = NDArray[np.uint8]
"""An array of bytes, (H, W, 3)."""

Shapes: TypeAlias = dict[str, tuple[int, ...]]
"""Name -> shape of the arrays that a stage reads."""

Size: TypeAlias = tuple[int, int]
"""Two lengths; which comes first is said where it is used."""
