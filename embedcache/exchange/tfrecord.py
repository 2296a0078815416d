"""Records → TFRecord: the one file outside `embedcache.modules` that imports TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import ExchangeError
from embedcache.exchange.records import DocumentBlock, ExportRecords
from embedcache.exchange.targets import disk_full
from embedcache.quiet import quiet_native_stderr

# TensorFlow gives what the system says in its message, and for a file that is too large the
# same exception as for the end of one.
_NO_SPACE = ("No space left", "File too large", "quota exceeded")


def write_tfrecords(path: Path, records: ExportRecords, *, target: Path) -> None:
    """Write a ``tf.train.Example`` a document.

    The features are one string of bytes, little-endian, row after row: a list of floats
    would be float32 for any storage dtype, and several times slower to parse.

    Args:
        path: The new file.
        records: What to write.
        target: What errors name.

    Raises:
        ExchangeError: if the device refuses.
        DiskFullError: if it is full.
    """
    with quiet_native_stderr():
        import tensorflow as tf
    # Made first, for its owner alone: TensorFlow would let others read it.
    path.touch(mode=0o600)
    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for block in records.blocks():
                for example in _examples(tf, block):
                    writer.write(example)
    except tf.errors.OpError as error:
        if any(words in error.message for words in _NO_SPACE):
            raise disk_full(target) from error
        reason = " ".join(error.message.split())[:200]
        raise ExchangeError(
            f"{target}: {reason}; mend that, or name another place with --to"
        ) from error


def _examples(tf: Any, block: DocumentBlock) -> Any:
    """The serialized example of each document."""
    little = np.ascontiguousarray(block.values, block.values.dtype.newbyteorder("<"))
    ends = np.cumsum(block.lengths).tolist()
    lengths, cut = block.lengths.tolist(), block.truncated.tolist()
    for position, name in enumerate(block.key_names):
        length = lengths[position]
        rows = little[ends[position] - length : ends[position]]
        fields = {
            "key": _strings(tf, [name]),
            "split": _strings(tf, [block.splits[position]]),
            "labels": _strings(tf, block.labels[position]),
            "length": _numbers(tf, length),
            "dim": _numbers(tf, rows.shape[1]),
            "truncated": _numbers(tf, int(cut[position])),
            "features": tf.train.Feature(bytes_list=tf.train.BytesList(value=[rows.tobytes()])),
        }
        if block.ids is not None:
            fields["id"] = _strings(tf, [block.ids[position]])
        example = tf.train.Example(features=tf.train.Features(feature=fields))
        yield example.SerializeToString()


def _strings(tf: Any, texts: list[str]) -> Any:
    encoded = [text.encode() for text in texts]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))


def _numbers(tf: Any, number: int) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[number]))
