"""The layers that Keras lacks: token vectors, a mix of layers, pooling over a text's own tokens.

Importing this module imports Keras, and registers every layer that a saved model can have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.backend import import_keras
from cnn.packing import PackTexts, UnpackTexts

__all__ = [
    "MaskedMaxOverTime",
    "MaskedMeanOverTime",
    "PackTexts",
    "ScalarMix",
    "TokenVectors",
    "UnpackTexts",
]

keras = import_keras()


@keras.saving.register_keras_serializable(package="embedcache")
class MaskedMaxOverTime(keras.layers.Layer):  # type: ignore[misc,name-defined]
    """Maximum of each feature over the tokens of a text, never over its padding.

    ``Conv1D`` ignores masks: from the second kernel position on, padding holds the bias and
    whatever of the text the kernel reaches back to, and ``GlobalMaxPooling1D`` lets it win.
    Here a position at or after the text's length cannot win, so that a text gives the same
    result alone and in a batch with longer ones. A text with no tokens gives zeros.

    Args:
        **kwargs: Those of every layer: ``name``, ``dtype``, ``trainable``.

    Call arguments:
        inputs: Tensor of shape ``(batch, steps, features)``, ``steps`` at least 1.
        lengths: Integer tensor of shape ``(batch,)``: tokens of each text, from 0 to ``steps``.

    Input shape:
        Two tensors: ``(batch, steps, features)`` and ``(batch,)``.

    Output shape:
        ``(batch, features)``, of the dtype of ``inputs``.

    Example:
        >>> inputs = np.array([[[1.0], [5.0]], [[1.0], [5.0]], [[1.0], [5.0]]])
        >>> keras.ops.convert_to_numpy(MaskedMaxOverTime()(inputs, np.array([2, 1, 0])))
        array([[5.], [1.], [0.]], dtype=float32)
    """

    def call(self, inputs: Any, lengths: Any) -> Any:
        """Maxima of shape ``(batch, features)``; see the class."""
        ops = keras.ops
        is_token, lengths = _tokens_of_texts(inputs, lengths)
        lowest = ops.cast(float("-inf"), inputs.dtype)
        maxima = ops.max(ops.where(is_token, inputs, lowest), axis=1)
        return ops.where(lengths > 0, maxima, ops.zeros_like(maxima))

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], lengths_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """``(batch, steps, features)`` and ``(batch,)`` → ``(batch, features)``."""
        del lengths_shape
        return (inputs_shape[0], inputs_shape[2])


@keras.saving.register_keras_serializable(package="embedcache")
class MaskedMeanOverTime(keras.layers.Layer):  # type: ignore[misc,name-defined]
    """Mean of each feature over the tokens of a text, never over its padding.

    A text with no tokens gives zeros.

    Args:
        **kwargs: Those of every layer: ``name``, ``dtype``, ``trainable``.

    Call arguments:
        inputs: Tensor of shape ``(batch, steps, features)``, ``steps`` at least 1.
        lengths: Integer tensor of shape ``(batch,)``: tokens of each text, from 0 to ``steps``.

    Input shape:
        Two tensors: ``(batch, steps, features)`` and ``(batch,)``.

    Output shape:
        ``(batch, features)``, of the dtype of ``inputs``.

    Example:
        >>> inputs = np.array([[[1.0], [5.0]], [[1.0], [5.0]], [[1.0], [5.0]]])
        >>> keras.ops.convert_to_numpy(MaskedMeanOverTime()(inputs, np.array([2, 1, 0])))
        array([[3.], [1.], [0.]], dtype=float32)
    """

    def call(self, inputs: Any, lengths: Any) -> Any:
        """Means of shape ``(batch, features)``; see the class."""
        ops = keras.ops
        is_token, lengths = _tokens_of_texts(inputs, lengths)
        total = ops.sum(ops.where(is_token, inputs, ops.zeros_like(inputs)), axis=1)
        return total / ops.cast(ops.maximum(lengths, 1), inputs.dtype)

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], lengths_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """``(batch, steps, features)`` and ``(batch,)`` → ``(batch, features)``."""
        del lengths_shape
        return (inputs_shape[0], inputs_shape[2])


@keras.saving.register_keras_serializable(package="embedcache")
class TokenVectors(keras.layers.Layer):  # type: ignore[misc,name-defined]
    """A trained vector for each token of a table, and zeros for number 0.

    Number 0 stands for padding and for tokens that are not in the table: its row is zero and
    stays so under any optimizer, for its gradient is always zero.

    Args:
        num_tokens: Tokens in the table, V, at least 1.
        dim: Width of the vectors.
        limit: Vectors are drawn from U(−limit, limit); 0: they start at zero.
        seed: What they are drawn from.
        **kwargs: Those of every layer: ``name``, ``dtype``, ``trainable``.

    Call arguments:
        numbers: Integer tensor of shape ``(batch, steps)``, from 0 to V.

    Input shape:
        ``(batch, steps)``.

    Output shape:
        ``(batch, steps, dim)``, float32.

    Raises:
        ValueError: if ``num_tokens`` or ``dim`` is below 1.
    """

    def __init__(
        self, num_tokens: int, dim: int, limit: float = 0.0, *, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_tokens < 1 or dim < 1:
            raise ValueError(f"num_tokens and dim must be at least 1: got {num_tokens} and {dim}")
        self.num_tokens = num_tokens
        self.dim = dim
        self.limit = limit
        self.seed = seed

    def build(self, numbers_shape: tuple[int | None, ...]) -> None:
        """Make the table, ``(V + 1, dim)``."""
        del numbers_shape
        self.table = self.add_weight(
            name="table", shape=(self.num_tokens + 1, self.dim), initializer=self._draw
        )

    def call(self, numbers: Any) -> Any:
        """The vectors, of shape ``(batch, steps, dim)``; see the class."""
        ops = keras.ops
        vectors = ops.take(self.table, numbers, axis=0)
        # Whatever row 0 is, this gives zeros, and no gradient: it stays what it was.
        return ops.where(ops.expand_dims(numbers > 0, 2), vectors, ops.zeros_like(vectors))

    def compute_output_shape(self, numbers_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """``(batch, steps)`` → ``(batch, steps, dim)``."""
        return (*numbers_shape, self.dim)

    def get_config(self) -> dict[str, Any]:
        """What the layer is made anew from."""
        own = {name: getattr(self, name) for name in ("num_tokens", "dim", "limit", "seed")}
        return {**super().get_config(), **own}

    def _draw(self, shape: tuple[int, ...], dtype: str | None = None) -> Any:
        ops = keras.ops
        if not self.limit:
            return ops.zeros(shape, dtype)
        drawn = keras.random.uniform(
            (shape[0] - 1, shape[1]), -self.limit, self.limit, dtype=dtype, seed=self.seed
        )
        return ops.concatenate([ops.zeros((1, shape[1]), drawn.dtype), drawn])


@keras.saving.register_keras_serializable(package="embedcache")
class ScalarMix(keras.layers.Layer):  # type: ignore[misc,name-defined]
    """A learned mix of several layers of a module: γ · Σⱼ softmax(s)ⱼ · hⱼ.

    Equation 1 of Peters et al. (2018), "Deep contextualized word representations". The layers
    h₁ … hₙ, of one width, lie side by side in a row; s and γ are learned, and start so that
    the result is the layers' mean: s at 0, γ at 1.

    Args:
        num_layers: Layers side by side in a row, n, at least 1.
        **kwargs: Those of every layer: ``name``, ``dtype``, ``trainable``.

    Call arguments:
        inputs: Tensor of shape ``(batch, steps, n · width)``, of any float dtype.

    Input shape:
        ``(batch, steps, n · width)``.

    Output shape:
        ``(batch, steps, width)``, of the layer's own compute dtype, as a rule float32.

    Raises:
        ValueError: if ``num_layers`` is below 1 or does not divide the inputs' last axis.

    Example:
        >>> inputs = np.array([[[1.0, 10.0, 3.0, 30.0]]])
        >>> keras.ops.convert_to_numpy(ScalarMix(2)(inputs))
        array([[[ 2., 20.]]], dtype=float32)
    """

    def __init__(self, num_layers: int, **kwargs: Any) -> None:
        # Without Keras's own cast of the whole input: each layer is cast where it is added.
        super().__init__(autocast=False, **kwargs)
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1: got {num_layers}")
        self.num_layers = num_layers

    def build(self, inputs_shape: tuple[int | None, ...]) -> None:
        """Make s, ``(n,)``, and γ, ``()``."""
        self._check_width(inputs_shape[-1])
        self.scores = self.add_weight(
            name="scores", shape=(self.num_layers,), initializer="zeros", dtype="float32"
        )
        self.gamma = self.add_weight(name="gamma", shape=(), initializer="ones", dtype="float32")

    def call(self, inputs: Any) -> Any:
        """The mix, of shape ``(batch, steps, width)``; see the class."""
        ops = keras.ops
        factors = ops.unstack(self.gamma * ops.softmax(self.scores))
        # One layer after the other: of six layers of width 384, kim's step of 50 × 24 rows took
        # 25 ms on two CPU cores, against 28 ms with an einsum and 30 ms with a sum over an axis.
        layers = ops.split(inputs, self.num_layers, axis=-1)
        mixed = [
            ops.cast(factor, self.compute_dtype) * ops.cast(layer, self.compute_dtype)
            for factor, layer in zip(factors, layers, strict=True)
        ]
        return sum(mixed[1:], start=mixed[0])

    @property
    def shares(self) -> NDArray[np.float32]:
        """softmax(s): what each layer has of the mix, ``(n,)`` float32, together 1."""
        shares: NDArray[np.float32] = keras.ops.convert_to_numpy(keras.ops.softmax(self.scores))
        return shares

    def compute_output_shape(self, inputs_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """``(batch, steps, n · width)`` → ``(batch, steps, width)``."""
        return (*inputs_shape[:-1], self._check_width(inputs_shape[-1]) // self.num_layers)

    def get_config(self) -> dict[str, Any]:
        """What the layer is made anew from."""
        return {**super().get_config(), "num_layers": self.num_layers}

    def _check_width(self, dim: int | None) -> int:
        if dim is None or dim % self.num_layers:
            raise ValueError(f"{self.num_layers} layers of one width do not make a row of {dim}")
        return dim


def _tokens_of_texts(inputs: Any, lengths: Any) -> tuple[Any, Any]:
    """Which steps are tokens, ``(batch, steps, 1)`` bool, and the lengths, ``(batch, 1)`` int32."""
    ops = keras.ops
    positions = ops.expand_dims(ops.arange(ops.shape(inputs)[1], dtype="int32"), 0)
    lengths = ops.expand_dims(ops.cast(lengths, "int32"), 1)
    return ops.expand_dims(positions < lengths, 2), lengths
