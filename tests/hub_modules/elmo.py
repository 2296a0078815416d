"""Tiny ELMo: rows of words in their context, in the TF1 Hub format.

The interface is that of elmo/3: signatures ``default`` and ``tokens``; outputs ``word_emb``,
``lstm_outputs1``, ``lstm_outputs2``, ``elmo`` and the mean-pooled ``default``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.hub_modules.saving import Tf1Signature, save_tf1, tf1_variable

# A word is read by its first bytes, as ELMo reads its first 50 characters.
_BYTES_PER_WORD = 16
OUTPUTS = ("word_emb", "lstm_outputs1", "lstm_outputs2", "elmo", "default")


def make_elmo(
    path: Path,
    *,
    dim: int = 16,
    seed: int = 0,
    train_graph: bool = False,
    texts_only: bool = False,
) -> Path:
    """elmo/3: no tags, ``tfhub_module.pb``, signatures ``default`` and ``tokens``.

    ``default`` takes ``text``, strings (B,), and splits at runs of spaces; ``tokens`` takes
    ``tokens``, strings (B, L), and ``sequence_len``, int32 (B,). Both return ``word_emb``
    (B, L, dim / 2), ``lstm_outputs1``, ``lstm_outputs2`` and ``elmo`` (B, L, dim), and
    ``default`` (B, dim). A row depends on both neighbours' sides, on no other text, and not
    on the padding. At padding ``elmo`` is not zero.

    Args:
        path: The folder.
        dim: The width; even.
        seed: Of the weights.
        train_graph: Add the variant tagged "train", so that loading needs ``tags``.
        texts_only: Leave the signature ``tokens`` out.
    """

    def build() -> dict[str, Tf1Signature]:
        import tensorflow as tf

        network = _Network(dim, seed)
        text = tf.compat.v1.placeholder(tf.string, [None], name="text")
        words = tf.compat.v1.string_split(text, " ")
        dense = tf.compat.v1.sparse_tensor_to_dense(words, default_value="")
        counts = tf.math.bincount(
            tf.cast(words.indices[:, 0], tf.int32), minlength=tf.shape(text)[0]
        )
        default = {"default": Tf1Signature({"text": text}, network.outputs(dense, counts))}
        return default if texts_only else default | {"tokens": _tokens_signature(network, OUTPUTS)}

    return save_tf1(path, build, train_graph=train_graph)


def make_elmo_like(path: Path, *, dim: int = 12, seed: int = 1) -> Path:
    """A biLM like ELMo that is not it: tag "serve", ``tokens`` only, outputs in another order."""

    def build() -> dict[str, Tf1Signature]:
        outputs = ("elmo", "lstm_outputs2", "default", "lstm_outputs1")
        return {"tokens": _tokens_signature(_Network(dim, seed), outputs)}

    return save_tf1(path, build, tags=["serve"])


def expected_elmo(
    tokens: Sequence[str], *, dim: int = 16, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """What `make_elmo` returns for one text of one or more tokens, in NumPy.

    Returns:
        Output name → rows (L, width); ``default`` (dim,).
    """
    weights = {name: array.astype(np.float64) for name, array in _draw(dim, seed).items()}
    codes = np.zeros((len(tokens), _BYTES_PER_WORD), int)
    for row, token in zip(codes, tokens, strict=True):
        read = token.encode()[:_BYTES_PER_WORD]
        row[: len(read)] = list(read)
    places = np.arange(_BYTES_PER_WORD) * 256
    words = np.tanh(weights["characters"][codes + places].sum(axis=1))
    first = _read_both_ways(words, weights, "1")
    second = _read_both_ways(first, weights, "2")
    mixed = (np.concatenate([words, words], axis=1) + first + second) / 3
    rows = (words, first, second, mixed, mixed.mean(axis=0))
    return dict(zip(OUTPUTS, rows, strict=True))


def _read_both_ways(
    rows: NDArray[np.float64], weights: dict[str, NDArray[np.float64]], layer: str
) -> NDArray[np.float64]:
    ahead = np.cumsum(rows @ weights[f"forward{layer}"], axis=0)
    back = np.cumsum((rows @ weights[f"backward{layer}"])[::-1], axis=0)[::-1]
    return np.tanh(np.concatenate([ahead, back], axis=1))


def _draw(dim: int, seed: int) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    half = dim // 2
    shapes = {
        "characters": (_BYTES_PER_WORD * 256, half),
        "forward1": (half, half),
        "backward1": (half, half),
        "forward2": (dim, half),
        "backward2": (dim, half),
    }
    # Small enough that tanh of a sum over a text still tells texts apart.
    return {
        name: (generator.normal(size=shape) * 0.3).astype(np.float32)
        for name, shape in shapes.items()
    }


class _Network:
    """The weights in a TF1 graph, and what they make of tokens."""

    def __init__(self, dim: int, seed: int) -> None:
        self._weights = {
            name: tf1_variable(name, array) for name, array in _draw(dim, seed).items()
        }

    def outputs(self, tokens: Any, lengths: Any) -> dict[str, Any]:
        """Strings (B, L) and int32 (B,) → the output tensors."""
        import tensorflow as tf

        mask = tf.sequence_mask(lengths, tf.shape(tokens)[1], tf.float32)[:, :, None]
        words = self._words(tokens)
        first = self._read_both_ways(words, mask, "1")
        second = self._read_both_ways(first, mask, "2")
        mixed = (tf.concat([words, words], axis=2) + first + second) / 3.0
        # A text without tokens gets zeros, not 0 / 0.
        count = tf.maximum(tf.reduce_sum(mask, axis=1), 1.0)
        pooled = tf.reduce_sum(mixed * mask, axis=1) / count
        return dict(zip(OUTPUTS, (words, first, second, mixed, pooled), strict=True))

    def _words(self, tokens: Any) -> Any:
        import tensorflow as tf

        read = tf.io.decode_raw(tokens, tf.uint8, fixed_length=_BYTES_PER_WORD)
        codes = tf.cast(read, tf.int32) + tf.range(_BYTES_PER_WORD) * 256
        return tf.tanh(tf.reduce_sum(tf.gather(self._weights["characters"], codes), axis=2))

    def _read_both_ways(self, rows: Any, mask: Any, layer: str) -> Any:
        import tensorflow as tf

        rows *= mask
        ahead = tf.cumsum(tf.tensordot(rows, self._weights[f"forward{layer}"], 1), axis=1)
        back = tf.tensordot(rows, self._weights[f"backward{layer}"], 1)
        both = tf.concat([ahead, tf.cumsum(back, axis=1, reverse=True)], axis=2)
        return tf.tanh(both) * mask


def _tokens_signature(network: _Network, names: Sequence[str]) -> Tf1Signature:
    import tensorflow as tf

    tokens = tf.compat.v1.placeholder(tf.string, [None, None], name="tokens")
    lengths = tf.compat.v1.placeholder(tf.int32, [None], name="sequence_len")
    outputs = network.outputs(tokens, lengths)
    return Tf1Signature(
        {"tokens": tokens, "sequence_len": lengths}, {name: outputs[name] for name in names}
    )
