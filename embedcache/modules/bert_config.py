"""The sizes of a BERT encoder, from the `config.json` of a checkpoint. Needs no TensorFlow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from embedcache.errors import ModuleError

__all__ = ["BertConfig", "read_settings"]

_SIZE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_segments",
}
_CONFIG_KEYS = _SIZE_KEYS | {"layer_norm_eps": "layer_norm_epsilon", "hidden_act": "activation"}
_ACTIVATIONS = ("gelu", "gelu_new", "relu")


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
        settings = read_settings(path)
        missing = [key for key in _CONFIG_KEYS if key not in settings]
        if missing:
            raise ModuleError(f"{path} lacks {', '.join(missing)}: is it the config of a BERT?")
        for key in _SIZE_KEYS:
            if type(settings[key]) is not int or settings[key] < 1:
                raise ModuleError(
                    f"{path} has {settings[key]!r} for {key}: it must be a positive whole number"
                )
        epsilon = settings["layer_norm_eps"]
        if type(epsilon) not in (int, float) or epsilon < 0:
            raise ModuleError(f"{path} has {epsilon!r} for layer_norm_eps: it must be a number ≥ 0")
        if settings.get("position_embedding_type", "absolute") != "absolute":
            raise ModuleError(f"{path} asks for relative positions: only absolute ones are known")
        return cls(**{field: settings[key] for key, field in _CONFIG_KEYS.items()})


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of settings, one JSON object.

    Raises:
        ModuleError: the file cannot be read, or holds something else.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModuleError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(settings, dict):
        raise ModuleError(f"cannot read the configuration {path}: it is not a JSON object")
    return settings
