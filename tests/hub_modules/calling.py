"""How the tests load and call the tiny modules, whatever their interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.hub_modules.kinds import BAD_MODULES, GOOD_MODULES, HubModule
from tests.hub_modules.saving import quiet_tensorflow
from tests.hub_modules.transformer import INPUT_NAMES
from tests.hub_modules.vocabulary import piece_ids, text_piece_ids


def named(name: str) -> HubModule:
    """The module of a name, good or bad."""
    return next(module for module in (*GOOD_MODULES, *BAD_MODULES) if module.name == name)


def of_kind(kind: str) -> list[HubModule]:
    """The good modules of a kind."""
    return [module for module in GOOD_MODULES if module.kind == kind]


def name_of(module: HubModule) -> str:
    """The module's name, as a test's id."""
    return module.name


def load_path(path: Path) -> Any:
    """`tf.saved_model.load`, without tags for the TF1 Hub format, as `tensorflow_hub.load`."""
    tags = [] if (path / "tfhub_module.pb").exists() else None
    with quiet_tensorflow() as tf:
        return tf.saved_model.load(str(path), tags=tags)


def strings(*texts: str) -> Any:
    """A string tensor (n,)."""
    import tensorflow as tf

    return tf.constant(list(texts), tf.string, [len(texts)])


def vectors(model: Any, *texts: str) -> Any:
    """A text module's vectors as NumPy, by its call or by its only signature and output."""
    if callable(model):
        result = model(strings(*texts))
        return (result[0] if isinstance(result, list) else result).numpy()
    (signature,) = model.signatures.values()
    (output,) = signature(strings(*texts)).values()
    return output.numpy()


def packed_ids(text: str) -> list[int]:
    """[CLS] pieces [SEP], as ids."""
    return [*piece_ids(["[CLS]"]), *text_piece_ids(text), *piece_ids(["[SEP]"])]


def piece_inputs(*texts: str, length: int, names: tuple[str, ...] = INPUT_NAMES) -> dict[str, Any]:
    """Ids, mask and types of single segments, packed in Python: int32 (B, length) each."""
    import tensorflow as tf

    ids = np.zeros((len(texts), length), np.int32)
    mask = np.zeros_like(ids)
    for row, used, text in zip(ids, mask, texts, strict=True):
        packed = packed_ids(text)
        row[: len(packed)], used[: len(packed)] = packed, 1
    arrays = (ids, mask, np.zeros_like(ids))
    return {name: tf.constant(array) for name, array in zip(names, arrays, strict=True)}


def encode(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """An encoder's outputs, by its call or its signature ``serving_default``."""
    return model(inputs) if callable(model) else model.signatures["serving_default"](**inputs)
