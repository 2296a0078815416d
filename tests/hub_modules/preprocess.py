"""Tiny preprocessors of transformer encoders: strings → word-piece ids, masks and types.

The interface is that of ``official/nlp/tools/export_tfhub_lib.py`` of the repository
tensorflow/models and of TF Hub's "Common SavedModel APIs for Text Tasks". The real ones
need the package tensorflow-text; these are made of TensorFlow's own operations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.hub_modules.saving import asset_folder, quiet_tensorflow, save_tf2
from tests.hub_modules.vocabulary import PIECES, write_pieces
from tests.hub_modules.wordpiece import piece_table, tokenize_function

SEQ_LENGTH = 128
SPECIAL_TOKENS = {
    "vocab_size": len(PIECES),
    "start_of_sequence_id": PIECES.index("[CLS]"),
    "end_of_segment_id": PIECES.index("[SEP]"),
    "padding_id": PIECES.index("[PAD]"),
    "mask_id": PIECES.index("[MASK]"),
}


def make_bert_preprocess(
    path: Path, *, lower_case: bool = True, grouped: bool = True, seq_length: int = SEQ_LENGTH
) -> Path:
    """bert_en_uncased_preprocess/3: the whole preprocessor interface of TF Hub.

    Callable: strings (B,) → a dict of ``input_word_ids``, ``input_mask`` and
    ``input_type_ids``, int32 (B, 128). Subobjects: ``tokenize`` → an int32 RaggedTensor
    (B, words, pieces), with ``get_special_tokens_dict``; ``bert_pack_inputs`` takes a list
    of one or two such tensors and ``seq_length``.

    Args:
        path: The folder.
        lower_case: False for the "cased" ones, which keep accents too.
        grouped: False for (B, pieces), as ALBERT's preprocessor returns.
        seq_length: Of the callable; the default of ``bert_pack_inputs``.
    """
    with quiet_tensorflow() as tf, asset_folder() as folder:
        root = tf.train.Checkpoint()
        root.table = piece_table(write_pieces(folder / "vocab.txt"))
        strings = tf.TensorSpec([None], tf.string, "sentences")
        tokenize = tf.function(
            tokenize_function(root.table, lower_case=lower_case, grouped=grouped),
            input_signature=[strings],
            autograph=False,
        )
        root.tokenize = tf.train.Checkpoint()
        root.tokenize.__call__ = tokenize
        root.tokenize.get_special_tokens_dict = tf.train.Checkpoint()
        root.tokenize.get_special_tokens_dict.__call__ = tf.function(
            lambda: dict(SPECIAL_TOKENS), input_signature=[], autograph=False
        )
        root.bert_pack_inputs = _pack_object(tf, seq_length)
        call = tf.function(
            lambda sentences: _pack([tokenize(sentences)], seq_length),
            input_signature=[strings],
            autograph=False,
        )
        root.__call__ = call
        return save_tf2(root, path, {"serving_default": call.get_concrete_function()})


def make_albert_preprocess(path: Path) -> Path:
    """albert_en_preprocess/3, whose tokens are not grouped by words: (B, pieces)."""
    return make_bert_preprocess(path, grouped=False)


def make_call_only_preprocess(path: Path, *, seq_length: int = SEQ_LENGTH) -> Path:
    """The least that the interface asks for: strings → dict, int32 (B, ``seq_length``)."""
    with quiet_tensorflow() as tf, asset_folder() as folder:
        root = tf.train.Checkpoint()
        root.table = piece_table(write_pieces(folder / "vocab.txt"))
        tokenize = tokenize_function(root.table, lower_case=True, grouped=True)
        root.__call__ = tf.function(
            lambda sentences: _pack([tokenize(sentences)], seq_length),
            input_signature=[tf.TensorSpec([None], tf.string, "sentences")],
            autograph=False,
        )
        return save_tf2(root, path)


def _pack_object(tf: Any, seq_length: int) -> Any:
    """``bert_pack_inputs`` with the traces that the Model Garden saves: 1–2 segments and levels."""
    wrapper = tf.train.Checkpoint()

    @tf.function(autograph=False)
    def pack(inputs: Any, seq_length: Any = seq_length) -> Any:
        return _pack(inputs, seq_length)

    for rank in (2, 3):
        for num_segments in (1, 2):
            segment = tf.RaggedTensorSpec([None] * rank, tf.int32)
            pack.get_concrete_function(
                [segment] * num_segments, seq_length=tf.TensorSpec([], tf.int32)
            )
    wrapper.__call__ = pack
    return wrapper


def _pack(segments: list[Any], seq_length: Any) -> dict[str, Any]:
    """[CLS] first [SEP] (second [SEP]) [PAD]…, the segments cut to prefixes that fit."""
    import tensorflow as tf

    flat = [part.merge_dims(1, -1) if part.shape.rank > 2 else part for part in segments]
    seq_length = tf.cast(seq_length, tf.int64)
    lengths = _trim([part.row_lengths() for part in flat], seq_length - len(flat) - 1)
    place = tf.range(seq_length)[None, :]
    shape = tf.stack([flat[0].nrows(), seq_length])
    ids = tf.where(
        tf.broadcast_to(place == 0, shape),
        SPECIAL_TOKENS["start_of_sequence_id"],
        SPECIAL_TOKENS["padding_id"],
    )
    types = tf.zeros(shape, tf.int32)
    start = tf.ones([1, 1], tf.int64)
    for number, (part, length) in enumerate(zip(flat, lengths, strict=True)):
        end = start + length[:, None]
        inside = (place >= start) & (place < end)
        source = tf.where(inside, part.row_splits[:-1, None] + place - start, 0)
        # One value more, for a batch that has none at all.
        values = tf.gather(tf.concat([part.flat_values, [0]], 0), source)
        ids = tf.where(inside, values, ids)
        ids = tf.where(place == end, SPECIAL_TOKENS["end_of_segment_id"], ids)
        types = tf.where((place >= start) & (place <= end), number, types)
        start = end + 1
    mask = tf.cast(place < start, tf.int32)
    return {"input_word_ids": ids, "input_mask": mask, "input_type_ids": types}


def _trim(lengths: list[Any], room: Any) -> list[Any]:
    """Lengths that fit: a turn each, one token at a time, as a round-robin trimmer gives."""
    import tensorflow as tf

    room = tf.maximum(room, 0)
    if len(lengths) == 1:
        return [tf.minimum(lengths[0], room)]
    first, second = lengths
    return [
        tf.minimum(first, tf.maximum(room - second, room - room // 2)),
        tf.minimum(second, tf.maximum(room - first, room // 2)),
    ]
