"""A tiny transformer: its weights, its graph, and the same sums in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.hub_modules.vocabulary import PIECES

# In the order of the list that versions 1–2 of BERT take.
INPUT_NAMES = ("input_word_ids", "input_mask", "input_type_ids")
# Added to the scores of padding: exp() of it is exactly 0 in float32.
_MASKED = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerRecipe:
    """What tells one tiny transformer from another.

    Attributes:
        dim: The width of the rows.
        embedding_dim: The width of the word rows before they are projected (ALBERT's
            factorised embedding); 0 for none.
        num_layers: How many layers attend.
        max_positions: The length of the table of positions; a longer input fails.
        seed: Of the weights.
        leaky: A fault: padding is attended to, so that it changes every row.
        dropout: A fault: the share of values dropped at random in every call.
        nan_piece: A fault: this piece's row is NaN.
    """

    dim: int = 8
    embedding_dim: int = 0
    num_layers: int = 2
    max_positions: int = 160
    seed: int = 0
    leaky: bool = False
    dropout: float = 0.0
    nan_piece: str = ""


def draw_weights(recipe: TransformerRecipe) -> dict[str, NDArray[np.float32]]:
    """The weights, by name."""
    generator = np.random.default_rng(recipe.seed)
    dim, width = recipe.dim, recipe.embedding_dim or recipe.dim
    shapes: dict[str, tuple[int, ...]] = {
        "words": (len(PIECES), width),
        "positions": (recipe.max_positions, width),
        "types": (2, width),
        "pooler": (dim, dim),
    }
    if recipe.embedding_dim:
        shapes["projection"] = (width, dim)
    for layer in range(recipe.num_layers):
        for part in ("query", "key", "value"):
            shapes[f"{part}{layer}"] = (dim, dim)
    weights = {
        name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    if recipe.nan_piece:
        weights["words"][PIECES.index(recipe.nan_piece)] = np.nan
    return weights


def transform(
    weights: Mapping[str, Any], ids: Any, mask: Any, types: Any, recipe: TransformerRecipe
) -> dict[str, Any]:
    """The graph: int32 (B, L) three times → the outputs of a BERT encoder of TF Hub.

    Returns:
        ``pooled_output`` and ``default`` (B, dim), ``sequence_output`` (B, L, dim), and
        ``encoder_outputs``, a list of ``num_layers`` tensors (B, L, dim).
    """
    import tensorflow as tf

    # A slice, as in the Model Garden: beyond the table the shapes do not fit, and the call
    # fails on every device, where a gather on a GPU would return zeros.
    positions = weights["positions"][: tf.shape(ids)[1]]
    hidden = tf.gather(weights["words"], ids) + positions + tf.gather(weights["types"], types)
    if recipe.embedding_dim:
        hidden = tf.tensordot(hidden, weights["projection"], 1)
    padding = (1.0 - tf.cast(mask, tf.float32))[:, None, :]
    layers = []
    for layer in range(recipe.num_layers):
        query, key, value = (
            tf.tensordot(hidden, weights[f"{part}{layer}"], 1) for part in ("query", "key", "value")
        )
        scores = tf.linalg.matmul(query, key, transpose_b=True) / recipe.dim**0.5
        if not recipe.leaky:
            scores += padding * _MASKED
        hidden = tf.tanh(hidden + tf.linalg.matmul(tf.nn.softmax(scores), value))
        if recipe.dropout:
            hidden = tf.nn.dropout(hidden, recipe.dropout)
        layers.append(hidden)
    pooled = tf.tanh(tf.linalg.matmul(hidden[:, 0], weights["pooler"]))
    return {
        "pooled_output": pooled,
        "sequence_output": hidden,
        "encoder_outputs": layers,
        "default": tf.identity(pooled),
    }


def expected_layers(
    piece_ids: list[int], *, recipe: TransformerRecipe | None = None
) -> list[NDArray[np.float64]]:
    """What the encoder makes of one unpadded sequence: each layer's rows (L, dim), in NumPy.

    ``sequence_output`` is the last. ``piece_ids`` include the special tokens; all are of
    the first segment.
    """
    recipe = recipe or TransformerRecipe()
    weights = {name: array.astype(np.float64) for name, array in draw_weights(recipe).items()}
    hidden = weights["words"][piece_ids] + weights["positions"][: len(piece_ids)]
    hidden = hidden + weights["types"][0]
    if recipe.embedding_dim:
        hidden = hidden @ weights["projection"]
    layers = []
    for layer in range(recipe.num_layers):
        query, key, value = (
            hidden @ weights[f"{part}{layer}"] for part in ("query", "key", "value")
        )
        scores = np.exp(query @ key.T / np.sqrt(recipe.dim))
        hidden = np.tanh(hidden + (scores / scores.sum(axis=1, keepdims=True)) @ value)
        layers.append(hidden)
    return layers
