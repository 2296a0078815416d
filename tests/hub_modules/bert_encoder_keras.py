"""The tiny encoder as Keras 2 saves it, which is how TF Hub's were made, and Keras 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.hub_modules.saving import asset_folder, quiet_tensorflow
from tests.hub_modules.transformer import (
    INPUT_NAMES,
    TransformerRecipe,
    draw_weights,
    transform,
)
from tests.hub_modules.vocabulary import write_pieces


def save_keras2(
    path: Path, recipe: TransformerRecipe, *, lower_case: bool = True, as_list: bool = False
) -> Path:
    """Save with Keras 2 (the package tf_keras, which tensorflow-hub needs)."""
    with quiet_tensorflow() as tf, asset_folder() as folder:
        import tf_keras

        layer = _layer(tf_keras.layers.Layer, recipe)
        inputs = _inputs(tf_keras)
        outputs = layer(inputs)
        if as_list:
            order = [inputs[name] for name in INPUT_NAMES]
            model = tf_keras.Model(order, [outputs["pooled_output"], outputs["sequence_output"]])
        else:
            model = tf_keras.Model(inputs, outputs)
        model.vocab_file = tf.saved_model.Asset(str(write_pieces(folder / "vocab.txt")))
        model.do_lower_case = tf.Variable(lower_case, trainable=False)
        model.save(str(path), include_optimizer=False, save_format="tf")
    return path


def save_keras3(path: Path, recipe: TransformerRecipe) -> Path:
    """Save with `keras.Model.export`: a signature ``serving_default``, and no list in it."""
    with quiet_tensorflow():
        import keras

        inputs = _inputs(keras)
        outputs = dict(_layer(keras.layers.Layer, recipe)(inputs))
        del outputs["encoder_outputs"]
        keras.Model(inputs, outputs).export(str(path), verbose=False)
    return path


def _inputs(keras: Any) -> dict[str, Any]:
    return {name: keras.Input(shape=(None,), dtype="int32", name=name) for name in INPUT_NAMES}


def _layer(base: Any, recipe: TransformerRecipe) -> Any:
    class Transformer(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="bert_encoder")
            self.drawn = {
                name: self.add_weight(
                    name=name,
                    shape=array.shape,
                    dtype="float32",
                    initializer=_constant(array),
                    trainable=True,
                )
                for name, array in draw_weights(recipe).items()
            }

        def call(self, inputs: Any, training: Any = None) -> Any:
            import tensorflow as tf

            weights = {name: tf.convert_to_tensor(value) for name, value in self.drawn.items()}
            return transform(weights, *(inputs[name] for name in INPUT_NAMES), recipe)

    return Transformer()


def _constant(array: Any) -> Any:
    def initialize(shape: Any, dtype: Any = None, **_: Any) -> Any:
        import tensorflow as tf

        return tf.constant(array)

    return initialize
