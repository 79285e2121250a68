"""What the embeddings of a batch must be, in float64, and how far float32 may be from it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Batch
from benchmarks.contest import DisagreementError
from npembed import Model, position_ids

Floats = NDArray[Any]

ROWS = 4096
"""Patches that are checked at a time, to bound the memory."""

UNIT_ROUNDOFF = 2.0**-24


def gamma(terms: int) -> float:
    """Higham's n*u / (1 - n*u), u of float32; what float64 rounds is far below its last digit."""
    return terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)


class Truth:
    """x @ w.T, and |x| @ |w|.T for the bound, of every patch; made once, by none of the contestants' code."""

    def __init__(self, batch: Batch, model: Model) -> None:
        self.batch = batch
        self.model = model
        kernels, self.bias, self.table = (
            model.weights[f"vpm.embeddings.{name}"].astype(np.float64)
            for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
        )
        rows = kernels.reshape(len(kernels), -1)  # (D, C*P*P)
        self.blocks = []
        for start in range(0, len(batch.patches), ROWS):
            patches = batch.patches[start : start + ROWS].astype(np.float64)
            self.blocks.append((patches @ rows.T, (np.abs(patches) @ np.abs(rows).T).astype(np.float32)))

    def check_product(self, who: str, result: Floats) -> None:
        """(sum of L, D): the products alone."""
        start = 0
        for exact, magnitude in self.blocks:
            self._compare(who, start, result[start : start + len(exact)], exact, magnitude)
            start += len(exact)

    def check(self, who: str, result: Any, places: NDArray[np.bool_], rule: str) -> None:
        """Embeddings in any layout: (B, K, D), where `places` (B, K) says which are patches; the rest holds padding."""
        if result.shape != (*places.shape, len(self.bias)):
            raise DisagreementError(f"{who}: shape {tuple(result.shape)}, expected {(*places.shape, len(self.bias))}")
        flat = np.asarray(result).reshape(-1, len(self.bias))
        valid, padding = np.flatnonzero(places), np.flatnonzero(~places)
        ids = self._ids(rule)
        for start, (exact, magnitude) in zip(range(0, len(valid), ROWS), self.blocks, strict=True):
            of = slice(start, start + ROWS)
            positions = self.table[ids[of]]
            sums = magnitude + np.abs(self.bias) + np.abs(positions)
            self._compare(who, start, flat[valid[of]], exact + self.bias + positions, sums)
        for start in range(0, len(padding), ROWS):
            filler = np.abs(self.bias) + np.abs(self.table[0])
            self._compare(f"{who}'s padding", start, flat[padding[start : start + ROWS]], self.bias + self.table[0], filler)

    def _ids(self, rule: str) -> NDArray[np.int64]:
        """(sum of L,): every patch's row of the position table."""
        ids = position_ids(self.batch.sizes, self.model.config.vision.num_patches_per_side, rule)
        return np.concatenate([row[:length] for row, length in zip(ids, self.batch.lengths, strict=True)])

    def _compare(self, who: str, start: int, result: Floats, exact: Floats, magnitude: Floats) -> None:
        """(N, D), and what broadcasts to it twice: an error that names the first number out of bounds; NaN is."""
        allowed = gamma(self.batch.patches.shape[1] + 3) * magnitude
        wrong = np.argwhere(~(np.abs(result - exact) <= allowed))
        if len(wrong):
            row, channel = wrong[0]
            expected, most = (np.broadcast_to(array, result.shape)[row, channel] for array in (exact, allowed))
            raise DisagreementError(
                f"{who}: place {start + row}, channel {channel}: {result[row, channel]:.9g}, exactly {expected:.9g}; "
                f"float32 may be off by {most:.2g}"
            )
