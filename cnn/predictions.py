"""What a run said of its dev and test texts: ``predictions.npz``."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import TrainingError
from embedcache.keys import Keys
from embedcache.store.publish import one_line

PREDICTIONS_FILE = "predictions.npz"
NO_FOLD = -1


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the kept epoch of each training said of n texts; row i is one text.

    Of a cross-validation a text is once in the test part, and once in the dev part of each
    fold that drew it.

    Attributes:
        part: ``"dev"`` or ``"test"``, (n,) ``<U4``.
        fold: Number of the fold, (n,) int32; -1 without folds.
        rows: Position of the document in the dataset, from 0 on, (n,) int64.
        keys: Key of the text, (n, 16) uint8.
        labels: Its class, (n,) int32, a place in `Run.labels`; of a multilabel run (n, C)
            uint8, 1 where it has the label.
        probabilities: Shape (n, C) float32.
    """

    part: NDArray[np.str_]
    fold: NDArray[np.int32]
    rows: NDArray[np.int64]
    keys: Keys
    labels: NDArray[Any]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.part)

    def of_part(self, part: str) -> Predictions:
        """Those of ``"dev"`` or of ``"test"``, in the order of the file."""
        return self.take(self.part == part)

    def take(self, chosen: NDArray[Any]) -> Predictions:
        """Some of them: a mask, (n,) bool, or positions."""
        return Predictions(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def to_bytes(self) -> bytes:
        """The ``.npz`` file."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        return buffer.getvalue()


def load_predictions(path: Path, run: str) -> Predictions:
    """Read a run's predictions.

    Raises:
        TrainingError: if the file is missing or damaged.
    """
    try:
        # Opened here: where the file is damaged `np.load` would leave it open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Predictions(*(arrays[field.name] for field in fields(Predictions)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path}: the file of run {run} is missing or damaged ({one_line(error)}); train"
            " again with `embedcache train`"
        ) from error
