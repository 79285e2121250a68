"""torch's float32 `arange`, bit for bit: the one piece of arithmetic on which the position ids hang."""

import math

import numpy as np
from numpy.typing import NDArray


def torch_arange(start: float, end: float, step: float, *, lanes: int = 8) -> NDArray[np.float32]:
    """What `torch.arange(start, end, step)` gives in float32 on a CPU whose vectors have `lanes` lanes.

    torch fills the array two vectors at a time. Of each vector it rounds the first element to float32 and counts on
    from that rounded base; what is left at the end is computed element by element. So the bits, and with them the
    ids, depend on the number of lanes: 8 on x86-64, 4 on most 64-bit ARM machines.

    Parameters
    ----------
    start, end, step : float
        As torch takes them, in float64. `step` is positive.
    lanes : int
        float32 values per vector.

    Returns
    -------
    float32 (count,)
        count = ceil((end - start) / step).

    Notes
    -----
    Source: SPEC 5.1, read off torch 2.13.0 on x86-64 and 2.6 to 2.8 on ARM.

    Examples
    --------
    >>> torch_arange(0.0, 1.0, 0.25).tolist()
    [0.0, 0.25, 0.5, 0.75]
    >>> eight, four = (torch_arange(0.0, 1.0, 1 / 49, lanes=lanes) for lanes in (8, 4))
    >>> np.flatnonzero(eight != four).tolist()
    [5, 7, 14, 20, 22, 23, 44, 45, 46, 47]
    """
    count = math.ceil((end - start) / step)
    in_vectors = count // (2 * lanes) * (2 * lanes)
    index = np.arange(count)
    lane = np.where(index < in_vectors, index % lanes, 0)  # the elements after the last full pair are their own base
    base = (start + step * (index - lane)).astype(np.float32)
    return (base.astype(np.float64) + lane * step).astype(np.float32)
