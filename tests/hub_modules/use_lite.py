"""Tiny universal-sentence-encoder-lite/2: ids of SentencePiece in, in the TF1 Hub format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedcache.quiet import quiet_native_stderr
from tests.hub_modules.saving import Tf1Signature, asset_folder, save_tf1, tf1_asset, tf1_variable
from tests.hub_modules.vocabulary import WORDS

NUM_PIECES = 80
SPM_NAME = "universal_encoder_8k_spm.model"


def make_use_lite(path: Path, *, dim: int = 16, seed: int = 0) -> Path:
    """Signatures ``default`` and ``spm_path``; needs the package sentencepiece to be made.

    ``default`` takes the parts of a sparse matrix of piece ids, all int64: ``indices``
    (n, 2), ``values`` (n,) and ``dense_shape`` (2,), and returns ``default``, unit rows
    float32 (B, dim). ``spm_path`` takes nothing and returns ``default``, the path of the
    SentencePiece model; loaded by TensorFlow 2 that is the placeholder "SAVEDMODEL-ASSET",
    and the path is in ``asset_paths``.
    """
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(NUM_PIECES, dim)).astype(np.float32)
    frequencies = generator.normal(size=dim).astype(np.float32)
    with asset_folder() as folder:
        file = _train_pieces(folder)

        def build() -> dict[str, Tf1Signature]:
            import tensorflow as tf

            indices = tf.compat.v1.placeholder(tf.int64, [None, 2], name="indices")
            values = tf.compat.v1.placeholder(tf.int64, [None], name="values")
            shape = tf.compat.v1.placeholder(tf.int64, [2], name="dense_shape")
            places = tf.cast(indices[:, 1:], tf.float32)
            turned = tf.cos(places * tf1_variable("frequencies", frequencies))
            rows = tf.gather(tf1_variable("table", table), values) * turned
            mixed = tf.math.unsorted_segment_sum(rows, indices[:, 0], shape[0])
            vectors = tf.math.l2_normalize(tf.tanh(mixed), axis=1)
            inputs = {"indices": indices, "values": values, "dense_shape": shape}
            return {
                "default": Tf1Signature(inputs, {"default": vectors}),
                "spm_path": Tf1Signature({}, {"default": tf1_asset(file, "spm_path")}),
            }

        return save_tf1(path, build)


def expected_vector(ids: list[int], *, dim: int = 16, seed: int = 0) -> np.ndarray:
    """What ``default`` returns for one text of one or more pieces: (dim,), in NumPy."""
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(NUM_PIECES, dim))
    frequencies = generator.normal(size=dim)
    turned = np.cos(np.arange(len(ids))[:, None] * frequencies)
    mixed = np.tanh((table[ids] * turned).sum(axis=0))
    vector: np.ndarray = mixed / np.linalg.norm(mixed)
    return vector


def _train_pieces(folder: Path) -> Path:
    """A SentencePiece model of `NUM_PIECES` pieces, trained on pairs of the vocabulary's words."""
    import sentencepiece

    words = [word for word in WORDS if word.isascii()]
    sentences = [f"{first} {second}" for first in words for second in words]
    with quiet_native_stderr():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_prefix=str(folder / SPM_NAME.removesuffix(".model")),
            vocab_size=NUM_PIECES,
            num_threads=1,
            minloglevel=2,
        )
    return folder / SPM_NAME
