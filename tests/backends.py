"""Where Keras's other backends are: in this environment, or in a folder that `make test` fills.

Beside the folder, not in the environment: Keras imports JAX wherever it finds it, which would
slow every other test that starts a process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def backend_path(backend: str) -> str | None:
    """The ``PYTHONPATH`` with which a process finds this checkout and a backend; None without."""
    if importlib.util.find_spec(backend) is not None:
        return os.fspath(ROOT)
    folder = Path(sys.prefix) / "backends"
    if (folder / backend).is_dir():
        return os.pathsep.join([os.fspath(ROOT), os.fspath(folder)])
    return None
