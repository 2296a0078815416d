"""The matrices of texts as bytes: an Arrow IPC stream, an ``.npz``, or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from embedcache.keys import KEY_BYTES, Keys
from embedcache.ragged import RaggedArray
from embedcache.service.errors import ServiceProblem
from embedcache.wire import pack_arrays

JSON_TYPE = "application/json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
NPZ_TYPE = "application/x-npz"

_MAX_ARROW_ROWS = (1 << 31) - 1
"""Offsets of an Arrow ``list`` are int32."""


@dataclass(frozen=True, slots=True)
class ServedMatrices:
    """The features of n texts, ready to be sent.

    Attributes:
        view: Fingerprint of their view.
        keys: Key of each, (n, 16) uint8.
        truncated: Whether the text was cut, (n,) bool.
        matrices: n matrices, float16 or float32.
        hits: Texts that were stored.
        misses: Texts that were computed for this request.
    """

    view: str
    keys: Keys
    truncated: NDArray[np.bool_]
    matrices: RaggedArray
    hits: int
    misses: int


def to_bytes(served: ServedMatrices, media_type: str) -> bytes | memoryview:
    """The body of an answer.

    Args:
        served: What to send.
        media_type: `JSON_TYPE`, `ARROW_TYPE` or `NPZ_TYPE`.

    Raises:
        ServiceProblem: 406, if Arrow is asked for and its library is not installed here.
    """
    if media_type == ARROW_TYPE:
        return to_arrow(served)
    return to_npz(served) if media_type == NPZ_TYPE else to_json(served)


def to_json(served: ServedMatrices) -> bytes:
    """A JSON object, each number with as many digits as tell it from its neighbours."""
    # Text by text: a dump of everything would keep other threads waiting for as long.
    option = orjson.OPT_SERIALIZE_NUMPY
    features = [
        {
            "key": key.tobytes().hex(),
            "num_tokens": len(matrix),
            "truncated": truncated,
            "values": orjson.Fragment(orjson.dumps(matrix, option=option)),
        }
        for key, truncated, matrix in zip(
            served.keys, served.truncated.tolist(), served.matrices, strict=True
        )
    ]
    return orjson.dumps(
        {
            "view": served.view,
            "dim": served.matrices.dim,
            "dtype": served.matrices.values.dtype.name,
            "features": features,
            "hits": served.hits,
            "misses": served.misses,
        }
    )


def to_npz(served: ServedMatrices) -> bytes:
    """What ``numpy.load`` reads: ``keys``, ``row_splits``, ``values``, ``truncated``."""
    return pack_arrays(
        {
            "keys": served.keys,
            "row_splits": served.matrices.row_splits,
            "values": served.matrices.values,
            "truncated": served.truncated,
        }
    )


def to_arrow(served: ServedMatrices) -> memoryview:
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
    rows = served.matrices
    if len(rows.values) > _MAX_ARROW_ROWS:
        raise ServiceProblem(413, "answer_too_large", "too many rows for Arrow; ask for fewer")
    numbers = pa.array(rows.values.reshape(-1))
    matrices = pa.ListArray.from_arrays(
        pa.array(rows.row_splits.astype(np.int32)),
        pa.FixedSizeListArray.from_arrays(numbers, rows.dim),
    )
    keys = pa.Array.from_buffers(
        pa.binary(KEY_BYTES),
        len(served.keys),
        [None, pa.py_buffer(np.ascontiguousarray(served.keys))],
    )
    names = {"view": served.view, "dim": str(rows.dim), "dtype": rows.values.dtype.name}
    batch = pa.record_batch(
        [keys, pa.array(served.truncated), matrices],
        names=["key", "truncated", "values"],
        metadata=names,
    )
    return _stream_of(pa, batch)


def _stream_of(pa: Any, batch: Any) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())
