"""The two networks, as functional Keras models. Importing this module imports Keras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cnn.backend import import_keras, jit_option
from cnn.config import ResolvedConfig
from cnn.layers import MaskedMaxOverTime, ScalarMix

HIDDEN_UNITS = 16
_MIX = "layer_mix"

keras = import_keras()


def build_model(
    config: ResolvedConfig, dim: int, num_classes: int, dtype: str, *, num_layers: int = 1
) -> Any:
    """An untrained model, not compiled.

    Its weights and its dropout depend on ``config.seed`` alone, not on Keras's global
    seed, which is left as it is.

    Args:
        config: What the preset's layers look like.
        dim: The embedding width, all layers together.
        num_classes: Width of the softmax, at least 2.
        dtype: Dtype of the values handed over, ``"float16"`` or ``"float32"``. The model
            casts float16 on the device: NumPy's own cast is slow (0.56 G elements/s).
        num_layers: Layers of equal width side by side in a row of values. Of several the
            network gets a learned mix (`ScalarMix`), ``dim / num_layers`` wide.

    Returns:
        A ``keras.Model`` with inputs ``values``, (B, L, dim) of ``dtype``, zeros from each
        text's length on, and ``lengths``, (B,) int32; output (B, num_classes) float32,
        probabilities. B and L are free, L at least 1; how far a text is padded does not
        change its output.
    """
    layers = keras.layers
    seeds = _layer_seeds(config.seed)
    values = keras.Input((None, dim), dtype=dtype, name="values")
    lengths = keras.Input((), dtype="int32", name="lengths")
    if num_layers > 1:
        tokens = ScalarMix(num_layers, dtype="float32", name=_MIX)(values)
    else:
        tokens = layers.Identity(dtype="float32", name="as_float32")(values)
    pooled = [
        MaskedMaxOverTime(name=f"max_over_time_{number}")(
            layers.Conv1D(
                config.filters,
                width,
                padding="same",
                activation="relu",
                data_format="channels_last",
                kernel_initializer=keras.initializers.GlorotUniform(next(seeds)),
                name=f"conv_{number}",
            )(tokens),
            lengths,
        )
        for number, width in enumerate(config.kernel_sizes)
    ]
    hidden = layers.Concatenate(name="features")(pooled) if len(pooled) > 1 else pooled[0]
    if config.preset == "basic":
        hidden = _dense(HIDDEN_UNITS, "relu", next(seeds), name="hidden")(hidden)
    if config.dropout > 0:
        hidden = layers.Dropout(config.dropout, seed=next(seeds), name="dropout")(hidden)
    # Without Kim's bound of 3 on each class's weights: on SST-2 and TREC Adam never came near
    # it, the runs of three seeds were the same to the last digit with it and without.
    classes = _dense(num_classes, "softmax", next(seeds), name="classes")
    return keras.Model([values, lengths], classes(hidden), name=config.preset)


def compile_model(model: Any, config: ResolvedConfig) -> None:
    """Make a model ready for ``train_on_batch`` with class numbers as targets."""
    model.compile(
        optimizer=keras.optimizers.Adam(config.learning_rate),
        loss="sparse_categorical_crossentropy",
        jit_compile=jit_option(),
    )


def learned_mix(model: Any, names: Sequence[str]) -> dict[str, Any]:
    """What a model made with several layers has learned of them, as JSON values.

    Args:
        model: By `build_model`, with ``num_layers`` above 1.
        names: The names of the layers.

    Returns:
        ``{"names", "weights", "gamma"}``: each layer's share of the mix, together 1, and the
        factor of the whole.
    """
    mix = model.get_layer(_MIX)
    gamma = float(keras.ops.convert_to_numpy(mix.gamma))
    return {"names": list(names), "weights": mix.shares.tolist(), "gamma": gamma}


def _dense(units: int, activation: str, seed: int, *, name: str) -> Any:
    return keras.layers.Dense(
        units,
        activation=activation,
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        name=name,
    )


def _layer_seeds(seed: int) -> Iterator[int]:
    """A seed for each layer that draws, all different, each below 2³¹."""
    sequence = np.random.SeedSequence(seed)
    while True:
        yield int(sequence.spawn(1)[0].generate_state(1)[0] >> 1)
