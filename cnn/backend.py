"""The one place that imports Keras, and all that depends on which backend it has."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from embedcache.errors import TrainingError
from embedcache.quiet import quiet_native_stderr

DEFAULT_BACKEND = "tensorflow"


def import_keras() -> Any:
    """The ``keras`` module, imported without its backend's lines on the terminal.

    The backend is the one that ``KERAS_BACKEND`` or the user's ``keras.json`` names, else
    TensorFlow.

    Raises:
        TrainingError: if that backend cannot be imported.
    """
    if "keras" in sys.modules:
        return sys.modules["keras"]
    if not _is_backend_chosen():
        os.environ["KERAS_BACKEND"] = DEFAULT_BACKEND
    try:
        with quiet_native_stderr():
            return import_module("keras")
    except (ImportError, ValueError) as error:
        name = os.environ.get("KERAS_BACKEND", "the one of keras.json")
        raise TrainingError(
            f"Keras cannot be imported with its backend ({name}): {error}; install it, or choose"
            f" another with the environment variable KERAS_BACKEND={DEFAULT_BACKEND}"
        ) from error


def _is_backend_chosen() -> bool:
    """Whether the environment or the user's ``keras.json`` names a backend."""
    if os.environ.get("KERAS_BACKEND"):
        return True
    # The same places that Keras looks at (keras/src/backend/config.py).
    home = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser())
    try:
        return bool(json.loads((home / "keras.json").read_text(encoding="utf-8")).get("backend"))
    except (OSError, ValueError, AttributeError):
        return False


def jit_option() -> bool | str:
    """The ``jit_compile`` to compile a model with.

    On TensorFlow False: XLA compiles every batch shape anew, and on two CPU cores its
    steps then took 90 ms where the plain graph's took 60 (kim, batch 64, dim 128).
    """
    return False if import_keras().backend.backend() == "tensorflow" else "auto"


def compiles_each_shape() -> bool:
    """Whether the backend compiles a step anew for every batch shape."""
    return bool(import_keras().backend.backend() == "jax")


def has_free_shapes() -> bool:
    """Whether a compiled step takes tensors whose size is only known while it runs."""
    return bool(import_keras().backend.backend() == "tensorflow")


@contextmanager
def without_tensorflow() -> Iterator[None]:
    """Keep Keras from importing TensorFlow, where another backend is at work.

    What saves and loads models asks on the way whether an object is TensorFlow's, and finds
    out whether TensorFlow is there by importing it: seconds, and 400 MB, for nothing. Its
    answer is kept in a place that is not public: should that move, TensorFlow is imported.
    """
    keras_modules = sys.modules.get("keras.src.utils.module_utils")
    tensorflow: Any = getattr(keras_modules, "tensorflow", None)
    is_needed = import_keras().backend.backend() == "tensorflow" or "tensorflow" in sys.modules
    if is_needed or not hasattr(tensorflow, "_available"):
        yield
        return
    before, tensorflow._available = tensorflow._available, False
    try:
        yield
    finally:
        tensorflow._available = before


def backend_versions() -> dict[str, str]:
    """What a run was made with: ``{"keras", "backend", NAME OF THE BACKEND}`` → version."""
    keras = import_keras()
    name = str(keras.backend.backend())
    version = str(getattr(sys.modules.get(name), "__version__", "unknown"))
    return {"keras": str(keras.__version__), "backend": name, name: version}
