"""The matrices of texts as bytes: an Arrow IPC stream, an ``.npz``, or JSON."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from embedcache.keys import KEY_BYTES
from embedcache.ragged import splits_of_lengths
from embedcache.service.errors import ServiceProblem
from embedcache.wire import pack_arrays, pack_arrays_and_fill

if TYPE_CHECKING:
    from embedcache.service.features import Features

JSON_TYPE = "application/json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
NPZ_TYPE = "application/x-npz"

_MAX_ARROW_ROWS = (1 << 31) - 1
"""Offsets of an Arrow ``list`` are int32."""

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""A message without a header, which ends an Arrow IPC stream (its format, "IPC Streaming
Format")."""


def to_bytes(view: str, features: Features, media_type: str) -> bytes | memoryview:
    """The body of an answer.

    Args:
        view: Fingerprint of the view.
        features: What to send.
        media_type: `JSON_TYPE`, `ARROW_TYPE` or `NPZ_TYPE`.

    Raises:
        ServiceProblem: 406, if Arrow is asked for and its library is not installed here.
        StoreError: if the bytes are not what was written.
    """
    if media_type == ARROW_TYPE:
        return to_arrow(view, features)
    return to_npz(features) if media_type == NPZ_TYPE else to_json(view, features)


def to_json(view: str, features: Features) -> bytes:
    """A JSON object, each number with as many digits as tell it from its neighbours."""
    # Text by text: a dump of everything would keep other threads waiting for as long.
    option = orjson.OPT_SERIALIZE_NUMPY
    matrices = features.reader.gather(features.refs)
    listed = [
        {
            "key": key.tobytes().hex(),
            "num_tokens": len(matrix),
            "truncated": truncated,
            "values": orjson.Fragment(orjson.dumps(matrix, option=option)),
        }
        for key, truncated, matrix in zip(
            features.keys, features.refs.truncated.tolist(), matrices, strict=True
        )
    ]
    return orjson.dumps(
        {
            "view": view,
            "dim": matrices.dim,
            "dtype": matrices.values.dtype.name,
            "features": listed,
            "hits": features.hits,
            "misses": features.misses,
        }
    )


def to_npz(features: Features) -> bytes | memoryview:
    """What ``numpy.load`` reads: ``keys``, ``truncated``, ``row_splits``, ``values``."""
    reader, refs = features.reader, features.refs
    arrays: dict[str, NDArray[Any]] = {"keys": features.keys, "truncated": refs.truncated}
    if len(refs) == 1:
        # To copy a few rows once more is faster than to find out first where they will lie.
        rows = reader.gather(refs)
        return pack_arrays({**arrays, "row_splits": rows.row_splits, "values": rows.values})
    arrays["row_splits"] = splits_of_lengths(refs.lengths)
    shape = (features.num_rows, reader.view.dim)
    return pack_arrays_and_fill(
        arrays, "values", shape, reader.dtype, lambda out: reader.gather(refs, out=out)
    )


def to_arrow(view: str, features: Features) -> bytes:
    """An Arrow IPC stream of one record batch, a row for each text.

    Columns: ``key`` fixed_size_binary(16), ``truncated`` bool, ``values``
    list<fixed_size_list<halffloat or float, dim>>. The schema's metadata has ``view``, ``dim``
    and ``dtype``.

    Raises:
        ServiceProblem: 406, if Arrow's library is not installed here.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise ServiceProblem(
            406,
            "arrow_unavailable",
            "this server has no pyarrow; ask for application/x-npz, or install"
            " embedcache[parquet] there",
        ) from None
    rows, num_texts = features.reader.gather(features.refs), len(features.refs)
    if len(rows.values) > _MAX_ARROW_ROWS:
        raise ServiceProblem(413, "answer_too_large", "too many rows for Arrow; ask for fewer")
    form = _arrow_form(view, rows.dim, rows.values.dtype)
    offsets = rows.row_splits.astype(np.int32)
    truncated = np.packbits(features.refs.truncated, bitorder="little")

    def array(kind: Any, length: int, numbers: NDArray[Any] | None, *children: Any) -> Any:
        buffers = [None] if numbers is None else [None, pa.py_buffer(numbers)]
        return pa.Array.from_buffers(kind, length, buffers, children=list(children))

    numbers = array(form.number, rows.values.size, np.ascontiguousarray(rows.values))
    each = array(form.row, len(rows.values), None, numbers)
    batch = pa.RecordBatch.from_arrays(
        [
            array(form.key, num_texts, np.ascontiguousarray(features.keys)),
            array(form.truncated, num_texts, truncated),
            array(form.matrix, num_texts, offsets, each),
        ],
        schema=form.schema,
    )
    return b"".join((form.message, batch.serialize(), _END_OF_STREAM))


class _ArrowForm(NamedTuple):
    """What streams of one view have alike.

    Attributes:
        number: Arrow's type of a number.
        row: Of a row.
        matrix: Of a text's matrix.
        key: Of a key.
        truncated: Of whether a text was cut.
        schema: Of the stream.
        message: The stream's first message, which holds the schema.
    """

    number: Any
    row: Any
    matrix: Any
    key: Any
    truncated: Any
    schema: Any
    message: bytes


# For each answer anew it would take longer than all the rest of a short one.
@lru_cache(maxsize=64)
def _arrow_form(view: str, dim: int, dtype: np.dtype[Any]) -> _ArrowForm:
    import pyarrow as pa

    number = pa.from_numpy_dtype(dtype)
    row = pa.list_(number, dim)
    matrix, key, truncated = pa.list_(row), pa.binary(KEY_BYTES), pa.bool_()
    schema = pa.schema(
        [("key", key), ("truncated", truncated), ("values", matrix)],
        metadata={"view": view, "dim": str(dim), "dtype": dtype.name},
    )
    message = schema.serialize().to_pybytes()
    return _ArrowForm(number, row, matrix, key, truncated, schema, message)
