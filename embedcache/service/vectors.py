"""One vector for each text of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from embedcache.service.bodies import POOLING_COST, build, num_bytes_of
from embedcache.service.errors import ServiceProblem
from embedcache.service.pooling import mean_rows

if TYPE_CHECKING:
    from embedcache.service.features import Features
    from embedcache.service.served_view import ServedView


def check_dimensions(view: ServedView, dimensions: int | None) -> None:
    """Refuse another width than the view's own.

    Raises:
        ServiceProblem: 422.
    """
    dim = view.record.view.dim
    if dimensions is not None and dimensions != dim:
        raise ServiceProblem(
            422,
            "dimensions",
            f"dimensions: this view's vectors have {dim} numbers and are not shortened; leave it"
            " out",
        )


async def pool(request: Request, features: Features, *, normalize: bool) -> NDArray[np.float32]:
    """The mean of the rows of each text, (n, dim) float32; see `mean_rows`.

    Raises:
        StoreError: if the bytes are not what was written.
    """

    def pool_rows() -> NDArray[np.float32]:
        return mean_rows(features.reader.gather(features.refs), normalize=normalize)

    cost_bytes = POOLING_COST * num_bytes_of(features)
    return await build(request, pool_rows, cost_bytes=cost_bytes)
