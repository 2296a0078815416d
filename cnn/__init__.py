"""cnn: light convolutional classifiers trained on features that embedcache keeps.

The public names are resolved when they are first used: importing the package loads
neither Keras nor its backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn.config import TrainConfig
    from cnn.explaining import TextExplanation, explain_texts
    from cnn.report.page import make_report
    from cnn.run import Prediction, Run, load_run
    from cnn.sweeps.bakeoff.contest import bakeoff
    from cnn.sweeps.sweeping import SweepOptions, sweep
    from cnn.training import train

_HOMES = {
    "Prediction": "cnn.run",
    "Run": "cnn.run",
    "SweepOptions": "cnn.sweeps.sweeping",
    "TextExplanation": "cnn.explaining",
    "TrainConfig": "cnn.config",
    "bakeoff": "cnn.sweeps.bakeoff.contest",
    "explain_texts": "cnn.explaining",
    "load_run": "cnn.run",
    "make_report": "cnn.report.page",
    "sweep": "cnn.sweeps.sweeping",
    "train": "cnn.training",
}

__all__ = [
    "Prediction",
    "Run",
    "SweepOptions",
    "TextExplanation",
    "TrainConfig",
    "bakeoff",
    "explain_texts",
    "load_run",
    "make_report",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cnn' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
