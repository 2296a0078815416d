"""Records → Parquet, a row group a block."""

from __future__ import annotations

from typing import IO, Any

import numpy as np

from embedcache.exchange.arrow_columns import plain_columns
from embedcache.exchange.optional import require_package
from embedcache.exchange.records import DocumentBlock, ExportRecords
from embedcache.ragged import splits_of_lengths

METADATA_KEY = "embedcache"


def require_parquet() -> None:
    """Raise `ExchangeError` unless pyarrow is installed."""
    require_package("pyarrow.parquet", extra="parquet", what="Parquet")


def write_parquet(file: IO[bytes], records: ExportRecords) -> None:
    """Write a table of one row a document.

    The column ``features`` is a plain list of the ``length × dim`` numbers of a document,
    row after row: pandas gives it as one NumPy array, where nested lists become an array of
    Python objects a token; and polars and DuckDB take it too.

    Raises:
        OSError: if the device refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(records)
    # Numbers hardly repeat: a dictionary of them made files no smaller and writing 1.5 times
    # slower; zstd took 8 % off.
    few = ["split", "labels.list.element"]
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=few) as writer:
        for block in records.blocks():
            table = pa.Table.from_arrays(_columns(block, schema), schema=schema)
            writer.write_table(table, row_group_size=len(block))


def _schema(records: ExportRecords) -> Any:
    import pyarrow as pa

    number = pa.from_numpy_dtype(records.dtype)
    shape = {"dim": str(records.dim)}
    fields = [
        pa.field("key", pa.string(), nullable=False),
        *([pa.field("id", pa.string())] if records.has_ids else []),
        pa.field("split", pa.string()),
        pa.field("labels", pa.list_(pa.field("element", pa.string()))),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("features", pa.list_(pa.field("element", number)), metadata=shape),
    ]
    return pa.schema(fields, metadata={METADATA_KEY: records.metadata_json})


def _columns(block: DocumentBlock, schema: Any) -> list[Any]:
    import pyarrow as pa

    flat = np.ascontiguousarray(block.values).reshape(-1)
    splits = splits_of_lengths(block.lengths) * block.values.shape[1]
    features = pa.ListArray.from_arrays(pa.array(splits, pa.int32()), pa.array(flat))
    return [*plain_columns(block, schema), features.cast(schema.field("features").type)]
