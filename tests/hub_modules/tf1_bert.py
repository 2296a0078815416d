"""Tiny BERT in the TF1 Hub format: bert_uncased_L-12_H-768_A-12/1 of google.

The interface is that of ``export_to_tfhub.py`` of the repository google-research/albert.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.hub_modules.saving import Tf1Signature, asset_folder, save_tf1, tf1_asset, tf1_variable
from tests.hub_modules.transformer import TransformerRecipe, draw_weights, transform
from tests.hub_modules.vocabulary import write_pieces


def make_tf1_bert(
    path: Path,
    *,
    recipe: TransformerRecipe | None = None,
    lower_case: bool = True,
    train_graph: bool = True,
    with_mlm: bool = False,
) -> Path:
    """Signatures ``tokens`` and ``tokenization_info``; with the rows of `expected_layers`.

    ``tokens`` takes int32 (B, L) ``input_ids``, ``input_mask`` and ``segment_ids`` and
    returns ``pooled_output`` (B, dim) and ``sequence_output`` (B, L, dim).
    ``tokenization_info`` takes nothing and returns ``vocab_file`` and ``do_lower_case``.

    Loaded by TensorFlow 2, ``vocab_file`` is the placeholder "SAVEDMODEL-ASSET", as with
    the real ones; the file's path is in ``asset_paths``. And as with them a graph tagged
    "train" lies beside the one without tags, so that loading needs ``tags=[]``.

    Args:
        path: The folder.
        recipe: Sizes.
        lower_case: What ``do_lower_case`` says.
        train_graph: Whether there is a "train" graph.
        with_mlm: Add ``mlm``, which takes ``mlm_positions`` too and returns ``mlm_logits``.
    """
    recipe = recipe or TransformerRecipe()
    with asset_folder() as folder:
        file = write_pieces(folder / "vocab.txt")

        def build() -> dict[str, Tf1Signature]:
            import tensorflow as tf

            inputs = _placeholders("input_ids", "input_mask", "segment_ids")
            arrays = draw_weights(recipe)
            weights = {name: tf1_variable(name, array) for name, array in arrays.items()}
            outputs = transform(weights, *inputs.values(), recipe)
            known = {name: outputs[name] for name in ("pooled_output", "sequence_output")}
            told = {
                "vocab_file": tf1_asset(file, "vocab_file"),
                "do_lower_case": tf.constant(lower_case),
            }
            signatures = {
                "tokens": Tf1Signature(inputs, known),
                "tokenization_info": Tf1Signature({}, told),
            }
            if with_mlm:
                signatures["mlm"] = _mlm_signature(inputs, known, weights)
            return signatures

        return save_tf1(path, build, train_graph=train_graph)


def _placeholders(*names: str) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.compat.v1.placeholder(tf.int32, [None, None], name=name) for name in names}


def _mlm_signature(
    inputs: dict[str, Any], outputs: dict[str, Any], weights: dict[str, Any]
) -> Tf1Signature:
    import tensorflow as tf

    positions = _placeholders("mlm_positions")
    rows = tf.gather(outputs["sequence_output"], positions["mlm_positions"], batch_dims=1)
    logits = tf.tensordot(rows, tf.transpose(weights["words"]), 1)
    return Tf1Signature({**inputs, **positions}, {**outputs, "mlm_logits": logits})
