"""The columns of a block that Parquet and an Arrow stream have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedcache.exchange.records import DocumentBlock


def plain_columns(block: DocumentBlock, schema: Any) -> list[Any]:
    """All columns of a schema but the last, which is ``features``, as Arrow arrays."""
    import pyarrow as pa

    columns = {
        "key": block.key_names,
        "id": block.ids,
        "split": [name or None for name in block.splits],
        "labels": block.labels,
        "length": block.lengths.astype(np.int32),
        "truncated": block.truncated,
    }
    return [pa.array(columns[field.name], field.type) for field in list(schema)[:-1]]
