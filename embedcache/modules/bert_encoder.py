"""A BERT encoder in TensorFlow, from a checkpoint in Hugging Face's layout.

A checkpoint is a folder with `config.json` and `model.safetensors`. The encoder is that of
Devlin et al. (2019), post-layer-norm, with absolute positions; it returns the hidden states
of every layer, not only the last. There is no dropout: it never trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from embedcache.errors import ModuleError
from embedcache.modules.bert_config import BertConfig
from embedcache.modules.safetensors import read_safetensors

__all__ = ["BertEncoder", "load_encoder", "take_tensor"]

_SELF_PARTS = ("query", "key", "value")
# Added to the scores of masked positions: far below any score, and no overflow in float32.
_MASKED_SCORE = -1e9


class BertEncoder(tf.Module):  # type: ignore[misc]
    """The transformer: piece ids to the hidden states of every layer.

    Its weights are non-trainable float32 variables, so it can be saved in a SavedModel. Inside,
    hidden states are matrices (batch * length, hidden_dim), kernels lie as (inputs, outputs)
    and a bias is its own operation: only so does TensorFlow fuse a dense layer's product,
    bias and activation, which takes a tenth less time than a checkpoint's own layout.
    """

    def __init__(self, config: BertConfig, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the weights from a checkpoint.

        Args:
            config: the sizes; layers above `config.num_layers` are not taken.
            tensors: name → array, by the names of Hugging Face's BertModel, with or without
                the prefix ``bert.``.

        Raises:
            ModuleError: a tensor is missing, or has another shape than `config` says.
        """
        super().__init__(name="bert_encoder")
        self.config = config
        self._weights = {
            name: tf.Variable(weight, trainable=False, name=name)
            for name, weight in _take_weights(config, tensors)
        }

    def __call__(self, piece_ids: Any, mask: Any, segment_ids: Any = None) -> list[Any]:
        """Encode a batch of sequences.

        Args:
            piece_ids: (batch, length) int32, special pieces included.
            mask: (batch, length), 1 or True where a piece stands, 0 where padding does.
            segment_ids: (batch, length) int32; all 0 when left out.

        Returns:
            `num_layers` + 1 float32 tensors (batch, length, hidden_dim): the embeddings,
            then the output of each layer. At padding their values mean nothing.
        """
        masked_scores = (1.0 - tf.cast(mask, tf.float32)) * _MASKED_SCORE
        masked_scores = masked_scores[:, tf.newaxis, tf.newaxis, :]
        shape = tf.concat([tf.shape(piece_ids), [self.config.hidden_dim]], 0)
        states = [self._embed(piece_ids, segment_ids)]
        hidden = tf.reshape(states[0], [-1, self.config.hidden_dim])
        for layer in range(self.config.num_layers):
            prefix = f"encoder.layer.{layer}"
            attended = self._attend(hidden, masked_scores, shape, f"{prefix}.attention")
            hidden = self._normalize(hidden + attended, f"{prefix}.attention.output.LayerNorm")
            widened = self._activate(self._project(hidden, f"{prefix}.intermediate.dense"))
            narrowed = self._project(widened, f"{prefix}.output.dense")
            hidden = self._normalize(hidden + narrowed, f"{prefix}.output.LayerNorm")
            states.append(tf.reshape(hidden, shape))
        return states

    def _embed(self, piece_ids: Any, segment_ids: Any) -> Any:
        """Return the sum of piece, position and segment embeddings, normalised."""
        pieces = tf.gather(self._weights["embeddings.word_embeddings.weight"], piece_ids)
        length = tf.shape(piece_ids)[1]
        positions = self._weights["embeddings.position_embeddings.weight"][:length]
        segments = tf.gather(
            self._weights["embeddings.token_type_embeddings.weight"],
            tf.zeros_like(piece_ids) if segment_ids is None else segment_ids,
        )
        return self._normalize(pieces + positions + segments, "embeddings.LayerNorm")

    def _attend(self, hidden: Any, masked_scores: Any, shape: Any, prefix: str) -> Any:
        """Return multi-head self-attention before its residual, a matrix like `hidden`."""
        head_dim = self.config.hidden_dim // self.config.num_heads
        split_shape = tf.concat([shape[:2], [self.config.num_heads, head_dim]], 0)
        query, key, value = (
            # (batch, heads, length, head_dim)
            tf.transpose(
                tf.reshape(self._project(hidden, f"{prefix}.self.{part}"), split_shape),
                [0, 2, 1, 3],
            )
            for part in _SELF_PARTS
        )
        scores = tf.matmul(query, key, transpose_b=True) / float(np.sqrt(head_dim))
        mixed = tf.matmul(tf.nn.softmax(scores + masked_scores), value)
        joined = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), tf.shape(hidden))
        return self._project(joined, f"{prefix}.output.dense")

    def _project(self, values: Any, prefix: str) -> Any:
        """Apply a dense layer to a matrix."""
        product = tf.matmul(values, self._weights[f"{prefix}.weight"])
        return tf.nn.bias_add(product, self._weights[f"{prefix}.bias"])

    def _normalize(self, values: Any, prefix: str) -> Any:
        """Apply a layer norm over the last axis."""
        mean, variance = tf.nn.moments(values, [-1], keepdims=True)
        scale = tf.math.rsqrt(variance + self.config.layer_norm_epsilon)
        gain, bias = self._weights[f"{prefix}.weight"], self._weights[f"{prefix}.bias"]
        return (values - mean) * scale * gain + bias

    def _activate(self, values: Any) -> Any:
        """Apply the activation of the feed-forward part."""
        if self.config.activation == "relu":
            return tf.nn.relu(values)
        return tf.nn.gelu(values, approximate=self.config.activation == "gelu_new")


def load_encoder(directory: Path, *, num_layers: int | None = None) -> BertEncoder:
    """Load an encoder from a folder with `config.json` and `model.safetensors`.

    Args:
        directory: the checkpoint's folder.
        num_layers: how many layers to keep, from the bottom; all of them when left out.

    Raises:
        ModuleError: a file cannot be read or does not fit, or there are fewer layers.
    """
    config = BertConfig.from_json(directory / "config.json")
    if num_layers is not None:
        if not 0 <= num_layers <= config.num_layers:
            raise ModuleError(
                f"{directory} has {config.num_layers} layers, not {num_layers}: ask for fewer"
            )
        config = dataclasses.replace(config, num_layers=num_layers)
    return BertEncoder(config, read_safetensors(directory / "model.safetensors"))


def _take_weights(
    config: BertConfig, tensors: Mapping[str, npt.NDArray[Any]]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield the name and value of every weight that the encoder needs.

    A dense layer's kernel, (outputs, inputs) in the checkpoint, comes as (inputs, outputs).
    """
    dim, wide = config.hidden_dim, config.intermediate_dim
    for table, rows in (
        ("word_embeddings", config.vocab_size),
        ("position_embeddings", config.max_positions),
        ("token_type_embeddings", config.num_segments),
    ):
        name = f"embeddings.{table}.weight"
        yield name, take_tensor(tensors, name, (rows, dim))
    norms = ["embeddings.LayerNorm"]
    denses: dict[str, tuple[int, int]] = {}
    for layer in range(config.num_layers):
        prefix = f"encoder.layer.{layer}"
        denses |= {f"{prefix}.attention.self.{part}": (dim, dim) for part in _SELF_PARTS}
        denses[f"{prefix}.attention.output.dense"] = (dim, dim)
        denses[f"{prefix}.intermediate.dense"] = (wide, dim)
        denses[f"{prefix}.output.dense"] = (dim, wide)
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
    for norm in norms:
        for name in (f"{norm}.weight", f"{norm}.bias"):
            yield name, take_tensor(tensors, name, (dim,))
    for dense, shape in denses.items():
        yield f"{dense}.weight", take_tensor(tensors, f"{dense}.weight", shape).T
        yield f"{dense}.bias", take_tensor(tensors, f"{dense}.bias", shape[:1])


def take_tensor(
    tensors: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Return one tensor of a checkpoint as float32, by its name with or without ``bert.``.

    Raises:
        ModuleError: it is missing, or has another shape.
    """
    found = tensors.get(name, tensors.get(f"bert.{name}"))
    if found is None:
        raise ModuleError(f"the checkpoint lacks {name}: is it that of a BERT encoder?")
    if found.shape != shape:
        raise ModuleError(f"{name} has the shape {found.shape}, but config.json says {shape}")
    return found.astype(np.float32)
