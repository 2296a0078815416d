"""Segments of pieces → the padded rows that a BERT takes, as TensorFlow operations."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from embedcache.modules.bert_tokenizer import SpecialPieces

__all__ = ["pack_pieces"]


def pack_pieces(segments: list[Any], seq_length: Any, special: SpecialPieces) -> dict[str, Any]:
    """Join segments to what a BERT takes: ``[CLS]`` first ``[SEP]`` second ``[SEP]``, padded.

    What is too long is cut at its end; of two segments the longer one is, until both fit.

    Args:
        segments: one or two RaggedTensors (batch, None) int32.
        seq_length: an integer or a scalar int32 tensor, pieces of a row, special ones included.
        special: the ids of the special pieces.

    Returns:
        ``input_word_ids``, ``input_mask`` (1 where a piece is) and ``input_type_ids`` (1 at
        the second segment), each (batch, seq_length) int32.
    """
    room = tf.maximum(tf.cast(seq_length, tf.int64) - 1 - len(segments), 0)
    kept = _share_room([row.row_lengths() for row in segments], room)
    columns = tf.range(tf.cast(seq_length, tf.int64))[tf.newaxis, :]
    words = tf.where(columns > 0, special.padding, special.start)
    types = tf.zeros_like(words)
    begin = tf.constant([[1]], tf.int64)
    for number, (row, length) in enumerate(zip(segments, kept, strict=True)):
        end = begin + length[:, tf.newaxis]
        is_inside = (columns >= begin) & (columns < end)
        # One value more, so that there is something to take where there are no pieces.
        values = tf.concat([row.values, [special.padding]], 0)
        places = tf.where(is_inside, columns - begin + row.row_starts()[:, tf.newaxis], 0)
        words = tf.where(tf.equal(columns, end), special.end, words)
        words = tf.where(is_inside, tf.gather(values, places), words)
        types = tf.where((columns >= begin) & (columns <= end), number, types)
        begin = end + 1
    return {
        "input_word_ids": words,
        "input_mask": tf.cast(columns < begin, tf.int32),
        "input_type_ids": types,
    }


def _share_room(lengths: list[Any], room: Any) -> list[Any]:
    """Return how much of one or two segments is kept, each (batch,) int64.

    Of two, the longer one is cut until both fit or are of one length; then both, and the
    first has the odd piece: as if they took the room by turns.
    """
    if len(lengths) == 1:
        return [tf.minimum(lengths[0], room)]
    first, second = lengths
    half = room // 2
    kept_first = tf.minimum(first, tf.maximum(room - half, room - second))
    return [kept_first, tf.minimum(second, room - kept_first)]
