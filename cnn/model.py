"""The networks, as functional Keras models. Importing this module imports Keras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.backend import import_keras, jit_option
from cnn.config import ResolvedConfig
from cnn.layers import MaskedMaxOverTime, MaskedMeanOverTime, ScalarMix, TokenVectors
from cnn.losses import make_accuracy, make_loss
from cnn.packing import PackTexts, UnpackTexts
from cnn.spec import MULTILABEL, ModelBatch, ModelSpec, model_inputs

HIDDEN_UNITS = 16
RANDOM_LIMIT = 0.25
"""Random vectors are drawn from U(−0.25, 0.25), as in the code that came with Kim (2014)."""

_ADADELTA_RHO = 0.95  # Kim (2014), section 3.1.
_ADADELTA_EPSILON = 1e-6  # Zeiler (2012), section 4.1.
_MIX = "layer_mix"
_TABLE_STREAM = 0x7461626C

__all__ = [
    "ModelBatch",
    "ModelSpec",
    "build_model",
    "compile_model",
    "learned_mix",
    "model_inputs",
    "train_step",
]

keras = import_keras()


def build_model(config: ResolvedConfig, spec: ModelSpec) -> Any:
    """An untrained model, not compiled.

    Its weights and its dropout depend on ``config.seed`` alone, not on Keras's global
    seed, which is left as it is.

    Args:
        config: What the preset's layers look like, and its embedding.
        spec: What the features and the labels look like. The model casts float16 on the
            device: NumPy's own cast is slow (0.56 G elements/s). Of several layers the network
            gets a learned mix (`ScalarMix`), ``dim / num_layers`` wide.

    Returns:
        A ``keras.Model`` with inputs ``values``, (B, L, dim) of ``spec.dtype``, zeros from
        each text's length on; ``lengths``, (B,) int32; and, if ``config.embedding`` is not
        static, ``token_numbers``, (B, L) int32. Output (B, num_classes) float32,
        probabilities. B and L are free, L at least 1; how far a text is padded does not
        change its output.

    Raises:
        ValueError: if the embedding needs a token table and the spec has none, or the other
            way round, or the view has several layers.
    """
    _check_embedding(config, spec)
    layers = keras.layers
    seeds = _layer_seeds(config.seed)
    values = keras.Input((None, spec.dim), dtype=spec.dtype, name="values")
    lengths = keras.Input((), dtype="int32", name="lengths")
    inputs = [values, lengths]
    if config.embedding != "static":
        inputs.append(keras.Input((None,), dtype="int32", name="token_numbers"))
    if config.preset == "linear":
        hidden = _averaged(config, spec, inputs)
    else:
        hidden = _convolved(config, spec, inputs, seeds)
    if config.preset == "basic":
        hidden = _dense(HIDDEN_UNITS, "relu", next(seeds), name="hidden")(hidden)
    if config.dropout > 0:
        hidden = layers.Dropout(config.dropout, seed=next(seeds), name="dropout")(hidden)
    classes = _dense(
        spec.num_classes,
        "sigmoid" if spec.task == MULTILABEL else "softmax",
        next(seeds),
        name="classes",
        # Of each class's weights, a column of the kernel. Kim (2014), section 2.2.
        max_norm=config.max_norm,
    )
    return keras.Model(inputs, classes(hidden), name=config.preset)


def compile_model(
    model: Any,
    config: ResolvedConfig,
    spec: ModelSpec,
    class_weights: NDArray[Any] | None = None,
) -> None:
    """Make a model ready for `train_step`.

    Targets are class numbers, (B,), or for multilabel 0 and 1 of each label, (B, C).
    ``train_on_batch`` then gives ``[loss, accuracy]``.

    Args:
        model: By `build_model`.
        config: Says the optimizer and its rate.
        spec: Says the task.
        class_weights: (C,), as `cnn.losses.balanced_class_weights` gives them; the loss that
            is reported has them in it. None: every class weighs 1.

    Raises:
        ValueError: if there is not one weight a class.
    """
    if class_weights is not None and np.shape(class_weights) != (spec.num_classes,):
        raise ValueError(
            f"class_weights must have the shape ({spec.num_classes},):"
            f" got {np.shape(class_weights)}"
        )
    model.compile(
        optimizer=_make_optimizer(config),
        loss=make_loss(spec.task, class_weights),
        metrics=[make_accuracy(spec.task)],
        jit_compile=jit_option(),
    )


def train_step(
    model: Any, inputs: Sequence[NDArray[Any]], labels: NDArray[Any]
) -> tuple[float, float]:
    """One step; the loss and the accuracy of this batch alone, with dropout.

    Args:
        model: Compiled by `compile_model`.
        inputs: As `model_inputs` gives them.
        labels: (B,) int32, or for multilabel (B, C) uint8.
    """
    # Up to Keras 3.12 at least these are otherwise running means. Costs 0.16 ms.
    model.reset_metrics()
    loss, accuracy = model.train_on_batch(list(inputs), labels)
    return float(loss), float(accuracy)


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


def _check_embedding(config: ResolvedConfig, spec: ModelSpec) -> None:
    if config.embedding == "static":
        if spec.num_tokens:
            raise ValueError("a static embedding has no token table: num_tokens must be 0")
        return
    if not spec.num_tokens:
        raise ValueError(f"embedding {config.embedding} needs a token table: num_tokens is 0")
    if spec.num_layers > 1:
        raise ValueError(f"embedding {config.embedding} is for views of one layer only")


def _token_vectors(config: ResolvedConfig, spec: ModelSpec, values: Any, numbers: Any) -> Any:
    """The vectors, float32, that are convolved, or of which the mean is taken.

    Args:
        config: Says the embedding.
        spec: Says the widths.
        values: (B, L, dim), or packed.
        numbers: (B, L), or packed; None where the embedding is static.
    """
    layers = keras.layers
    if spec.num_layers > 1:
        return ScalarMix(spec.num_layers, dtype="float32", name=_MIX)(values)
    if config.embedding == "rand":
        seed = _table_seed(config.seed)
        return TokenVectors(spec.num_tokens, spec.dim, RANDOM_LIMIT, seed=seed, name="table")(
            numbers
        )
    static = layers.Identity(dtype="float32", name="as_float32")(values)
    if config.embedding == "static":
        return static
    # Added to the cached vectors, with the same gradients as a table that starts from them:
    # but a token that is not in the table keeps its cached vector.
    change = TokenVectors(spec.num_tokens, spec.dim, name="change")(numbers)
    nonstatic = layers.Add(name="nonstatic")([static, change])
    if config.embedding == "nonstatic":
        return nonstatic
    return layers.Concatenate(name="channels")([static, nonstatic])


def _convolved(
    config: ResolvedConfig, spec: ModelSpec, inputs: Sequence[Any], seeds: Iterator[int]
) -> Any:
    """The maximum of each filter over a text, (B, widths · filters)."""
    layers = keras.layers
    values, lengths, *rest = inputs
    gap = max(config.kernel_sizes) // 2
    packed = PackTexts(gap, name="packed")(values, lengths)
    numbers = PackTexts(gap, name="packed_numbers")(rest[0], lengths) if rest else None
    tokens = _token_vectors(config, spec, packed, numbers)
    pooled = []
    for number, width in enumerate(config.kernel_sizes):
        convolved = layers.Conv1D(
            config.filters,
            width,
            padding="same",
            activation="relu",
            data_format="channels_last",
            kernel_initializer=keras.initializers.GlorotUniform(next(seeds)),
            name=f"conv_{number}",
        )(tokens)
        unpacked = UnpackTexts(gap, name=f"texts_{number}")(convolved, lengths, values)
        pooled.append(MaskedMaxOverTime(name=f"max_over_time_{number}")(unpacked, lengths))
    return layers.Concatenate(name="features")(pooled) if len(pooled) > 1 else pooled[0]


def _averaged(config: ResolvedConfig, spec: ModelSpec, inputs: Sequence[Any]) -> Any:
    """The mean of a text's vectors, (B, width)."""
    values, lengths, *rest = inputs
    tokens = _token_vectors(config, spec, values, rest[0] if rest else None)
    return MaskedMeanOverTime(name="features")(tokens, lengths)


def _make_optimizer(config: ResolvedConfig) -> Any:
    if config.optimizer == "adadelta":
        return keras.optimizers.Adadelta(
            config.learning_rate, rho=_ADADELTA_RHO, epsilon=_ADADELTA_EPSILON
        )
    return keras.optimizers.Adam(config.learning_rate)


def _dense(units: int, activation: str, seed: int, *, name: str, max_norm: float = 0.0) -> Any:
    return keras.layers.Dense(
        units,
        activation=activation,
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        kernel_constraint=keras.constraints.MaxNorm(max_norm, axis=0) if max_norm else None,
        name=name,
    )


def _layer_seeds(seed: int) -> Iterator[int]:
    """A seed for each layer that draws, all different, each below 2³¹."""
    sequence = np.random.SeedSequence(seed)
    while True:
        yield int(sequence.spawn(1)[0].generate_state(1)[0] >> 1)


def _table_seed(seed: int) -> int:
    """Apart from those of the layers, which are the same whatever the embedding."""
    return int(np.random.SeedSequence((_TABLE_STREAM, seed)).generate_state(1)[0] >> 1)
