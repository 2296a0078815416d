"""ModelSpec: what a model must know of its features. No Keras here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SINGLE = "single"
MULTILABEL = "multilabel"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model must know of the features and labels that it is for.

    Attributes:
        dim: The embedding width, all layers together.
        num_classes: Labels to tell apart: at least 2, of multilabel at least 1.
        dtype: Dtype of the values, ``"float16"`` or ``"float32"``.
        num_layers: Layers of equal width side by side in a row of values.
        task: ``"single"``: one label a text, probabilities by softmax. ``"multilabel"``: any
            number, each with a probability of its own.
        num_tokens: V, the rows of the `TokenTable` without its row 0; 0 without a table,
            that is where the embedding is static.

    Raises:
        ValueError: if a field has no legal value.
    """

    dim: int
    num_classes: int
    dtype: str
    num_layers: int = 1
    task: str = SINGLE
    num_tokens: int = 0

    def __post_init__(self) -> None:
        if self.task not in (SINGLE, MULTILABEL):
            raise ValueError(f"task must be {SINGLE} or {MULTILABEL}: got {self.task!r}")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"dtype must be float16 or float32: got {self.dtype!r}")
        least = 1 if self.task == MULTILABEL else 2
        if self.num_classes < least:
            raise ValueError(f"num_classes must be at least {least}: got {self.num_classes}")
        if self.num_layers < 1 or self.dim < 1 or self.dim % self.num_layers:
            raise ValueError(
                f"{self.num_layers} layers of one width do not make a row of {self.dim}"
            )
        if self.num_tokens < 0:
            raise ValueError(f"num_tokens must be at least 0: got {self.num_tokens}")


class ModelBatch(Protocol):
    """What `model_inputs` takes of a padded batch, such as `embedcache.stream.Batch`."""

    @property
    def values(self) -> NDArray[Any]:
        """Features, (B, L, dim), zeros from each text's length on."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each text, (B,) int32."""

    @property
    def token_numbers(self) -> NDArray[np.int32] | None:
        """Number of each token in the `TokenTable`, (B, L) int32; 0 where there is none."""


def model_inputs(model: Any, batch: ModelBatch) -> list[NDArray[Any]]:
    """What to feed a model with, in the order of its inputs.

    Args:
        model: Made by `cnn.model.build_model`, or the `ModelSpec` it was made from.
        batch: With ``token_numbers`` if the model's embedding is not static.

    Returns:
        ``[values, lengths]``, or ``[values, lengths, token_numbers]``.

    Raises:
        ValueError: if the model needs token numbers and the batch has none.
    """
    has_table = model.num_tokens > 0 if isinstance(model, ModelSpec) else len(model.inputs) > 2
    if not has_table:
        return [batch.values, batch.lengths]
    if batch.token_numbers is None:
        raise ValueError("the model has a token table: stream with token_table=… to feed it")
    return [batch.values, batch.lengths, batch.token_numbers]
