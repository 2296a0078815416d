"""Tiny bag-of-words modules: nnlm, swivel, Wiki-words and what TF Hub's exporters write.

Sources: ``examples/text_embeddings_v2/export_v2.py`` and ``examples/text_embeddings/export.py``
of the repository tensorflow/hub for the two exporters; the modules' pages for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.hub_modules.saving import (
    Tf1Signature,
    asset_folder,
    quiet_tensorflow,
    save_tf1,
    save_tf2,
    tf1_variable,
)
from tests.hub_modules.vocabulary import WORDS, write_words


@dataclass(frozen=True, slots=True, kw_only=True)
class BagRecipe:
    """What tells one bag-of-words module from another.

    Attributes:
        num_oov_buckets: Rows for words that are not in the vocabulary.
        zero_oov: Those rows are zero, as the exporters write them.
        removes_punctuation: ``\\pP`` is removed first ("-with-normalization").
        lower_cases: The text is lower-cased first.
        skips_empty: Runs of spaces end one token; else each space does, and the empty
            tokens between them count.
        dtype: Of the rows and of the vectors.
        has_call: The object itself can be called.
        signature: The name of a signature, or empty for none.
    """

    num_oov_buckets: int = 1
    zero_oov: bool = False
    removes_punctuation: bool = False
    lower_cases: bool = False
    skips_empty: bool = False
    dtype: str = "float32"
    has_call: bool = True
    signature: str = ""


def word_rows(*, dim: int = 8, seed: int = 0, num_oov_buckets: int = 1) -> NDArray[np.float64]:
    """The rows of the vocabulary, then of the OOV buckets: (len(WORDS) + buckets, dim)."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(len(WORDS) + num_oov_buckets, dim))


def expected_rows(
    tokens: Sequence[str], *, dim: int = 8, seed: int = 0, zero_oov: bool = False
) -> NDArray[np.float64]:
    """The row of each token, (n, dim), in a module with one OOV bucket.

    ``zero_oov`` for `make_exporter_example` and `make_nnlm_tf1`.
    """
    rows = word_rows(dim=dim, seed=seed)
    rows[len(WORDS) :] *= not zero_oov
    return rows[[WORDS.index(token) if token in WORDS else len(WORDS) for token in tokens]]


def expected_vector(
    tokens: Sequence[str], *, dim: int = 8, seed: int = 0, zero_oov: bool = False
) -> NDArray[np.float64]:
    """The √n-mean of the tokens' rows, (dim,), which is a text's vector in all these modules."""
    rows = expected_rows(tokens, dim=dim, seed=seed, zero_oov=zero_oov)
    return rows.sum(axis=0) / np.sqrt(max(1, len(rows)))


def make_exporter_example(
    path: Path, *, dim: int = 8, seed: int = 0, skips_empty: bool = False
) -> Path:
    """What TF Hub's ``export_v2.py`` writes: ``__call__``, no signature, float64.

    Punctuation is removed; an unknown word has a zero row. The published exporter splits
    with ``tf.strings.split``, which keeps empty tokens; ``skips_empty`` is for variants
    with ``tf.compat.v1.string_split``, which drops them.
    """
    recipe = BagRecipe(
        zero_oov=True, removes_punctuation=True, skips_empty=skips_empty, dtype="float64"
    )
    return _save_bag(path, recipe, dim, seed)


def make_nnlm(
    path: Path,
    *,
    dim: int = 8,
    seed: int = 0,
    normalized: bool = False,
    lower_cases: bool = False,
    interface: Literal["both", "signature"] = "both",
) -> Path:
    """nnlm-en-dim128/2, ``normalized`` for "-with-normalization": ends a token at each space."""
    recipe = BagRecipe(
        removes_punctuation=normalized,
        lower_cases=lower_cases,
        has_call=interface == "both",
        signature="default",
    )
    return _save_bag(path, recipe, dim, seed)


def make_swivel(path: Path, *, dim: int = 8, seed: int = 0, with_oov: bool = False) -> Path:
    """gnews-swivel-20dim/1, ``with_oov`` for "-with-oov", which has several buckets."""
    recipe = BagRecipe(
        num_oov_buckets=7 if with_oov else 1,
        removes_punctuation=True,
        skips_empty=True,
        signature="serving_default",
    )
    return _save_bag(path, recipe, dim, seed)


def make_wiki_words(path: Path, *, dim: int = 8, seed: int = 0, normalized: bool = False) -> Path:
    """Wiki-words-250/2, ``normalized`` for "-with-normalization"."""
    recipe = BagRecipe(
        num_oov_buckets=5, removes_punctuation=normalized, signature="serving_default"
    )
    return _save_bag(path, recipe, dim, seed)


def make_nnlm_tf1(path: Path, *, dim: int = 8, seed: int = 0, input_name: str = "default") -> Path:
    """nnlm in the TF1 Hub format: no tags, ``tfhub_module.pb``, one signature ``default``.

    TF Hub's own TF1 exporter names the input "sentences", `hub.add_signature` of a bare
    tensor "default". Runs of spaces end one token, punctuation is removed, a text without
    tokens gets the empty token, and an unknown word has a zero row.
    """
    rows = word_rows(dim=dim, seed=seed).astype(np.float32)
    rows[len(WORDS) :] = 0

    with asset_folder() as folder:
        file = write_words(folder / "tokens.txt")

        def build() -> dict[str, Tf1Signature]:
            import tensorflow as tf

            sentences = tf.compat.v1.placeholder(tf.string, [None], name=input_name)
            table = _word_table(file, 1)
            tokens = tf.compat.v1.string_split(tf.strings.regex_replace(sentences, r"\pP", ""), " ")
            ids = tf.SparseTensor(tokens.indices, table.lookup(tokens.values), tokens.dense_shape)
            ids, _ = tf.sparse.fill_empty_rows(ids, table.lookup(tf.constant("")))
            vectors = tf.nn.embedding_lookup_sparse(
                tf1_variable("embeddings", rows), tf.sparse.reset_shape(ids), None, combiner="sqrtn"
            )
            return {"default": Tf1Signature({input_name: sentences}, {"default": vectors})}

        return save_tf1(path, build)


def _save_bag(path: Path, recipe: BagRecipe, dim: int, seed: int) -> Path:
    rows = word_rows(dim=dim, seed=seed, num_oov_buckets=recipe.num_oov_buckets)
    if recipe.zero_oov:
        rows[len(WORDS) :] = 0
    with quiet_tensorflow() as tf, asset_folder() as folder:
        root = tf.train.Checkpoint()
        root.table = _word_table(write_words(folder / "tokens.txt"), recipe.num_oov_buckets)
        root.embeddings = tf.Variable(rows.astype(recipe.dtype))
        function = tf.function(
            _embed_function(root, recipe), input_signature=[tf.TensorSpec([None], tf.string)]
        )
        root.variables = [root.embeddings]
        root.trainable_variables = root.variables
        if recipe.has_call:
            root.__call__ = function
        signatures = {}
        if recipe.signature:
            named = tf.function(lambda sentences: {"default": function(sentences)})
            strings = tf.TensorSpec([None], tf.string, "sentences")
            signatures = {recipe.signature: named.get_concrete_function(strings)}
        return save_tf2(root, path, signatures)


def _word_table(file: Path, num_oov_buckets: int) -> Any:
    import tensorflow as tf

    initializer = tf.lookup.TextFileInitializer(
        str(file),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    return tf.lookup.StaticVocabularyTable(initializer, num_oov_buckets)


def _embed_function(root: Any, recipe: BagRecipe) -> Any:
    import tensorflow as tf

    def embed(sentences: Any) -> Any:
        if recipe.removes_punctuation:
            sentences = tf.strings.regex_replace(sentences, r"\pP", "")
        if recipe.lower_cases:
            sentences = tf.strings.lower(sentences, encoding="utf-8")
        if recipe.skips_empty:
            tokens = tf.compat.v1.string_split(sentences, " ")
        else:
            tokens = tf.strings.split(sentences, " ").to_sparse()
        tokens, _ = tf.sparse.fill_empty_rows(tokens, tf.constant(""))
        # With no token at all the sparse matrix has no column.
        tokens = tf.sparse.reset_shape(tokens)
        ids = tf.SparseTensor(tokens.indices, root.table.lookup(tokens.values), tokens.dense_shape)
        return tf.nn.safe_embedding_lookup_sparse(
            root.embeddings, ids, sparse_weights=None, combiner="sqrtn"
        )

    return embed
