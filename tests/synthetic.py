"""The synthetic picture that upstream's answers were made from."""

import numpy as np
from numpy.typing import NDArray


def synthetic_picture(width: int, height: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3): channel c at (x, y) is (7x + 13y + 50c + (x*y)//97) mod 256."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(7 * x + 13 * y + 50 * c + (x * y) // 97) % 256 for c in range(3)], axis=-1).astype(np.uint8)
