"""The SavedModel that word vectors become: core TensorFlow operations, called like nnlm.

A text is split at single spaces; each token's vector is looked up in a float32 variable;
the text's vector is the sum of its tokens', divided as the combiner says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from embedcache.modules.saving import line_numbers, save_module

__all__ = ["VectorModule", "save_vector_module"]

_TEXT_SPEC = tf.TensorSpec([None], tf.string, name="text")
_ROWS_PER_COPY = 1 << 12


class VectorModule(tf.Module):  # type: ignore[misc]
    """The root object of the SavedModel.

    Its public attributes are those of a TF2 Hub module: `__call__`, `tokenize`,
    `variables`, `trainable_variables` (empty) and `regularization_losses` (empty).
    """

    # tf.Module computes these two; a SavedModel keeps only what is an attribute.
    variables: Any = ()
    trainable_variables: Any = ()

    def __init__(
        self,
        words_file: Path,
        vectors: NDArray[np.float32],
        *,
        combiner: str,
        normalize: bool,
        num_oov_buckets: int,
    ) -> None:
        """Build the module.

        Args:
            words_file: one word a line, none empty; line i has row i. Saved as an asset.
            vectors: (words, dim) float32.
            combiner: ``"sum"``, ``"mean"`` or ``"sqrtn"``.
            normalize: whether tokens are lower-cased before they are looked up.
            num_oov_buckets: rows of zeros after the words', for unknown tokens.
        """
        super().__init__(name="vector_module")
        self._combiner, self._normalize = combiner, normalize
        self._vectors = _variable_of(vectors, num_oov_buckets)
        words = line_numbers(tf.saved_model.Asset(str(words_file)))
        self._rows = tf.lookup.StaticVocabularyTable(
            words, num_oov_buckets, experimental_is_anonymous=True
        )
        self.variables = [self._vectors]
        self.trainable_variables: Any = []
        self.regularization_losses: Any = []

    @tf.function(input_signature=[_TEXT_SPEC])  # type: ignore[untyped-decorator]
    def __call__(self, text: Any) -> Any:
        """Embed texts: (batch,) string → (batch, dim) float32.

        Every token counts: an unknown one, such as the empty token between two spaces, has
        a vector of zeros. An empty text is one empty token.
        """
        tokens = self._split(text)
        vectors = tf.gather(self._vectors, self._rows.lookup(tokens.values))
        sums = tf.math.unsorted_segment_sum(vectors, tokens.value_rowids(), tokens.nrows())
        counts = tf.cast(tokens.row_lengths(), tf.float32)[:, tf.newaxis]
        if self._combiner == "mean":
            return sums / counts
        return sums / tf.sqrt(counts) if self._combiner == "sqrtn" else sums

    @tf.function(input_signature=[_TEXT_SPEC])  # type: ignore[untyped-decorator]
    def tokenize(self, text: Any) -> Any:
        """Split texts at single spaces: (batch,) string → RaggedTensor (batch, None) string.

        The tokens are those that are looked up: in lower case if the module normalises.
        """
        return self._split(text)

    def _split(self, text: Any) -> Any:
        if self._normalize:
            text = tf.strings.lower(text, encoding="utf-8")
        return tf.strings.split(text, " ")


def save_vector_module(
    directory: Path,
    words_file: Path,
    vectors: NDArray[np.float32],
    *,
    combiner: str,
    normalize: bool,
    num_oov_buckets: int,
) -> None:
    """Write the SavedModel: `saved_model.pb`, `variables/` and the words under `assets/`.

    Two processes that save the same words and vectors write the same bytes.

    Args:
        directory: a folder that does not exist or is empty.
        words_file: as for `VectorModule`, like all that follow.
        vectors: (words, dim) float32.
        combiner: how tokens' vectors are combined.
        normalize: whether tokens are lower-cased.
        num_oov_buckets: rows of zeros.
    """
    module = VectorModule(
        words_file,
        vectors,
        combiner=combiner,
        normalize=normalize,
        num_oov_buckets=num_oov_buckets,
    )
    serve = tf.function(lambda text: {"default": module(text)}, input_signature=[_TEXT_SPEC])
    signatures = {"default": serve, "serving_default": serve}
    save_module(module, directory, signatures)


def _variable_of(vectors: NDArray[np.float32], num_zero_rows: int) -> Any:
    """A variable of the vectors and rows of zeros, without another copy of them all."""
    num_rows, dim = vectors.shape
    shape = [num_rows + num_zero_rows, dim]
    variable = tf.Variable(lambda: tf.zeros(shape), trainable=False, name="vectors")
    for start in range(0, num_rows, _ROWS_PER_COPY):
        chunk = vectors[start : start + _ROWS_PER_COPY]
        # Not `variable[start:stop].assign`, which reads the rows first and keeps them alive.
        rows = tf.range(start, start + len(chunk))
        variable.scatter_update(tf.IndexedSlices(chunk, rows))
    return variable
