"""Bag-of-words modules: string → vector, where a text's vector combines its tokens'.

nnlm, gnews-swivel, Wiki-words and `builtin:en-words-128` are of this kind. They return one
vector a text; the matrix a convolution needs is got by calling them on each token alone.
A probe shows that this is sound: that the rows combine to the module's own text vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder import TokenizedTexts
from embedcache.errors import EncodingError, ModuleError
from embedcache.modules.facts import ModuleFacts
from embedcache.quiet import quiet_native_stderr
from embedcache.ragged import RaggedArray, splits_of_lengths

TOKENS_PER_CALL = 4096
_TOLERANCE = 1e-4
# Words of several languages, so that a module of one of them knows some; repeated words,
# punctuation and runs of spaces, so that modules which treat those apart are told apart.
_PROBE_TEXTS = (
    "the cat sat on the mat",
    "a good film , and not a long one .",
    "hello world hello",
    "der Hund und die Katze",
    "el perro y la casa de la playa",
    "le chat est sur la table",
    "two  spaces",
    "2 + 2 = 4 !",
    "今日 は いい 天気",
)

_COMBINERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "sqrtn": lambda rows: rows.sum(axis=0) / np.sqrt(max(1, len(rows))),
    "mean": lambda rows: rows.sum(axis=0) / max(1, len(rows)),
    "sum": lambda rows: rows.sum(axis=0),
}


def combine_rows(rows: NDArray[Any], combiner: str) -> NDArray[Any]:
    """The text vector, (dim,), that a module of this combiner makes of its rows (n, dim).

    The formulas are those of TensorFlow's ``embedding_lookup_sparse``: the sum, divided by
    n for ``mean`` and by √n for ``sqrtn``.
    """
    return _COMBINERS[combiner](rows)


class BagOfWordsEncoder:
    """A `TokenEncoder` over a loaded bag-of-words module."""

    def __init__(self, handle: str, model: Any, facts: ModuleFacts) -> None:
        self._handle = handle
        self._model = model
        self._facts = facts
        self._call = _callable_of(model, facts.signature, facts.output)

    @property
    def dim(self) -> int:
        """The width of the matrices."""
        return self._facts.dim

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """UTF-8 texts → their tokens: by the module's own ``tokenize``, else at single spaces."""
        if self._facts.tokenizer == "module":
            return _tokenize_by_module(self._model, texts)
        split = [text.split(b" ") for text in texts]
        tokens = [token for tokens in split for token in tokens]
        return TokenizedTexts(tokens, splits_of_lengths([len(tokens) for tokens in split]))

    def embed_tokens(self, tokens: Sequence[bytes]) -> NDArray[np.float32]:
        """Tokens → their rows, (n, dim) float32, in their order.

        Raises:
            ModuleError: if the module splits one of them further.
            EncodingError: if it returns another shape than a row a token.
        """
        if self._facts.tokenizer == "module":
            self._check_tokens(tokens)
        rows = np.empty((len(tokens), self.dim), np.float32)
        for start in range(0, len(tokens), TOKENS_PER_CALL):
            chunk = tokens[start : start + TOKENS_PER_CALL]
            rows[start : start + len(chunk)] = self.embed_sentences(chunk)
        return rows

    def embed_sentences(self, texts: Sequence[bytes]) -> NDArray[np.float32]:
        """The module's own vector of each text, (n, dim) float32."""
        vectors = self._call(texts)
        if vectors.shape != (len(texts), self.dim):
            raise EncodingError(
                f"{self._handle}: returned shape {vectors.shape} for {len(texts)} texts; expected"
                f" {(len(texts), self.dim)}. It is not a text module, or its files are damaged"
            )
        return vectors

    def encode_texts(self, texts: Sequence[bytes]) -> RaggedArray:
        """UTF-8 texts → one float32 matrix (num_tokens, dim) each, in their order."""
        tokenized = self.tokenize_texts(texts)
        distinct = list(dict.fromkeys(tokenized.tokens))
        place = {token: position for position, token in enumerate(distinct)}
        rows = self.embed_tokens(distinct)
        codes = np.array([place[token] for token in tokenized.tokens], np.int64)
        return RaggedArray(rows[codes], tokenized.row_splits)

    def _check_tokens(self, tokens: Sequence[bytes]) -> None:
        again = _tokenize_by_module(self._model, tokens)
        lengths = np.diff(again.row_splits)
        if not (lengths == 1).all():
            token = tokens[int(np.argmin(lengths == 1))]
            raise ModuleError(
                f"{self._handle}: its tokenize splits its own token"
                f" {token.decode(errors='replace')!r} further, so tokens cannot be embedded alone;"
                " use another module"
            )


def load_encoder(handle: str, path: Path, facts: ModuleFacts) -> BagOfWordsEncoder:
    """Load a probed module.

    Raises:
        ModuleError: if it cannot be loaded.
    """
    return BagOfWordsEncoder(handle, load_saved_model(handle, path), facts)


def load_saved_model(handle: str, path: Path) -> Any:
    """``tf.saved_model.load``, with TensorFlow's errors mapped.

    Raises:
        ModuleError: if it cannot be loaded.
    """
    with quiet_native_stderr():
        import tensorflow as tf
    try:
        return tf.saved_model.load(str(path))
    except (tf.errors.OpError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        if "not registered" in reason or "Op type" in reason:
            raise ModuleError(
                f"{handle}: uses an operation that this TensorFlow lacks ({reason}); install the"
                " package that has it, for text modules mostly tensorflow-text"
            ) from error
        raise ModuleError(f"{handle}: cannot be loaded as a SavedModel ({reason})") from error


def probe_module(handle: str, path: Path) -> ModuleFacts:
    """Find out how to get matrices from a module.

    Raises:
        ModuleError: if it is not a bag-of-words text module; says what it is instead.
    """
    model = load_saved_model(handle, path)
    signature, output = _choose_signature(handle, model)
    texts = [text.encode() for text in _PROBE_TEXTS]
    vectors = _try_call(handle, _callable_of(model, signature, output), texts)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ModuleError(
            f"{handle}: returned shape {vectors.shape} for {len(texts)} texts; a text module"
            " returns one vector a text"
        )
    tokenizer = "module" if hasattr(model, "tokenize") else "space"
    facts = ModuleFacts(
        kind="bag-of-words",
        signature=signature,
        output=output,
        tokenizer=tokenizer,
        combiner="sum",
        dim=int(vectors.shape[1]),
    )
    matrices = BagOfWordsEncoder(handle, model, facts).encode_texts(texts)
    for combiner in _COMBINERS:
        if _combines(list(matrices), vectors, combiner):
            return replace(facts, combiner=combiner)
    raise ModuleError(
        f"{handle}: not a bag-of-words module: a text's vector is not the sum, mean or √n-mean of"
        " its tokens' vectors; this version of embedcache takes nnlm, swivel, Wiki-words and their"
        " like"
    )


def _combines(matrices: list[NDArray[Any]], vectors: NDArray[Any], combiner: str) -> bool:
    combined = np.stack([combine_rows(rows, combiner) for rows in matrices])
    scale = max(1.0, float(np.abs(vectors).max()))
    if not np.abs(vectors).any():
        return False
    return bool(np.abs(combined - vectors).max() <= _TOLERANCE * scale)


def _choose_signature(handle: str, model: Any) -> tuple[str, str]:
    """What to call, ``__call__`` first: modules of TF Hub's own exporter have nothing else."""
    if callable(model):
        return "__call__", ""
    signatures = dict(getattr(model, "signatures", {}))
    for name in ("default", "serving_default", *sorted(signatures)):
        if name not in signatures:
            continue
        inputs = signatures[name].structured_input_signature[1]
        outputs = sorted(signatures[name].structured_outputs)
        if len(inputs) == 1 and next(iter(inputs.values())).dtype.name == "string" and outputs:
            return name, "default" if "default" in outputs else outputs[0]
    found = ", ".join(sorted(signatures)) or "none"
    raise ModuleError(
        f"{handle}: neither callable nor with a signature that takes one string; its signatures:"
        f" {found}. It is not a text module of a kind that this version takes"
    )


def _callable_of(
    model: Any, signature: str, output: str
) -> Callable[[Sequence[bytes]], NDArray[np.float32]]:
    import tensorflow as tf

    def call(texts: Sequence[bytes]) -> NDArray[np.float32]:
        strings = tf.constant(list(texts), tf.string)
        if signature == "__call__":
            result = model(strings)
        else:
            function = model.signatures[signature]
            (name,) = function.structured_input_signature[1]
            result = function(**{name: strings})[output]
        return np.asarray(result.numpy(), np.float32)

    return call


def _try_call(
    handle: str, call: Callable[[Sequence[bytes]], NDArray[np.float32]], texts: Sequence[bytes]
) -> NDArray[np.float32]:
    import tensorflow as tf

    try:
        return call(texts)
    except (tf.errors.OpError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModuleError(
            f"{handle}: does not take a batch of strings ({reason}); it is not a text module of a"
            " kind that this version takes"
        ) from error


def _tokenize_by_module(model: Any, texts: Sequence[bytes]) -> TokenizedTexts:
    import tensorflow as tf

    ragged = model.tokenize(tf.constant(list(texts), tf.string))
    tokens: list[bytes] = ragged.flat_values.numpy().tolist()
    return TokenizedTexts(tokens, np.asarray(ragged.row_splits.numpy(), np.int64))
