"""Tiny BERT checkpoints with random weights, and BERT in plain NumPy to check against."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

Tensors = dict[str, np.ndarray]

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "un", "##aff", "##able", "##ab"]
PIECES += ["##l", "##e", "a", "cafe", "dog", "##s", "s", "'", "low", "##er"]
CONFIG = {
    "vocab_size": len(PIECES),
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
}
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "uint16": "BF16"}


def random_tensors(config: dict, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    dim, wide = config["hidden_size"], config["intermediate_size"]
    tensors: Tensors = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        tensors[name] = (around + 0.5 * rng.normal(size=shape)).astype(np.float32)

    def add_dense(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def add_norm(name: str) -> None:
        add(f"{name}.weight", dim, around=1.0)
        add(f"{name}.bias", dim)

    add("embeddings.word_embeddings.weight", config["vocab_size"], dim)
    add("embeddings.position_embeddings.weight", config["max_position_embeddings"], dim)
    add("embeddings.token_type_embeddings.weight", config["type_vocab_size"], dim)
    add_norm("embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            add_dense(f"{prefix}.attention.self.{part}", dim, dim)
        add_dense(f"{prefix}.attention.output.dense", dim, dim)
        add_norm(f"{prefix}.attention.output.LayerNorm")
        add_dense(f"{prefix}.intermediate.dense", dim, wide)
        add_dense(f"{prefix}.output.dense", wide, dim)
        add_norm(f"{prefix}.output.LayerNorm")
    tensors["embeddings.position_ids"] = np.arange(config["max_position_embeddings"])[None]
    return tensors


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    encoded = json.dumps(header).encode()
    body = b"".join(array.tobytes() for array in tensors.values())
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)


def write_checkpoint(folder: Path, config: dict, tensors: Tensors) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


# BERT in plain NumPy, one sequence at a time, without padding


def layer_norm(values: np.ndarray, weights: Tensors, name: str) -> np.ndarray:
    centred = values - values.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def dense(values: np.ndarray, weights: Tensors, name: str) -> np.ndarray:
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(hidden: np.ndarray, weights: Tensors, name: str, num_heads: int) -> np.ndarray:
    query, key, value = (
        dense(hidden, weights, f"{name}.self.{p}") for p in ("query", "key", "value")
    )
    head_dim = hidden.shape[1] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        weight = np.exp(query[:, part] @ key[:, part].T / math.sqrt(head_dim))
        heads.append(weight / weight.sum(axis=1, keepdims=True) @ value[:, part])
    return dense(np.concatenate(heads, axis=1), weights, f"{name}.output.dense")


def gelu(values: np.ndarray) -> np.ndarray:
    return values * 0.5 * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))


def plain_bert(
    config: dict, tensors: Tensors, piece_ids: list[int], segment_ids: list[int]
) -> list[np.ndarray]:
    weights = {name: array.astype(np.float64) for name, array in tensors.items()}
    hidden = weights["embeddings.word_embeddings.weight"][piece_ids]
    hidden = hidden + weights["embeddings.position_embeddings.weight"][: len(piece_ids)]
    hidden = hidden + weights["embeddings.token_type_embeddings.weight"][segment_ids]
    states = [layer_norm(hidden, weights, "embeddings.LayerNorm")]
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        hidden = states[-1]
        mixed = attention(hidden, weights, f"{name}.attention", config["num_attention_heads"])
        hidden = layer_norm(hidden + mixed, weights, f"{name}.attention.output.LayerNorm")
        wide = gelu(dense(hidden, weights, f"{name}.intermediate.dense"))
        narrow = dense(wide, weights, f"{name}.output.dense")
        states.append(layer_norm(hidden + narrow, weights, f"{name}.output.LayerNorm"))
    return states
