"""Tiny sentence encoders: string → vector, where the vector is no combination of words.

Universal Sentence Encoder 4 and large 5, and the sentence-T5 and GTR family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.hub_modules.saving import (
    Tf1Signature,
    quiet_tensorflow,
    save_tf1,
    save_tf2,
    tf1_variable,
)

_NUM_BUCKETS = 997


def make_use(path: Path, *, dim: int = 16, seed: int = 0) -> Path:
    """universal-sentence-encoder/4: callable, returns a float32 tensor (B, dim) of unit rows."""
    with quiet_tensorflow() as tf:
        root, embed = _mixture(dim, seed)
        root.__call__ = embed
        return save_tf2(root, path, {"serving_default": _named_outputs(tf, embed)})


def make_use_tf1(path: Path, *, dim: int = 16, seed: int = 0) -> Path:
    """universal-sentence-encoder/1–2 in the TF1 Hub format: ``text`` → ``default``.

    Its vectors are those of `make_use`.
    """

    def build() -> dict[str, Tf1Signature]:
        import tensorflow as tf

        text = tf.compat.v1.placeholder(tf.string, [None], name="text")
        drawn = _weights(dim, seed)
        weights = {name: tf1_variable(name, array) for name, array in drawn.items()}
        return {"default": Tf1Signature({"text": text}, {"default": _mix(text, weights)})}

    return save_tf1(path, build)


def make_use_large(path: Path, *, dim: int = 16, seed: int = 0, callable_too: bool = False) -> Path:
    """universal-sentence-encoder-large/5 as TF Serving sees it: ``inputs`` → ``outputs``.

    The real one can be called as well; ``callable_too`` makes it so.
    """
    with quiet_tensorflow() as tf:
        root, embed = _mixture(dim, seed)
        if callable_too:
            root.__call__ = embed
        return save_tf2(root, path, {"serving_default": _named_outputs(tf, embed)})


def make_sentence_t5(path: Path, *, dim: int = 16, seed: int = 0) -> Path:
    """sentence-t5/st5-base/1 and gtr: callable, returns a list of one tensor (B, dim).

    A batch is padded to its longest text and read in a loop, so that a long text costs more,
    and makes the others of its batch cost more.
    """
    generator = np.random.default_rng(seed)
    with quiet_tensorflow() as tf:
        root = tf.Module()
        root.table = tf.Variable(_draw(generator, (_NUM_BUCKETS, dim)))
        root.recurrent = tf.Variable(_draw(generator, (dim, dim)))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def embed(texts: Any) -> Any:
            words = tf.strings.split(texts)
            buckets = tf.strings.to_hash_bucket_fast(words, _NUM_BUCKETS).to_tensor(0)
            last = _read_in_order(
                tf.gather(root.table, buckets), words.row_lengths(), root.recurrent
            )
            return [tf.math.l2_normalize(last, axis=1)]

        root.__call__ = embed
        return save_tf2(root, path)


def _read_in_order(rows: Any, lengths: Any, recurrent: Any) -> Any:
    """A recurrent network's last state of each text: (B, L, d) → (B, d)."""
    import tensorflow as tf

    def step(place: Any, state: Any) -> tuple[Any, Any]:
        new = tf.tanh(rows[:, place] + tf.linalg.matmul(state, recurrent))
        inside = tf.cast(place, tf.int64) < lengths
        return place + 1, tf.where(inside[:, None], new, state)

    start = (tf.constant(0), tf.zeros([tf.shape(rows)[0], rows.shape[2]]))
    return tf.while_loop(lambda place, _: place < tf.shape(rows)[1], step, start)[1]


def _mixture(dim: int, seed: int) -> tuple[Any, Any]:
    """A root with its weights, and the function string → (B, dim)."""
    import tensorflow as tf

    root = tf.Module()
    root.weights = {name: tf.Variable(array) for name, array in _weights(dim, seed).items()}
    strings = tf.TensorSpec([None], tf.string, "inputs")
    return root, tf.function(lambda texts: _mix(texts, root.weights), input_signature=[strings])


def _weights(dim: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    shapes = {"table": (_NUM_BUCKETS, dim), "dense": (dim, dim), "frequencies": (dim,)}
    return {name: _draw(generator, shape) for name, shape in shapes.items()}


def _mix(texts: Any, weights: Mapping[str, Any]) -> Any:
    """Words mixed by their places, then tanh: unit rows; zeros for a text without words."""
    import tensorflow as tf

    words = tf.strings.split(texts)
    buckets = tf.strings.to_hash_bucket_fast(words.flat_values, _NUM_BUCKETS)
    places = tf.cast(tf.ragged.range(words.row_lengths()).flat_values, tf.float32)
    rows = tf.gather(weights["table"], buckets)
    rows *= tf.cos(places[:, None] * weights["frequencies"])
    mixed = tf.math.unsorted_segment_sum(rows, words.value_rowids(), words.nrows())
    return tf.math.l2_normalize(tf.tanh(tf.linalg.matmul(tf.tanh(mixed), weights["dense"])), axis=1)


def _named_outputs(tf: Any, embed: Any) -> Any:
    named = tf.function(lambda inputs: {"outputs": embed(inputs)})
    return named.get_concrete_function(tf.TensorSpec([None], tf.string, "inputs"))


def _draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return generator.normal(size=shape).astype(np.float32)
