"""Where features come from: matrices in a file, with their shapes known before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import ExchangeError
from embedcache.keys import Keys
from embedcache.modules.handles import IMPORTED_PREFIX, IMPORTED_SIGNATURE
from embedcache.view import FeatureView

ALL_LAYERS = "all"
MAX_LENGTH = (1 << 31) - 1
"""Imported texts are as long as they are: nothing is cut."""

NUMBER_DTYPES = tuple(np.dtype(name) for name in ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8"))


@dataclass(frozen=True, slots=True)
class Layers:
    """How a file's layers become rows.

    Attributes:
        count: Layers in the file; 0 where its matrices have no axis of layers.
        chosen: The one that is taken; None: all, side by side.
        dim: Width of one layer.
    """

    count: int
    chosen: int | None
    dim: int

    @property
    def width(self) -> int:
        """Width of a row: of all layers that are taken together."""
        return self.dim * (self.count if self.chosen is None and self.count else 1)

    @property
    def output(self) -> str:
        """As a view's ``output`` says it."""
        if not self.count:
            return ""
        if self.chosen is not None:
            return str(self.chosen)
        return f"{ALL_LAYERS}:{','.join(map(str, range(self.count)))}"

    def rows_of(self, array: NDArray[Any]) -> NDArray[Any]:
        """A matrix (T, dim), or layers (count, T, dim), as rows (T, width)."""
        if not self.count:
            return array
        if self.chosen is not None:
            return np.asarray(array[self.chosen])
        return np.moveaxis(array, 0, 1).reshape(array.shape[1], self.width)


@dataclass(frozen=True, slots=True)
class StoredDocuments:
    """What a file of `embedcache.exchange.npz_writer` tells of its documents.

    Attributes:
        keys: Of each, (n, 16).
        truncated: Whether each was cut, (n,) bool.
        labels: The labels of each; None if there are none at all.
        splits: The split of each; None likewise.
        ids: The id of each; None likewise.
    """

    keys: Keys
    truncated: NDArray[np.bool_]
    labels: Sequence[tuple[str, ...]] | None
    splits: Sequence[str] | None
    ids: Sequence[str] | None


class FeatureSource(AbstractContextManager["FeatureSource"], Protocol):
    """The matrices of n texts in a file, in an order of its own.

    Attributes:
        path: The file.
        lengths: Rows of each, (n,) int64.
        layers: How its layers become rows.
        dtype: Of its numbers.
        is_tokenized: Whether a row stands for a token of the text split at white space.
        is_stateful: Whether the same text may rightly have several matrices.
        blanks_left_out: Whether a blank line has a matrix of no rows (False) or none at all
            (True); None where both are possible.
        sentences: The number of the matrix of each sentence, where the file tells.
        documents: What it tells of its documents, if it does.
        exported_view: The view that `embedcache export` wrote into it.
    """

    path: str
    lengths: NDArray[np.int64]
    layers: Layers
    dtype: np.dtype[Any]
    is_tokenized: bool
    is_stateful: bool
    blanks_left_out: bool | None
    sentences: dict[str, int] | None
    documents: StoredDocuments | None
    exported_view: FeatureView | None

    def read(self, first: int, last: int) -> NDArray[Any]:
        """The rows of texts [first, last), (T, width); calls must ask in ascending order.

        Raises:
            ExchangeError: if the file does not hold what it claims.
        """
        ...

    def name_of(self, text: int) -> str:
        """What errors call a text's matrix: ``dataset '3'``."""
        ...


def view_of_source(source: FeatureSource, name: str, dtype: str | None) -> FeatureView:
    """The view that a source's features are kept under.

    Its module is the name that the user gave: features imported under one name, of one
    shape, are one view.

    Args:
        source: The file.
        name: As which they are imported.
        dtype: The storage dtype; None: float16 for float16, else float32.
    """
    digest = blake2b(f"{IMPORTED_PREFIX}{name}".encode(), digest_size=16).hexdigest()
    stored = dtype or ("float16" if source.dtype.itemsize == 2 else "float32")
    exported = source.exported_view
    layers = source.layers
    if exported is not None:
        return FeatureView(
            module_digest=digest,
            signature=IMPORTED_SIGNATURE,
            output=exported.output,
            granularity=exported.granularity,
            tokenizer=exported.tokenizer,
            dim=exported.dim,
            max_tokens=exported.max_tokens,
            overflow=exported.overflow,
            dtype=stored,
            keep_special_tokens=exported.keep_special_tokens,
            num_layers=exported.num_layers,
            context_words=exported.context_words,
            overlap_tokens=exported.overlap_tokens,
        )
    return FeatureView(
        module_digest=digest,
        signature=IMPORTED_SIGNATURE,
        output=layers.output,
        tokenizer="space" if source.is_tokenized else "imported",
        dim=layers.width,
        max_tokens=MAX_LENGTH,
        overflow="error",
        dtype=stored,
        num_layers=layers.count if layers.count > 1 and layers.chosen is None else 1,
    )


def choose_layers(path: str, shape: tuple[int, ...], layer: str | None) -> Layers:
    """The layers of matrices of this shape.

    Args:
        path: The file, for errors.
        shape: (T, dim), or (layers, T, dim).
        layer: ``"all"`` or None: all of them; else the number of one, from 0.

    Raises:
        ExchangeError: if there is no such layer.
    """
    count = shape[0] if len(shape) == 3 else 0
    if layer in (None, ALL_LAYERS):
        return Layers(count, None, shape[-1])
    numbers = ", ".join(map(str, range(count)))
    if not count:
        raise ExchangeError(
            f"{path}: holds one vector a token and no layers; leave --layer {layer} out"
        )
    if layer is None or not layer.isdecimal() or int(layer) >= count:
        raise ExchangeError(
            f"{path}: has no layer {layer!r}; give --layer {ALL_LAYERS} or one of {numbers}"
        )
    return Layers(count, int(layer), shape[-1])


class ShapeList:
    """Collects the shapes of matrices that must agree in all but their lengths."""

    def __init__(self, path: str, layer: str | None) -> None:
        self._path = path
        self._layer = layer
        self._first: tuple[tuple[int, ...], np.dtype[Any], str] | None = None
        self.lengths: list[int] = []

    def add(self, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
        """Take one.

        Raises:
            ExchangeError: if it is no matrix of numbers, or does not fit the first one.
        """
        where = f"{self._path}: {name}"
        if dtype not in NUMBER_DTYPES:
            raise ExchangeError(f"{where} holds {dtype}; features must be float16, 32 or 64")
        if len(shape) not in (2, 3) or shape[-1] < 1 or (len(shape) == 3 and shape[0] < 1):
            raise ExchangeError(
                f"{where} has the shape {shape}; features must be (tokens, dim) or (layers,"
                " tokens, dim)"
            )
        if self._first is None:
            self._first = (shape, dtype, name)
        first, first_dtype, first_name = self._first
        if (*shape[:-2], shape[-1]) != (*first[:-2], first[-1]) or dtype != first_dtype:
            raise ExchangeError(
                f"{where} is {shape} {dtype}, but {first_name} is {first} {first_dtype}; all"
                " must agree in layers, dim and dtype"
            )
        self.lengths.append(shape[-2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of all of them."""
        return self._require_first()[1]

    @property
    def layers(self) -> Layers:
        """Those of all of them.

        Raises:
            ExchangeError: if the layer that was asked for is not there, or there is no matrix.
        """
        return choose_layers(self._path, self._require_first()[0], self._layer)

    def _require_first(self) -> tuple[tuple[int, ...], np.dtype[Any], str]:
        if self._first is None:
            raise ExchangeError(f"{self._path}: holds no features; name the file that does")
        return self._first
