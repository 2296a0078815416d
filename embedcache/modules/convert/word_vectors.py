"""Word vectors (GloVe, word2vec, fastText) → a SavedModel that is called like nnlm.

The module splits a text at single spaces and does nothing else to it: such vocabularies have
vectors for punctuation marks, so texts should be tokenised as the vectors' own corpus was.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import ModuleError
from embedcache.modules.convert.vector_files import WordVectors, read_word_vectors
from embedcache.quiet import quiet_native_stderr

COMBINERS = ("sqrtn", "mean", "sum")
WORDS_ASSET = "tokens.txt"


@dataclass(frozen=True, slots=True)
class ConvertedWords:
    """What a conversion made.

    Attributes:
        path: The SavedModel's folder.
        vocab_size: How many words it knows.
        dim: The width of its vectors.
        format: The file's, one of `vector_files.FORMATS`.
        duplicates: How many words were left out because they had stood before.
    """

    path: Path
    vocab_size: int
    dim: int
    format: str
    duplicates: int


def convert_word_vectors(
    source: Path,
    target: Path,
    *,
    format: str | None = None,  # noqa: A002  # the field's word, as in `CorpusOptions`
    combiner: str = "sqrtn",
    normalize: bool = False,
    max_words: int | None = None,
    num_oov_buckets: int = 1,
) -> ConvertedWords:
    """Make a file of word vectors a module that features can be built with.

    The module has nnlm's interface: a batch of strings → (batch, dim) float32, as
    ``__call__`` and as the signatures ``default`` and ``serving_default``; and ``tokenize``.
    A token that is not in the file has a vector of zeros, and counts. Words with spaces in
    them (GloVe 840B has some) keep their rows, but no token is ever one of them.

    Args:
        source: GloVe, word2vec text or binary, or fastText's .vec; perhaps gzip.
        target: Folder of the SavedModel: new or empty. It appears whole or not at all.
        format: One of `vector_files.FORMATS`; None tells it by the content.
        combiner: How a text's vector is made of its tokens': ``"sqrtn"`` (their sum over √n,
            as nnlm does it), ``"mean"`` or ``"sum"``.
        normalize: Lower-case texts before the look-up, for vectors of lower-case words.
        max_words: Take the first words only; None takes all.
        num_oov_buckets: Rows of zeros after the words', over which unknown tokens are spread
            by their hash. They make no difference to any vector.

    Raises:
        ModuleError: if the file cannot be read or is damaged, if the target is not empty or
            cannot be written, or if an option has no legal value.
    """
    if combiner not in COMBINERS:
        raise ModuleError(f"{combiner!r} is no combiner; use {', '.join(COMBINERS)}")
    if num_oov_buckets < 1:
        raise ModuleError(f"num_oov_buckets is {num_oov_buckets}: unknown words need 1 or more")
    target = target.absolute()
    _check_target(target)
    words = read_word_vectors(source, format=format, max_words=max_words)
    _write_module(
        words, target, combiner=combiner, normalize=normalize, num_oov_buckets=num_oov_buckets
    )
    num_words, dim = words.vectors.shape
    return ConvertedWords(target, num_words, dim, words.format, words.duplicates)


def _write_module(words: WordVectors, target: Path, **module_options: Any) -> None:
    """Write the SavedModel beside the target, and rename it."""
    with quiet_native_stderr():
        import tensorflow as tf

        from embedcache.modules.convert.vector_module import save_vector_module
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
        ) as scratch:
            words_file = Path(scratch, WORDS_ASSET)
            _write_words(words_file, words)
            save_vector_module(
                Path(scratch, "module"),
                words_file,
                words.vectors,
                **module_options,
            )
            Path(scratch, "module").rename(target)
    except (OSError, tf.errors.OpError) as error:
        raise ModuleError(
            f"{target}: cannot be written ({_reason_of(error)}); name another folder, or make room"
        ) from error


def _check_target(target: Path) -> None:
    try:
        if target.is_dir() and not any(target.iterdir()):
            return
    except OSError as error:
        raise ModuleError(f"{target}: {_reason_of(error)}; name another folder") from error
    if target.is_dir():
        raise ModuleError(f"{target}: holds files already; name a new folder, or empty this one")
    if target.exists() or target.is_symlink():
        raise ModuleError(f"{target}: is no folder; name a new one")


def _write_words(path: Path, words: WordVectors) -> None:
    with path.open("wb") as file:
        file.writelines(word + b"\n" for word in words.words)


def _reason_of(error: Exception) -> str:
    """The reason of a foreign error as one line without its path."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())[:300]
