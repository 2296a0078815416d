"""Numbers at rest: float32 from a module → the storage dtype of a view."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EncodingError

STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}


def to_storage(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Convert rows to the storage dtype, refusing what it cannot hold.

    Args:
        values: Shape (T, dim), float32.
        dtype: ``"float16"`` or ``"float32"``.

    Returns:
        Shape (T, dim), of the storage dtype; rounded to nearest.

    Raises:
        EncodingError: at the first row with a NaN, an infinity, or a number too large for
            the dtype (float16: above 65,504). Its ``row`` attribute is that row's position.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(STORAGE_DTYPES[dtype], copy=False)
    finite = np.isfinite(stored).all(axis=1)
    if finite.all():
        return stored
    row = int(np.argmin(finite))
    if np.isfinite(values[row]).all():
        largest = float(np.abs(values[row]).max())
        raise BadRowError(
            f"the value {largest:g} is too large for {dtype}; use --dtype float32", row=row
        )
    raise BadRowError("the module returned NaN or infinity", row=row)


class BadRowError(EncodingError):
    """A row cannot be stored; ``row`` is its position among those given."""

    def __init__(self, reason: str, *, row: int) -> None:
        super().__init__(reason)
        self.row = row
