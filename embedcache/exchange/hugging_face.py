"""Records → a folder that ``datasets.load_from_disk`` of Hugging Face maps."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.exchange.arrow_columns import plain_columns
from embedcache.exchange.optional import require_package
from embedcache.exchange.records import DocumentBlock, ExportRecords
from embedcache.exchange.targets import open_new
from embedcache.ragged import splits_of_lengths

_DATA_FILE = "data-00000-of-00001.arrow"


def require_datasets() -> None:
    """Raise `ExchangeError` unless datasets is installed."""
    require_package("datasets", extra="datasets", what="a folder of Hugging Face datasets")


def write_folder(folder: Path, records: ExportRecords, *, target: Path) -> None:
    """Write an Arrow stream, a record batch a block, and what ``load_from_disk`` looks for.

    Not by ``Dataset.save_to_disk``: that copies what it first wrote to a cache of its own.

    Args:
        folder: Empty.
        records: What to write.
        target: What errors name.

    Raises:
        ExchangeError: if the device refuses.
        DiskFullError: if it is full.
    """
    import datasets
    import pyarrow as pa

    features = _features(records)
    schema = features.arrow_schema
    with (
        open_new(folder / _DATA_FILE, target=target) as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):
        for block in records.blocks():
            columns = _columns(block, schema)
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    info = datasets.DatasetInfo(description=records.metadata_json, features=features)
    state: dict[str, Any] = {
        "_data_files": [{"filename": _DATA_FILE}],
        # What `map` of datasets names its cached results by: the same for the same content.
        "_fingerprint": blake2b(records.metadata_json.encode(), digest_size=8).hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    with open_new(folder / "state.json", target=target) as file:
        file.write(json.dumps(state, indent=2).encode())
    with open_new(folder / "dataset_info.json", target=target) as file:
        file.write(_info_json(info))


def _info_json(info: Any) -> bytes:
    fields = {"description": info.description, "features": info.features.to_dict()}
    return json.dumps({"citation": "", "homepage": "", "license": "", **fields}).encode()


def _features(records: ExportRecords) -> Any:
    from datasets import Array2D, Features, Value

    ids = {"id": Value("string")} if records.has_ids else {}
    return Features(
        {
            "key": Value("string"),
            **ids,
            "split": Value("string"),
            "labels": [Value("string")],
            "length": Value("int32"),
            "truncated": Value("bool"),
            # Two dimensions also for a document without tokens, which nested lists lose.
            "features": Array2D((None, records.dim), records.dtype.name),
        }
    )


def _columns(block: DocumentBlock, schema: Any) -> list[Any]:
    import pyarrow as pa

    num_tokens, dim = block.values.shape
    flat = pa.array(np.ascontiguousarray(block.values).reshape(-1))
    ends = pa.array(np.arange(num_tokens + 1) * dim, pa.int32())
    tokens = pa.ListArray.from_arrays(ends, flat)
    splits = pa.array(splits_of_lengths(block.lengths), pa.int32())
    kind = schema.field("features").type
    nested = pa.ListArray.from_arrays(splits, tokens).cast(kind.storage_type)
    return [*plain_columns(block, schema), pa.ExtensionArray.from_storage(kind, nested)]
