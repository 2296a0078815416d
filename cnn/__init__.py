"""cnn: light convolutional classifiers trained on features that embedcache keeps.

The public names are resolved when they are first used: importing the package loads
neither Keras nor its backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn.config import TrainConfig
    from cnn.run import Prediction, Run, load_run
    from cnn.training import train

_HOMES = {
    "Prediction": "cnn.run",
    "Run": "cnn.run",
    "TrainConfig": "cnn.config",
    "load_run": "cnn.run",
    "train": "cnn.training",
}

__all__ = ["Prediction", "Run", "TrainConfig", "load_run", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cnn' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
