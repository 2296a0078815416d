"""Tiny transformer encoders in the TF2 format: dict → dict, and versions 1–2 of BERT.

The interface is that of ``official/nlp/tools/export_tfhub_lib.py`` and, for the versions
before it, of ``official/nlp/bert/export_tfhub.py``, both of the repository tensorflow/models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tests.hub_modules.bert_encoder_keras import save_keras2, save_keras3
from tests.hub_modules.saving import asset_folder, quiet_tensorflow, save_tf2
from tests.hub_modules.transformer import (
    INPUT_NAMES,
    TransformerRecipe,
    draw_weights,
    transform,
)
from tests.hub_modules.vocabulary import write_pieces

ALBERT = TransformerRecipe(embedding_dim=4)
ELECTRA = TransformerRecipe(dim=12, num_layers=3)


def make_bert_encoder(
    path: Path,
    *,
    recipe: TransformerRecipe | None = None,
    made_by: Literal["module", "keras2", "keras3"] = "module",
) -> Path:
    """bert_en_uncased_L-12_H-768_A-12/4 and small_bert: a dict of int32 (B, L) → a dict.

    The rows of a position do not depend on the padding, to rounding.

    Args:
        path: The folder.
        recipe: Sizes and faults.
        made_by: "module": a `tf.Module` without a signature. "keras2": a functional model of
            Keras 2 with ``vocab_file`` and ``do_lower_case``, as those on TF Hub are; its
            signature's outputs are named after layers. "keras3": `keras.Model.export`, which
            cannot be called but through its signature, and has no ``encoder_outputs``.
    """
    recipe = recipe or TransformerRecipe()
    if made_by == "keras2":
        return save_keras2(path, recipe)
    if made_by == "keras3":
        return save_keras3(path, recipe)
    return _save_encoder(path, recipe)


def make_albert(path: Path) -> Path:
    """albert_en_base/3: as BERT, with a narrower table of words and ``sp_model_file``."""
    return _save_encoder(path, ALBERT, asset_name="sp_model_file")


def make_electra(path: Path) -> Path:
    """electra_small as exported before ``default`` was added: three outputs."""
    return _save_encoder(path, ELECTRA, left_out=("default",))


def make_fixed_length_encoder(path: Path, *, length: int = 32) -> Path:
    """An encoder whose inputs have the static shape (B, ``length``), and a signature."""
    return _save_encoder(path, TransformerRecipe(), length=length, signature="serving_default")


def make_leaky_encoder(path: Path) -> Path:
    """Broken: ignores ``input_mask``, so that padding changes every row."""
    return _save_encoder(path, TransformerRecipe(leaky=True))


def make_random_encoder(path: Path) -> Path:
    """Broken: saved with its dropout on, so that no two calls agree."""
    return _save_encoder(path, TransformerRecipe(dropout=0.5))


def make_nan_encoder(path: Path) -> Path:
    """Broken: the piece "nan" makes every row of its text NaN; other texts are sound."""
    return _save_encoder(path, TransformerRecipe(nan_piece="nan"))


def make_bert_v1_tf2(
    path: Path,
    *,
    lower_case: bool = True,
    made_by: Literal["module", "keras2"] = "module",
    with_vocabulary: bool = True,
) -> Path:
    """bert_en_uncased_L-12_H-768_A-12/1–2: a list of three int32 (B, L) → a list.

    The list is [word ids, mask, type ids]; the result [pooled_output, sequence_output]. It
    has no preprocessor on TF Hub, but ``vocab_file`` (an asset) and ``do_lower_case``;
    ``with_vocabulary=False`` leaves these two out.
    """
    if made_by == "keras2":
        return save_keras2(path, TransformerRecipe(), lower_case=lower_case, as_list=True)
    recipe = TransformerRecipe()
    with quiet_tensorflow() as tf, asset_folder() as folder:
        root = _root(tf, recipe)
        if with_vocabulary:
            root.vocab_file = tf.saved_model.Asset(str(write_pieces(folder / "vocab.txt")))
            root.do_lower_case = tf.Variable(lower_case, trainable=False)
        ids = tf.TensorSpec([None, None], tf.int32)

        @tf.function(input_signature=[[ids, ids, ids]])
        def call(inputs: Any) -> Any:
            outputs = transform(root.weights, *inputs, recipe)
            return [outputs["pooled_output"], outputs["sequence_output"]]

        root.__call__ = call
        return save_tf2(root, path)


def _save_encoder(
    path: Path,
    recipe: TransformerRecipe,
    *,
    length: int | None = None,
    left_out: tuple[str, ...] = (),
    asset_name: str = "",
    signature: str = "",
) -> Path:
    with quiet_tensorflow() as tf, asset_folder() as folder:
        root = _root(tf, recipe)
        if asset_name:
            file = write_pieces(folder / "30k-clean.model")
            setattr(root, asset_name, tf.saved_model.Asset(str(file)))
        specs = {name: tf.TensorSpec([None, length], tf.int32, name) for name in INPUT_NAMES}

        @tf.function(input_signature=[specs])
        def call(inputs: Any) -> Any:
            outputs = transform(root.weights, *(inputs[name] for name in INPUT_NAMES), recipe)
            return {name: value for name, value in outputs.items() if name not in left_out}

        root.__call__ = call
        signatures = {}
        if signature:
            flat = tf.function(lambda **inputs: _flat_outputs(call(inputs)))
            signatures = {signature: flat.get_concrete_function(**specs)}
        return save_tf2(root, path, signatures)


def _root(tf: Any, recipe: TransformerRecipe) -> Any:
    root = tf.Module()
    root.weights = {name: tf.Variable(array) for name, array in draw_weights(recipe).items()}
    return root


def _flat_outputs(outputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs that a signature can return: tensors only."""
    return {name: value for name, value in outputs.items() if name != "encoder_outputs"}
