"""New models for one training after the other: the same network is compiled once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.backend import import_keras
from cnn.config import ResolvedConfig
from cnn.spec import ModelSpec

Variables = list[NDArray[Any]]


class FreshModels:
    """Gives an untrained, compiled model for each fold.

    TensorFlow and JAX compile a model's step for seconds: where the next model would be the
    same, the one before is put back to what it was when it was new, its optimizer and the
    state of its dropout too. A model that was handed out must not be used any more then.

    Args:
        config: What the models look like.
    """

    def __init__(self, config: ResolvedConfig) -> None:
        self._config = config
        self._spec: ModelSpec | None = None
        self._model: Any = None
        self._model_variables: Variables = []
        self._optimizer_variables: Variables = []

    def make(self, spec: ModelSpec, class_weights: NDArray[Any] | None) -> Any:
        """An untrained model, ready for `cnn.model.train_step`."""
        from cnn.model import build_model, compile_model

        if self._model is not None and spec == self._spec and class_weights is None:
            assign(self._model.variables, self._model_variables)
            assign(self._model.optimizer.variables, self._optimizer_variables)
            return self._model
        model = build_model(self._config, spec)
        compile_model(model, self._config, spec, class_weights)
        model.optimizer.build(model.trainable_variables)
        self._model = None
        if class_weights is None:
            self._model, self._spec = model, spec
            self._model_variables = arrays_of(model.variables)
            self._optimizer_variables = arrays_of(model.optimizer.variables)
        return model


def arrays_of(variables: Sequence[Any]) -> Variables:
    """The values of Keras's variables, copied."""
    to_numpy = import_keras().ops.convert_to_numpy
    # On some backends the array is a view of memory that the next step writes.
    return [np.array(to_numpy(variable)) for variable in variables]


def assign(variables: Sequence[Any], values: Variables) -> None:
    """Give Keras's variables these values.

    Raises:
        ValueError: if they are others in number or shape.
    """
    shapes = [tuple(variable.shape) for variable in variables]
    if shapes != [value.shape for value in values]:
        raise ValueError(f"variables of shapes {shapes} cannot take other values")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextmanager
def without_tracing_warnings() -> Iterator[None]:
    """Keep TensorFlow from warning that it compiles the steps of several models.

    Its advice is for a function that is made anew by mistake; each model has its own.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "triggered tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
