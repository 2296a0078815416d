"""A BERT encoder in TensorFlow, from a checkpoint in Hugging Face's layout.

A checkpoint is a folder with `config.json` and `model.safetensors`. The encoder is that of
Devlin et al. (2019), post-layer-norm, with absolute positions; it returns the hidden states
of every layer, not only the last. There is no dropout: it never trains.

The safetensors format is read here with NumPy alone: eight bytes of header length (little
endian), a JSON header of names, dtypes, shapes and byte ranges, then the raw tensors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from embedcache.errors import ModuleError

__all__ = ["BertConfig", "BertEncoder", "load_encoder", "read_safetensors"]

Tensors = dict[str, npt.NDArray[Any]]

_CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_segments",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation",
}
_SELF_PARTS = ("query", "key", "value")
_ACTIVATIONS = ("gelu", "gelu_new", "relu")
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_MAX_HEADER_BYTES = 100_000_000
# Added to the scores of masked positions: far below any score, and no overflow in float32.
_MASKED_SCORE = -1e9


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The sizes of an encoder, as far as its arithmetic depends on them.

    Attributes:
        vocab_size: number of pieces.
        hidden_dim: width of a hidden state.
        num_layers: number of transformer layers that are applied.
        num_heads: attention heads a layer; divides `hidden_dim`.
        intermediate_dim: width inside the feed-forward part.
        max_positions: the longest input, special tokens included.
        num_segments: number of segment embeddings, 2 for a BERT.
        layer_norm_epsilon: added to the variance in layer norms.
        activation: ``gelu`` (exact), ``gelu_new`` (tanh) or ``relu``.
    """

    vocab_size: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    intermediate_dim: int
    max_positions: int
    num_segments: int
    layer_norm_epsilon: float
    activation: str

    def __post_init__(self) -> None:
        if self.hidden_dim % self.num_heads:
            raise ModuleError(
                f"{self.num_heads} heads do not divide a hidden size of {self.hidden_dim}: "
                "the config.json is not that of a BERT encoder"
            )
        if self.activation not in _ACTIVATIONS:
            raise ModuleError(
                f"the activation {self.activation!r} is not known: "
                f"it must be one of {', '.join(_ACTIVATIONS)}"
            )

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read a `config.json` in Hugging Face's layout.

        Raises:
            ModuleError: the file cannot be read, lacks a size, or is not a BERT's.
        """
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModuleError(f"cannot read the configuration {path}: {error}") from error
        missing = [key for key in _CONFIG_KEYS if key not in settings]
        if missing:
            raise ModuleError(f"{path} lacks {', '.join(missing)}: is it the config of a BERT?")
        if settings.get("position_embedding_type", "absolute") != "absolute":
            raise ModuleError(f"{path} asks for relative positions: only absolute ones are known")
        return cls(**{field: settings[key] for key, field in _CONFIG_KEYS.items()})


def read_safetensors(path: Path) -> Tensors:
    """Read all tensors of a safetensors file.

    Returns:
        Name → array, of the shape and dtype stored. The arrays share one read-only buffer;
        bfloat16 is widened to float32.

    Raises:
        ModuleError: the file cannot be read, or is not a safetensors file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModuleError(f"cannot read the checkpoint {path}: {error}") from error
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) < 8 or header_bytes > min(_MAX_HEADER_BYTES, len(content) - 8):
        raise ModuleError(f"{path} is not a safetensors file: it is cut, or of another format")
    try:
        header = json.loads(content[8 : 8 + header_bytes])
        header.pop("__metadata__", None)
        body = memoryview(content)[8 + header_bytes :]
        return {name: _decode_tensor(body, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModuleError(f"{path} is not a safetensors file that can be read: {error}") from error


def _decode_tensor(body: memoryview, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return one tensor of a safetensors file, from its entry in the header."""
    begin, end = entry["data_offsets"]
    raw = body[begin:end]
    if entry["dtype"] == "BF16":
        # bfloat16 is the upper half of a float32.
        widened = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return widened.view(np.float32).reshape(entry["shape"])
    return np.frombuffer(raw, _DTYPES[entry["dtype"]]).reshape(entry["shape"])


class BertEncoder(tf.Module):  # type: ignore[misc]
    """The transformer: piece ids to the hidden states of every layer.

    Its weights are non-trainable float32 variables, so it can be saved in a SavedModel.
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
            name: tf.Variable(_take(tensors, name, shape), trainable=False, name=name)
            for name, shape in _weight_shapes(config).items()
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
        scores_mask = (1.0 - tf.cast(mask, tf.float32))[:, tf.newaxis, tf.newaxis, :]
        hidden = self._embed(piece_ids, segment_ids)
        states = [hidden]
        for layer in range(self.config.num_layers):
            prefix = f"encoder.layer.{layer}"
            attended = self._attend(hidden, scores_mask * _MASKED_SCORE, f"{prefix}.attention")
            hidden = self._normalize(hidden + attended, f"{prefix}.attention.output.LayerNorm")
            widened = self._activate(self._project(hidden, f"{prefix}.intermediate.dense"))
            narrowed = self._project(widened, f"{prefix}.output.dense")
            hidden = self._normalize(hidden + narrowed, f"{prefix}.output.LayerNorm")
            states.append(hidden)
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

    def _attend(self, hidden: Any, masked_scores: Any, prefix: str) -> Any:
        """Return multi-head self-attention, (batch, length, hidden_dim), before its residual."""
        head_dim = self.config.hidden_dim // self.config.num_heads
        query, key, value = (
            self._split_heads(self._project(hidden, f"{prefix}.self.{part}"))
            for part in _SELF_PARTS
        )
        scores = tf.matmul(query, key, transpose_b=True) / float(np.sqrt(head_dim))
        mixed = tf.matmul(tf.nn.softmax(scores + masked_scores), value)
        joined = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), tf.shape(hidden))
        return self._project(joined, f"{prefix}.output.dense")

    def _split_heads(self, values: Any) -> Any:
        """Turn (batch, length, hidden_dim) into (batch, heads, length, head_dim)."""
        shape = tf.shape(values)
        heads = self.config.num_heads
        split = tf.reshape(values, [shape[0], shape[1], heads, self.config.hidden_dim // heads])
        return tf.transpose(split, [0, 2, 1, 3])

    def _project(self, values: Any, prefix: str) -> Any:
        """Apply a dense layer; a checkpoint keeps its kernel as (outputs, inputs)."""
        kernel = self._weights[f"{prefix}.weight"]
        flat = tf.reshape(values, [-1, kernel.shape[1]])
        projected = tf.matmul(flat, kernel, transpose_b=True) + self._weights[f"{prefix}.bias"]
        return tf.reshape(projected, tf.concat([tf.shape(values)[:-1], [kernel.shape[0]]], 0))

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


def _weight_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every weight that the encoder needs."""
    dim, wide = config.hidden_dim, config.intermediate_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, dim),
        "embeddings.position_embeddings.weight": (config.max_positions, dim),
        "embeddings.token_type_embeddings.weight": (config.num_segments, dim),
    }
    norms = ["embeddings.LayerNorm"]
    denses: dict[str, tuple[int, int]] = {}
    for layer in range(config.num_layers):
        prefix = f"encoder.layer.{layer}"
        denses |= {f"{prefix}.attention.self.{part}": (dim, dim) for part in _SELF_PARTS}
        denses[f"{prefix}.attention.output.dense"] = (dim, dim)
        denses[f"{prefix}.intermediate.dense"] = (wide, dim)
        denses[f"{prefix}.output.dense"] = (dim, wide)
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    for name, (outputs, inputs) in denses.items():
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return shapes


def _take(
    tensors: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Return one weight as float32, or say what is wrong with it."""
    found = tensors.get(name, tensors.get(f"bert.{name}"))
    if found is None:
        raise ModuleError(f"the checkpoint lacks {name}: is it that of a BERT encoder?")
    if found.shape != shape:
        raise ModuleError(f"{name} has the shape {found.shape}, but config.json says {shape}")
    return found.astype(np.float32)
