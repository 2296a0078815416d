"""The layer that Keras lacks: a maximum over the tokens that a text really has.

Importing this module imports Keras.
"""

from __future__ import annotations

from typing import Any

from cnn.backend import import_keras

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
        positions = ops.expand_dims(ops.arange(ops.shape(inputs)[1], dtype="int32"), 0)
        lengths = ops.expand_dims(ops.cast(lengths, "int32"), 1)
        is_token = ops.expand_dims(positions < lengths, 2)
        lowest = ops.cast(float("-inf"), inputs.dtype)
        maxima = ops.max(ops.where(is_token, inputs, lowest), axis=1)
        return ops.where(lengths > 0, maxima, ops.zeros_like(maxima))

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], lengths_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """``(batch, steps, features)`` and ``(batch,)`` → ``(batch, features)``."""
        del lengths_shape
        return (inputs_shape[0], inputs_shape[2])
