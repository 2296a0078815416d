"""Finding out of what kind a module is, by looking at it and calling it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import ModuleError
from embedcache.modules.bag_of_words import probe_bag_of_words
from embedcache.modules.facts import (
    ELMO,
    PREPROCESSED_ENCODER,
    SENTENCE_ENCODER,
    TF1_BERT,
    Layer,
    ModuleFacts,
)
from embedcache.modules.pieces import IDS, MASK, names_vocabulary, probe_preprocessor
from embedcache.modules.saved_model import (
    inputs_of,
    is_integer,
    is_string,
    load_saved_model,
    mapped_errors,
    rank_of,
    signatures_of,
)
from embedcache.modules.sentence_encoder import PATH_SIGNATURE, SENTENCE_PIECES
from embedcache.modules.sentence_encoder import takes_pieces as takes_sparse_pieces
from embedcache.modules.sequences import (
    CALL_DICT,
    CALL_LIST,
    ELMO_TOKENIZER,
    piece_outputs,
    takes_pieces,
    token_outputs,
)

_LONGEST_USUAL = 512
"""Positions that nearly every BERT has; a longer one is not looked for."""


def probe_module(handle: str, path: Path) -> ModuleFacts:
    """Find out how to get matrices from a module.

    Raises:
        ModuleError: if it is not a text module of a known kind; says what it is instead.
    """
    return probe_loaded(handle, load_saved_model(handle, path), path)


def probe_loaded(handle: str, model: Any, path: Path) -> ModuleFacts:
    """The same for a module that is loaded."""
    facts = _probe_signatures(handle, model, path)
    if facts is not None:
        return facts
    if not callable(model):
        raise _no_text_module(handle, model, "neither callable nor with a signature for texts")
    return _probe_call(handle, model, path)


def _probe_signatures(handle: str, model: Any, path: Path) -> ModuleFacts | None:
    """The kinds that are told by signatures: they come first where a module has several."""
    signatures = signatures_of(model)
    for name in _in_order(signatures, "tokens", "default", "serving_default"):
        inputs = inputs_of(signatures[name])
        if _takes_words(inputs):
            return _elmo_facts(handle, signatures[name], name)
        if takes_sparse_pieces(signatures[name]) and PATH_SIGNATURE in signatures:
            return _sparse_facts(handle, signatures[name], name)
        if takes_pieces(inputs) and not callable(model):
            kind = TF1_BERT if names_vocabulary(model) else PREPROCESSED_ENCODER
            return _encoder_facts(handle, model, kind, name)
    if callable(model):
        return None
    for name in _in_order(signatures, "default", "serving_default"):
        inputs = inputs_of(signatures[name])
        if len(inputs) == 1 and all(map(is_string, inputs.values())):
            return _string_signature_facts(handle, model, path, name)
    return None


def _in_order(signatures: Mapping[str, Any], *first: str) -> list[str]:
    return sorted(signatures, key=lambda name: (name not in first, first.index(name) if name in first else 0, name))  # fmt: skip  # noqa: E501


def _takes_words(inputs: Mapping[str, Any]) -> bool:
    """Words (B, L) and how many of them, (B,): ELMo's signature ``tokens``."""
    words = [spec for spec in inputs.values() if is_string(spec) and rank_of(spec) == 2]
    counts = [spec for spec in inputs.values() if is_integer(spec) and rank_of(spec) == 1]
    return len(inputs) == 2 and len(words) == len(counts) == 1


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A way to call a module, and what it gave."""

    result: Any
    error: ModuleError | None


def _attempt(handle: str, what: str, call: Callable[[], Any]) -> _Attempt:
    try:
        with mapped_errors(handle, what):
            return _Attempt(call(), None)
    except ModuleError as error:
        return _Attempt(None, error)


def _probe_call(handle: str, model: Any, path: Path) -> ModuleFacts:
    """What ``__call__`` takes: texts, or ids of pieces in a dict or in a list."""
    import tensorflow as tf

    texts = _attempt(
        handle, "does not take a batch of strings", lambda: model(tf.constant(["a", "b c"]))
    )
    if texts.error is None:
        if isinstance(texts.result, Mapping) and {IDS, MASK} <= set(texts.result):
            return probe_preprocessor(handle, model, path)
        return _string_facts(handle, model, path, "__call__", texts.result)
    for signature in (CALL_DICT, CALL_LIST):
        ids = tf.zeros([1, 1], tf.int32)
        call = piece_outputs(model, signature)
        if _attempt(handle, "does not take pieces", lambda: call(ids, ids, ids)).error is None:  # noqa: B023
            is_old = signature == CALL_LIST and names_vocabulary(model)
            kind = TF1_BERT if is_old else PREPROCESSED_ENCODER
            return _encoder_facts(handle, model, kind, signature)
    named = _probe_fixed_signature(handle, model, path)
    if named is not None:
        return named
    raise _no_text_module(handle, model, str(texts.error).removeprefix(f"{handle}: "))


def _probe_fixed_signature(handle: str, model: Any, path: Path) -> ModuleFacts | None:
    """A signature for pieces or texts, where ``__call__`` has other ways."""
    for name, function in sorted(signatures_of(model).items()):
        inputs = inputs_of(function)
        if takes_pieces(inputs):
            return _encoder_facts(handle, model, PREPROCESSED_ENCODER, name)
        if len(inputs) == 1 and all(map(is_string, inputs.values())):
            return _string_signature_facts(handle, model, path, name)
    return None


def _string_signature_facts(handle: str, model: Any, path: Path, name: str) -> ModuleFacts:
    import tensorflow as tf

    function = model.signatures[name]
    (text,) = inputs_of(function)
    with mapped_errors(handle, f"its signature {name!r} does not take a batch of strings"):
        result = function(**{text: tf.constant(["a", "b c"])})
    if any(rank_of(tensor) == 3 for tensor in result.values()):
        return _elmo_facts(handle, function, name)
    return _string_facts(handle, model, path, name, result)


def _string_facts(handle: str, model: Any, path: Path, signature: str, result: Any) -> ModuleFacts:
    """A module that gives a vector for a text: a bag of words, or an encoder of sentences."""
    output, vectors = _vectors_of(result)
    if vectors is None or rank_of(vectors) != 2 or vectors.shape[0] != 2:
        shape = None if vectors is None else tuple(vectors.shape)
        raise ModuleError(
            f"{handle}: returned shape {shape} for 2 texts; a text module returns one vector a"
            " text, so this one cannot be used"
        )
    if not vectors.dtype.is_floating:
        raise ModuleError(
            f"{handle}: returns {vectors.dtype.name}, not vectors of floats: it is a classifier or"
            " a tokenizer, not a text module"
        )
    facts = ModuleFacts(
        kind=SENTENCE_ENCODER,
        signature=signature,
        output=output,
        dim=int(vectors.shape[1]),
        tokenizer="parts",
    )
    return probe_bag_of_words(handle, model, path, facts) or facts


def _vectors_of(result: Any) -> tuple[str, Any]:
    """The vectors among what a module returned, and their name."""
    if isinstance(result, Mapping):
        names = _in_order(result, "default", "outputs", "pooled_output")
        ranked = [name for name in names if rank_of(result[name]) == 2]
        return (ranked[0], result[ranked[0]]) if ranked else ("", None)
    if isinstance(result, list | tuple):
        return ("", result[0]) if len(result) == 1 else ("", None)
    return "", result


def _sparse_facts(handle: str, function: Any, signature: str) -> ModuleFacts:
    outputs = function.structured_outputs
    name = "default" if "default" in outputs else sorted(outputs)[0]
    if rank_of(outputs[name]) != 2:
        raise ModuleError(f"{handle}: signature {signature!r} does not return a vector a text")
    dim = int(outputs[name].shape[1])
    return ModuleFacts(
        kind=SENTENCE_ENCODER,
        signature=signature,
        output=name,
        dim=dim,
        tokenizer=SENTENCE_PIECES,
    )


def _elmo_facts(handle: str, function: Any, signature: str) -> ModuleFacts:
    import tensorflow as tf

    inputs = inputs_of(function)
    words = next(name for name, spec in inputs.items() if is_string(spec))
    given = {words: tf.constant(["a b", "c"])}
    for name, spec in inputs.items():
        if name != words:
            given = {words: tf.constant([["a", "b"], ["c", ""]]), name: tf.constant([2, 1], spec.dtype)}  # fmt: skip  # noqa: E501
    with mapped_errors(handle, f"its signature {signature!r} fails on two texts"):
        found = token_outputs(function(**given))
    layers = _layers(handle, {name: found[name] for name in sorted(found, key=_layer_order)})
    own = [layer for layer in layers if layer.name == ELMO]
    below = tuple(layer for layer in layers if layer.name != ELMO)
    output = own[0] if own else below[-1]
    return ModuleFacts(
        kind=ELMO,
        signature=signature,
        output=output.name,
        dim=output.dim,
        tokenizer=ELMO_TOKENIZER,
        layers=below or tuple(own),
        outputs=tuple(own) if below else (),
    )


def _layer_order(name: str) -> tuple[bool, list[Any]]:
    """Embeddings first, then layers by their numbers."""
    parts = re.split(r"(\d+)", name)
    return "emb" not in name, [int(part) if part.isdecimal() else part for part in parts]


def _layers(handle: str, tensors: Mapping[str, Any]) -> tuple[Layer, ...]:
    if not tensors:
        raise ModuleError(f"{handle}: returns no tensor (texts, tokens, width): no rows for tokens")
    return tuple(Layer(name=name, dim=int(tensor.shape[2])) for name, tensor in tensors.items())


def _encoder_facts(handle: str, model: Any, kind: str, signature: str) -> ModuleFacts:
    """An encoder of word pieces: its layers, and how long a sequence it takes."""
    import tensorflow as tf

    call = piece_outputs(model, signature)
    fixed = _fixed_length(model, signature)
    ids = tf.zeros([1, fixed or 8], tf.int32)
    with mapped_errors(handle, "fails on ids of word pieces"):
        found = token_outputs(call(ids, tf.ones_like(ids), ids))
    layers = _layers(handle, found)
    numbered = tuple(layer for layer in layers if layer.name.isdecimal())
    others = tuple(layer for layer in layers if not layer.name.isdecimal())
    names = [layer.name for layer in others]
    output = others[names.index("sequence_output")] if "sequence_output" in names else layers[-1]
    return ModuleFacts(
        kind=kind,
        signature=signature,
        output=output.name,
        dim=output.dim,
        tokenizer="pieces",
        layers=numbered,
        outputs=others,
        fixed_length=fixed,
        max_length=0 if fixed else _longest(call),
    )


def _fixed_length(model: Any, signature: str) -> int:
    """The one length that a signature takes; 0: any."""
    if signature not in signatures_of(model):
        return 0
    shapes = [spec.shape for spec in inputs_of(model.signatures[signature]).values()]
    lengths = {shape[1] for shape in shapes if shape.rank == 2}
    return int(next(iter(lengths)) or 0) if len(lengths) == 1 else 0


def _longest(call: Callable[[Any, Any, Any], Any]) -> int:
    """The longest sequence taken, found by trying; 0: no limit up to one above 512."""
    import tensorflow as tf

    def is_taken(length: int) -> bool:
        ids = tf.zeros([1, length], tf.int32)
        attempt = _attempt("", "", lambda: call(ids, tf.ones_like(ids), ids))
        return attempt.error is None

    if is_taken(_LONGEST_USUAL):
        return 0 if is_taken(_LONGEST_USUAL + 1) else _LONGEST_USUAL
    low, high = 8, _LONGEST_USUAL
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_taken(middle) else (low, middle)
    return low


def _no_text_module(handle: str, model: Any, reason: str) -> ModuleError:
    found = ", ".join(
        f"{name}({', '.join(sorted(inputs_of(function)))})"
        for name, function in sorted(signatures_of(model).items())
    )
    return ModuleError(
        f"{handle}: {reason}; its signatures: {found or 'none'}. It is not a text module of a"
        " known kind"
    )
